"""The limit of a step size as people see it: where swings begin in simulation, and a picture over step size and interval of reports."""

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes

from dgdlb_jax.equilibrium.optimum import Optimum
from dgdlb_jax.model.network import Network
from dgdlb_jax.numerics.formatting import seconds
from dgdlb_jax.policies.base import AbstractPolicy
from dgdlb_jax.policies.estimates import Scraped
from dgdlb_jax.reports.axes import finish, new_axes, plain_log
from dgdlb_jax.reports.stable_region import STABLE, SWINGS, explain, mark, save
from dgdlb_jax.studies.news import limits_behind_reports
from dgdlb_jax.studies.onset import Onset

_POINTS = 17  # intervals of reports
_SHORTEST, _LONGEST = 1 / 300, 10.0  # of them, in periods of the swing: nearly at once, and far too long
_AROUND = 3.0  # by which factor the picture goes on


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
    ax.fill_between(intervals, bottom, limits, color=STABLE, lw=0)
    ax.fill_between(intervals, limits, top, color=SWINGS, lw=0)
    ax.plot(intervals, limits, color="black", lw=1.5)
    ax.set(xscale="log", yscale="log", xlim=(low, high), ylim=(bottom, top))
    plain_log(ax.xaxis)
    plain_log(ax.yaxis)
    place = now or low
    found = [] if onset is None or not onset.found else [(place, np.sqrt(onset.stable * onset.unstable))]
    mark(ax, (place, 1.0), found)
    finish(ax, "interval of reports (s)", "step size / that of dgdlb run", f"{network.name or 'network'}: {label}")
    explain(ax, seconds(now) if now else "every report at once")
    return ax


def save_step_size_region(folder: Path, *case, **options) -> list[Path]:
    """Write `stable.png` into a folder. **Arguments:** as for `step_size_region_plot`. **Returns:** the paths written."""
    return save(step_size_region_plot(*case, **options), folder)
