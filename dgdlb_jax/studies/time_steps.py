"""How finely a balancer's run is resolved: a time step to begin with, and runs whose accuracy is measured."""

import dataclasses
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from dgdlb_jax.equilibrium.optimum import Optimum
from dgdlb_jax.model.batch import each_frontend
from dgdlb_jax.model.network import Network, stack
from dgdlb_jax.model.signals import Signals
from dgdlb_jax.numerics.delay import delay_for, rows_for, steps_for
from dgdlb_jax.numerics.formatting import seconds
from dgdlb_jax.numerics.results import InputError, Result
from dgdlb_jax.policies.base import AbstractPolicy
from dgdlb_jax.policies.estimates import Scraped
from dgdlb_jax.simulation.engine import simulate_batch
from dgdlb_jax.simulation.trajectory import FIELDS, Trajectory
from dgdlb_jax.stability.defaults import default_step_size, default_step_size_set_by, suggest_dt
from dgdlb_jax.studies.durations import MOST_STEPS, line_bytes, longest_latency, room
from dgdlb_jax.studies.names import backend_names, frontend_names
from dgdlb_jax.studies.verdict import save_for_verdict

ACCURATE = 1e-3
"""Change of the mean latency between a time step and twice as long a one below which a run is fine enough."""
LOOP = "the loop of news and reaction"
"""What sets the time step of a rule that moves."""
_CLOCK, _SERVICE = "the rule's own time constant", "the fastest service"
_LONGER = {
    _CLOCK: "give its settings, or the intervals of its reports (news), longer times",
    _SERVICE: "correct service curves",
}
_OWN_CLOCK = 0.1  # of the shortest time constant of a rule itself
_OF_SERVICE = 0.1  # of the fastest service, as in `suggest_dt`
_PILOT = 64  # long steps of the run that compiles a balancer
_LONGEST_PILOT = 4096  # long steps of the run that shows what a step takes
_ROWS = 48  # of a delay line: room for a latency of twenty steps whose step is halved once
_MEASURED = (
    0.3  # seconds that a run has to take for its steps to be what takes the time, whatever else the machine does
)


def usual_step(arcs: int) -> float:
    """About how many seconds a time step takes on an idle core of the usual kind: a microsecond, and 25 ns for every arc."""
    return 1e-6 + 2.5e-8 * arcs


def time_step(
    network: Network,
    policy: AbstractPolicy,
    step_size: ArrayLike,
    optimum: Optimum,
    workload: ArrayLike | None = None,
) -> Float[np.ndarray, "*batch"]:
    """`suggest_dt` for a policy: by its chatter if it jumps, by the loop otherwise, and by the rule's own time constant.

    **Arguments:** as for `suggest_dt`; `step_size` of the gradient rules, 1/s^2.

    **Returns:** seconds, a scalar or `(batch,)`.
    """
    dt = suggest_dt(network, step_size, optimum, workload=workload, jumps=not policy.differentiable)
    own = np.asarray(each_frontend(network, policy, type(policy).__name__).time_scale)
    own = own.reshape(*network.latency.shape[:-2], -1).min(-1) if own.ndim else own
    return np.asarray(np.minimum(dt, _OWN_CLOCK * own))


def what_sets(policy: AbstractPolicy, dt: float, fastest_service: float) -> str:
    """What decided a time step that `time_step` gave, in words; `fastest_service`: seconds that a lone request takes at the fastest
    backend."""
    own = np.asarray(policy.time_scale, float).min()
    if dt >= _OWN_CLOCK * own * (1 - 1e-6):
        return _CLOCK
    if dt >= _OF_SERVICE * fastest_service * (1 - 1e-6):
        return _SERVICE
    return LOOP if policy.differentiable else "the jumps of the rule"


def what_sets_step_size(network: Network, step_size: ArrayLike, optimum: Optimum, news: Scraped | None = None) -> str:
    """What decided the `default_step_size` of the frontend that adapts most slowly, in words; nothing where no frontend adapts."""
    steps = np.asarray(step_size, float)
    if not (steps > 0).any():
        return ""
    slowest = int(np.argmin(np.where(steps > 0, steps, np.inf)))
    response, latency = (int(np.asarray(backend)[slowest]) for backend in default_step_size_set_by(network, optimum))
    delay = float(np.add(network.latency, network.feedback_latency)[slowest, latency]) / 2
    source, names = frontend_names(network)[slowest], backend_names(network)
    where = "" if steps.max() <= 1.01 * steps[slowest] else " where it is smallest"
    held = "" if news is None else f" with reports up to {seconds(float(news.oldest.max()))} older"
    return (
        f"a quarter of a stable one{held}, set{where} by the latency of {seconds(delay)} from {source} to {names[latency]} and by how fast "
        f"the marginal latency of {names[response]} rises with load"
    )


@dataclass(frozen=True)
class Grid:
    """The instants at which all runs of a comparison are saved, and how each gets there.

    - `duration`, `interval`: seconds; every run is saved after each `interval`.
    - `after`: seconds from which statistics count.
    """

    duration: float
    interval: float
    after: float

    @property
    def instants(self) -> int:
        """How many instants are saved, the start included."""
        return int(steps_for(self.duration, self.interval)) + 1

    def steps_per_interval(self, dt: float) -> int:
        """How many steps of at most `dt` make an interval."""
        return max(1, math.ceil(self.interval / dt * (1 - 1e-9)))

    def times(self, factor: int) -> "Grid":
        """As many instants of runs that are so many times as long."""
        return Grid(*(factor * seconds for seconds in (self.duration, self.interval, self.after)))


class ResolvedRun:
    """One balancer in one network, run with two time steps side by side, the second half as long as the first.

    The run with the shorter step is the result, and how far the other's mean latency is from it says how accurate that is. Both
    are one compiled program, whose time steps and durations are data: what a step takes is measured before the run.

    **Arguments:** a single `network`, its `policy`, `initial` routing and workload; `grid`; `dt`: seconds, the shorter step;
    `finest`: seconds, below which the step is not halved any more; `reference`: the workload that distances refer to; `signals`: of
    events.
    """

    def __init__(
        self,
        network: Network,
        policy: AbstractPolicy,
        initial: tuple[ArrayLike, ArrayLike],
        *,
        dt: float,
        finest: float,
        reference: Float[Array, " backends"],
        signals: Signals | None = None,
    ):
        self._networks = stack([network] * 2)
        self._policies = jax.tree.map(lambda leaf: _twice(leaf) if jnp.ndim(leaf) else leaf, policy)
        self._initial = _twice(initial[0]), _twice(initial[1])
        self._network = network
        self._reference = _twice(reference)
        self._events = jax.tree.map(_twice, signals)
        slowest = network if signals is None else signals.with_longest(network)
        self._longest = float(np.maximum(slowest.latency, slowest.feedback_latency).max())
        self._finest = min(finest, dt)
        self.dt, self.accuracy, self.halved = dt, math.nan, False
        self.seconds_per_step = self._seconds_before = math.nan  # what a step takes, and what any run takes besides

    def compile(self, frames: int) -> None:
        """Compile with room for so many saved instants, and measure what a step of both runs takes."""
        self._frames = frames
        self._pilot(1)  # compiles
        before = self._seconds_before = self._pilot(1)
        long_lines = before > _MEASURED  # they take seconds to make, now more and now less
        steps, self.seconds_per_step = _LONGEST_PILOT if long_lines else _PILOT, math.inf
        while True:
            elapsed = max(0.0, self._pilot(steps) - before)
            self.seconds_per_step = min(self.seconds_per_step, elapsed / (2 * steps - 2))
            if elapsed > max(_MEASURED, before) or (steps >= _LONGEST_PILOT and not long_lines):
                return
            steps *= 8

    def _pilot(self, steps: int) -> float:
        """Seconds that so many long steps take."""
        began = time.perf_counter()
        self._simulate(2 * steps * self.dt, self.dt, every=2 * steps, after=0.0)
        return time.perf_counter() - began

    def seconds(self, grid: Grid) -> float:
        """About how long the run takes here and now, if its first time step is fine enough."""
        return self._seconds_before + self.steps(grid) * self.seconds_per_step

    def work(self, grid: Grid) -> float:
        """About how long that run takes on an idle core of the usual kind, seconds: what is decided must not depend on the machine."""
        return self.steps(grid) * usual_step(self._networks.latency.size)

    @property
    def bytes(self) -> float:
        """About how much memory it takes, if that is anything to speak of: that of the delay lines."""
        return line_bytes(self._network, self._rows(self.dt), runs=2)

    def steps(self, grid: Grid) -> float:
        """How many time steps the run has."""
        return grid.duration / grid.interval * grid.steps_per_interval(self.dt)

    def run(self, grid: Grid, most_work: float = math.inf) -> Trajectory:
        """Run; halve the time step until it is fine enough, the finest allowed, or the next run would be more `work` than this.

        **Raises:** `InputError` when the time step is too long for the fastest backend.
        """
        while True:
            steps = grid.steps_per_interval(self.dt)
            self.dt = grid.interval / steps
            runs = self._simulate(grid.duration, self.dt, every=steps, after=grid.after)
            self.accuracy = self._difference(runs)
            again = 2 * self.work(grid) < most_work and self.dt / 2 >= self._finest * (1 - 1e-9)
            if not (self.accuracy > ACCURATE and again):
                return self._finer(runs, grid)
            self.dt /= 2
            self.halved = True

    def _simulate(self, duration: float, dt: float, *, every: int, after: float) -> Trajectory:
        # The delay lines have room for the finest step that may come, so that all steps share compiled code, and are of one of a
        # few lengths, so that similar networks do.
        rows = self._rows(dt)
        return jax.block_until_ready(
            simulate_batch(
                self._networks,
                self._policies,
                duration=duration,
                dt=np.array([2 * dt, dt]),
                initial=self._initial,
                save=save_for_verdict(duration, every, FIELDS, self._reference, after=after),
                max_latency=delay_for(rows, dt),
                frames=self._frames,
                throw=False,
                events=self._events,
            )
        )

    def _rows(self, dt: float) -> int:
        needed = rows_for(self._longest, min(self._finest, dt))
        return _ROWS * 2 ** math.ceil(math.log2(max(1.0, needed / _ROWS)))

    def _difference(self, runs: Trajectory) -> float:
        assert runs.statistics is not None
        latency = np.asarray(runs.statistics.mean_latency)
        return float(abs(latency[0] / latency[1] - 1)) if int(runs.result[0]) == Result.successful else math.nan

    def _finer(self, runs: Trajectory, grid: Grid) -> Trajectory:
        # On the host: slices of every size would each be compiled.
        run = jax.tree.map(lambda leaf: jax.device_put(np.asarray(leaf)[1]), runs)
        result = Result(int(run.result))
        if result in (Result.step_too_large, Result.latency_overflow):
            raise InputError(f"dt = {self.dt:.6g} s: {result.sentence}")
        names = ("time", *FIELDS, *(() if run.lost is None else ("lost",)))
        kept = {name: jax.device_put(np.asarray(getattr(run, name))[: grid.instants]) for name in names}
        return dataclasses.replace(
            run, **kept, frontend_names=self._network.frontend_names, backend_names=self._network.backend_names
        )


def check_affordable(
    network: Network,
    optimum: Optimum,
    runs: Mapping[str, ResolvedRun],
    grid: Grid,
    causes: Mapping[str, str],
    step_size: ArrayLike | None,
) -> None:
    """Raise `InputError` before anything is compiled for time steps so short that nobody could wait for a run, or that memory could not
    hold what is on the way.

    **Arguments:** `runs`, and `causes` of their time steps, by balancer; `step_size`: the one that was asked for, 1/s^2.
    """
    for name, run in runs.items():
        where, longest = longest_latency(network)
        if run.steps(grid) > MOST_STEPS:
            many = f"so that {grid.duration:.3g} s are {run.steps(grid):.2g} steps, more than the {MOST_STEPS:.0e} that a run may have"
        elif run.bytes > room():
            many = (
                f"so that what is on the way takes about {run.bytes / 1e9:.2g} GB of memory, as the latency {where} is {longest:.3g} s, "
                f"and there is room for {room() / 1e9:.3g} GB"
            )
        else:
            continue
        cause = causes.get(name, "")
        if step_size is not None and cause == LOOP:
            given, usual = (float(np.max(value)) for value in (step_size, default_step_size(network, optimum)))
            raise InputError(
                f"step_size is {given:.3g} 1/s^2, which takes time steps of {run.dt:.2g} s, {many}: lower it, the default is {usual:.2g}."
            )
        raise InputError(
            f"{name} takes time steps of {run.dt:.2g} s{cause and f', set by {cause}'}, {many}: "
            f"{_LONGER.get(cause, 'correct latencies or service curves')}, or shorten the run."
        )


def _twice(value: ArrayLike) -> Array:
    return jax.device_put(np.stack([np.asarray(value)] * 2))
