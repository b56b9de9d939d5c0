"""One figure per claim, from the stores of its sweeps, drawn with the pictures of sweeps where those do."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator, PercentFormatter

from dgdlb_jax.reports.axes import COLOURS, STYLES, finish, new_axes, new_figure, plain_log
from dgdlb_jax.reports.sweep_plots import curves, distribution
from dgdlb_jax.studies import verdict as ends
from dgdlb_jax.studies.balancers import BALANCERS
from dgdlb_jax.studies.claims.judge import OURS, cycles, observed_over_critical
from dgdlb_jax.studies.claims.updates import decided, restless, rules

if TYPE_CHECKING:
    import xarray

    Data = Mapping[str, xarray.Dataset]
else:
    Data = Mapping

_FLOOR, _TOP = 1e-4, 10.0  # of the excess in the picture of claim 6


def optimal(data: Data) -> Figure:
    """Claim 1: distribution of the excess of settled runs, for two lengths."""
    runs = data["runs"]
    settled = abs(runs["excess"]).where(runs["verdict"] == ends.Verdict.settled)
    ax = distribution(runs.assign(excess=settled), "excess", "duration_over_suggested")
    return _titled(ax, "1: excess of settled runs; lines end at the part that settled", "simulated time\n/ suggested")


def local(data: Data) -> Figure:
    """Claim 2: measured growth rates against the abscissa."""
    runs, ax = data["runs"].swap_dims(step="step_size_over_critical"), new_axes((6.2, 5.0))
    for k, step in enumerate(runs["step_size_over_critical"].values):
        part = runs.sel(step_size_over_critical=step)
        root, rate = -part["abscissa"].values.ravel(), -part["growth_rate"].values.ravel()
        good = (root > 0) & (rate > 0)
        ax.plot(root[good], rate[good], ".", ms=5, color=COLOURS[k % 8], label=f"{step:g}", alpha=0.7)
    ax.set_xscale("log")
    ax.set_yscale("log")
    line = np.array(ax.get_xlim())
    ax.plot(line, line, color="0.4", lw=1, zorder=0)
    finish(ax, "decay rate of the rightmost root (1/s)", "decay rate in simulation (1/s)", "2: local convergence")
    ax.legend(title="step size\n/ critical", frameon=False, loc="upper left", bbox_to_anchor=(1.01, 1))
    return _figure(ax)


def sufficient(data: Data) -> Figure:
    """Claim 3: exact limit over guaranteed step sizes, by family of latencies."""
    ax = distribution(data["random"], "critical_factor", "family")
    if "fleets" in data:
        factor = np.sort(data["fleets"]["critical_factor"].values.ravel())
        ax.step(factor, np.arange(1, factor.size + 1) / factor.size, where="post", color="black", label="real regions")
    ax.axvline(1, color="black", lw=1, ls="--")
    ax.set_xscale("log")
    plain_log(ax.xaxis)
    ax.set_xlabel("exact limit / guaranteed step sizes")
    return _titled(ax, "3: a violation would lie left of the dashed line", "latencies")


def tight(data: Data) -> Figure:
    """Claim 4: guaranteed over exact by family, and observed over exact."""
    figure = new_figure((11.5, 4.4))
    left, right = figure.subplots(1, 2)
    guaranteed = data["guaranteed"]
    distribution(
        guaranteed.assign(critical_factor=1 / guaranteed["critical_factor"]), "critical_factor", "family", ax=left
    )
    left.set_xlim(0, 1.02)
    left.set_xlabel("guaranteed / exact step size")
    left.set_title("4: how tight the conditions are", loc="left")
    left.get_legend().remove()
    left.legend(frameon=False, fontsize=8)
    observed = np.sort(observed_over_critical(data["runs"]))
    right.step(observed, np.arange(1, observed.size + 1) / max(observed.size, 1), where="post", color="black")
    right.axvline(1, color="black", lw=1, ls="--")
    right.set_ylim(0, 1.02)
    right.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0, symbol=" %"))
    finish(right, "observed / exact critical step size", "part of the networks below", "observed in simulation")
    return figure


def stable(data: Data) -> Figure:
    """Claim 5: part of the runs that end in a cycle, by step size and start (lines), in every world (columns)."""
    runs = data["runs"]
    worlds = [f"{c}, load {float(v):g}" for c, v in zip(runs["curve"].values, runs["load"].values, strict=True)]
    policies = [str(name) for name in runs["policy"].values]
    figure = new_figure((2.9 * len(worlds) + 1.6, 2.6 * len(policies) + 0.5))
    grid = figure.subplots(len(policies), len(worlds), squeeze=False, sharex=True, sharey=True)
    share = cycles(runs).where(runs["verdict"] != ends.Verdict.failed).mean(["seed", "latency_scale"])
    for (row, column), ax in np.ndenumerate(grid):
        for k, start in enumerate(runs["start"].values):
            line = share.sel(policy=policies[row], start=start).isel(world=column)
            ax.plot(line["step_size_over_critical"], 100 * line, marker="o", ms=3.5, color=COLOURS[k], label=str(start))
        _log_ticks(ax, runs["step_size_over_critical"].values)
        ax.set_ylim(-3, 103)
        below, beside = row == len(policies) - 1, column == 0
        name = BALANCERS[policies[row]].label
        finish(
            ax,
            "step size / critical" if below else "",
            f"{name}:\ncycles (%)" if beside else "",
            worlds[column] if row == 0 else "",
        )
        ax.title.set_fontsize(9)
    grid[0, -1].legend(title="start", frameon=False, loc="upper left", bbox_to_anchor=(1.01, 1.0))
    return figure


def gains(data: Data) -> Figure:
    """Claim 6: median excess of every balancer against latency, bands for DGD-LB and the closest rival."""
    runs = data["random"]
    ax = new_axes((10.5, 5.6))
    low, middle, high = (runs["excess"].quantile(q, "seed", method="nearest", skipna=False) for q in (0.05, 0.5, 0.95))
    rank = np.argsort(middle.clip(max=_TOP).mean("latency_scale").values)
    order = [str(name) for name in middle["policy"].values[rank]]
    banded = {"dgd-lb", next((name for name in order if name not in OURS), "")}
    scale = runs["latency_scale"].values
    places = np.where(scale > 0, scale, 0.4 * np.min(scale[scale > 0]))
    for k, policy in enumerate(order):
        colour, own = COLOURS[k % 8], policy == "dgd-lb"
        line, bottom, top = (np.clip(part.sel(policy=policy).values, _FLOOR, 2 * _TOP) for part in (middle, low, high))
        label = BALANCERS[policy].label
        ax.plot(
            places, line, color=colour, ls=STYLES[k // 8 % 4], lw=2.8 if own else 1.3, marker="o", ms=3, label=label
        )
        if policy in banded:
            ax.fill_between(places, bottom, top, color=colour, alpha=0.15, lw=0)
    _log_ticks(ax, places, ["none" if value == 0 else f"{value:g}" for value in scale])
    ax.set_yscale("log")
    ax.set_ylim(_FLOOR, _TOP)
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g} %"))
    finish(ax, "mean network latency / service time", "mean latency over the optimum", "6: excess by balancer")
    ax.legend(title="medians, best first;\nbands 5-95 %", frameon=False, loc="upper left", bbox_to_anchor=(1.01, 1.0))
    return _figure(ax)


def gradient(data: Data) -> Figure:
    """Claim 7: relative error of the approximate gradient against the distance, a line per latency."""
    ax = curves(data["runs"], "start_distance", "gradient_error", "latency_scale")
    ax.set_xscale("log")
    ax.set_xlabel("start: distance of the routing from the optimum")
    ax.set_ylabel("relative error of the approximate gradient")
    return _titled(ax, "7: approximate against exact gradient", "latency\n/ service time")


def requests(data: Data) -> Figure:
    """Claim 8: what randomness costs against the scale, a panel for each fleet, a line for each balancer."""
    runs = data["fleets"]
    fleets = [str(name) for name in np.atleast_1d(runs["fleet"].values)]
    figure = new_figure((3.1 * len(fleets) + 2.0, 4.2))
    panels = figure.subplots(1, len(fleets), squeeze=False, sharex=True, sharey=True)[0]
    for panel, fleet in zip(panels, fleets, strict=True):
        part = runs.sel(fleet=fleet) if "fleet" in runs.dims else runs
        for k, policy in enumerate(str(name) for name in runs["policy"].values):
            one = part.sel(policy=policy)
            shown = np.where(
                one["noise_excess"] > 2 * one["request_error"] / one["mean_latency"], one["noise_excess"], np.nan
            )
            panel.plot(
                one["scale"], 100 * shown, color=COLOURS[k % 8], ls=STYLES[k // 8 % 4], marker="o", ms=4,
                label=BALANCERS[policy].label,
            )  # fmt: skip
        predicted = 100 * part["predicted_noise"].sel(policy="dgd-lb")
        panel.plot(predicted["scale"], predicted, color="black", lw=1, ls=":", label="DGD-LB, linear theory")
        _log_ticks(panel, runs["scale"].values)
        panel.set_yscale("log")
        plain_log(panel.yaxis)
        finish(panel, "scale of the fleet", "randomness costs (%)" if panel is panels[0] else "", fleet)
    panels[-1].legend(title="8: whole requests", frameon=False, loc="upper left", bbox_to_anchor=(1.01, 1.0))
    return figure


def updates(data: Data) -> Figure:
    """Claim 9: networks that swing against the update period, a panel for each rule (columns) and load (rows)."""
    by_rule = rules(data)
    loads = data["weights"]["load"].values
    figure = new_figure((3.4 * len(by_rule) + 1.6, 2.6 * len(loads) + 0.6))
    grid = figure.subplots(len(loads), len(by_rule), squeeze=False, sharex=True, sharey=True)
    for (row, column), ax in np.ndenumerate(grid):
        name = list(by_rule)[column]
        runs = by_rule[name].sel(load=loads[row])
        simulated = restless(runs).where(decided(runs)).mean("seed")
        predicted = (runs["multiplier"] > 1).mean("seed")
        period = runs["policy.weight_update_period"].values
        for k, scale in enumerate(runs["latency_scale"].values):
            dots, line = (100 * share.sel(latency_scale=scale) for share in (simulated, predicted))
            ax.plot(period, dots, "o", ms=5, color=COLOURS[k], label=f"{scale:g}")
            ax.plot(period, line, lw=1.2, color=COLOURS[k])
        _log_ticks(ax, period)
        ax.set_ylim(-4, 104)
        below, beside = row == len(loads) - 1, column == 0
        label = f"load {loads[row]:g}:\nnetworks that swing (%)" if beside else ""
        title = name.replace(", ", ",\n") if row == 0 else ""
        finish(ax, "update period (s)" if below else "", label, title)
    title = "9: latency\n/ service time;\ndots simulated,\nlines predicted"
    grid[0, -1].legend(title=title, frameon=False, loc="upper left", bbox_to_anchor=(1.01, 1.0))
    return figure


FIGURES: dict[str, Callable[[Data], Figure]] = {
    "1": optimal,
    "2": local,
    "3": sufficient,
    "4": tight,
    "5": stable,
    "6": gains,
    "7": gradient,
    "8": requests,
    "9": updates,
}
"""The figure of every claim."""


def _titled(ax: Axes, title: str, legend: str) -> Figure:
    ax.set_title(title, loc="left")
    if ax.get_legend_handles_labels()[1]:
        ax.legend(title=legend, frameon=False, loc="upper left", bbox_to_anchor=(1.01, 1))
    return _figure(ax)


def _log_ticks(ax: Axes, places: np.ndarray, labels: list[str] | None = None) -> None:
    """A logarithmic axis with ticks at the values that were computed, and nowhere else."""
    ax.set_xscale("log")
    ax.set_xticks(places, labels or [f"{place:g}" for place in places])
    ax.xaxis.set_minor_locator(NullLocator())


def _figure(ax: Axes) -> Figure:
    figure = ax.figure
    assert isinstance(figure, Figure)
    return figure
