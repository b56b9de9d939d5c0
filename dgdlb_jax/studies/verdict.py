r"""How a run ended: one function, `classify`, for everybody who judges runs.

It looks at the last fifth of a run, the *window*, and there at the backends that matter: those with more than 1e-3 of the total workload
or of the total inflow. The range of a workload is (max - min) / mean. The first of these that fits:

1. *failed*: the computation did.
2. *varying inputs*: demand or capacity changes in the window.
3. *too short to judge*: the window is shorter than twice the largest latency, or than one time in service $N / \ell(N)$.
4. *diverging*: a backend is sent more than the supremum of its curve, its workload grows in both halves of the window (by most of its
   range there, or as much as arrives too much since the middle of the run: a wave may end higher than it begins), and either the
   fleet as a whole cannot serve its demand or the share sent to that backend changes by less than 1 % over the second half of the run.
   Never with an infinite supremum.
5. *too short to judge*: a range above 2 %, not in one direction, with fewer than two turns each way.
6. *moving*: a range above 2 % in one direction, or mostly so (the drift is larger than the swings on it), or swings that shrink by more
   than 5 % a period.
7. *oscillating*: any other range above 2 %.
8. *settled*: no range above 2 %.

What goes on at the largest swings decides in 5 to 7. Of dozens of backends that swing irregularly, one or the other always turns late, or
swings less at the end, by chance; where one whose range is at least a quarter of the largest swings steadily, the fleet oscillates.

Two more decisions behind the order. The time in service of a backend that is sent more than it can serve grows with the run itself and does
not count in 3; where all that matter are such backends, or the fleet as a whole cannot serve its demand, the shortest time of a lone
request counts, $1 / \ell'(0)$. A drift has no turns, so "fewer than two turns" (5) is asked only of what goes up and down, and after 4,
as a queue that grows may have a turn on it.

**Source:** own definitions.
"""

import enum
from dataclasses import dataclass, fields

import numpy as np
from jaxtyping import ArrayLike, Bool, Float, Int

from dgdlb_jax.model.batch import of_batch
from dgdlb_jax.model.network import Network
from dgdlb_jax.numerics.results import InputError, Result
from dgdlb_jax.numerics.rounding import enough
from dgdlb_jax.numerics.types import Matrix, Numbers
from dgdlb_jax.simulation.plugins import AbstractStatistic
from dgdlb_jax.simulation.trajectory import SaveAt, Trajectory
from dgdlb_jax.studies.evidence import LAST_PART as LAST_PART
from dgdlb_jax.studies.evidence import SWING_LIMIT, Evidence

SETTLED_BAND = 1e-3
"""Smallest excess over the optimum that a settled run may keep."""
INSTANTS = 500
"""How many saved instants a run needs to be judged well, see `look_every`."""


class Verdict(enum.IntEnum):
    """How a run ended. The numbers are those in the stores of sweeps."""

    settled = 0
    oscillating = 1
    diverging = 2
    failed = 3
    too_short = 4
    moving = 5
    varying_inputs = 6

    @property
    def words(self) -> str:
        """What people read."""
        return {Verdict.too_short: "too short to judge"}.get(self, self.name.replace("_", " "))

    @property
    def meaning(self) -> str:
        """A line of explanation."""
        return _MEANINGS[self]


_MEANINGS = {
    Verdict.settled: "no workload ranges over more than 2 % of its mean in the last fifth of the run",
    Verdict.oscillating: "a workload swings by more than 2 % of its mean there, up and down at least twice",
    Verdict.diverging: "a backend is sent more than it can ever serve, so that its queue grows without end",
    Verdict.failed: "the computation failed",
    Verdict.too_short: "the last fifth of the run is too short to tell",
    Verdict.moving: "a workload still drifts by more than 2 % in one direction, or swings that get smaller",
    Verdict.varying_inputs: "demand or capacity changes in the last fifth of the run, so nothing can settle there",
}


@dataclass(frozen=True)
class Judgement:
    """The verdict on runs, and what it rests on. In a batch every array has a leading axis.

    - `verdict`: codes of `Verdict`. `window`: length of the last fifth, seconds.
    - `swing`: largest range (max - min) / mean of a workload that matters, in the window; 0 where none matters.
    - `drift`: largest such range of a workload that moves in one direction; 0 without one.
    - `shortfall` `(backends,)`: what a diverging backend is sent above the supremum of its curve, requests/s; else 0.
    - `fading`: whether it oscillates with swings most of which have become smaller by a fifth in the window: they may die out.
    - `longest_latency`, `time_in_service`: the largest latency, and the longest time in service of a backend that matters, seconds.
    """

    verdict: Int[np.ndarray, "*batch"]
    window: Float[np.ndarray, "*batch"]
    swing: Float[np.ndarray, "*batch"]
    drift: Float[np.ndarray, "*batch"]
    shortfall: Float[np.ndarray, "*batch backends"]
    fading: Bool[np.ndarray, "*batch"]
    longest_latency: Float[np.ndarray, "*batch"]
    time_in_service: Float[np.ndarray, "*batch"]

    def __getitem__(self, index: int) -> "Judgement":
        """One run of a batch."""
        return Judgement(*(np.asarray(getattr(self, field.name)[index]) for field in fields(self)))

    @property
    def short_by(self) -> Float[np.ndarray, "*batch"]:
        """What all diverging backends lack, requests/s."""
        return np.asarray(self.shortfall.sum(-1))

    @property
    def reason(self) -> str | None:
        """Of a single run: why it can not be called settled or oscillating, and what to do; None where it can, and for failures."""
        window, longer = f"the last fifth, {self.window:.3g} s,", "run at least {:.3g} s"
        match Verdict(int(self.verdict)):
            case Verdict.too_short if self.window < 2 * self.longest_latency:
                needed = longer.format(enough(2 * float(self.longest_latency) / LAST_PART))
                return f"{window} is shorter than twice the largest latency of {self.longest_latency:.3g} s: {needed}"
            case Verdict.too_short if self.window < self.time_in_service:
                needed = longer.format(enough(float(self.time_in_service) / LAST_PART))
                return f"{window} is shorter than one time in service of {self.time_in_service:.3g} s: {needed}"
            case Verdict.too_short:
                swing = f"a workload that ranges over {100 * self.swing:.2g} % of its mean"
                return f"in {window} {swing} turns fewer than twice each way: run several times as long"
            case Verdict.moving if self.drift > 0:
                return f"in {window} a workload drifts by {100 * self.drift:.2g} % of its mean: run longer"
            case Verdict.moving:
                return f"in {window} swings of {100 * self.swing:.2g} % of the mean workload get smaller: run longer"
            case Verdict.varying_inputs:
                return "demand or capacity changes in the last fifth of the run, so nothing can settle there"
        return None


def look_every(steps: ArrayLike) -> int:
    """How many steps may lie between two saved instants of runs of so many steps: the shortest one keeps `INSTANTS`, or all."""
    return max(1, int(np.min(steps)) // INSTANTS)


def save_for_verdict(
    duration: Numbers,
    every: int,
    fields: tuple[str, ...],
    reference: Matrix,
    *,
    after: Numbers | None = None,
    statistics: tuple[AbstractStatistic, ...] = (),
) -> SaveAt:
    """What a run of `duration` seconds has to keep to be judged: fields at every so many steps (0: none), and statistics of its last part.

    **Arguments:** `reference`: the workload that distances refer to; `after`: seconds from which statistics count instead; `statistics`:
    of your own, besides.
    """
    after = (1 - LAST_PART) * np.asarray(duration, float) if after is None else after
    return SaveAt(
        every or None, fields=fields, after=after, reference=reference, resumable=False, statistics=statistics
    )


def classify(network: Network, run: Trajectory) -> Judgement:
    """The verdict on a run, or on every run of a batch, by the definitions at the top of this module.

    Means, extremes and slopes are those of the run's statistics where these cover the last fifth; turns are counted at the saved
    instants. A swing that the instants do not show, or show as something slower than it is, is faster than they are and has turned
    many times.

    **Arguments:**

    - `network`: what it ran in; a batch for a batch of runs.
    - `run`: a trajectory with saved `workload`, at some 100 instants of the last fifth or more (`look_every`).

    **Returns:** a `Judgement`.

    **Raises:** `InputError` when the workload was not saved.
    """
    if run.workload is None:
        raise InputError(
            'A verdict needs the workload over time: save it, as in SaveAt(every=10, fields=("workload", "cost_rate")).'
        )
    return of_batch(_classify, network, run)


def _classify(networks: Network, runs: Trajectory) -> Judgement:
    with np.errstate(all="ignore"):  # what has failed may be anything
        seen = Evidence(networks, runs)
        latency = np.where(networks.mask, np.maximum(networks.latency, networks.feedback_latency), 0).max((1, 2))
        short_window = (seen.window < 2 * latency * (1 - 1e-6)) | (seen.window < seen.time_in_service)
        diverging = seen.overloaded & (seen.fixed_share | seen.hopeless[:, None])
        found = seen.movements()
        wide = seen.range > SWING_LIMIT
        verdict = np.select(
            [
                (np.asarray(runs.result) != Result.successful) | ~seen.finite,
                seen.varying,
                short_window,
                diverging.any(-1),
                found.undecided.any(-1),
                found.moving.any(-1),
                wide.any(-1),
            ],
            [
                Verdict.failed,
                Verdict.varying_inputs,
                Verdict.too_short,
                Verdict.diverging,
                Verdict.too_short,
                Verdict.moving,
                Verdict.oscillating,
            ],
            Verdict.settled,
        )
        shortfall = np.where(diverging & (verdict == Verdict.diverging)[:, None], seen.inflow - seen.supremum, 0)
        drift = np.where(found.drifting, seen.range, 0).max(-1)
        fading = found.fading & (verdict == Verdict.oscillating)
        swing = seen.range.max(-1)
        return Judgement(verdict, seen.window, swing, drift, shortfall, fading, latency, seen.time_in_service)


def moving_mean(
    time: ArrayLike, cost_rate: ArrayLike, total_rate: ArrayLike, window: ArrayLike
) -> Float[np.ndarray, " time"]:
    r"""Mean latency over the last `window` seconds, at every saved instant.

    $$ \bar L(t) = \int_{t-w}^{t} C \,ds \Big/ \int_{t-w}^{t} \sum_i \lambda_i \,ds $$

    **Arguments:** `time`, `cost_rate` and `total_rate` `(time,)` in seconds, requests and requests/s; `window` in
    seconds (shorter at the start of the run, where less has happened).

    **Returns:** `(time,)` seconds; the first entry is the momentary mean latency.
    """
    time, cost_rate, total_rate = (np.asarray(values, float) for values in (time, cost_rate, total_rate))
    before = np.maximum(time - window, time[0])
    cost, arrivals = (
        total - np.interp(before, time, total) for total in (_integral(time, cost_rate), _integral(time, total_rate))
    )
    momentary = cost_rate / np.maximum(total_rate, np.finfo(float).tiny)
    return np.where(arrivals > 0, cost / np.where(arrivals > 0, arrivals, 1), momentary)


def time_to_settle(time: ArrayLike, mean_latency: ArrayLike, optimum: float, final_latency: float) -> float:
    r"""First time after which the excess over the optimum stays within max(0.1 %, twice its final value).

    **Arguments:**

    - `time`: `(time,)` seconds.
    - `mean_latency`: `(time,)` seconds, a moving mean (`moving_mean`).
    - `optimum`: mean latency of the optimum, seconds.
    - `final_latency`: mean latency over the last fifth of the run, seconds.

    **Returns:** seconds after the start of the run; NaN when the excess leaves the band again at the end.
    """
    time = np.asarray(time, float)
    excess = np.abs(np.asarray(mean_latency, float) / optimum - 1)
    band = max(SETTLED_BAND, 2 * abs(final_latency / optimum - 1))
    outside = np.flatnonzero(~(excess <= band))
    if outside.size == 0:
        return 0.0
    return float(time[outside[-1] + 1] - time[0]) if outside[-1] + 1 < time.size else float("nan")


def _integral(time: Float[np.ndarray, " time"], values: Float[np.ndarray, " time"]) -> Float[np.ndarray, " time"]:
    return np.concatenate([[0.0], np.cumsum(np.diff(time) * (values[1:] + values[:-1]) / 2)])
