"""What all pictures share: figures without global state, colours, axes, lines that coincide, and files."""

import warnings
from io import BytesIO
from pathlib import Path
from typing import TypeVar

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis, Tick
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Text
from matplotlib.ticker import FuncFormatter, LogFormatter, LogLocator, NullFormatter, ScalarFormatter

from dgdlb_jax.numerics.formatting import seconds

# Okabe and Ito's colours, which colour-blind readers tell apart; line styles and hatches tell repeats apart.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#8C6BB1", "#7F7F7F")
STYLES = ("-", "--", ":", "-.")
IN_TURNS = "colours in turns: lines that coincide"
_DASH = 5.0  # line widths, of each of several lines that coincide
_CLOSE = 0.005  # of the height of the axes: lines that are nearer to each other look like one
_SAMPLES = 200

Drawn = TypeVar("Drawn", Axes, Figure)


def as_written(drawn: Drawn) -> Drawn:
    """The same axes or figure, in which all texts stand as they are: a dollar sign in a name begins no formula. Numbers along a scale,
    which matplotlib may write as powers of ten, are its own."""
    scales = [
        axis for axis in drawn.findobj(Axis) if isinstance(axis.get_major_formatter(), LogFormatter | ScalarFormatter)
    ]
    numbers = {id(text) for axis in scales for tick in axis.findobj(Tick) for text in tick.findobj(Text)}
    for text in drawn.findobj(Text):
        if id(text) not in numbers:
            text.set_parse_math(False)
    return drawn


def plain_log(axis: Axis) -> None:
    """Plain numbers (1, 2, 5, 10, ...) along a logarithmic axis of a few decades."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=9))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


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


def finish(ax: Axes, x: str, y: str, title: str) -> None:
    ax.set_xlabel(x)
    ax.set_ylabel(y)
    ax.set_title(title, loc="left")
    ax.grid(True, color="0.9", lw=0.7)
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)


def log_time(ax: Axes, first: float, last: float) -> None:
    """A logarithmic axis of time, as most happens soon after the start."""
    ax.set_xscale("log")
    ax.set_xlim(first, last)
    ax.xaxis.set_major_locator(LogLocator(subs=(1,) if last > 1e3 * first else (1, 2, 5)))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.xaxis.set_minor_formatter(NullFormatter())


def log_seconds(ax: Axes) -> None:
    """A logarithmic y axis of times, with units."""
    low, high = ax.get_ylim()
    subs = range(1, 10) if high < 6 * low else (1, 2, 5) if high < 300 * low else (1,)
    ax.yaxis.set_major_locator(LogLocator(subs=subs))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: seconds(value)))
    ax.yaxis.set_minor_formatter(NullFormatter())


def tell_apart(ax: Axes, lines: list[Line2D]) -> bool:
    """Let lines that coincide over half of the picture or more take turns, a dash of each colour after the other.

    Call it when the limits of the axes are what they will be. **Returns:** whether there are any: say `IN_TURNS` in the legend.
    """
    _ = ax.get_xlim(), ax.get_ylim()  # only now do limits that nobody set follow the lines
    heights = [_heights(ax, line) for line in lines]
    groups: list[list[int]] = []
    for k, height in enumerate(heights):
        near = (group for group in groups if np.mean(np.abs(height - heights[group[0]]) < _CLOSE) >= 0.5)
        group = next(near, None)
        groups.append([k]) if group is None else group.append(k)
    for group in groups:
        for turn, k in enumerate(group):
            if len(group) > 1:
                lines[k].set_linestyle((-turn * _DASH, (_DASH, (len(group) - 1) * _DASH)))
                lines[k].set_linewidth(max(lines[j].get_linewidth() for j in group))
    return any(len(group) > 1 for group in groups)


def explain_turns(ax: Axes) -> None:
    """Say in the last entry of the legend, which stands beside the axes, what lines in turns are."""
    legend = ax.get_legend()
    if legend is None:
        return
    handles = [*legend.legend_handles, Line2D([], [], ls="")]  # as they were when the legend was made
    labels = [*(text.get_text() for text in legend.get_texts()), IN_TURNS.replace(": ", ":\n")]
    title = legend.get_title().get_text()
    ax.legend(handles, labels, title=title, loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False)


def _heights(ax: Axes, line: Line2D) -> np.ndarray:
    """Where a line is at places across the axes, as parts of their height; NaN where it is outside of them."""
    points = ax.transAxes.inverted().transform(ax.transData.transform(np.asarray(line.get_xydata(), float)))
    inside = np.isfinite(points).all(1)
    if not inside.any():
        return np.full(_SAMPLES, np.nan)
    found = np.interp(np.linspace(0, 1, _SAMPLES), *points[inside].T)
    return np.where((found >= 0) & (found <= 1), found, np.nan)
