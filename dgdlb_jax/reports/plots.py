"""Pictures of a comparison. Functions take axes and return them; without axes they make a figure (`axes.figure`)."""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter

from dgdlb_jax.numerics.formatting import number, seconds
from dgdlb_jax.numerics.text import clipped
from dgdlb_jax.reports.axes import COLOURS as COLOURS
from dgdlb_jax.reports.axes import (
    IN_TURNS,
    as_written,
    explain_turns,
    finish,
    log_seconds,
    log_time,
    new_axes,
    new_figure,
    save_png,
    tell_apart,
)
from dgdlb_jax.reports.axes import STYLES as STYLES
from dgdlb_jax.reports.text import latency, verdict
from dgdlb_jax.studies.balancers import BALANCERS, DEFAULT, DGD
from dgdlb_jax.studies.compare import CURRENT, Comparison
from dgdlb_jax.studies.conclusion import excess
from dgdlb_jax.studies.event_words import described
from dgdlb_jax.studies.outcome import backend_names, frontend_names
from dgdlb_jax.studies.verdict import moving_mean

_HATCHES = ("", "///", "...", "xxx")
_LONGEST_MARK = 40  # letters of what is written beside the mark of an event
_FAR_ABOVE = 5.0  # excess of those that may leave a picture at the top
_USUAL_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#7F7F7F")
_BALANCER_COLOURS = {BALANCERS[key].label: colour for key, colour in zip(DEFAULT, _USUAL_COLOURS, strict=True)}
_BALANCER_COLOURS[CURRENT] = "#000000"


def latency_over_time(comparison: Comparison, *, ax: Axes | None = None) -> Axes:
    """Mean latency (moving mean) over time, one line per balancer, the optimum dashed. The time axis is logarithmic unless demand moves
    or there are events: what happens, happens early. Lines that coincide take turns.

    **Arguments:** `comparison`; `ax`: axes to draw on, a new figure by default. **Returns:** the axes.
    """
    ax = new_axes((9, 5)) if ax is None else ax
    lines = []
    for name in _drawing_order(comparison):
        first = name == DGD
        lines += ax.plot(
            *_recent_latency(comparison, name),
            label=_with_excess(comparison, name),
            **balancer_style(name),
            lw=2.4 if first else 1.4,
            zorder=4 if first else 3,
        )
    if comparison.phases:
        begins = [phase.begin for phase in comparison.phases]
        ends = [*begins, comparison.duration]
        best = [phase.latency for phase in comparison.phases]
        ax.step(ends, [*best, best[-1]], where="post", color="black", ls="--", lw=1.2, zorder=2.5)
    elif comparison.reference is None:
        ax.axhline(comparison.best_latency, color="black", ls="--", lw=1.2, zorder=2.5)
    else:
        ax.plot(comparison.reference.time, comparison.reference.latency, color="black", ls="--", lw=1.2, zorder=2.5)
    which = (
        "quasi-static optimum (reference)"
        if comparison.moving
        else "optimum in the end"
        if comparison.phases
        else "optimum"
    )
    ax.plot([], [], color="black", ls="--", lw=1.2, label=f"{which}: {seconds(comparison.best_latency)}")
    ax.set_yscale("log")
    mark_events(ax, comparison)
    _leave_out_the_drowning(ax, comparison)
    log_seconds(ax)
    finish(ax, "time (s)", "mean latency per request", f"{comparison.network.name or 'network'}: latency by balancer")
    _time_axis(ax, comparison)
    handles, labels = ax.get_legend_handles_labels()
    order = [len(labels) - 1, *range(len(labels) - 1)]
    ax.legend(
        [handles[k] for k in order],
        [labels[k] for k in order],
        title=_legend_title(comparison),
        loc="upper left",
        bbox_to_anchor=(1.01, 1),
        frameon=False,
    )
    if tell_apart(ax, lines):  # the legend shows them as they were
        explain_turns(ax)
    return as_written(ax)


def routing_by_frontend(comparison: Comparison, *, ax: Axes | None = None) -> Axes:
    """Where each frontend sends its requests: at the optimum (full bars) and under DGD-LB in the end (pale bars below).

    **Arguments:** `comparison`; `ax`: axes to draw on, a new figure by default. **Returns:** the axes.
    """
    network = comparison.network
    ax = new_axes((9.5, 1.6 + 0.36 * network.frontends)) if ax is None else ax
    _stack(ax, np.asarray(comparison.optimum.routing), -0.19, 0.36, 1.0)
    if DGD in comparison.runs:
        _stack(ax, comparison.mean_routing(DGD), 0.19, 0.30, 0.55)
    for j, name in enumerate(backend_names(network)):
        ax.barh([0], [0], color=COLOURS[j % 8], hatch=_hatch(j), edgecolor="white", label=name)
    rates = np.asarray(network.arrival_rate)
    labels = [f"{name}  ({number(rate)}/s)" for name, rate in zip(frontend_names(network), rates, strict=True)]
    ax.set_yticks(range(network.frontends), labels)
    ax.set_ylim(network.frontends - 0.4, -0.6)
    ax.set_xlim(0, 1)
    ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{100 * x:.0f} %"))
    below = "" if DGD not in comparison.runs else f"; pale bars: {DGD} in the end"
    finish(
        ax,
        "share of the frontend's requests",
        "frontend (requests/s)",
        f"{network.name or 'network'}: routing at the optimum{below}",
    )
    ax.grid(False)
    ax.legend(title="backend", loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False)
    return as_written(ax)


def workloads_over_time(
    comparison: Comparison, balancer: str = DGD, *, ax: Axes | None = None, legend: bool = True
) -> Axes:
    """Workloads of all backends over time under one balancer; marks at the right are the optimum.

    Where a workload moves faster than the eye can follow, a band shows its range and a line its mean.

    **Arguments:** `comparison`; `balancer`: a name in `comparison.runs`; `ax`: axes to draw on, a new figure by
    default; `legend`: whether to name the backends beside the axes. **Returns:** the axes.
    """
    ax = new_axes((9, 5)) if ax is None else ax
    if _draw_workloads(ax, comparison, balancer, legend) and legend:
        explain_turns(ax)
    return as_written(ax)


def _draw_workloads(ax: Axes, comparison: Comparison, balancer: str, legend: bool) -> bool:
    """Whether some of them coincide."""
    run, best = comparison.runs[balancer], np.asarray(comparison.optimum.workload)
    lines = []
    for j, name in enumerate(backend_names(comparison.network)):
        colour, style = _backend_style(j)
        series, even = np.asarray(run.workload)[:, j], _in_even_time(comparison)
        lines += _band(ax, np.asarray(run.time), series, even, color=colour, ls=style, label=name)
        if not comparison.moving:  # a short level line just outside the right edge
            beside = ax.get_yaxis_transform()
            ax.plot(
                [1, 1.02], [best[j]] * 2, transform=beside, color=colour, lw=4, clip_on=False, solid_capstyle="butt"
            )
    finish(ax, "time (s)", "workload (requests)", f"{comparison.network.name or 'network'}: workloads under {balancer}")
    _time_axis(ax, comparison)
    ax.set_ylim(bottom=0)
    mark_events(ax, comparison, words=legend)
    if legend:
        ax.legend(title="backend", loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False)
    return tell_apart(ax, lines)


def workloads_of_all(comparison: Comparison) -> Figure:
    """`workloads_over_time` for every balancer, in one figure of two columns, as wide as the others."""
    names = [row.balancer for row in comparison.table()]
    wide = min(len(names), 2)
    tall = -(-len(names) // wide)
    figure = new_figure((9.0, 2.6 * tall + 0.9))
    grid = figure.subplots(tall, wide, squeeze=False)
    coincide = False
    for k, ax in enumerate(grid.flat):
        if k >= len(names):
            ax.set_axis_off()
            continue
        coincide |= _draw_workloads(ax, comparison, names[k], legend=False)
        ax.set_title(_with_excess(comparison, names[k]), loc="left", fontsize=10)
        ax.set_ylabel("")
        ax.set_xlabel("time (s)" if k + wide >= len(names) else "")
    labels = backend_names(comparison.network)
    handles = [Line2D([], [], color=colour, ls=style) for colour, style in map(_backend_style, range(len(labels)))]
    words = ["marks at the right: optimum"] * (not comparison.moving) + [IN_TURNS] * coincide
    title = f"backend ({'; '.join(words)})" if words else "backend"
    columns = max(1, min(len(labels), 90 // (6 + max(map(len, labels)))))
    figure.legend(handles, labels, title=title, loc="outside lower center", ncols=columns, frameon=False)
    figure.suptitle(f"{comparison.network.name or 'network'}: workloads by balancer")
    figure.supylabel("workload (requests)", fontsize="medium")
    return as_written(figure)


def mark_events(ax: Axes, comparison: Comparison, *, words: bool = True) -> None:
    """A vertical line for every event, with what happens beside it."""
    for phase in comparison.phases[1:]:
        ax.axvline(phase.begin, color="0.45", lw=0.9, ls=":", zorder=2)
        if words:
            ax.annotate(
                clipped(", ".join(map(described, phase.events)), _LONGEST_MARK),
                xy=(phase.begin, 1), xycoords=ax.get_xaxis_transform(), xytext=(-3, -4), textcoords="offset points",
                rotation=90, va="top", ha="right", fontsize=8, color="0.3", zorder=6,
                bbox={"facecolor": "white", "alpha": 0.8, "edgecolor": "none", "pad": 0.5},
            )  # fmt: skip


def save_pictures(comparison: Comparison, folder: Path, prefix: str = "") -> list[Path]:
    """Write `latency.png`, `routing.png` and `workloads.png` into a folder.

    **Returns:** the paths written.
    """
    figures = {"latency": latency_over_time(comparison).figure, "workloads": workloads_of_all(comparison)}
    if not comparison.moving:
        figures["routing"] = routing_by_frontend(comparison).figure
    paths = []
    for name, figure in figures.items():
        paths.append(folder / f"{prefix}{name}.png")
        save_png(figure, paths[-1])
    return paths


def balancer_style(name: str) -> dict[str, Any]:
    """Colour and line style of a balancer, the same in every picture: the usual ones are solid, the others are not."""
    if name in _BALANCER_COLOURS:
        return {"color": _BALANCER_COLOURS[name]}
    others = [known.label for known in BALANCERS.values() if known.label not in _BALANCER_COLOURS]
    k = others.index(name) if name in others else len(others)
    return {"color": COLOURS[k % 8], "ls": STYLES[1 + k // 8 % 3]}


def _drawing_order(comparison: Comparison) -> list[str]:
    return [row.balancer for row in comparison.table()]


def _with_excess(comparison: Comparison, name: str) -> str:
    row = comparison.outcomes[name]
    if comparison.unmeasurable is not None:
        return f"{name}: {latency(row)}"
    return f"{name}: {excess(row) or verdict(row)}"


def _band(ax: Axes, time: np.ndarray, values: np.ndarray, even: bool, bins: int = 250, **style) -> list[Line2D]:
    """A line through the means of short pieces of time, in a band from their lowest to their highest value; the pieces are as long as
    each other, or get longer with time."""
    edges = (
        np.linspace(0, time.size, bins, endpoint=False) if even else np.geomspace(1, time.size, bins, endpoint=False)
    )
    edges = np.unique(np.append(0, edges.astype(int)))
    count = np.diff(np.append(edges, time.size))
    middle = np.add.reduceat(time, edges) / count
    low, high = np.minimum.reduceat(values, edges), np.maximum.reduceat(values, edges)
    ax.fill_between(middle, low, high, color=style["color"], alpha=0.25, lw=0)
    return ax.plot(middle, np.add.reduceat(values, edges) / count, lw=1.4, **style)


def _recent_latency(comparison: Comparison, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Saved instants, and the moving mean of the latency there: over the largest network latency or 1 % of the run, but over no more
    than the last tenth of the time since the start, which would hide the beginning."""
    run = comparison.runs[name]
    time, rate = np.asarray(run.time, float), np.asarray(run.arrival_rate, float).sum(-1)
    window = max(float(np.max(comparison.network.latency)), 0.01 * float(time[-1] - time[0]))
    windows = np.full(time.size, window) if _in_even_time(comparison) else np.minimum(window, 0.1 * (time - time[0]))
    return time, moving_mean(time, np.asarray(run.mean_latency, float) * rate, rate, windows)


def _time_axis(ax: Axes, comparison: Comparison) -> None:
    if _in_even_time(comparison):
        ax.set_xlim(0, comparison.duration)
    else:
        log_time(ax, float(next(iter(comparison.runs.values())).time[1]), comparison.duration)


def _in_even_time(comparison: Comparison) -> bool:
    """Whether things happen at any time, and not above all early."""
    return comparison.moving or bool(comparison.phases)


def _legend_title(comparison: Comparison) -> str:
    if comparison.unmeasurable is not None:
        return "mean latency"
    return f"over the {'reference' if comparison.moving else 'optimum'}{' in the end' if comparison.phases else ''}"


def _stack(ax: Axes, shares: np.ndarray, offset: float, height: float, alpha: float) -> None:
    left = np.zeros(shares.shape[0])
    rows = np.arange(shares.shape[0]) + offset
    for j in range(shares.shape[1]):
        ax.barh(
            rows,
            shares[:, j],
            height,
            left=left,
            color=COLOURS[j % 8],
            hatch=_hatch(j),
            edgecolor="white",
            lw=0.4,
            alpha=alpha,
        )
        left = left + shares[:, j]


def _backend_style(j: int) -> tuple[str, str]:
    return COLOURS[j % 8], STYLES[j // 8 % 4]


def _hatch(j: int) -> str:
    return _HATCHES[j // 8 % 4]


def _leave_out_the_drowning(ax: Axes, comparison: Comparison) -> None:
    """Room for those that work: latencies that grow without end (or far above the others) leave the picture at the top."""
    most = (1 + _FAR_ABOVE) * comparison.best_latency
    highest = [row.highest_latency for row in comparison.outcomes.values() if row.mean_latency < most]
    if len(highest) < len(comparison.runs):
        ax.set_ylim(top=1.3 * max([*highest, comparison.best_latency]))
