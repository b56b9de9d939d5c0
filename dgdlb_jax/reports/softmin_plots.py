"""Where `Softmin` is stable: a picture over its temperature and its rate."""

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Patch

from dgdlb_jax.numerics.formatting import number, seconds
from dgdlb_jax.reports.axes import as_written, finish, new_axes, plain_log, save_png
from dgdlb_jax.reports.softmin_text import SoftminReport
from dgdlb_jax.studies.softmin import critical_rate

_POINTS, _AROUND = 48, 30.0  # temperatures, and by which factor up and down


def softmin_region_plot(report: SoftminReport, *, ax: Axes | None = None) -> Axes:
    """The stable part of the plane of temperature and rate; the cross is where the policy is, triangles are edges that a simulation found.

    **Returns:** the axes.
    """
    found = report.found
    rate, temperature = found.limits
    x = np.geomspace(temperature.now / _AROUND, temperature.now * _AROUND, _POINTS)
    critical = np.array([critical_rate(found.network, found.policy, value)[0] for value in x])
    known = critical[np.isfinite(critical)]
    low, high = (min([rate.now, *known]) / 3, max([rate.now, *known]) * 3)
    ax = new_axes((7, 5)) if ax is None else ax
    edge = np.clip(np.where(np.isnan(critical), low, critical), low, high)
    ax.fill_between(x, low, edge, color="#BFE3D0", lw=0)
    ax.fill_between(x, edge, high, color="#F2C9B0", lw=0)
    ax.plot(x, critical, color="black", lw=1.5)
    for limit, place in ((temperature, "x"), (rate, "y")):
        for pair in limit.simulated:
            middle = float(np.sqrt(pair[0] * pair[1]))
            spot = (middle, rate.now) if place == "x" else (temperature.now, middle)
            if np.isfinite(middle) and x[0] <= spot[0] <= x[-1] and low <= spot[1] <= high:
                ax.plot(*spot, "^", color="#0072B2", ms=9, clip_on=False)
    ax.plot(temperature.now, rate.now, "+", color="black", ms=14, mew=2.5)
    ax.set(xscale="log", yscale="log", xlim=(x[0], x[-1]), ylim=(low, high))
    plain_log(ax.xaxis)
    plain_log(ax.yaxis)
    finish(ax, "temperature (s)", "rate (1/s)", f"{found.network.name or 'network'}: {report.label}")
    now = f"now: {seconds(temperature.now)}, {number(rate.now)} 1/s"
    marks = [
        Patch(color="#BFE3D0", label="small deviations die out"),
        Patch(color="#F2C9B0", label="traffic swings"),
        *ax.plot([], [], "+", color="black", ms=12, mew=2.5, label=now),
        *ax.plot([], [], "^", color="#0072B2", ms=8, label="edge in simulation"),
    ]
    ax.legend(handles=marks, frameon=False, loc="upper left", bbox_to_anchor=(0, -0.13), ncols=2)
    return ax


def save_softmin_region(report: SoftminReport, folder: Path) -> list[Path]:
    """Write `stable.png` into a folder. **Returns:** the paths written."""
    target = folder / "stable.png"
    save_png(as_written(softmin_region_plot(report)).get_figure(root=True), target)  # pyright: ignore[reportArgumentType]
    return [target]
