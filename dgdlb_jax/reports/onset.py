"""The limit of a step size as people see it: where swings begin in simulation, and a picture over step size and interval of reports."""

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Patch

from dgdlb_jax.equilibrium.optimum import Optimum
from dgdlb_jax.model.network import Network
from dgdlb_jax.numerics.formatting import seconds
from dgdlb_jax.policies.base import AbstractPolicy
from dgdlb_jax.policies.estimates import Scraped
from dgdlb_jax.reports.axes import as_written, finish, new_axes, plain_log, save_png
from dgdlb_jax.studies.news import limits_behind_reports
from dgdlb_jax.studies.onset import Onset

_POINTS = 17  # intervals of reports
_SHORTEST, _LONGEST = 1 / 300, 10.0  # of them, in periods of the swing: nearly at once, and far too long
_AROUND = 3.0  # by which factor the picture goes on
_CALM, _SWINGS = "#BFE3D0", "#F2C9B0"


def step_size_region_plot(
    network: Network,
    policy: AbstractPolicy,
    optimum: Optimum,
    label: str,
    period: float,
    *,
    news: Scraped | None = None,
    onset: Onset | None = None,
    ax: Axes | None = None,
) -> Axes:
    """The stable part of the plane of step size and interval of reports, clocks in step; for a rule that has a limit.

    **Arguments:** a single `network` with its `optimum`; `policy`: as `dgdlb run` makes it, `label` its name; `period`: of the swing at its
    limit, seconds; `news`: how reports come now, each at once by default; `onset`: where runs begin to grow.

    **Returns:** the axes. The cross is where the policy is, the triangle what was simulated.
    """
    now = 0.0 if news is None else float(np.max(news.interval))
    low, high = _SHORTEST * period, _LONGEST * period
    low, high = (min(low, now / _AROUND), max(high, now * _AROUND)) if now else (low, high)
    intervals = np.geomspace(low, high, _POINTS)
    limits = limits_behind_reports(network, policy, optimum, intervals)
    ax = new_axes((7, 5)) if ax is None else ax
    bottom, top = min(limits.min(), 1.0) / _AROUND, max(limits.max(), 1.0) * _AROUND
    ax.fill_between(intervals, bottom, limits, color=_CALM, lw=0)
    ax.fill_between(intervals, limits, top, color=_SWINGS, lw=0)
    ax.plot(intervals, limits, color="black", lw=1.5)
    place = now or low
    if onset is not None and onset.found:
        ax.plot(place, np.sqrt(onset.stable * onset.unstable), "^", color="#0072B2", ms=9, clip_on=False)
    ax.plot(place, 1.0, "+", color="black", ms=14, mew=2.5, clip_on=False)
    ax.set(xscale="log", yscale="log", xlim=(low, high), ylim=(bottom, top))
    plain_log(ax.xaxis)
    plain_log(ax.yaxis)
    finish(ax, "interval of reports (s)", "step size / that of dgdlb run", f"{network.name or 'network'}: {label}")
    marks = [
        Patch(color=_CALM, label="small deviations die out"),
        Patch(color=_SWINGS, label="traffic swings"),
        *ax.plot(
            [], [], "+", color="black", ms=12, mew=2.5, label=f"now: {seconds(now) if now else 'every report at once'}"
        ),
        *ax.plot([], [], "^", color="#0072B2", ms=8, label="edge in simulation"),
    ]
    ax.legend(handles=marks, frameon=False, loc="upper left", bbox_to_anchor=(0, -0.13), ncols=2)
    return ax


def save_step_size_region(folder: Path, *case, **options) -> list[Path]:
    """Write `stable.png` into a folder. **Arguments:** as for `step_size_region_plot`. **Returns:** the paths written."""
    target = folder / "stable.png"
    axes = as_written(step_size_region_plot(*case, **options))
    save_png(axes.get_figure(root=True), target)  # pyright: ignore[reportArgumentType]
    return [target]
