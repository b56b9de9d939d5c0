"""What the sweeps of a claim show: one judge per claim, from stores to numbers, a sentence, a verdict."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from dgdlb_jax.policies.registry import POLICIES
from dgdlb_jax.studies import verdict as ends
from dgdlb_jax.studies.claims.judgement import Judgement as Judgement
from dgdlb_jax.studies.claims.judgement import Verdict as Verdict
from dgdlb_jax.studies.claims.judgement import case, known, percent, quantile, topologies, worst
from dgdlb_jax.studies.claims.updates import updates
from dgdlb_jax.studies.requests import changed_places

if TYPE_CHECKING:
    import xarray

    Data = Mapping[str, xarray.Dataset]
else:
    Data = Mapping

TINY_EXCESS = 1e-3
"""Excess over the optimum below which a run counts as having arrived."""
VISIBLE_EXCESS = 0.01
"""Excess over the optimum above which a run that does not settle counts as a cycle."""
LARGE_SWING = 0.2
"""(max - min) / mean of a workload above which a run that does not settle counts as a cycle."""
REGION = 3e-4
"""Linear region of an optimum (relative change of a workload) from which a start at a distance of 1e-4 lies within it."""
LARGE_LATENCY = 1.0
"""Latency scale, in service times, from which latencies count as large."""


_ABOVE = "more than 1 % above the optimum in the end with"


def optimal(data: Data) -> Judgement:
    """Claim 1: the excess of settled runs, of two lengths, and of runs that start at the optimum.

    Runs that are moving or too short to judge have not settled.
    """
    runs, rest = data["runs"], data["rest"]
    settled = abs(runs["excess"]).where(runs["verdict"] == ends.Verdict.settled)
    short, long = (known(settled.isel(duration_over_suggested=k)) for k in (0, -1))
    numbers = {
        "settled": float(settled.isel(duration_over_suggested=-1).notnull().mean()),
        "median excess of settled runs": quantile(short, 0.5),
        "median excess of settled runs, 4 times as long": quantile(long, 0.5),
        "95 % excess of settled runs, 4 times as long": quantile(long, 0.95),
        "largest excess of settled runs, 4 times as long": quantile(long, 1.0),
        "largest excess when started at the optimum": float(np.nanmax(np.abs(rest["excess"].values))),
    }
    arrived = quantile(long, 0.95) < TINY_EXCESS and numbers["largest excess when started at the optimum"] < 1e-6
    return Judgement(
        f"{percent(numbers['settled'])} of the runs settle; their excess is {percent(quantile(long, 0.5))} in the median, "
        f"{percent(quantile(long, 0.95))} at 95 %, {percent(quantile(long, 1.0))} at most; at a quarter of the length the median is "
        f"{percent(numbers['median excess of settled runs'])}, so what is left is the way there; started at the optimum, runs stay "
        f"within {numbers['largest excess when started at the optimum']:.1e}",
        Verdict.holds if arrived else Verdict.in_part,
        topologies(runs),
        numbers,
    )


def local(data: Data) -> Judgement:
    """Claim 2: growth rates of small deviations against the rightmost root."""
    runs = data["runs"].swap_dims(step="step_size_over_critical")
    growth, root = runs["growth_rate"].values, runs["abscissa"].values
    long_enough = (
        np.abs(root) * runs["simulated_time"].values > 3
    )  # time constants: else the slowest mode has not come out
    usable = np.isfinite(growth) & np.isfinite(root) & (runs["linear_region"].values > REGION) & long_enough
    error = np.abs(growth[usable] / root[usable] - 1)
    numbers = {
        "decaying": float((growth[usable] < 0).mean()),
        "negative abscissa": float((root[usable] < 0).mean()),
        "median difference of decay rate and root": quantile(error, 0.5),
        "90 % difference of decay rate and root": quantile(error, 0.9),
        "cases compared": float(usable.sum()),
    }
    holds = numbers["decaying"] == 1 and numbers["negative abscissa"] == 1
    return Judgement(
        f"{percent(numbers['decaying'])} of {usable.sum()} small perturbations below the critical step size decay; the measured "
        f"rate differs from the rightmost root by {percent(quantile(error, 0.5))} in the median, {percent(quantile(error, 0.9))} at 90 %",
        Verdict.holds if holds else Verdict.in_part,
        topologies(runs),
        numbers,
        None if holds else worst(runs, np.where(usable, growth, -np.inf)),
    )


def sufficient(data: Data) -> Judgement:
    """Claim 3: by how much the guaranteed step sizes may be multiplied before the exact limit; never less than 1.

    Simulated at them, deviations within the linear region have to decay. An optimum with an idle arc that hardly loses has a
    tiny region: a deviation that is larger brings that arc, and a frontend that nothing limits at the optimum, into the loop.
    """
    factors, growth, region = (
        np.concatenate([part[name].values.ravel() for part in data.values()])
        for name in ("critical_factor", "growth_rate", "linear_region")
    )
    limited, ran = factors[np.isfinite(factors)], np.isfinite(growth)
    inside, outside = growth[ran & (region > REGION)], growth[ran & (region <= REGION)]
    violated = int((limited < 1 - 1e-9).sum())
    numbers = {
        "networks with a limit": float(limited.size),
        "violations": float(violated),
        "smallest factor to the limit": quantile(limited, 0.0),
        "median factor to the limit": quantile(limited, 0.5),
        "simulated within the linear region": float(inside.size),
        "decaying within the linear region": float((inside < 0).mean()) if inside.size else np.nan,
        "simulated beyond the linear region": float(outside.size),
        "growing beyond the linear region": float((outside >= 0).sum()),
    }
    return Judgement(
        f"{violated} violations in {limited.size} networks with a limit: the guaranteed step sizes may be multiplied by at least "
        f"{quantile(limited, 0.0):.3f}, in the median {quantile(limited, 0.5):.2f}; simulated at them, "
        f"{percent(numbers['decaying within the linear region'])} of {inside.size} small perturbations decay, and "
        f"{int((outside >= 0).sum())} of {outside.size} grow that are larger than the linear region of their optimum",
        Verdict.holds if violated == 0 else Verdict.fails,
        sum(map(topologies, data.values())),
        numbers,
    )


def tight(data: Data) -> Judgement:
    """Claim 4: guaranteed over exact, and observed over exact, as distributions."""
    factor = data["guaranteed"]["critical_factor"].values.ravel()
    ratio = 1 / factor[np.isfinite(factor)]
    observed = observed_over_critical(data["runs"])
    numbers = {
        "lowest guaranteed / exact": float(ratio.min()),
        "median guaranteed / exact": quantile(ratio, 0.5),
        "highest guaranteed / exact": float(ratio.max()),
        "median observed / exact": quantile(observed, 0.5),
        "within 1 % of exact": float((np.abs(observed - 1) < 0.01).mean()) if observed.size else np.nan,
        "observed": float(observed.size),
    }
    return Judgement(
        f"guaranteed / exact is {ratio.min():.3f} to {ratio.max():.3f}, {quantile(ratio, 0.5):.2f} in the median; observed / exact is "
        f"{quantile(observed, 0.5):.4f} in the median and within 1 % in {percent(numbers['within 1 % of exact'])} of "
        f"{observed.size} networks",
        Verdict.holds if quantile(ratio, 0.5) > 0.5 and ratio.max() <= 1 + 1e-9 else Verdict.in_part,
        topologies(data["guaranteed"]),
        numbers,
    )


def observed_over_critical(runs: "xarray.Dataset") -> np.ndarray:
    """The fraction of the critical step size at which the growth rate passes zero, by a straight line; one per network."""
    step = runs["step_size_over_critical"].values
    growth = np.moveaxis(runs["growth_rate"].values, runs["growth_rate"].dims.index("step_size_over_critical"), -1)
    found = []
    for rates in growth.reshape(-1, step.size):
        if np.isfinite(rates).all() and rates[0] < 0 < rates[-1]:
            k = int(np.argmax(rates > 0))
            found.append(step[k - 1] - rates[k - 1] * (step[k] - step[k - 1]) / (rates[k] - rates[k - 1]))
    return np.array(found)


def stable(data: Data) -> Judgement:
    """Claim 5: runs from far starts that end in a cycle, by step size and start; those that have not arrived are told apart."""
    runs = data["runs"].sel(policy="dgd-lb")
    ran = runs["verdict"] != ends.Verdict.failed
    cycling, growing = cycles(runs).where(ran), (runs["verdict"] == ends.Verdict.diverging).where(ran)
    numbers = {"cycling": float(cycling.mean()), "queues still growing at the end": float(growing.mean())}
    numbers |= {f"cycling at {value:g} of critical": part for value, part in _along(cycling, "step_size_over_critical")}
    numbers |= {f"cycling from {value}": part for value, part in _along(cycling, "start")}
    least = cycling.sel(step_size_over_critical=cycling["step_size_over_critical"].min())
    numbers["cycling from proportional at the smallest step size"] = float(least.sel(start="proportional").mean())
    for policy in data["runs"]["policy"].values:
        other = data["runs"].sel(policy=policy)
        finished = other["verdict"] != ends.Verdict.failed
        numbers[f"cycling with {policy}"] = float(cycles(other).where(finished).mean())
        numbers[f"{_ABOVE} {policy}"] = float((other["excess"] > VISIBLE_EXCESS).where(finished).mean())
    steps = ", ".join(f"{percent(part)} at {value:g}" for value, part in _along(cycling, "step_size_over_critical"))
    starts = ", ".join(f"{percent(part)} from {value}" for value, part in _along(cycling, "start"))
    calm = numbers["cycling from proportional at the smallest step size"]
    return Judgement(
        f"of {int(ran.sum())} runs {percent(numbers['cycling'])} end in a cycle and {percent(numbers['queues still growing at the end'])} "
        f"still let queues grow; cycles by fraction of the critical step size: {steps}; by start: {starts}; "
        f"{percent(calm)} from proportional at the smallest step size" + _relatives(numbers),
        Verdict.holds if numbers["cycling"] == 0 else Verdict.in_part if calm < 0.05 else Verdict.fails,
        topologies(data["runs"]),
        numbers,
        _smallest_cycle(data),
    )


def cycles(runs: "xarray.Dataset") -> Any:
    """Runs that end in a large cycle, visibly above the optimum. Those that are moving, or too short to judge, are still on their way."""
    swinging = (runs["verdict"] == ends.Verdict.oscillating) & (runs["swing"] > LARGE_SWING)
    return swinging & (runs["excess"] > VISIBLE_EXCESS)


def _relatives(numbers: dict[str, float]) -> str:
    """What the large-signal-safe variants do to it: cycles, and runs that are not there in the end for whatever reason."""
    parts = [
        f"{name} {percent(numbers[f'cycling with {name}'])} and {percent(numbers[f'{_ABOVE} {name}'])}"
        for name in (key.removeprefix("cycling with ") for key in numbers if key.startswith("cycling with "))
    ]
    return f"; cycles and runs more than 1 % above the optimum in the end: {', '.join(parts)}" if len(parts) > 1 else ""


def _along(share: "xarray.DataArray", kept: str) -> list[tuple[Any, float]]:
    means = share.mean([dim for dim in share.dims if dim != kept])
    return [(value.item(), float(mean)) for value, mean in zip(share[kept], means, strict=True)]


def _smallest_cycle(data: Data) -> dict[str, Any] | None:
    """In the smallest networks first, from a start that `dgdlb run` has, at the smallest fraction of critical, the worst excess."""
    for part in [name for name in ("smallest", "runs") if name in data]:
        runs = data[part].sel(policy="dgd-lb") if "policy" in data[part].dims else data[part]
        runs = runs.sel(start=[name for name in runs["start"].values if name in ("proportional", "nearest", "uniform")])
        for step in np.sort(runs["step_size_over_critical"].values):
            chosen = runs.sel(step_size_over_critical=step)
            excess = chosen["excess"].where(cycles(chosen))
            if bool(excess.notnull().any()):
                place = np.unravel_index(int(np.nanargmax(excess.values)), excess.shape)
                return case(chosen, place, excess.dims)
    return None


def gains(data: Data) -> Judgement:
    """Claim 6: excess of every balancer against the latency scale; DGD-LB against the best of the others."""
    runs = data["random"]
    medians = runs["excess"].quantile(0.5, "seed", method="nearest", skipna=False)
    own = medians.sel(policy="dgd-lb")
    rivals = medians.drop_sel(policy=[name for name in OURS if name in medians["policy"].values])
    best = rivals.min("policy")
    numbers: dict[str, float] = {}
    for scale in medians["latency_scale"].values:
        at = medians.sel(latency_scale=scale)
        numbers |= {f"{name} at {scale:g}": float(at.sel(policy=name)) for name in medians["policy"].values}
    if "fleets" in data:
        for fleet in data["fleets"]["fleet"].values:
            for name in data["fleets"]["policy"].values:
                numbers[f"{name} on {fleet}"] = float(data["fleets"]["excess"].sel(policy=name, fleet=fleet))
    large = medians["latency_scale"] >= LARGE_LATENCY
    wins = (own < best / 2).values[large.values]
    where = []
    for scale in medians["latency_scale"].values[large.values]:
        rival = rivals.sel(latency_scale=scale)
        name = str(rival["policy"].values[int(rival.argmin("policy"))])
        where.append(
            f"{percent(float(own.sel(latency_scale=scale)))} against {percent(float(rival.min()))} ({name}) at {scale:g}"
        )
    verdict = Verdict.holds if wins.all() else Verdict.in_part if wins.any() else Verdict.fails
    return Judgement(
        "median excess over the optimum, DGD-LB against the best of the other balancers, by latency in service times: "
        + "; ".join(where),
        verdict,
        sum(map(topologies, data.values())),
        numbers,
        _best_rival(runs),
    )


OURS = tuple(key for key, entry in POLICIES.items() if entry.kind == "gradient")
"""The gradient rules: not rivals of DGD-LB but relatives."""


def _best_rival(runs: "xarray.Dataset") -> dict[str, Any] | None:
    """The case at a large latency in which a rival beats DGD-LB by most."""
    large = runs.sel(latency_scale=runs["latency_scale"] >= LARGE_LATENCY)
    own = large["excess"].sel(policy="dgd-lb")
    rivals = large["excess"].drop_sel(policy=[name for name in OURS if name in large["policy"].values])
    lead = (own - rivals.min("policy")).values
    lead = np.where(np.isfinite(lead), lead, -np.inf)
    if lead.size == 0 or lead.max() <= 0:
        return None
    place = np.unravel_index(int(np.argmax(lead)), lead.shape)
    return case(large.sel(policy="dgd-lb"), place, own.dims)


def gradient(data: Data) -> Judgement:
    """Claim 7: relative error of the approximate gradient over the run, by start distance and latency."""
    runs = data["runs"]
    median = runs["gradient_error"].median("seed", skipna=True)
    distance = runs["start_distance"].values
    near, far = median.sel(start_distance=distance[0]), median.sel(start_distance=distance[-1])
    slope = np.log(far / near) / np.log(distance[-1] / distance[0])
    numbers = {
        f"error at distance {d:g}, latency {s:g}": float(median.sel(start_distance=d, latency_scale=s))
        for d in distance
        for s in runs["latency_scale"].values
    }
    numbers["median order in the distance"] = float(np.median(slope))
    scales = ", ".join(
        f"{percent(float(near.sel(latency_scale=s)))} and {percent(float(far.sel(latency_scale=s)))} at latency {s:g}"
        for s in runs["latency_scale"].values
    )
    return Judgement(
        f"median error at start distances {distance[0]:g} and {distance[-1]:g}: {scales}; it grows with the distance to the power "
        f"{float(np.median(slope)):.2f}",
        Verdict.holds if float(near.max()) < 0.1 else Verdict.in_part,
        topologies(runs),
        numbers,
    )


def requests(data: Data) -> Judgement:
    """Claim 8: how what randomness costs falls with the scale, and pairs of balancers that change places for sure."""
    runs = data["fleets"].transpose("scale", "policy", "fleet", ...)
    scale, noise = runs["scale"].values, runs["noise_excess"].values
    error = (runs["request_error"] / runs["mean_latency"]).values
    sure = (noise[0] > 4 * error[0]) & (noise[-1] > 4 * error[-1])
    order = np.full(sure.shape, np.nan)
    order[sure] = np.log(noise[-1][sure] / noise[0][sure]) / np.log(scale[-1] / scale[0])
    settled = (runs["verdict"] == ends.Verdict.settled).values.all(0)
    middle = lambda which: quantile(order[sure & which], 0.5)
    swapped = [int(sum(swaps(runs.isel(scale=n)))) for n in range(scale.size)]
    about = (runs["policy"] == "dgd-lb").values
    theory = (runs["predicted_noise"] / runs["noise_excess"]).values[-1, about]
    numbers = {
        "settled balancers and fleets whose noise shows": float((sure & settled).sum()),
        "median order in the scale": middle(settled),
        "median order in the scale of rules that swing": middle(~settled),
        "predicted over measured at the largest scale, median": quantile(theory[np.isfinite(theory)], 0.5),
        **{f"noise of DGD-LB at scale {n:g}, largest": float(np.nanmax(noise[k, about])) for k, n in enumerate(scale)},
        **{f"pairs that change places at scale {n:g}": float(swapped[k]) for k, n in enumerate(scale)},
    }
    falls = abs(numbers["median order in the scale"] + 1) < 0.2
    shown = ", ".join(
        f"{percent(numbers[f'noise of DGD-LB at scale {n:g}, largest'])} at scale {n:g} ({swapped[k]} pairs of balancers change places)"
        for k, n in enumerate(scale)
    )
    return Judgement(
        f"randomness costs DGD-LB at most {shown}; over the scale it falls with the power "
        f"{numbers['median order in the scale']:.2f} in the median of {(sure & settled).sum()} balancers and fleets that settle"
        f"{_of_those_that_swing(middle(~settled))}; linear theory says "
        f"{numbers['predicted over measured at the largest scale, median']:.2f} of what is measured at scale {scale[-1]:g}",
        Verdict.holds if falls and swapped[-1] == 0 else Verdict.in_part if falls else Verdict.fails,
        topologies(runs),
        numbers,
    )


def _of_those_that_swing(order: float) -> str:
    return f", and {order:.2f} of those that swing" if np.isfinite(order) else ""


def swaps(runs: "xarray.Dataset") -> list[int]:
    """For every fleet, at one scale: how many pairs of balancers change places."""
    found = []
    for fleet in runs["fleet"].values:
        one = runs.sel(fleet=fleet)
        figures = (one[name].values for name in ("mean_latency", "request_mean", "request_error"))
        found.append(int(changed_places(*figures).sum()))
    return found


JUDGES: dict[str, Callable[[Data], Judgement]] = {
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
"""The judge of every claim."""
