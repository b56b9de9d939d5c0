"""Where `Softmin` is stable: a picture over its temperature and its rate."""

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes

from dgdlb_jax.numerics.formatting import number, seconds
from dgdlb_jax.reports.axes import finish, new_axes, plain_log
from dgdlb_jax.reports.softmin_text import SoftminReport
from dgdlb_jax.reports.stable_region import STABLE, SWINGS, explain, mark, save
from dgdlb_jax.studies.softmin import critical_rate

_POINTS, _AROUND = 48, 30.0  # temperatures, and by which factor up and down


def softmin_region_plot(report: SoftminReport, *, ax: Axes | None = None) -> Axes:
    """The stable part of the plane of temperature and rate; the cross is where the policy is, triangles are edges that a simulation found.

    **Returns:** the axes.
    """
    found = report.found
    rate, temperature = found.limits
    edges = temperature.edges  # in the picture, with room around them
    coldest = min([temperature.now / _AROUND, *(edge / 2 for edge in edges)])
    warmest = max([temperature.now * _AROUND, *(edge * 2 for edge in edges)])
    x = np.geomspace(coldest, warmest, _POINTS)
    critical = np.array([critical_rate(found.network, found.policy, value)[0] for value in x])
    known = critical[np.isfinite(critical)]
    low, high = (min([rate.now, *known]) / 3, max([rate.now, *known]) * 3)
    ax = new_axes((7, 5)) if ax is None else ax
    edge = np.clip(np.where(np.isnan(critical), low, critical), low, high)
    ax.fill_between(x, low, edge, color=STABLE, lw=0)
    ax.fill_between(x, edge, high, color=SWINGS, lw=0)
    ax.plot(x, critical, color="black", lw=1.5)
    ax.set(xscale="log", yscale="log", xlim=(x[0], x[-1]), ylim=(low, high))
    plain_log(ax.xaxis)
    plain_log(ax.yaxis)
    along = [(np.sqrt(first * last), rate.now) for first, last in temperature.simulated]
    up = [(temperature.now, np.sqrt(first * last)) for first, last in rate.simulated]
    mark(ax, (temperature.now, rate.now), along + up)
    finish(ax, "temperature (s)", "rate (1/s)", f"{found.network.name or 'network'}: {report.label}")
    explain(ax, f"{seconds(temperature.now)}, {number(rate.now)} 1/s")
    return ax


def save_softmin_region(report: SoftminReport, folder: Path) -> list[Path]:
    """Write `stable.png` into a folder. **Returns:** the paths written."""
    return save(softmin_region_plot(report), folder)
