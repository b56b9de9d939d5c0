"""Where a balancer that holds its weights is stable: a picture over two of its settings."""

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Patch

from dgdlb_jax.numerics.formatting import percent, seconds
from dgdlb_jax.numerics.results import InputError
from dgdlb_jax.reports.axes import as_written, finish, new_axes, plain_log, save_png
from dgdlb_jax.reports.held_text import HeldReport
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
        x, y, np.where(np.isfinite(radius), np.log(radius), 1.0), levels=[-1e9, 0, 1e9], colors=["#BFE3D0", "#F2C9B0"]
    )
    ax.contour(x, y, np.log(np.where(np.isfinite(radius), radius, 3.0)), levels=[0], colors="black", linewidths=1.5)
    for limit, place in ((across, "x"), (up, "y")):
        for pair in limit.simulated:
            middle = np.sqrt(pair[0] * pair[1])
            spot = (middle, up.now) if place == "x" else (across.now, middle)
            if np.isfinite(middle) and x[0] <= spot[0] <= x[-1] and y[0] <= spot[1] <= y[-1]:
                ax.plot(*spot, "^", color="#0072B2", ms=9, clip_on=False)
    ax.plot(across.now, up.now, "+", color="black", ms=14, mew=2.5)
    ax.set_xscale("log")
    plain_log(ax.xaxis)
    if up.setting != LOAD:
        ax.set_yscale("log")
        plain_log(ax.yaxis)
    name = found.network.name or "network"
    finish(ax, f"{across.setting} (s)", up.setting + ("" if up.setting == LOAD else " (s)"), f"{name}: {report.label}")
    now = f"now: {seconds(across.now)}, {percent(up.now) if up.setting == LOAD else seconds(up.now)}"
    marks = [
        Patch(color="#BFE3D0", label="small deviations die out"),
        Patch(color="#F2C9B0", label="traffic swings"),
        *ax.plot([], [], "+", color="black", ms=12, mew=2.5, label=now),
        *ax.plot([], [], "^", color="#0072B2", ms=8, label="edge in simulation"),
    ]
    ax.legend(handles=marks, frameon=False, loc="upper left", bbox_to_anchor=(0, -0.13), ncols=2)
    return ax


def save_stable_region(report: HeldReport, folder: Path) -> list[Path]:
    """Write `stable.png` into a folder, where there is something to draw. **Returns:** the paths written."""
    if report.found.loop is None or not report.found.limits:
        return []
    target = folder / "stable.png"
    save_png(as_written(stable_region_plot(report)).get_figure(root=True), target)  # pyright: ignore[reportArgumentType]
    return [target]


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
