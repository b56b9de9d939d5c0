"""Pictures of a sweep. Functions take a dataset and axes and return the axes; without axes they make a figure (`axes.figure`)."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from dgdlb_jax.numerics.files import disk_errors, whole_file
from dgdlb_jax.numerics.results import InputError
from dgdlb_jax.reports.axes import COLOURS, STYLES, as_written, finish, new_axes, new_figure, plain_log, save_png
from dgdlb_jax.studies.balancers import BALANCERS
from dgdlb_jax.studies.sweep.selection import (
    SEEDS,
    along,
    checked_input,
    choose_by,
    choose_x,
    choose_y,
    groups,
    is_numeric,
    quartiles,
    values_of,
    varying,
)
from dgdlb_jax.studies.verdict import Verdict

if TYPE_CHECKING:
    import xarray

    Dataset = xarray.Dataset
else:
    Dataset = object

_FLOOR = 1e-6  # smaller excesses are drawn here: rounding and the time step hide what they are
_LOG = ("excess", "settle_time", "swing", "distance", "highest_distance", "period", "mean_latency", "gradient_error")
_MOST_PANELS = 12
_VERDICTS = {
    Verdict.settled: "#009E73",
    Verdict.moving: "#56B4E9",
    Verdict.too_short: "#F0E442",
    Verdict.oscillating: "#E69F00",
    Verdict.diverging: "#D55E00",
    Verdict.varying_inputs: "#CC79A7",
    Verdict.failed: "#7F7F7F",
}
_MARKS = {
    "step_size": ("critical_step_size", "sufficient_step_size"),
    "step_size_over_default": ("critical_step_size", "sufficient_step_size"),
    "step_size_over_critical": ("critical_step_size", "sufficient_step_size"),
}
_SCALE = {"step_size_over_default": "default_step_size", "step_size_over_critical": "critical_step_size"}


def curves(
    dataset: Dataset, x: str | None = None, y: str | None = None, by: str | None = None, *, ax: Axes | None = None
) -> Axes:
    """A measure along an input: medians over all cases with the same input, in bands from the lower to the upper quartile.

    **Arguments:**

    - `dataset`: of a sweep. `x`: a numeric input that varies. `y`: a measure. `by`: another input, one line for each value.
      What is left out is chosen: the step size if it varies, the excess, the balancer.
    - `ax`: axes to draw on, a new figure by default.

    Step sizes get marks: dashed the critical one, dotted the sufficient one (medians, in bands between their quartiles).

    **Returns:** the axes. **Raises:** `InputError` for an unknown name, or when there is nothing to draw along.
    """
    x, y = choose_x(dataset, x), choose_y(dataset, y)
    by = choose_by(dataset, x) if by is None else checked_input(dataset, by, "by")
    ax = new_axes((8.5, 5)) if ax is None else ax
    log_y = y in _LOG
    for k, (label, part) in enumerate(groups(dataset, by)):
        places, low, middle, high = quartiles(part, x, y)
        if log_y and y == "excess":
            low, middle, high = (np.maximum(values, _FLOOR) for values in (low, middle, high))
        colour, style = COLOURS[k % 8], STYLES[k // 8 % 4]
        if log_y and not (np.isfinite(middle) & (middle > 0)).any():
            label = f"{label or y} ({'0' if (middle == 0).any() else 'none'}, not shown)"
        top = np.nanmax(np.where(np.isfinite(high), high, np.nan), initial=0) if np.isfinite(high).any() else 1
        ax.fill_between(places, low, np.where(np.isinf(high), 1e3 * top, high), color=colour, alpha=0.15, lw=0)
        ax.plot(
            places, np.where(np.isinf(middle), np.nan, middle), color=colour, ls=style, marker="o", ms=3.5, label=label
        )
    _scale_x(ax, values_of(dataset, x))
    if log_y and _has_positive(dataset, y):
        ax.set_yscale("log")
        _percent(ax.yaxis) if y == "excess" else plain_log(ax.yaxis)
    _leave_out_the_infinite(ax, dataset, x, y, by)
    _mark_step_sizes(ax, dataset, x)
    finish(ax, _label(dataset, x), _label(dataset, y), f"{_title(dataset)}: {y.replace('_', ' ')}")
    if ax.get_legend_handles_labels()[1]:
        ax.legend(title=by and by.replace("_", " "), loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False)
    return as_written(ax)


def verdicts(dataset: Dataset, x: str | None = None, *, ax: Axes | None = None) -> Axes:
    """How the cases ended along an input: the share of every verdict.

    **Arguments:** `dataset` with the measure `verdict`; `x`, `ax`: as for `curves`. **Returns:** the axes.
    """
    x = choose_x(dataset, x)
    ax = new_axes((8.5, 4)) if ax is None else ax
    places, codes = along(dataset, x, choose_y(dataset, "verdict"))
    # Bars are told apart by their names: inputs need not be evenly spaced.
    bottom, at = np.zeros(places.size), np.arange(places.size)
    for verdict, colour in _VERDICTS.items():
        share = np.array([np.mean(row[row >= 0] == verdict) if (row >= 0).any() else 0 for row in codes])
        if share.any():
            ax.bar(at, share, bottom=bottom, color=colour, width=0.85, label=verdict.words)
        bottom = bottom + share
    ax.set_xticks(at, [f"{place:g}" for place in places], rotation=0 if places.size <= 8 else 60)
    ax.set_ylim(0, 1)
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.0f} %"))
    finish(ax, _label(dataset, x), "share of the cases", f"{_title(dataset)}: how the runs end")
    ax.grid(False)
    ax.legend(loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False)
    return as_written(ax)


def verdicts_of_all(dataset: Dataset, x: str, by: str | None) -> Figure:
    """`verdicts` for every value of another input, in one figure."""
    parts = list(groups(dataset, by, most=_MOST_PANELS))
    wide = min(len(parts), 3)
    tall = -(-len(parts) // wide)
    figure = new_figure((8.5, 4) if wide == 1 else (4 * wide + 1.5, 2.8 * tall))
    grid = figure.subplots(tall, wide, squeeze=False)
    for k, ax in enumerate(grid.flat):
        if k >= len(parts):
            ax.set_axis_off()
            continue
        verdicts(parts[k][1], x, ax=ax)
        ax.get_legend().remove()
        ax.set_title(parts[k][0] or "", loc="left", fontsize=10)
        ax.set_ylabel("share of the cases" if k % wide == 0 else "")
    seen = np.unique(dataset["verdict"].values)
    marks = [Patch(color=colour, label=verdict.words) for verdict, colour in _VERDICTS.items() if verdict in seen]
    figure.legend(handles=marks, loc="outside right upper", frameon=False)
    figure.suptitle(f"{_title(dataset)}: how the runs end")
    return as_written(figure)


def heatmap(
    dataset: Dataset, x: str | None = None, by: str | None = None, y: str | None = None, *, ax: Axes | None = None
) -> Axes:
    """The median of a measure over two inputs, as colours. Where the balancer varies and is not one of the two, that of the first one
    (DGD-LB if it is there), whose name stands in the title: a median over balancers would say nothing.

    **Arguments:** `dataset`; `x` and `by`: inputs along the two directions; `y`: a measure; `ax`: axes to draw on.

    **Returns:** the axes. **Raises:** `InputError` for an unknown name, or when only one input varies.
    """
    x, y = choose_x(dataset, x), choose_y(dataset, y)
    if by is None:
        by = next((name for name in varying(dataset) if name != x and name not in SEEDS), None)
        if by is None:
            raise InputError("A heatmap needs two inputs that vary: this sweep has one, use curves.")
    by = checked_input(dataset, by, "by")
    ax = new_axes((8.5, 5)) if ax is None else ax
    dataset, whose = _one_policy(dataset, x, by)
    parts = list(groups(dataset, by, most=None))
    table = np.array([quartiles(part, x, y)[2] for _, part in parts], float)
    places = quartiles(parts[0][1], x, y)[0]
    table = np.where(np.isinf(table), np.nan, table)
    log = y in _LOG and _has_positive(dataset, y)
    shown = np.log10(np.maximum(table, _FLOOR)) if log else table
    image = ax.imshow(shown, aspect="auto", origin="lower", cmap="viridis")
    ax.set_facecolor("0.85")
    ax.set_xticks(range(places.size), [f"{place:g}" for place in places], rotation=0 if places.size <= 12 else 60)
    ax.set_yticks(range(len(parts)), [label or "" for label, _ in parts])
    bar = ax.figure.colorbar(image, ax=ax, label=f"{_label(dataset, y)}, median")
    scale, unit = (100, " %") if y == "excess" else (1, "")
    bar.ax.yaxis.set_major_formatter(
        FuncFormatter(lambda value, _: f"{scale * (10**value if log else value):.3g}{unit}")
    )
    missing = " (grey: none)" if np.isnan(table).any() else ""
    finish(ax, _label(dataset, x), _label(dataset, by), f"{_title(dataset)}{whose}: {y.replace('_', ' ')}{missing}")
    ax.grid(False)
    return as_written(ax)


def distribution(dataset: Dataset, y: str | None = None, by: str | None = None, *, ax: Axes | None = None) -> Axes:
    """Which part of the cases lies below a value of a measure; lines that end below 1 have cases without a finite value.

    **Arguments:** `dataset`; `y`: a measure; `by`: an input, one line for each value; `ax`: axes to draw on. **Returns:** the axes.
    """
    y = choose_y(dataset, y)
    by = choose_by(dataset, "") if by is None else checked_input(dataset, by, "by")
    ax = new_axes((8.5, 5)) if ax is None else ax
    for k, (label, part) in enumerate(groups(dataset, by)):
        values = np.sort(np.asarray(part[y].values, float).ravel())
        values = np.maximum(values, _FLOOR) if y == "excess" else values
        finite = values[np.isfinite(values)]
        if finite.size:
            share = np.arange(1, finite.size + 1) / values.size
            ax.step(finite, share, where="post", color=COLOURS[k % 8], ls=STYLES[k // 8 % 4], label=label)
    if y in _LOG and _has_positive(dataset, y):
        ax.set_xscale("log")
        _percent(ax.xaxis) if y == "excess" else plain_log(ax.xaxis)
    ax.set_ylim(0, 1.02)
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.0f} %"))
    finish(
        ax, _label(dataset, y), "part of the cases below", f"{_title(dataset)}: distribution of {y.replace('_', ' ')}"
    )
    if ax.get_legend_handles_labels()[1]:
        ax.legend(title=by and by.replace("_", " "), loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False)
    return as_written(ax)


def standard_pictures(
    dataset: Dataset, x: str | None = None, y: str | None = None, by: str | None = None
) -> dict[str, Figure]:
    """The pictures that suit a sweep: name -> figure.

    **Arguments:** as for `curves`. **Returns:** `curves`, `verdicts`, `settling`, `heatmap`, `distribution`, as far as they make sense.

    **Raises:** `InputError` for an unknown name.
    """
    found: dict[str, Axes] = {}
    pages: dict[str, Figure] = {}
    y = choose_y(dataset, y)
    if any(is_numeric(dataset, name) for name in varying(dataset)):
        x = choose_x(dataset, x)
        found["curves"] = curves(dataset, x, y, by)
        if "verdict" in dataset:
            pages["verdicts"] = verdicts_of_all(dataset, x, by or choose_by(dataset, x))
        if "settle_time" in dataset and _has_finite(dataset, "settle_time") and y != "settle_time":
            found["settling"] = curves(dataset, x, "settle_time", by)
        others = [name for name in varying(dataset) if dataset[name].dims != dataset[x].dims and name not in SEEDS]
        others = [name for name in others if name != "policy"] or others  # a row for each balancer says less
        if others and _has_finite(dataset, y):
            found["heatmap"] = heatmap(dataset, x, by or others[0], y)
    elif x is not None:
        checked_input(dataset, x, "x")
    found["distribution"] = distribution(dataset, y, by)
    return {name: ax.figure for name, ax in found.items()} | pages  # pyright: ignore[reportReturnType]


def save_pictures(figures: dict[str, Figure], folder: Path) -> list[Path]:
    """Write figures as PNG files into a folder, each whole or not at all. **Returns:** their paths.

    **Raises:** `InputError` when the folder cannot be written.
    """
    paths = {name: folder / f"{name}.png" for name in figures}
    with disk_errors(f"--output {folder}", "name another folder or make room"):
        folder.mkdir(parents=True, exist_ok=True)
        for name, figure in figures.items():
            with whole_file(paths[name]) as draft:
                save_png(figure, draft)
    return list(paths.values())


def _one_policy(dataset: Dataset, x: str, by: str) -> tuple[Dataset, str]:
    """The part of one balancer, and its name behind a comma; all of it where there is one, or where it is along a direction."""
    taken = {*dataset[x].dims, *dataset[by].dims}
    if "policy" not in varying(dataset) or taken & {*dataset["policy"].dims}:
        return dataset, ""
    policies = values_of(dataset, "policy").tolist()
    chosen = "dgd-lb" if "dgd-lb" in policies else policies[0]
    places = dataset["policy"].dims[0]
    part = dataset.isel({places: np.flatnonzero(np.asarray(policies) == chosen)})
    return part, f", {BALANCERS[chosen].label if chosen in BALANCERS else chosen}"


def _has_finite(dataset: Dataset, y: str) -> bool:
    """Whether there is anything to draw."""
    return bool(np.isfinite(np.asarray(dataset[y].values, float)).any())


def _mark_step_sizes(ax: Axes, dataset: Dataset, x: str) -> None:
    """Where the critical and the sufficient step size are, in units of `x`."""
    limits = ax.get_xlim()
    for name, style in zip(_MARKS.get(x, ()), ("--", ":"), strict=False):
        word = name.split("_")[0]
        if x.endswith(word):
            ax.axvline(1, color="black", ls=style, lw=1.2, label=word)
        elif name in dataset and (x not in _SCALE or _SCALE[x] in dataset):
            scale = dataset[_SCALE[x]].values if x in _SCALE else 1
            with np.errstate(all="ignore"):
                ratio = (dataset[name].values / scale).ravel()
            ratio = ratio[np.isfinite(ratio)]
            if ratio.size:
                low, middle, high = np.quantile(ratio, [0.25, 0.5, 0.75])
                ax.axvspan(low, high, color="black", alpha=0.06, lw=0)
                ax.axvline(
                    middle,
                    color="black",
                    ls=style,
                    lw=1.2,
                    label=f"{word} (smallest)" if word == "sufficient" else word,
                )
    ax.set_xlim(limits)


def _scale_x(ax: Axes, values: np.ndarray) -> None:
    places = np.unique(values)
    positive = places[places > 0]
    if positive.size == places.size > 2 and places[-1] / places[0] > 8:
        ax.set_xscale("log")
        low, high = np.log10(places[[0, -1]])
        ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high - low < 3 else (1,)))
        ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        ax.xaxis.set_minor_formatter(NullFormatter())
        ax.set_xlim(10 ** (low - 0.05 * (high - low)), 10 ** (high + 0.05 * (high - low)))


def _leave_out_the_infinite(ax: Axes, dataset: Dataset, x: str, y: str, by: str | None) -> None:
    """Room for what is finite: bands that reach to infinity leave the picture at the top."""
    finite = np.concatenate([np.ravel(quartiles(part, x, y)[1:]) for _, part in groups(dataset, by)])
    finite = finite[np.isfinite(finite)]
    if finite.size and ax.get_yscale() == "log":
        positive = finite[finite > 0] if (finite > 0).any() else np.array([_FLOOR])
        lowest = max(positive.min(), _FLOOR if y == "excess" else 0)
        ax.set_ylim(lowest / 1.5, 1.5 * max(positive.max(), lowest))
    elif finite.size and ax.get_ylim()[1] > finite.max() > 0:
        ax.set_ylim(top=1.05 * finite.max())


def _has_positive(dataset: Dataset, y: str) -> bool:
    values = np.asarray(dataset[y].values, float)
    return bool((np.isfinite(values) & (values > 0)).any())


def _percent(axis) -> None:
    axis.set_major_locator(LogLocator(numticks=9))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g} %"))
    axis.set_minor_formatter(NullFormatter())


def _label(dataset: Dataset, name: str) -> str:
    units = dataset[name].attrs.get("units", "")
    meaning = {
        "excess": "mean latency over the optimum",
        "settle_time": "time to settle",
        "step_size_over_critical": "step size / critical",
        "step_size_over_default": "step size / default",
        "step_size_over_sufficient": "step size / sufficient",
    }.get(name, name.replace("_", " "))
    return f"{meaning} ({units})" if units not in ("", "1") else meaning


def _title(dataset: Dataset) -> str:
    return dataset.attrs.get("title", "sweep").removeprefix("Sweep ")
