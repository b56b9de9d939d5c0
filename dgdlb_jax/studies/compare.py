"""Balancers side by side in one network, against its optimum."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import ArrayLike

from dgdlb_jax.equilibrium.feasibility import require_traffic
from dgdlb_jax.model.batch import require_single
from dgdlb_jax.model.demand import Trace
from dgdlb_jax.model.events import Event
from dgdlb_jax.model.network import Network
from dgdlb_jax.numerics import device
from dgdlb_jax.numerics.parallel import in_order, workers_for
from dgdlb_jax.numerics.patience import patience
from dgdlb_jax.numerics.promotion import standard_promotion
from dgdlb_jax.numerics.results import InputError, require_values
from dgdlb_jax.numerics.rounding import round_down, round_up
from dgdlb_jax.policies.base import AbstractPolicy
from dgdlb_jax.policies.estimates import Scraped
from dgdlb_jax.policies.static import FixedRouting, Nearest, ProportionalToCapacity, Uniform
from dgdlb_jax.simulation.own import counts_own
from dgdlb_jax.simulation.trajectory import Trajectory
from dgdlb_jax.studies.assess import Assessment, set_up
from dgdlb_jax.studies.balancers import BALANCERS as BALANCERS
from dgdlb_jax.studies.balancers import CURRENT as CURRENT
from dgdlb_jax.studies.balancers import DGD as DGD
from dgdlb_jax.studies.balancers import balancers, behind
from dgdlb_jax.studies.comparison import Comparison as Comparison
from dgdlb_jax.studies.durations import (
    check_times,
    largest_latency,
    longest_service,
    natural_duration,
    reference_instants,
    room,
    steps_of,
)
from dgdlb_jax.studies.quasi_static import QuasiStatic, quasi_static_optimum
from dgdlb_jax.studies.schedule import Schedule
from dgdlb_jax.studies.starts import start_routing
from dgdlb_jax.studies.time_steps import Grid, ResolvedRun, check_affordable, what_sets, what_sets_step_size
from dgdlb_jax.studies.verdict import LAST_PART

Progress = Callable[[int, int, str], None]
"""Called with the pieces of work done, how many there are, and what was done last."""

PATIENCE, CORES = 15.0, 2
"""Seconds that the runs of a comparison may take by default on so many cores; where settling takes longer, they end before. The environment
variable DGDLB_PATIENCE is a factor on that."""
_LONGER = 4  # times as long does a balancer run again that has come to no verdict
_STATIC = {Uniform: "uniform", ProportionalToCapacity: "proportional", Nearest: "nearest"}
_REFERENCE = "quasi-static optimum"


@standard_promotion
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
    - `options`: as for `ComparisonInProgress`: `also`, `step_size`, `dt`, `duration`, `start`, `instants`, `workers`, `events`, `news`.

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
    """A comparison whose runs come one after the other, in the order in which they were asked for.

    **Arguments:** `network` and `policies` as for `compare`, and

    - `also`: name -> policy, in addition to `policies`: your own against the usual ones.
    - `step_size`: of DGD-LB, 1/s^2, a scalar or `(frontends,)`; `default_step_size` by default.
    - `dt`: seconds, the same for all; by default `suggest_dt` for each balancer, halved as long as the mean latency changes by more
      than 0.1 % with it. Twice that to begin with under a demand over time that takes more than `PATIENCE` seconds.
    - `duration`: seconds; by default `suggest_duration`, or what can be run within `PATIENCE` seconds if that is shorter. Balancers that
      have come to no verdict then run again, several times as long, as far as that takes no more than as many seconds again.
    - `start`: one of `STARTS`, with the workloads that carry that routing, or `(routing, workload)`.
    - `instants`: about how many instants to keep of every run (fewer in very large networks).
    - `workers`: how many balancers run at the same time; the number of cores by default, at most 4.
    - `alike`: the same network under a trace, which is compared as well: both share compiled code.
    - `news`: how frontends get their reports; each as soon as it can be by default. `step_size` then counts by how much older they are.
    - `events`: what happens on the way, of `dgdlb_jax.events`; everything is held against the network as it is after the last of them, and
      a run lasts until that has settled. See `Comparison.recoveries`.

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
        events: Sequence[Event] = (),
        news: Scraped | None = None,
    ):
        require_single(network, "compare")
        require_values("compare", network, step_size)
        require_traffic(network)
        check_times(network, dt, duration)
        self._home = device.small_work()
        with jax.default_device(self._home):
            self.network = network = device.moved(network)
            self._workers, self._instants = workers_for(workers), instants
            self.schedule = schedule = Schedule(network, events) if events else None
            self.news = news
            options: dict[str, Any] = {
                "step_size": step_size,
                "start": start,
                "news": news,
            }
            self._setups = (set_up(network, **options),) if schedule is None else schedule.set_up(**options)
            setup = self._setups[-1]
            self.network = setup.networks
            self._start = start if isinstance(start, str) else "given"
            self.optimum, self.step_size = setup.optimum, setup.step_size
            given = step_size is not None
            self._step_size_set_by = "" if given else what_sets_step_size(network, self.step_size, self.optimum, news)
            first = self._setups[0]  # a table that is made beforehand knows of no event
            named = lambda keys: balancers(first.networks, first.optimum, first.step_size, keys)
            chosen = policies if isinstance(policies, Mapping) else named(policies)
            self.policies = {name: behind(policy, news) for name, policy in {**chosen, **(also or {})}.items()}
            if schedule is not None:
                _refuse_own_counts(network, self.policies)
            self.settling = float(setup.settling)
            self._running = network if alike is None else _under_flat_trace(network, alike)
            self._set_by: dict[str, str] = {}
            self._fastest_service = 1 / max(_steepest_slope(network), np.finfo(float).tiny)
            if schedule is not None and duration is not None:
                schedule.check_duration(duration)
            self.grid = self._first_grid(dt, duration)
            self._runs = self._resolved(dt)
            if dt is None and self.moving:
                self._coarsen()
            elif duration is None and not self.moving:
                self._shorten(dt)
            check_affordable(self.network, self.optimum, self._runs, self.grid, self._set_by, step_size)
            largest = max(run.bytes for run in self._runs.values())
            self._workers = max(1, min(self._workers, int(room() / max(largest, 1))))
        self._may_run_longer, self._may_halve = duration is None and not self.moving, dt is None
        self._done: dict[str, Trajectory] = {}
        self._longer: dict[str, Trajectory] = {}
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
        """About how many seconds the runs will take, if none of them is repeated; known once they are compiled."""
        return sum(run.seconds(self.grid) for run in self._runs.values()) / min(self._workers, len(self._runs))

    @property
    def may_repeat(self) -> bool:
        """Whether runs may be repeated: with half the time step, or longer where there is no verdict yet."""
        return self._may_run_longer or self._may_halve

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
                if not self.policies[name].differentiable and self._runs[name].dt > largest_latency(self.network) / 4
            ),
            time_steps={name: self._runs[name].dt for name in names},
            accuracy={name: self._runs[name].accuracy for name in names},
            settling=self.settling,
            set_by={
                name: self._set_by[name] + ", halved" * self._runs[name].halved
                for name in names
                if name in self._set_by
            },
            step_size_set_by=self._step_size_set_by,
            longer={name: self._longer[name] for name in names if name in self._longer},
            schedule=self.schedule,
            news=self.news,
        )

    def compile(self) -> None:
        """Compile all runs, and measure what a step of each takes."""
        frames = max(self._kept + 2, self.grid.instants)  # comparisons of other durations share compiled code
        compiling = {name: partial(run.compile, frames) for name, run in self._runs.items()}
        for _ in self._at_the_same_time(compiling):
            pass

    def finished(self) -> Iterator[str]:
        """Run everything; the name of each piece as soon as it and those before it are known. What has come to no verdict runs again at
        the end, longer."""
        undecided: list[str] = []
        for name in self._finished_once():
            if self._may_run_longer and self._undecided(name, self._done[name]):
                undecided.append(name)
            else:
                yield name
        each = CORES * patience(PATIENCE) / max(1, len(undecided))
        for name, found in self._at_the_same_time({name: partial(self._run_longer, name, each) for name in undecided}):
            if found is not None:
                self._longer[name] = found
            yield name

    def _undecided(self, name: str, run: Trajectory) -> bool:
        with jax.default_device(self._home):
            found = Assessment(self.network, run, np.asarray(self.optimum.mean_latency))
            return bool(found.undecided | found.judgement.fading)

    def _run_longer(self, name: str, most_work: float) -> Trajectory | None:
        """The same balancer for up to four times as long, and again, until there is a verdict or no work left."""
        grid, run, found = self.grid, self._runs[name], None
        while found is None or self._undecided(name, found):
            times = min(_LONGER, int(most_work / run.work(grid)))
            if times < 2:
                break
            grid = grid.times(times)
            most_work -= run.work(grid)
            found = run.run(grid, most_work=0.0)
        return found

    def _finished_once(self) -> Iterator[str]:
        each = CORES * patience(PATIENCE) / len(self._runs)
        jobs: dict[str, Callable[[], Any]] = {}
        if self.moving:  # first, as all rows are held against it
            instants = reference_instants(self.network, self.grid.duration)
            jobs[_REFERENCE] = lambda: quasi_static_optimum(self.network, instants)
        jobs |= {name: partial(run.run, self.grid, each) for name, run in self._runs.items()}
        for name, found in self._at_the_same_time(jobs):
            if name == _REFERENCE:
                self._quasi_static = found
            else:
                self._done[name] = found
            yield name

    def _at_the_same_time(self, jobs: dict[str, Callable[[], Any]]) -> Iterator[tuple[str, Any]]:
        with jax.default_device(self._home):
            yield from in_order(jobs, self._workers)

    def _shorten(self, dt: float | None) -> None:
        """Let all runs end earlier if together they take too long, but not before they can be judged."""
        if (work := self._work()) > patience(PATIENCE):
            shortest = 5 * max(2 * largest_latency(self.network), longest_service(self.network, self.optimum))
            shortest += 0.0 if self.schedule is None else self.schedule.shortest
            affordable = round_down(self.grid.duration * patience(PATIENCE) / work)
            self.grid = self._grid(max(affordable, min(round_up(shortest), self.grid.duration)), dt)
            self._runs = self._resolved(dt)

    def _coarsen(self) -> None:
        """Begin with twice the time step if all runs together take too long under a demand of which none can be left out."""
        if self._work() > patience(PATIENCE):
            for run in self._runs.values():
                run.dt *= 2

    def _work(self) -> float:
        return sum(run.work(self.grid) for run in self._runs.values()) / CORES

    def _resolved(self, dt: float | None) -> dict[str, ResolvedRun]:
        return {name: self._resolved_run(name, policy, dt) for name, policy in self.policies.items()}

    def _resolved_run(self, name: str, policy: AbstractPolicy, dt: float | None) -> ResolvedRun:
        network, finest = self.network, dt
        policy = policy if self.schedule is not None else _as_table(policy, network)
        if dt is None:
            suggested = min(float(setup.time_step(policy)) for setup in self._setups)
            self._set_by[name] = what_sets(policy, suggested, self._fastest_service)
            dt = self.grid.interval / self.grid.steps_per_interval(suggested)
            finest = largest_latency(network) / 20
        return ResolvedRun(
            self._running, policy, self._setups[0].initial, dt=dt, finest=finest or dt, reference=self.optimum.workload,
            signals=None if self.schedule is None else self.schedule.signals,
        )  # fmt: skip

    def _first_grid(self, dt: float | None, duration: float | None) -> Grid:
        if duration is None:
            settling, schedule = self.settling, self.schedule
            duration = natural_duration(self.network, settling) if schedule is None else schedule.duration(settling)
        return self._grid(duration, dt)

    def _grid(self, duration: float, dt: float | None = None) -> Grid:
        interval = round_up(duration / self._kept)
        if dt is not None:
            steps = steps_of(duration, dt)
            interval = dt * max(1, round(steps / self._kept))
        return Grid(duration, interval, after=0.0 if self.moving else (1 - LAST_PART) * duration)


def _refuse_own_counts(network: Network, policies: Mapping[str, AbstractPolicy]) -> None:
    """Raise `InputError` before any run for balancers that events cannot be told of."""
    found = [name for name, policy in policies.items() if counts_own(network, policy)]
    if found:
        raise InputError(
            f"{', '.join(found)} cannot be run with events, which would have to take away some of the requests that a frontend counts as "
            "its own: leave out either."
        )


def _under_flat_trace(network: Network, alike: Network) -> Network:
    """The same constant rates, written as a trace of the same shape as another network's."""
    trace = alike.demand
    if network.varies or not isinstance(trace, Trace):
        return network
    rates = jnp.broadcast_to(network.arrival_rate, trace.rates.shape)
    return network.with_arrival_rate(Trace(trace.bin_width, rates))


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
