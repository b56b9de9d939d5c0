"""What a sweep can compute for every case; definitions are those of `dgdlb run` and of the functions named."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import numpy as np
from jaxtyping import Bool, Float, Int

from dgdlb_jax.numerics.registry import Registry
from dgdlb_jax.numerics.results import InputError, Result
from dgdlb_jax.simulation.plugins import AbstractStatistic
from dgdlb_jax.studies.requests import PERCENTILES
from dgdlb_jax.studies.sweep.gradient_error import largest_gradient_error
from dgdlb_jax.studies.sweep.runs import Runs as Runs
from dgdlb_jax.studies.verdict import Verdict, moving_mean, time_to_settle

NO_STEP_SIZE, DOES_NOT_FIT, TOO_MANY_STEPS, REFUSED = 100, 101, 102, 103
"""Codes in `result` of cases that are not run, beside those of `Result`."""
RESULTS = {result.name: int(result) for result in Result} | {
    "no_finite_step_size": NO_STEP_SIZE,
    "does_not_fit_memory": DOES_NOT_FIT,
    "too_many_steps": TOO_MANY_STEPS,
    "refused": REFUSED,
}
SENTENCES = {int(result): result.sentence for result in Result} | {
    NO_STEP_SIZE: "The step size is not finite: it is a fraction of a critical or sufficient one that is infinite."
}
"""What a code says about every case that has it; the other codes come with a sentence about each case."""

COSTS, WORKLOADS, CRITICAL, SUFFICIENT, DEFAULT = "costs", "workloads", "critical", "sufficient", "default"
DOUBLE = "double precision"
JUDGED = "judged"
"""A verdict is needed, and with it the workloads at some instants (`WORKLOADS` are many)."""

_HYSTERESIS = 0.1  # of the amplitude: what a workload has to pass on both sides of its mean to count as a period
_ROUNDING = 1e-9  # relative distances below are rounding
_LINEAR = 0.1  # relative distances above are far from the optimum
_FEWEST = 20  # points for a straight line


@dataclass(frozen=True)
class Measure:
    """A number per case. `needs`: what has to be kept or computed for it, beyond the statistics of the last fifth; `statistic`: one of
    the user's that is accumulated for it."""

    meaning: str
    units: str
    compute: Callable[[Runs], Any]
    needs: frozenset[str] = frozenset()
    flags: dict[str, int] | None = None
    statistic: AbstractStatistic | None = None
    key: str = ""

    @property
    def fill(self) -> float | int:
        """What stands in a store where nothing has been computed."""
        return np.nan if self.flags is None else -1


def _statistic(name: str) -> Callable[[Runs], Any]:
    return lambda runs: getattr(runs.assessed.statistics, name)


def _settle_time(runs: Runs) -> Float[np.ndarray, " cases"]:
    cost = np.asarray(runs.trajectory.cost_rate, float)
    rate = np.asarray(runs.networks.arrival_rate, float).sum(-1)
    longest = np.asarray(runs.networks.latency, float).max((1, 2))
    best = np.asarray(runs.optimum.mean_latency, float)

    def one(k: int) -> float:
        part = runs.moving_part(k)
        time = runs.time[k, part]
        smooth = moving_mean(time, cost[k, part], np.full(time.size, rate[k]), max(longest[k], 0.01 * time[-1]))
        return time_to_settle(time, smooth, best[k], runs.assessed.mean_latency[k])

    return runs.where(Verdict.settled, one)


def _period(runs: Runs) -> Float[np.ndarray, " cases"]:
    statistics = runs.assessed.statistics
    loudest = np.argmax(np.asarray(statistics.highest_workload) - np.asarray(statistics.lowest_workload), axis=-1)

    def one(k: int) -> float:
        part = runs.moving_part(k)
        late = runs.time[k, part] >= runs.time[k, -1] - float(statistics.duration[k])
        return period(runs.time[k, part][late], runs.workload[k, part, loudest[k]][late])

    return runs.where(Verdict.oscillating, one)


def period(time: Float[np.ndarray, " time"], values: Float[np.ndarray, " time"]) -> float:
    """Mean time between upward crossings of the mean, counted once per swing; NaN with fewer than two. Seconds."""
    away = values - (values.max() + values.min()) / 2
    band = _HYSTERESIS * away.max()
    low, crossings = False, []
    for k in range(1, time.size):
        low = low or away[k - 1] < -band
        if low and away[k] >= 0 > away[k - 1]:
            crossings.append(time[k - 1] + (time[k] - time[k - 1]) * away[k - 1] / (away[k - 1] - away[k]))
            low = False
    return float((crossings[-1] - crossings[0]) / (len(crossings) - 1)) if len(crossings) > 1 else float("nan")


def _growth_rate(runs: Runs) -> Float[np.ndarray, " cases"]:
    good = runs.verdict != Verdict.failed
    parts = [runs.moving_part(k) for k in range(good.size)]
    return np.array(
        [growth_rate(runs.time[k, p], runs.distance[k, p]) if good[k] else np.nan for k, p in enumerate(parts)]
    )


def growth_rate(time: Float[np.ndarray, " time"], distance: Float[np.ndarray, " time"]) -> float:
    r"""Slope of the straight line through $\log$ distance, 1/s; negative where the distance shrinks.

    Least squares over the part of the run behind its first fifth (where the constant history still acts), as long as the relative
    distance lies between rounding (1e-9) and 0.1, where the dynamics are no longer linear; all distances above rounding if that
    leaves too few points, NaN if that does so too.
    """
    late = time >= time[0] + 0.2 * (time[-1] - time[0])
    small = np.flatnonzero(distance <= _ROUNDING)
    above = late & (np.arange(time.size) < (small[0] if small.size else time.size))
    chosen = above & (distance < _LINEAR)
    chosen = chosen if chosen.sum() >= _FEWEST else above
    if chosen.sum() < _FEWEST:
        return float("nan")
    return float(np.polyfit(time[chosen], np.log(distance[chosen]), 1)[0])


def _least(step_size: Float[np.ndarray, "cases frontends"] | None) -> Float[np.ndarray, " cases"]:
    """The smallest step size of the frontends that have one."""
    steps = np.asarray(step_size)
    return np.where(steps > 0, steps, np.inf).min(-1)


def _gradient_error(runs: Runs) -> Float[np.ndarray, " cases"]:
    def one(k: int) -> float:
        part = runs.moving_part(k)
        return largest_gradient_error(runs.networks[k], runs.time[k, part], runs.workload[k, part])

    return np.array([one(k) if code != Verdict.failed else np.nan for k, code in enumerate(runs.verdict)])


def _critical_factor(runs: Runs) -> Float[np.ndarray, " cases"]:
    from dgdlb_jax.studies.sweep.optional import critical_factor

    return np.asarray(critical_factor(runs.networks, runs.policy, runs.optimum))


def _abscissa(runs: Runs) -> Float[np.ndarray, " cases"]:
    from dgdlb_jax.studies.sweep.optional import abscissa

    return np.asarray(abscissa(runs.networks, runs.policy, runs.optimum))


def _multiplier(runs: Runs) -> Float[np.ndarray, " cases"]:
    from dgdlb_jax.studies.sweep.optional import multiplier

    return multiplier(runs.networks, runs.policy)


def _predicted_noise(runs: Runs) -> Float[np.ndarray, " cases"]:
    from dgdlb_jax.studies.sweep.requests import predicted_noise

    return np.asarray(predicted_noise(runs.networks, runs.policy, runs.optimum))


def _of_requests(name: str) -> Callable[[Runs], Any]:
    return lambda runs: runs.requests[name]


def _linear_region(runs: Runs) -> Float[np.ndarray, " cases"]:
    from dgdlb_jax.studies.sweep.optional import linear_region

    return np.asarray(linear_region(runs.networks, runs.optimum))


_JUDGED, _WORKLOADS = frozenset({JUDGED}), frozenset({JUDGED, WORKLOADS})
_BUILT_IN: dict[str, Measure] = {
    "mean_latency": Measure(
        "mean latency over the last fifth of the run; inf when diverging, NaN when failed",
        "s",
        lambda runs: runs.assessed.mean_latency,
        _JUDGED,
    ),
    "excess": Measure(
        "mean latency over that of the optimum, minus 1",
        "1",
        lambda runs: runs.assessed.excess,
        _JUDGED,
    ),
    "verdict": Measure(
        "how the run ended: " + "; ".join(f"{verdict.name}: {verdict.meaning}" for verdict in Verdict),
        "1",
        lambda runs: runs.verdict,
        _JUDGED,
        flags={verdict.name: int(verdict) for verdict in Verdict},
    ),
    "settle_time": Measure(
        "time to settle: from then on the moving mean stays within max(0.1 %, twice its final excess) of the optimum; NaN unless settled",
        "s",
        _settle_time,
        frozenset({COSTS, JUDGED}),
    ),
    "swing": Measure(
        "largest (max - min) / mean of a workload that matters over the last fifth",
        "1",
        lambda runs: runs.assessed.judgement.swing,
        _JUDGED,
    ),
    "period": Measure("period of the workload that swings most; NaN unless oscillating", "s", _period, _WORKLOADS),
    "growth_rate": Measure(
        "rate at which the distance to the optimum grows (negative: shrinks)", "1/s", _growth_rate, _WORKLOADS
    ),
    "distance": Measure(
        "time mean of the relative distance to the optimal workloads over the last fifth", "1", _statistic("distance")
    ),
    "network_share": Measure("part of the mean latency spent on the network", "1", _statistic("network_share")),
    "short_by": Measure(
        "what diverging backends lack", "requests/s", lambda runs: runs.assessed.judgement.short_by, _JUDGED
    ),
    "highest_distance": Measure(
        "largest relative distance to the optimal workloads in the run",
        "1",
        lambda runs: runs.distance.max(-1),
        _WORKLOADS,
    ),
    "optimum_latency": Measure("mean latency of the optimum", "s", lambda runs: runs.optimum.mean_latency),
    "optimum_network_share": Measure(
        "part of the optimal latency spent on the network", "1", lambda runs: runs.optimum.network_share
    ),
    "optimum_gap": Measure("certified relative duality gap of the optimum", "1", lambda runs: runs.optimum.gap),
    "total_rate": Measure(
        "total arrival rate", "requests/s", lambda runs: np.asarray(runs.networks.arrival_rate, float).sum(-1)
    ),
    "largest_latency": Measure(
        "largest network latency", "s", lambda runs: np.asarray(runs.networks.latency, float).max((1, 2))
    ),
    "default_step_size": Measure(
        "smallest default step size of a frontend", "1/s^2", lambda runs: _least(runs.default), frozenset({DEFAULT})
    ),
    "critical_step_size": Measure(
        "exact critical step size, the same for all frontends",
        "1/s^2",
        lambda runs: runs.critical,
        frozenset({CRITICAL, DOUBLE}),
    ),
    "sufficient_step_size": Measure(
        "smallest sufficient step size of a frontend",
        "1/s^2",
        lambda runs: _least(runs.sufficient),
        frozenset({SUFFICIENT}),
    ),
    "critical_factor": Measure(
        "factor by which the policy may be made faster until it is critical; NaN for rules that jump",
        "1",
        _critical_factor,
        frozenset({DOUBLE}),
    ),
    "abscissa": Measure(
        "real part of the rightmost characteristic root of the policy at the optimum; NaN for rules that jump",
        "1/s",
        _abscissa,
        frozenset({DOUBLE}),
    ),
    "multiplier": Measure(
        "largest modulus of a multiplier of one update of a policy that holds its weights at its own equilibrium: deviations die out below "
        "1; inf without an equilibrium, NaN for other policies",
        "1",
        _multiplier,
        frozenset({DOUBLE}),
    ),
    "linear_region": Measure(
        "smallest relative change of a workload that brings an idle arc into use", "1", _linear_region
    ),
    "request_mean": Measure(
        "mean latency with whole requests, over several runs from the end of the fluid one",
        "s",
        _of_requests("mean"),
        _JUDGED,
    ),
    "request_error": Measure(
        "standard error of request_mean, from the scatter of the runs", "s", _of_requests("error"), _JUDGED
    ),
    **{
        name: Measure(
            f"latency that {name[1:]} % of the whole requests do not exceed", "s", _of_requests(name), _JUDGED
        )
        for name in PERCENTILES
    },
    "noise_excess": Measure(
        "request_mean over mean_latency, minus 1: what randomness costs",
        "1",
        lambda runs: runs.requests["mean"] / runs.assessed.mean_latency - 1,
        _JUDGED,
    ),
    "predicted_noise": Measure(
        "what linear theory says that randomness costs, over the optimal latency; NaN for rules that jump",
        "1",
        _predicted_noise,
        frozenset({DOUBLE}),
    ),
    "gradient_error": Measure(
        "largest relative error of the approximate gradient against the exact marginal latency (open loop) in the run",
        "1",
        _gradient_error,
        _WORKLOADS,
    ),
}

ALWAYS: dict[str, Measure] = {
    "result": Measure("how the computation ended", "1", lambda runs: runs.trajectory.result, flags=RESULTS),
    "time_step": Measure("time step used", "s", lambda runs: runs.dt),
    "simulated_time": Measure("time simulated", "s", lambda runs: runs.duration),
}
"""What every store has in addition to the measures asked for."""
MEASURES = Registry("measure", (replace(measure, key=key) for key, measure in _BUILT_IN.items()), reserved=ALWAYS)
"""Name -> measure, those of the user included."""


def register_measure(statistic: AbstractStatistic) -> None:
    """Make a statistic a measure of sweeps: `measures = ["mean_latency", NAME]` with the name, units and description of the statistic.

    **Arguments:** `statistic`: a `TimeMean`, `Maximum` or other `AbstractStatistic` whose result for a network is one number; it covers
    the last fifth of a run.

    **Raises:** `InputError` for what is no statistic, a name that is taken, or one that is no word.
    """
    if not isinstance(statistic, AbstractStatistic):
        raise InputError(
            f"register_measure: {statistic!r} is no statistic: give TimeMean(fn), or another AbstractStatistic."
        )
    name = statistic.name
    if not name.isidentifier():
        raise InputError(
            f"register_measure: a measure is called by a word, not {name!r}: give the statistic another name."
        )
    compute = partial(_measured, name)
    MEASURES.register(Measure(statistic.description, statistic.units, compute, statistic=statistic, key=name))


def _measured(name: str, runs: Runs) -> Float[np.ndarray, " cases"]:
    found = runs.trajectory.measured[name]
    shapes = [np.shape(leaf) for leaf in jax.tree.leaves(found)]
    if shapes != [runs.dt.shape]:
        raise InputError(
            f"The statistic {name} gives {shapes} in a batch: a measure of a sweep is one number for each network."
        )
    return np.asarray(found, float)


def statistics(names: tuple[str, ...]) -> tuple[AbstractStatistic, ...]:
    """Those of the user that these measures are."""
    return tuple(each for each in (MEASURES[name].statistic for name in names) if each is not None)


def wanted(names: tuple[str, ...]) -> dict[str, Measure]:
    """The measures of a store: those asked for and those that are always there."""
    return {name: MEASURES[name] for name in names} | ALWAYS


def needs(names: tuple[str, ...]) -> set[str]:
    """What has to be kept or computed for these measures."""
    return set().union(*(MEASURES[name].needs for name in names))


def empty(
    names: tuple[str, ...], result: Int[np.ndarray, " cases"], defined: Bool[np.ndarray, " cases"]
) -> dict[str, np.ndarray]:
    """Values of all measures before any run: fill values, and the result of cases that cannot run."""
    values = {
        name: np.full(result.size, measure.fill, np.int8 if measure.flags else np.float64)
        for name, measure in wanted(names).items()
    }
    values["result"][:] = np.where(result != Result.successful, result, np.where(defined, 0, NO_STEP_SIZE))
    if "verdict" in values:
        values["verdict"][:] = Verdict.failed
    return values


def unknown(names: tuple[str, ...], size: int) -> dict[str, np.ndarray]:
    """Values of all measures of cases that cannot be prepared."""
    return empty(names, np.full(size, REFUSED), np.ones(size, bool))


def compute(names: tuple[str, ...], runs: Runs, count: int) -> dict[str, np.ndarray]:
    """Name -> values of the first `count` cases (the rest is padding)."""
    return {name: np.asarray(measure.compute(runs))[:count] for name, measure in wanted(names).items()}
