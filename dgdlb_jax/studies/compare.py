"""Balancers side by side in one network, against its optimum."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import ArrayLike

from dgdlb_jax.equilibrium.feasibility import require_traffic
from dgdlb_jax.equilibrium.optimum import solve_optimum
from dgdlb_jax.model.demand import DailyCycle, Jumps, Trace
from dgdlb_jax.model.network import Network
from dgdlb_jax.numerics import device
from dgdlb_jax.numerics.parallel import as_completed, workers_for
from dgdlb_jax.numerics.results import InputError
from dgdlb_jax.numerics.rounding import round_down, round_up
from dgdlb_jax.policies.base import AbstractPolicy
from dgdlb_jax.policies.static import FixedRouting, Nearest, ProportionalToCapacity, Uniform
from dgdlb_jax.simulation import checks
from dgdlb_jax.simulation.trajectory import Trajectory
from dgdlb_jax.stability.defaults import default_step_size, suggest_duration
from dgdlb_jax.studies.balancers import BALANCERS as BALANCERS
from dgdlb_jax.studies.balancers import CURRENT as CURRENT
from dgdlb_jax.studies.balancers import DGD as DGD
from dgdlb_jax.studies.balancers import balancers
from dgdlb_jax.studies.comparison import Comparison as Comparison
from dgdlb_jax.studies.quasi_static import QuasiStatic, longest_service, quasi_static_optimum
from dgdlb_jax.studies.starts import start_routing, start_state
from dgdlb_jax.studies.time_steps import Grid, ResolvedRun, time_step, what_sets
from dgdlb_jax.studies.verdict import LAST_PART

Progress = Callable[[int, int, str], None]
"""Called with the pieces of work done, how many there are, and what was done last."""

PATIENCE, CORES = 15.0, 2
"""Seconds that the runs of a comparison may take by default on so many cores; where settling takes longer, they end before."""
_MOST_STEPS = 1e9  # of a run
_STATIC = {Uniform: "uniform", ProportionalToCapacity: "proportional", Nearest: "nearest"}
_REFERENCE = "quasi-static optimum"


def compare(
    network: Network,
    policies: Mapping[str, AbstractPolicy] | Sequence[str] | None = None,
    *,
    progress: Progress | None = None,
    **options: Any,
) -> Comparison:
    """Run balancers in the same network from the same start, and hold them against the optimum.

    **Arguments:**

    - `network`: a single network. When its demand or capacity moves, the runs are held against the moving
      quasi-static optimum.
    - `policies`: name -> policy, or keys of `BALANCERS`; by default those of `balancers.DEFAULT`.

    Other arguments:

    - `progress`: told after every piece of work.
    - `options`: as for `ComparisonInProgress`: `also`, `step_size`, `dt`, `duration`, `start`, `instants`, `workers`.

    **Returns:** a `Comparison`.

    **Raises:** `InputError` when there is no demand or it exceeds capacity, when a value is out of range, for an unknown name, or when
    dt is too large for the fastest backend. A run that fails by itself is a row that says so.
    """
    work = ComparisonInProgress(network, policies, **options)
    if progress is not None:
        progress(0, len(work.pieces), "")
    work.compile()
    for done, name in enumerate(work.finished(), start=1):
        if progress is not None:
            progress(done, len(work.pieces), name)
    return work.comparison


class ComparisonInProgress:
    """A comparison whose runs come one after the other, in whichever order they end.

    **Arguments:** `network` and `policies` as for `compare`, and

    - `also`: name -> policy, in addition to `policies`: your own against the usual ones.
    - `step_size`: of DGD-LB, 1/s^2, a scalar or `(frontends,)`; `default_step_size` by default.
    - `dt`: seconds, the same for all; by default `suggest_dt` for each balancer, halved as long as the mean latency changes by more
      than 0.1 % with it.
    - `duration`: seconds; by default `suggest_duration`, or what can be run within `PATIENCE` seconds if that is shorter.
    - `start`: one of `STARTS`, with the workloads that carry that routing, or `(routing, workload)`.
    - `instants`: about how many instants to keep of every run (fewer in very large networks).
    - `workers`: how many balancers run at the same time; the number of cores by default, at most 4.
    - `alike`: the same network under a trace, which is compared as well: both share compiled code.

    All of it runs on the host's processor: one network leaves an accelerator idle. An entry of `jax.default_device` is obeyed.

    **Raises:** as `compare`.
    """

    def __init__(
        self,
        network: Network,
        policies: Mapping[str, AbstractPolicy] | Sequence[str] | None = None,
        *,
        also: Mapping[str, AbstractPolicy] | None = None,
        step_size: float | ArrayLike | None = None,
        dt: float | None = None,
        duration: float | None = None,
        start: str | tuple[ArrayLike, ArrayLike] = "proportional",
        instants: int = 1500,
        workers: int | None = None,
        alike: Network | None = None,
    ):
        if network.batch is not None:
            raise InputError("compare takes a single network: network[k] picks one out of a batch.")
        require_traffic(network)
        check_times(network, dt, duration)
        self._home = device.small_work()
        with jax.default_device(self._home):
            self.network = network = device.moved(network)
            self._workers, self._instants = workers_for(workers), instants
            self._initial, self._start = start_state(network, start), start if isinstance(start, str) else "given"
            self.optimum = optimum = solve_optimum(network)
            given = step_size is not None
            step = jnp.asarray(step_size, network.latency.dtype) if given else default_step_size(network, optimum)
            self.step_size = jnp.broadcast_to(step, (network.frontends,))
            chosen = policies if isinstance(policies, Mapping) else balancers(network, optimum, step, policies)
            self.policies = {**chosen, **(also or {})}
            self.settling = float(suggest_duration(network, self.step_size, optimum))
            self._running = network if alike is None else _under_flat_trace(network, alike)
            self._set_by: dict[str, str] = {}
            self._fastest_service = 1 / max(_steepest_slope(network), np.finfo(float).tiny)
            self.grid = self._first_grid(dt, duration)
            self._runs = self._resolved(dt)
            if duration is None and not self.moving:
                self._shorten(dt)
        self._done: dict[str, Trajectory] = {}
        self._quasi_static: QuasiStatic | None = None

    @property
    def moving(self) -> bool:
        """Whether demand or capacity moves, so that there is a reference instead of an optimum."""
        return self.network.varies

    @property
    def _kept(self) -> int:
        """At most about how many instants are saved."""
        return max(100, min(self._instants, 4_000_000 // (self.network.frontends * self.network.backends)))

    @property
    def pieces(self) -> list[str]:
        """What will be computed: the balancers, and the reference when demand moves."""
        return [*self.policies, *([_REFERENCE] if self.moving else [])]

    @property
    def estimate(self) -> float:
        """About how many seconds the runs will take; known once they are compiled."""
        return sum(run.seconds(self.grid) for run in self._runs.values()) / min(self._workers, len(self._runs))

    @property
    def comparison(self) -> Comparison:
        """What is known by now: the runs that have ended, in the order in which they were asked for."""
        names = [name for name in self.policies if name in self._done]
        return Comparison(
            network=self.network,
            optimum=self.optimum,
            step_size=self.step_size,
            dt=min(run.dt for run in self._runs.values()),
            duration=self.grid.duration,
            start=self._start,
            reference=self._quasi_static,
            runs={name: self._done[name] for name in names},
            unresolved=frozenset(
                name
                for name in names
                if not self.policies[name].differentiable and self._runs[name].dt > _largest_latency(self.network) / 4
            ),
            time_steps={name: self._runs[name].dt for name in names},
            accuracy={name: self._runs[name].accuracy for name in names},
            settling=self.settling,
            set_by={
                name: self._set_by[name] + ", halved" * self._runs[name].halved
                for name in names
                if name in self._set_by
            },
        )

    def compile(self) -> None:
        """Compile all runs, and measure what a step of each takes."""
        frames = max(self._kept + 2, self.grid.instants)  # comparisons of other durations share compiled code
        compiling = {name: partial(run.compile, frames) for name, run in self._runs.items()}
        for _ in self._at_the_same_time(compiling):
            pass

    def finished(self) -> Iterator[str]:
        """Run everything; the name of each piece as soon as it is known."""
        each = CORES * PATIENCE / len(self._runs)
        jobs: dict[str, Callable[[], Any]] = {}
        if self.moving:  # first, as all rows wait for it
            instants = _reference_instants(self.network, self.grid.duration)
            jobs[_REFERENCE] = lambda: quasi_static_optimum(self.network, instants)
        jobs |= {name: partial(run.run, self.grid, each) for name, run in self._runs.items()}
        held: list[str] = []  # a row under a moving demand waits for the reference it is held against
        for name, found in self._at_the_same_time(jobs):
            if name == _REFERENCE:
                self._quasi_static = found
            else:
                self._done[name] = found
            held.append(name)
            if not self.moving or self._quasi_static is not None:
                yield from held
                held = []

    def _at_the_same_time(self, jobs: dict[str, Callable[[], Any]]) -> Iterator[tuple[str, Any]]:
        with jax.default_device(self._home):
            yield from as_completed(jobs, self._workers)

    def _shorten(self, dt: float | None) -> None:
        """Let all runs end earlier if together they take too long, but not before they can be judged."""
        work = sum(run.work(self.grid) for run in self._runs.values()) / CORES
        if work > PATIENCE:
            shortest = 5 * max(2 * _largest_latency(self.network), longest_service(self.network, self.optimum))
            affordable = round_down(self.grid.duration * PATIENCE / work)
            self.grid = self._grid(max(affordable, min(round_up(shortest), self.grid.duration)), dt)
            self._runs = self._resolved(dt)

    def _resolved(self, dt: float | None) -> dict[str, ResolvedRun]:
        return {name: self._resolved_run(name, policy, dt) for name, policy in self.policies.items()}

    def _resolved_run(self, name: str, policy: AbstractPolicy, dt: float | None) -> ResolvedRun:
        network, finest = self.network, dt
        policy = _as_table(policy, network)
        if dt is None:
            suggested = float(time_step(network, policy, self.step_size, self.optimum, self._initial[1]))
            self._set_by[name] = what_sets(policy, suggested, self._fastest_service)
            dt = self.grid.interval / self.grid.steps_per_interval(suggested)
            finest = _largest_latency(network) / 20
        return ResolvedRun(
            self._running, policy, self._initial, dt=dt, finest=finest or dt, reference=self.optimum.workload
        )

    def _first_grid(self, dt: float | None, duration: float | None) -> Grid:
        return self._grid(_natural_duration(self.network, self.settling) if duration is None else duration, dt)

    def _grid(self, duration: float, dt: float | None = None) -> Grid:
        interval = round_up(duration / self._kept)
        if dt is not None:
            steps = _steps(duration, dt)
            interval = dt * max(1, round(steps / self._kept))
        return Grid(duration, interval, after=0.0 if self.moving else (1 - LAST_PART) * duration)


def check_times(network: Network, dt: float | None, duration: float | None) -> None:
    """Raise `InputError` for a time step or a duration that cannot be run in a network, as far as they are given."""
    for name, value in (("dt", dt), ("duration", duration)):
        if value is not None and not (np.isfinite(value) and value > 0):
            raise InputError(f"{name} = {value} s: give a finite number above 0.")
    if dt is not None:
        if duration is not None:
            _steps(duration, dt)
        batch = jax.tree.map(lambda leaf: leaf[None], network)
        checks.explain(batch, checks.grid(batch, dt, dt, None), None)


def _steps(duration: float, dt: float) -> float:
    steps = duration / dt
    if steps > _MOST_STEPS:
        raise InputError(
            f"duration {duration:.6g} s at dt {dt:.3g} s is {steps:.3g} steps, but a comparison takes up to {_MOST_STEPS:.0e}: "
            f"use a dt of {duration / _MOST_STEPS:.2g} s or more, or a shorter duration."
        )
    return steps


def _under_flat_trace(network: Network, alike: Network) -> Network:
    """The same constant rates, written as a trace of the same shape as another network's."""
    trace = alike.demand
    if network.varies or not isinstance(trace, Trace):
        return network
    rates = jnp.broadcast_to(network.arrival_rate, trace.rates.shape)
    return network.with_arrival_rate(Trace(trace.bin_width, rates))


def _largest_latency(network: Network) -> float:
    return float(jnp.maximum(network.latency, network.feedback_latency).max())


def _as_table(policy: AbstractPolicy, network: Network) -> AbstractPolicy:
    """A rule that looks at nothing that changes as the table it comes to, so that all of those are one compiled program."""
    rule = next((name for kind, name in _STATIC.items() if type(policy) is kind), None)
    if rule is None or network.capacity is not None:
        return policy
    return FixedRouting(start_routing(network, rule))


def _steepest_slope(network: Network) -> float:
    """The slope of the steepest curve at no workload, of backends that can be reached, 1/s."""
    slopes = np.asarray(network.fastest_service.initial_slope, float)
    return float(np.max(np.where(np.asarray(network.backend_mask), slopes, 0)))


def _natural_duration(network: Network, settling: float) -> float:
    """Seconds that show all of a demand: the time to settle, the whole trace, a whole cycle."""
    match network.demand:
        case Trace(bin_width=width, rates=rates):
            return float(jnp.max(width)) * rates.shape[0]
        case DailyCycle(period=period):
            return float(jnp.max(period))
        case Jumps(times=times):
            return float(jnp.max(times)) + settling
    return settling


def _reference_instants(network: Network, duration: float):
    """Where the reference is solved: at the knots of a trace (edges and middles of bins) if they are not too many."""
    halves = 400
    if isinstance(network.demand, Trace):
        halves = min(1000, max(2, round(2 * duration / float(jnp.min(network.demand.bin_width)))))
    return np.linspace(0, duration, halves + 1)
