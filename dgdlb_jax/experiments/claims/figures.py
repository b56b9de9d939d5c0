"""One figure per claim, from the stores of its sweeps."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from dgdlb_jax.experiments import verdict as ends
from dgdlb_jax.experiments.balancers import BALANCERS
from dgdlb_jax.experiments.claims.judge import cycles, observed_over_critical

if TYPE_CHECKING:
    import xarray

    Data = Mapping[str, xarray.Dataset]
else:
    Data = Mapping

# Okabe and Ito's colours, which colour-blind readers tell apart; line styles tell repeats apart.
_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#7F7F7F", "#000000")
_STYLES = ("-", "--", ":", "-.")
_FLOOR = 1e-6  # excesses below are drawn there


def save(figure: Figure, path: Path) -> None:
    """Write a figure as PNG."""
    FigureCanvasAgg(figure)
    figure.savefig(path, dpi=130, bbox_inches="tight")


def optimal(data: Data) -> Figure:
    """Claim 1: distribution of the excess of settled runs, for two lengths."""
    figure, ax = _one()
    runs = data["runs"]
    for k, length in enumerate(runs["duration_over_suggested"].values):
        part = runs.sel(duration_over_suggested=length)
        excess = part["excess"].values[part["verdict"].values == ends.Verdict.settled]
        _distribution(ax, np.maximum(np.abs(excess), _FLOOR), f"{length:g} x the suggested length", k)
    rest = np.maximum(np.abs(data["rest"]["excess"].values).ravel(), 1e-16)
    _distribution(ax, rest, "started at the optimum", 2)
    ax.set_xscale("log")
    ax.legend(frameon=False)
    return _named(
        figure,
        ax,
        "|mean latency / optimum - 1| at the end of the run",
        "part of the runs below",
        "1: equilibria are optimal",
    )


def local(data: Data) -> Figure:
    """Claim 2: measured growth rates against the abscissa."""
    figure, ax = _one((5.6, 5.0))
    runs = data["runs"]
    steps = runs["step_size_over_critical"].values
    for k, step in enumerate(steps):
        part = runs.sel(step_size_over_critical=step)
        x, y = -part["abscissa"].values.ravel(), -part["growth_rate"].values.ravel()
        good = (x > 0) & (y > 0)
        ax.plot(x[good], y[good], ".", ms=4, color=_COLOURS[k % 8], label=f"{step:g}", alpha=0.7)
    low, high = ax.get_xlim()
    ends_ = np.array([max(low, 1e-6), high])
    ax.plot(ends_, ends_, color="0.4", lw=1, zorder=0)
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.legend(title="step size / critical", frameon=False)
    return _named(
        figure, ax, "decay rate of the rightmost root (1/s)", "decay rate in simulation (1/s)", "2: local convergence"
    )


def sufficient(data: Data) -> Figure:
    """Claim 3: exact limit over guaranteed step sizes, by family of latencies."""
    figure, ax = _one()
    random = data["random"]
    for k, family in enumerate(random["family"].values):
        factor = random["critical_factor"].sel(family=family).values.ravel()
        _distribution(ax, factor[np.isfinite(factor)], str(family).replace("_", " "), k)
    if "fleets" in data:
        fleets = data["fleets"]["critical_factor"].values.ravel()
        _distribution(ax, fleets[np.isfinite(fleets)], "real regions", random.sizes["family"])
    ax.axvline(1, color="black", lw=1, ls="--")
    ax.set_xscale("log")
    ax.legend(frameon=False, loc="lower right")
    return _named(
        figure,
        ax,
        "exact limit / guaranteed step sizes",
        "part of the networks below",
        "3: never below 1 (dashed): never violated",
    )


def tight(data: Data) -> Figure:
    """Claim 4: guaranteed over exact by family, and observed over exact."""
    figure = Figure(figsize=(9.5, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    guaranteed = data["guaranteed"]
    for k, family in enumerate(guaranteed["family"].values):
        factor = guaranteed["critical_factor"].sel(family=family).values.ravel()
        _distribution(left, 1 / factor[np.isfinite(factor)], str(family).replace("_", " "), k)
    left.set_xlim(0, 1.02)
    left.legend(frameon=False)
    _named(
        figure, left, "guaranteed / exact step size", "part of the networks below", "4: how tight the conditions are"
    )
    observed = observed_over_critical(data["runs"])
    if observed.size:
        _distribution(right, observed, "", 7)
    right.axvline(1, color="black", lw=1, ls="--")
    _named(figure, right, "observed / exact critical step size", "part of the networks below", "observed in simulation")
    return figure


def stable(data: Data) -> Figure:
    """Claim 5: part of the runs that end in a cycle, by step size and start (lines), in every world (panels)."""
    runs = data["runs"]
    worlds = [f"{c}, load {float(v):g}" for c, v in zip(runs["curve"].values, runs["load"].values, strict=True)]
    policies = [str(name) for name in runs["policy"].values]
    figure = Figure(figsize=(3.3 * len(worlds) + 1.2, 2.9 * len(policies) + 0.4), layout="constrained")
    grid = figure.subplots(len(policies), len(worlds), squeeze=False, sharex=True, sharey=True)
    share = cycles(runs).where(runs["verdict"] != ends.Verdict.failed)
    share = share.mean([dim for dim in ("seed", "latency_scale") if dim in share.dims])
    for row, policy in enumerate(policies):
        for column, world in enumerate(worlds):
            ax = grid[row, column]
            for k, start in enumerate(runs["start"].values):
                line = share.sel(policy=policy, start=start).isel(world=column)
                ax.plot(
                    runs["step_size_over_critical"].values,
                    100 * line.values,
                    marker="o",
                    ms=3.5,
                    color=_COLOURS[k],
                    label=str(start),
                )
            ax.set_xscale("log")
            ax.set_ylim(-3, 103)
            name = BALANCERS[policy].label if policy in BALANCERS else policy
            _named(
                figure, ax, "step size / critical" if row == len(policies) - 1 else "",
                "runs in a cycle (%)" if column == 0 else "", f"{name}: {world}" if len(policies) > 1 else world,
            )  # fmt: skip
            ax.title.set_fontsize(9)
    grid[0, -1].legend(title="start", frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return figure


def gains(data: Data) -> Figure:
    """Claim 6: median excess of every balancer against latency, bands for DGD-LB and the closest rival."""
    runs = data["random"].swap_dims(latency="latency_scale")
    figure, ax = _one((9.5, 5.2))
    median = runs["excess"].median("seed", skipna=True)
    order = [str(name) for name in median["policy"].values[np.argsort(median.mean("latency_scale").values)]]
    banded = {"dgd-lb", next((name for name in order if name not in ("dgd-lb", "mirror-descent")), "")}
    scale = np.maximum(runs["latency_scale"].values, 3e-3)
    for k, policy in enumerate(order):
        line = np.maximum(median.sel(policy=policy).values, 1e-4)
        colour, style = _COLOURS[k % 8], _STYLES[k // 8 % 4]
        ax.plot(
            scale,
            np.where(np.isfinite(line), line, np.nan),
            color=colour,
            ls=style,
            lw=2.6 if policy == "dgd-lb" else 1.4,
            marker="o",
            ms=3,
            label=BALANCERS[policy].label if policy in BALANCERS else policy,
        )
        if policy in banded:
            excess = runs["excess"].sel(policy=policy)
            low, high = (
                np.maximum(
                    np.nan_to_num(np.nanquantile(excess.values, q, axis=excess.dims.index("seed")), posinf=1e3), 1e-4
                )
                for q in (0.05, 0.95)
            )
            ax.fill_between(scale, low, high, color=colour, alpha=0.15, lw=0)
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.set_ylim(1e-4, 10)
    ax.legend(frameon=False, loc="upper left", bbox_to_anchor=(1.01, 1.0), title="medians; bands 5-95 %", fontsize=8)
    return _named(
        figure,
        ax,
        "mean network latency (service times; leftmost: none)",
        "mean latency / optimum - 1",
        "6: excess by balancer",
    )


def gradient(data: Data) -> Figure:
    """Claim 7: relative error of the approximate gradient against the distance, a line per latency."""
    figure, ax = _one()
    runs = data["runs"]
    error = runs["gradient_error"]
    axis = error.dims.index("seed")
    low, middle, high = (
        error.median("seed").copy(data=np.nanquantile(error.values, q, axis=axis)) for q in (0.05, 0.5, 0.95)
    )
    for k, scale in enumerate(runs["latency_scale"].values):
        x, pick = runs["start_distance"].values, {"latency_scale": scale}
        ax.plot(x, middle.sel(pick).values, color=_COLOURS[k], marker="o", ms=3.5, label=f"{scale:g}")
        ax.fill_between(x, low.sel(pick).values, high.sel(pick).values, color=_COLOURS[k], alpha=0.12, lw=0)
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.legend(title="latency (service times)", frameon=False)
    return _named(
        figure,
        ax,
        "start: distance of the routing from the optimum",
        "relative error of the gradient",
        "7: approximate against exact gradient",
    )


FIGURES: dict[str, Callable[[Data], Figure]] = {
    "1": optimal,
    "2": local,
    "3": sufficient,
    "4": tight,
    "5": stable,
    "6": gains,
    "7": gradient,
}
"""The figure of every claim."""


def _one(size: tuple[float, float] = (7.2, 4.4)) -> tuple[Figure, Axes]:
    figure = Figure(figsize=size, layout="constrained")
    return figure, figure.subplots()


def _distribution(ax: Axes, values: np.ndarray, label: str, k: int) -> None:
    """The part of the values below every value."""
    ordered = np.sort(values[np.isfinite(values)])
    ax.step(
        ordered,
        np.arange(1, ordered.size + 1) / max(ordered.size, 1),
        where="post",
        color=_COLOURS[k % 8],
        ls=_STYLES[k // 8 % 4],
        label=label or None,
    )
    ax.set_ylim(0, 1.02)


def _named(figure: Figure, ax: Axes, x: str, y: str, title: str) -> Figure:
    ax.set_xlabel(x)
    ax.set_ylabel(y)
    ax.set_title(title, loc="left")
    ax.grid(True, color="0.9", lw=0.7)
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)
    return figure
