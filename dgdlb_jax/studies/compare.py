"""Balancers side by side in one network, against its optimum."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from dgdlb_jax.equilibrium.feasibility import require_traffic
from dgdlb_jax.equilibrium.optimum import Optimum, solve_optimum
from dgdlb_jax.equilibrium.prices import ShadowPrices, shadow_prices
from dgdlb_jax.model.demand import DailyCycle, Jumps, Trace
from dgdlb_jax.model.network import Network
from dgdlb_jax.numerics import device
from dgdlb_jax.numerics.parallel import as_completed, workers_for
from dgdlb_jax.numerics.results import InputError, require_values
from dgdlb_jax.numerics.rounding import round_down, round_up
from dgdlb_jax.policies.base import AbstractPolicy
from dgdlb_jax.simulation import checks
from dgdlb_jax.simulation.trajectory import Trajectory
from dgdlb_jax.stability.defaults import default_step_size, suggest_duration
from dgdlb_jax.studies import results
from dgdlb_jax.studies.balancers import BALANCERS as BALANCERS
from dgdlb_jax.studies.balancers import CURRENT as CURRENT
from dgdlb_jax.studies.balancers import DGD as DGD
from dgdlb_jax.studies.balancers import balancers
from dgdlb_jax.studies.conclusion import conclusion
from dgdlb_jax.studies.outcome import Outcome, outcome
from dgdlb_jax.studies.quasi_static import QuasiStatic, quasi_static_optimum
from dgdlb_jax.studies.starts import start_state
from dgdlb_jax.studies.time_steps import Grid, ResolvedRun, time_step
from dgdlb_jax.studies.verdict import LAST_PART
from dgdlb_jax.studies.what_if import WhatIf, what_if

Progress = Callable[[int, int, str], None]
"""Called with the pieces of work done, how many there are, and what was done last."""

PATIENCE, CORES = 15.0, 2
"""Seconds that the runs of a comparison may take by default on so many cores; where settling takes longer, they end before."""
_MOST_STEPS = 1e9  # of a run
_REFERENCE = "quasi-static optimum"


@dataclass(frozen=True)
class Comparison:
    """Balancers that ran in the same network from the same start.

    - `network`, `optimum`: what they ran in, and the optimum at its mean rates.
    - `step_size` `(frontends,)` 1/s^2 of DGD-LB, `dt` (the shortest time step of all) and `duration` in seconds, `start`: what they ran
      with.
    - `time_steps`: name -> seconds, where it is not `dt`. `accuracy`: name -> relative change of the mean latency with twice that
      time step; NaN where that is too long to run.
    - `unresolved`: names of rules that jump and whose time step is too long to show how they swing: above a quarter of the largest
      latency.
    - `settling`: seconds after which DGD-LB has settled, as suggested; `duration` is shorter where that would take too long.
    - `runs`: name -> `Trajectory`, all saved at the same instants; statistics cover the last fifth, or all of the run
      when demand moves.
    - `reference`: the moving quasi-static optimum; None when demand is constant.
    """

    network: Network
    optimum: Optimum
    step_size: Float[Array, " frontends"]
    dt: float
    duration: float
    start: str
    runs: dict[str, Trajectory] = field(repr=False)
    reference: QuasiStatic | None = field(default=None, repr=False)
    time_steps: dict[str, float] = field(default_factory=dict)
    accuracy: dict[str, float] = field(default_factory=dict)
    unresolved: frozenset[str] = frozenset()
    settling: float = math.nan

    @cached_property
    def prices(self) -> ShadowPrices:
        """What a little more of everything is worth at the optimum."""
        return shadow_prices(self.network)

    @cached_property
    def changes(self) -> list[WhatIf]:
        """What one replica more or less, and losing a backend, would change in the optimal mean latency."""
        return what_if(self.network, self.optimum)

    @property
    def moving(self) -> bool:
        """Whether demand or capacity moves, so that there is a reference instead of an optimum."""
        return self.network.varies

    @property
    def best_latency(self) -> float:
        """Mean latency of the optimum, or of the reference when demand moves, seconds."""
        return float(self.optimum.mean_latency) if self.reference is None else self.reference.mean_latency

    @cached_property
    def outcomes(self) -> dict[str, Outcome]:
        """Name -> figures of that balancer."""
        return {
            name: outcome(
                self.network, name, run, self.best_latency, moving=self.moving, resolved=name not in self.unresolved
            )
            for name, run in self.runs.items()
        }

    def table(self) -> list[Outcome]:
        """The figures, DGD-LB first, then from the best to the worst."""

        def rank(row: Outcome):
            finite = bool(np.isfinite(row.mean_latency))
            return row.balancer != DGD, not finite, row.mean_latency if finite else row.short_by

        return sorted(self.outcomes.values(), key=rank)

    @property
    def steepest_latency(self) -> float:
        r"""$\max \tau_{ij} \ell_j'(N_j)$ over the arcs in use at the optimum: latency on the backends' time scale."""
        slope = self.network.mean_service.slope(self.optimum.workload)
        used = (self.optimum.routing > 1e-6) & (self.network.arrival_rate > 0)[:, None]
        return float(jnp.max(jnp.where(used, self.network.latency * slope, 0)))

    @property
    def conclusion(self) -> str:
        """One or two sentences that say what these numbers mean for the network."""
        return conclusion(self)

    def to_xarray(self):
        """All of it as an `xarray.Dataset`, with inputs, units and versions."""
        return results.to_dataset(self)


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
        require_values("compare", network, step_size)
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
            shortest = 5 * max(2 * _largest_latency(self.network), _longest_service(self.network, self.optimum))
            affordable = round_down(self.grid.duration * PATIENCE / work)
            self.grid = self._grid(max(affordable, min(round_up(shortest), self.grid.duration)), dt)
            self._runs = self._resolved(dt)

    def _resolved(self, dt: float | None) -> dict[str, ResolvedRun]:
        return {name: self._resolved_run(policy, dt) for name, policy in self.policies.items()}

    def _resolved_run(self, policy: AbstractPolicy, dt: float | None) -> ResolvedRun:
        network, finest = self.network, dt
        if dt is None:
            suggested = float(time_step(network, policy, self.step_size, self.optimum, self._initial[1]))
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


def _longest_service(network: Network, optimum: Optimum) -> float:
    """The longest mean time in service of a backend in use at the optimum, seconds."""
    inflow = network.arrival_rate @ optimum.routing
    in_use = inflow > 1e-3 * inflow.sum()
    return float(jnp.where(in_use, optimum.workload / jnp.where(in_use, inflow, 1), 0).max())


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
