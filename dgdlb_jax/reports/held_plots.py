"""Where a balancer that holds its weights is stable: a picture over two of its settings."""

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes

from dgdlb_jax.numerics.formatting import percent, seconds
from dgdlb_jax.numerics.results import InputError
from dgdlb_jax.reports.axes import finish, new_axes, plain_log
from dgdlb_jax.reports.held_text import HeldReport
from dgdlb_jax.reports.stable_region import STABLE, SWINGS, explain, mark, save
from dgdlb_jax.stability.held import HeldLoop
from dgdlb_jax.studies.held import LOAD, HeldStability, Limit, case_at, held_loop

_FINE, _COARSE, _LARGE = (48, 40), (24, 20), 40  # points along the settings; arcs from which a network is large
_AROUND = 20.0  # by which factor up and down


def stable_region_plot(report: HeldReport, *, ax: Axes | None = None) -> Axes:
    """The stable part of a plane of two settings: the period of updates, and the time constant of averages; or the load, without one.

    The cross is where the policy is, triangles are edges that a simulation found. **Returns:** the axes.
    """
    found = report.found
    if found.loop is None or not found.limits:
        raise InputError(f"{report.label} has no limits to draw: it {found.why_not}.")
    ax = new_axes((7, 5)) if ax is None else ax
    across = next(each for each in found.limits if each.setting == found.policy.period_knob)
    up = found.limits[0] if found.policy.smoothing_knob else found.limits[-1]
    x, y = _points(across, found, 0), _points(up, found, 1)
    radius = np.array([[_radius(loop, value) for value in x] for loop in _loops(found, up, y)])
    ax.contourf(
        x, y, np.where(np.isfinite(radius), np.log(radius), 1.0), levels=[-1e9, 0, 1e9], colors=[STABLE, SWINGS]
    )
    ax.contour(x, y, np.log(np.where(np.isfinite(radius), radius, 3.0)), levels=[0], colors="black", linewidths=1.5)
    ax.set_xscale("log")
    plain_log(ax.xaxis)
    if up.setting != LOAD:
        ax.set_yscale("log")
        plain_log(ax.yaxis)
    ax.set(xlim=(x[0], x[-1]), ylim=(y[0], y[-1]))
    along = [(np.sqrt(first * last), up.now) for first, last in across.simulated]
    upwards = [(across.now, np.sqrt(first * last)) for first, last in up.simulated]
    mark(ax, (across.now, up.now), along + upwards)
    name = found.network.name or "network"
    finish(ax, f"{across.setting} (s)", up.setting + ("" if up.setting == LOAD else " (s)"), f"{name}: {report.label}")
    explain(ax, f"{seconds(across.now)}, {percent(up.now) if up.setting == LOAD else seconds(up.now)}")
    return ax


def save_stable_region(report: HeldReport, folder: Path) -> list[Path]:
    """Write `stable.png` into a folder, where there is something to draw. **Returns:** the paths written."""
    if report.found.loop is None or not report.found.limits:
        return []
    return save(stable_region_plot(report), folder)


def _points(limit: Limit, found: HeldStability, axis: int) -> np.ndarray:
    count = (_COARSE if found.network.latency.size > _LARGE else _FINE)[axis]
    if limit.setting == LOAD:
        return np.linspace(*limit.searched, count)
    low, high = max(limit.searched[0], limit.now / _AROUND), min(limit.searched[1], limit.now * _AROUND)
    low, high = min([low, *(edge / 2 for edge in limit.edges)]), max([high, *(edge * 2 for edge in limit.edges)])
    return np.geomspace(max(low, limit.searched[0]), min(high, limit.searched[1]), count)


def _loops(found: HeldStability, up: Limit, values: np.ndarray) -> list[HeldLoop | None]:
    """The loop at each value of the setting along y; None where the policy does not rest."""
    assert found.loop is not None
    if up.setting != LOAD:
        return [found.loop.with_smoothing(float(value)) for value in values]
    loops: list[HeldLoop | None] = []
    for value in values:
        try:
            loops.append(held_loop(*case_at(found.network, found.policy, LOAD, float(value))))
        except InputError:
            loops.append(None)
    return loops


def _radius(loop: HeldLoop | None, period: float) -> float:
    return np.nan if loop is None else loop.with_period(period).radius()
