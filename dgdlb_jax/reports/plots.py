"""Pictures of a comparison. Functions take axes and return them; without axes they make a figure (`axes.figure`)."""

import warnings
from io import BytesIO
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from dgdlb_jax.numerics.formatting import number, seconds
from dgdlb_jax.reports.text import verdict
from dgdlb_jax.studies.balancers import BALANCERS, DEFAULT, DGD
from dgdlb_jax.studies.compare import CURRENT, Comparison
from dgdlb_jax.studies.conclusion import excess
from dgdlb_jax.studies.outcome import backend_names, frontend_names, smooth_latency, statistics_of

# Okabe and Ito's colours, which colour-blind readers tell apart; line styles and hatches tell repeats apart.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#8C6BB1", "#7F7F7F")
STYLES = ("-", "--", ":", "-.")
_HATCHES = ("", "///", "...", "xxx")
_FAR_ABOVE = 5.0  # excess of those that may leave a picture at the top
_USUAL_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#7F7F7F")
_BALANCER_COLOURS = {BALANCERS[key].label: colour for key, colour in zip(DEFAULT, _USUAL_COLOURS, strict=True)}
_BALANCER_COLOURS[CURRENT] = "#000000"


def latency_over_time(comparison: Comparison, *, ax: Axes | None = None) -> Axes:
    """Mean latency (moving mean) over time, one line per balancer, the optimum dashed.

    **Arguments:** `comparison`; `ax`: axes to draw on, a new figure by default. **Returns:** the axes.
    """
    ax = new_axes((9, 5)) if ax is None else ax
    for name in _drawing_order(comparison):
        run = comparison.runs[name]
        first = name == DGD
        ax.plot(
            np.asarray(run.time),
            smooth_latency(comparison.network, run),
            label=_with_excess(comparison, name),
            **_style(name),
            lw=2.4 if first else 1.4,
            zorder=4 if first else 3,
        )
    if comparison.reference is None:
        ax.axhline(comparison.best_latency, color="black", ls="--", lw=1.2, zorder=2.5)
    else:
        ax.plot(comparison.reference.time, comparison.reference.latency, color="black", ls="--", lw=1.2, zorder=2.5)
    label = (
        f"{'quasi-static optimum (reference)' if comparison.moving else 'optimum'}: {seconds(comparison.best_latency)}"
    )
    ax.plot([], [], color="black", ls="--", lw=1.2, label=label)
    ax.set_yscale("log")
    _leave_out_the_drowning(ax, comparison)
    _log_seconds(ax)
    finish(ax, "time (s)", "mean latency per request", f"{comparison.network.name or 'network'}: latency by balancer")
    ax.set_xlim(0, comparison.duration)
    handles, labels = ax.get_legend_handles_labels()
    order = [len(labels) - 1, *range(len(labels) - 1)]
    ax.legend(
        [handles[k] for k in order],
        [labels[k] for k in order],
        title=f"over the {'reference' if comparison.moving else 'optimum'}",
        loc="upper left",
        bbox_to_anchor=(1.01, 1),
        frameon=False,
    )
    return as_written(ax)


def routing_by_frontend(comparison: Comparison, *, ax: Axes | None = None) -> Axes:
    """Where each frontend sends its requests: at the optimum (full bars) and under DGD-LB in the end (pale bars below).

    **Arguments:** `comparison`; `ax`: axes to draw on, a new figure by default. **Returns:** the axes.
    """
    network = comparison.network
    ax = new_axes((9.5, 1.6 + 0.36 * network.frontends)) if ax is None else ax
    run = comparison.judged.get(DGD)
    _stack(ax, np.asarray(comparison.optimum.routing), -0.19, 0.36, 1.0)
    if run is not None:
        _stack(ax, np.asarray(statistics_of(run).mean_routing), 0.19, 0.30, 0.55)
    for j, name in enumerate(backend_names(network)):
        ax.barh([0], [0], color=COLOURS[j % 8], hatch=_hatch(j), edgecolor="white", label=name)
    rates = np.asarray(network.arrival_rate)
    labels = [f"{name}  ({number(rate)}/s)" for name, rate in zip(frontend_names(network), rates, strict=True)]
    ax.set_yticks(range(network.frontends), labels)
    ax.set_ylim(network.frontends - 0.4, -0.6)
    ax.set_xlim(0, 1)
    ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{100 * x:.0f} %"))
    below = "" if run is None else f"; pale bars: {DGD} in the end"
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
    run, best = comparison.runs[balancer], np.asarray(comparison.optimum.workload)
    ax.set_xlim(0, comparison.duration)
    for j, name in enumerate(backend_names(comparison.network)):
        colour, style = COLOURS[j % 8], STYLES[j // 8 % 4]
        _band(ax, np.asarray(run.time), np.asarray(run.workload)[:, j], color=colour, ls=style, label=name)
        if not comparison.moving:
            ax.plot(*_margin(ax, best[j]), color=colour, lw=4, clip_on=False, solid_capstyle="butt")
    finish(ax, "time (s)", "workload (requests)", f"{comparison.network.name or 'network'}: workloads under {balancer}")
    ax.set_xlim(0, comparison.duration)
    ax.set_ylim(bottom=0)
    if legend:
        ax.legend(title="backend", loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False)
    return as_written(ax)


def workloads_of_all(comparison: Comparison) -> Figure:
    """`workloads_over_time` for every balancer, in one figure."""
    names = [row.balancer for row in comparison.table()]
    wide = min(len(names), 4 if len(names) > 6 else 3)
    tall = -(-len(names) // wide)
    figure = new_figure((4.2 * wide + 1.8, 2.9 * tall))
    grid = figure.subplots(tall, wide, squeeze=False)
    for k, ax in enumerate(grid.flat):
        if k >= len(names):
            ax.set_axis_off()
            continue
        workloads_over_time(comparison, names[k], ax=ax, legend=False)
        ax.set_title(_with_excess(comparison, names[k]), loc="left", fontsize=10)
        ax.set_ylabel("workload (requests)" if k % wide == 0 else "")
    handles, labels = grid.flat[0].get_legend_handles_labels()
    title = "backend" if comparison.moving else "backend\n(marks: optimum)"
    figure.legend(handles, labels, title=title, loc="outside right upper", frameon=False)
    figure.suptitle(f"{comparison.network.name or 'network'}: workloads by balancer")
    return as_written(figure)


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


Drawn = TypeVar("Drawn", Axes, Figure)


def as_written(drawn: Drawn) -> Drawn:
    """The same axes or figure, in which all texts stand as they are: a dollar sign in a name begins no formula."""
    for text in drawn.findobj(Text):
        text.set_parse_math(False)
    return drawn


def save_png(figure: Figure, target: Path | BytesIO, dpi: int = 130) -> None:
    """Write a figure as PNG. Letters that the font lacks are boxes; matplotlib would say so for each of them, at every drawing."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from", UserWarning)
        figure.savefig(target, dpi=dpi, format="png")


def new_figure(size: tuple[float, float]) -> Figure:
    """A figure that no global state knows of, so that scripts without a display and threads can draw."""
    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def new_axes(size: tuple[float, float]) -> Axes:
    return new_figure(size).subplots()


def _style(name: str) -> dict[str, Any]:
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
    return f"{name}: {excess(row) or verdict(row)}"


def _band(ax: Axes, time: np.ndarray, values: np.ndarray, bins: int = 250, **style) -> None:
    """A line through the means of short pieces of time, in a band from their lowest to their highest value."""
    edges = np.unique(np.linspace(0, time.size, bins, endpoint=False).astype(int))
    count = np.diff(np.append(edges, time.size))
    middle = np.add.reduceat(time, edges) / count
    low, high = np.minimum.reduceat(values, edges), np.maximum.reduceat(values, edges)
    ax.fill_between(middle, low, high, color=style["color"], alpha=0.25, lw=0)
    ax.plot(middle, np.add.reduceat(values, edges) / count, lw=1.2, **style)


def _margin(ax: Axes, value: float) -> tuple[list[float], list[float]]:
    """A short level line just outside the right edge."""
    left, right = ax.get_xlim()
    return [right, right + 0.02 * (right - left)], [value, value]


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


def _hatch(j: int) -> str:
    return _HATCHES[j // 8 % 4]


def _leave_out_the_drowning(ax: Axes, comparison: Comparison) -> None:
    """Room for those that work: latencies that grow without end (or far above the others) leave the picture at the top."""
    highest = [row.highest_latency for row in comparison.outcomes.values() if row.excess < _FAR_ABOVE]
    if len(highest) < len(comparison.runs):
        ax.set_ylim(top=2 * max(highest, default=0) + comparison.best_latency)


def _log_seconds(ax: Axes) -> None:
    low, high = ax.get_ylim()
    subs = range(1, 10) if high < 6 * low else (1, 2, 5) if high < 300 * low else (1,)
    ax.yaxis.set_major_locator(LogLocator(subs=subs))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: seconds(value)))
    ax.yaxis.set_minor_formatter(NullFormatter())


def finish(ax: Axes, x: str, y: str, title: str) -> None:
    ax.set_xlabel(x)
    ax.set_ylabel(y)
    ax.set_title(title, loc="left")
    ax.grid(True, color="0.9", lw=0.7)
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)
