"""Pictures of gradients: the approximate one against the exact ones. Functions take axes and return them."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dgdlb_jax.gradients.marginal import MarginalLatency
from dgdlb_jax.model.network import Network
from dgdlb_jax.reports.axes import as_written, finish, new_axes, new_figure
from dgdlb_jax.studies.outcome import backend_names, frontend_names

_NAMED = 40  # more arcs than these have numbers instead of names


def error_heatmap(network: Network, gradients: MarginalLatency, exact=None, *, ax: Axes | None = None) -> Axes:
    """Relative error of the approximate gradient over time, one row per arc; red where it is too high, blue where it is too low.

    **Arguments:** `gradients` of that `network`; `exact`: `gradients.open_loop` (the default) or `.closed_loop`; `ax`: axes to draw
    on, a new figure by default. **Returns:** the axes.
    """
    arcs = np.argwhere(np.asarray(gradients.mask))
    ax = new_axes((9, 1.5 + 0.28 * min(len(arcs), _NAMED))) if ax is None else ax
    error = 100 * np.asarray(gradients.relative_error(exact))[:, arcs[:, 0], arcs[:, 1]].T
    largest = np.nanmax(np.abs(error)) if np.isfinite(error).any() else 1.0
    time = np.asarray(gradients.time)
    edges = np.concatenate([time[:1], (time[1:] + time[:-1]) / 2, time[-1:]])
    image = ax.pcolormesh(
        edges, np.arange(len(arcs) + 1), error, cmap="RdBu_r", vmin=-largest, vmax=largest, rasterized=True
    )
    ax.figure.colorbar(image, ax=ax, label="approximate / exact - 1 (%)")
    finish(ax, "time (s)", "arc", f"{network.name or 'network'}: error of the approximate gradient")
    ax.grid(False)
    ax.invert_yaxis()
    if len(arcs) <= _NAMED:
        frontends, backends = frontend_names(network), backend_names(network)
        ax.set_yticks(np.arange(len(arcs)) + 0.5, [f"{frontends[i]} to {backends[j]}" for i, j in arcs])
    return as_written(ax)


def three_gradients(network: Network, gradients: MarginalLatency, frontend: int = 0) -> Figure:
    """The three marginal latencies of a frontend's arcs over time, one panel for each backend."""
    reached = np.flatnonzero(np.asarray(gradients.mask)[frontend])
    wide = min(len(reached), 4)
    tall = -(-len(reached) // wide)
    figure = new_figure((3.4 * wide + 0.6, 2.7 * tall + 0.6))
    grid = figure.subplots(tall, wide, squeeze=False, sharex=True, sharey=True)
    kinds = (("closed_loop", "exact, all react", "#009E73", "-"), ("open_loop", "exact, nobody reacts", "#0072B2", "-"),
             ("approximate", "as DGD-LB sees it", "#D55E00", "--"))  # fmt: skip
    for k, ax in enumerate(grid.flat):
        if k >= len(reached):
            ax.set_axis_off()
            continue
        for name, label, colour, style in kinds:
            ax.plot(
                np.asarray(gradients.time),
                np.asarray(getattr(gradients, name))[:, frontend, reached[k]],
                style,
                color=colour,
                label=label,
            )
        left, below = k % wide == 0, k + wide >= len(reached)
        finish(
            ax,
            "time (s)" if below else "",
            "marginal latency (s)" if left else "",
            f"to {backend_names(network)[reached[k]]}",
        )
    handles, labels = grid.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
    figure.suptitle(f"{frontend_names(network)[frontend]}: one more request, sent at a time")
    return as_written(figure)


def error_against(x, error, *, label: str, x_label: str, ax: Axes | None = None) -> Axes:
    """Median and range of an error (degrees) against something that was varied; `error` is `(points, values)`, NaN left out."""
    ax = new_axes((6, 4)) if ax is None else ax
    x, error = np.asarray(x), np.asarray(error)
    low, middle, high = np.nanquantile(error, [0.1, 0.5, 0.9], axis=1)
    (line,) = ax.plot(x, middle, "o-", label=label)
    ax.fill_between(x, low, high, color=line.get_color(), alpha=0.2, lw=0)
    ax.set_xscale("log")
    ax.set_xticks(x, [f"{value:g}" for value in x])
    ax.set_xticks([], minor=True)
    finish(ax, x_label, "angle to the exact step (degrees)", "median, and 10 to 90 % of times and frontends")
    ax.set_ylim(bottom=0)
    return ax
