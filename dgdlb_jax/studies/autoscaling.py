"""Balancers while autoscalers move replicas: what they cost, in latency and in replicas, and whether they swing; and limits of both."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import jax
import numpy as np
from jaxtyping import ArrayLike, Float

from dgdlb_jax.equilibrium.feasibility import require_traffic
from dgdlb_jax.equilibrium.optimum import Optimum
from dgdlb_jax.model.batch import each_backend, require_single
from dgdlb_jax.model.events import Event
from dgdlb_jax.model.network import Network
from dgdlb_jax.model.signals import signals
from dgdlb_jax.numerics import device
from dgdlb_jax.numerics.files import require_room
from dgdlb_jax.numerics.parallel import in_order, workers_for
from dgdlb_jax.numerics.patience import patience
from dgdlb_jax.numerics.rounding import round_up
from dgdlb_jax.policies.autoscalers.base import AbstractAutoscaler, AbstractSampledAutoscaler
from dgdlb_jax.policies.base import AbstractPolicy
from dgdlb_jax.policies.estimates import Scraped
from dgdlb_jax.simulation.engine import simulate
from dgdlb_jax.simulation.trajectory import FIELDS, Trajectory
from dgdlb_jax.stability.autoscaling import ReplicaLoop, replica_loop
from dgdlb_jax.stability.critical import critical_mode
from dgdlb_jax.stability.defaults import default_step_size
from dgdlb_jax.stability.ranges import stable_ranges
from dgdlb_jax.studies.assess import set_up, statistics_of
from dgdlb_jax.studies.balancers import balancers, behind
from dgdlb_jax.studies.evidence import LAST_PART, SWING_LIMIT
from dgdlb_jax.studies.time_steps import usual_step
from dgdlb_jax.studies.turns import crossings
from dgdlb_jax.studies.verdict import Judgement, Verdict, classify, save_for_verdict

_INSTANTS = 1500
_TURNS = 20  # start-up delays, intervals and windows that a run is long, at least
_FEWEST = 8  # of them, when the run would take longer than people wait
PATIENCE = 60.0  # seconds on one core, for all balancers
_STEPS = 8  # time steps in an interval, at least
_SPAN = 16.0  # by which factor up and down an interval is looked at


@dataclass(frozen=True)
class ScaledOutcome:
    """One balancer's figures while replicas move, over the last fifth of its run (all of it where demand moves).

    - `mean_latency`: seconds per request. `replica_hours`: paid for per hour: from the command to the end of each replica.
    - `mean_replicas`, `peak_replicas`: that serve, all backends together; the peak is that of the whole run.
    - `verdict`, `reason`: as in `studies.verdict`, with the replicas that there are. `swing`: largest (max - min) / mean of the replicas of
      a backend; `period`: seconds from one of its peaks to the next, NaN where it does not swing.
    """

    balancer: str
    run: Trajectory
    mean_latency: float
    replica_hours: float
    mean_replicas: float
    peak_replicas: float
    verdict: Verdict
    reason: str | None
    swing: float
    period: float


@dataclass(frozen=True)
class AutoscalingStudy:
    """Balancers in a network whose replicas an autoscaler moves.

    - `step_size` `(frontends,)` of the gradient rules, 1/s^2: `default_step_size(..., autoscaler=...)` unless given.
    - `duration`, seconds; `rows` in the order in which balancers were asked for, those that have ended.
    """

    network: Network
    autoscaler: AbstractAutoscaler
    step_size: Float[np.ndarray, " frontends"]
    duration: float
    rows: tuple[ScaledOutcome, ...]


class AutoscalingStudyInProgress:
    """A study whose runs come one after the other.

    **Arguments:** a single `network`, its `autoscaler`; `policies`: keys of `BALANCERS`, or name -> policy; `also`: more of these;
    `step_size`, `duration`, `start`, `events`, `news`: as for `compare`.
    """

    def __init__(
        self,
        network: Network,
        autoscaler: AbstractAutoscaler,
        policies: Mapping[str, AbstractPolicy] | Sequence[str] | None = None,
        *,
        also: Mapping[str, AbstractPolicy] | None = None,
        step_size: ArrayLike | None = None,
        duration: float | None = None,
        start: str = "proportional",
        events: Sequence[Event] = (),
        news: Scraped | None = None,
    ):
        require_single(network, "autoscaling_study")
        require_traffic(network)
        self._home = device.small_work()
        with jax.default_device(self._home):
            self._network, self._autoscaler = network, autoscaler
            setup = set_up(network, step_size=step_size, start=start, news=news)
            step = setup.step_size
            if step_size is None:
                older = 0.0 if news is None else news.oldest
                step = default_step_size(network, setup.optimum, averaging=older, autoscaler=autoscaler)
            named = policies if isinstance(policies, Mapping) else balancers(network, setup.optimum, step, policies)
            self._policies = {name: behind(policy, news) for name, policy in {**named, **(also or {})}.items()}
            self._setup, self._step = setup, np.asarray(step)
            self._events = signals(network, events) if events else None
            last = max((event.at for event in events), default=0.0)
            self._dt = {name: self._time_step(policy) for name, policy in self._policies.items()}
            self._duration = duration or round_up(last + self._natural_duration())
        self._done: dict[str, ScaledOutcome] = {}

    @property
    def names(self) -> list[str]:
        """The balancers."""
        return list(self._policies)

    @property
    def study(self) -> AutoscalingStudy:
        """What is known by now."""
        rows = tuple(self._done[name] for name in self._policies if name in self._done)
        return AutoscalingStudy(self._network, self._autoscaler, self._step, self._duration, rows)

    @property
    def estimate(self) -> float:
        """About how many seconds the runs take on idle cores of the usual kind, compilation apart."""
        return self._duration * self._work / min(workers_for(None), len(self._policies))

    @property
    def _work(self) -> float:
        """Seconds of a core for a simulated second of all balancers."""
        return sum(usual_step(self._network.latency.size) / dt for dt in self._dt.values())

    def finished(self) -> Iterator[ScaledOutcome]:
        """Run everything; each row as soon as it is known."""
        with jax.default_device(self._home):
            jobs: dict[str, Callable] = {name: partial(self._row, name) for name in self._policies}
            for name, row in in_order(jobs, workers_for(None)):
                self._done[name] = row
                yield row

    def _row(self, name: str) -> ScaledOutcome:
        dt = self._dt[name]
        every = max(1, round(self._duration / dt / _INSTANTS))
        moving = self._network.varies
        save = save_for_verdict(
            self._duration, every, FIELDS, self._setup.optimum.workload, after=0.0 if moving else None
        )
        run = simulate(
            self._network, self._policies[name], duration=self._duration, dt=dt, initial=self._setup.initial, save=save,
            throw=False, autoscaler=self._autoscaler, events=self._events,
        )  # fmt: skip
        return scaled_outcome(self._network, name, run)

    def _time_step(self, policy: AbstractPolicy) -> float:
        """One that resolves the balancer and divides the interval."""
        dt, rule = float(self._setup.time_step(policy)), self._autoscaler
        if not isinstance(rule, AbstractSampledAutoscaler):
            return min(dt, float(np.max(np.asarray(getattr(rule, "time_constant", np.inf)))) / _STEPS)
        return rule.interval / max(_STEPS, math.ceil(rule.interval / dt))

    def _natural_duration(self) -> float:
        """Until balancer and autoscaler have settled; shorter where that takes longer than people wait."""
        longest = slowest_part(self._autoscaler)
        wanted = max(float(self._setup.settling), _TURNS * longest)
        return min(wanted, max(patience(PATIENCE) / self._work, _FEWEST * longest))


def slowest_part(autoscaler: AbstractAutoscaler) -> float:
    """Start-up delay, interval and longest window of an autoscaler together, seconds."""
    windows = [
        getattr(getattr(autoscaler, name, None), "window", 0.0) for name in ("scale_up", "scale_down")
    ]  # of rules that have them
    lag = float(np.max(np.asarray(getattr(autoscaler, "time_constant", 0.0))))
    return float(np.max(np.asarray(autoscaler.startup))) + getattr(autoscaler, "interval", 0.0) + lag + max(windows)


def scaled_outcome(network: Network, balancer: str, run: Trajectory) -> ScaledOutcome:
    """Read a run's figures."""
    found, statistics = classify(network, run), statistics_of(run)
    duration = float(statistics.duration)
    mean = lambda values: float(np.asarray(values).sum())
    verdict = Verdict(int(found.verdict))
    swing, period = _swing(run)
    return ScaledOutcome(
        balancer=balancer,
        run=run,
        mean_latency=_latency(found, float(statistics.mean_latency)),
        replica_hours=mean(statistics.replica_seconds) / duration,
        mean_replicas=mean(statistics.mean_replicas),
        peak_replicas=float(np.asarray(run.replicas).sum(-1).max()),
        verdict=verdict,
        reason=found.reason,
        swing=swing,
        period=period,
    )


def _latency(found: Judgement, latency: float) -> float:
    return {Verdict.diverging: math.inf, Verdict.failed: math.nan}.get(Verdict(int(found.verdict)), latency)


def _swing(run: Trajectory) -> tuple[float, float]:
    """The largest range over the mean of a backend's replicas in the last fifth, and the period with which it returns."""
    time, replicas = np.asarray(run.time, float), np.asarray(run.replicas, float)
    late = time >= time[-1] - LAST_PART * (time[-1] - time[0]) - 1e-9
    time, replicas = time[late], replicas[late]
    swing = np.ptp(replicas, axis=0) / np.maximum(replicas.mean(0), 1e-300)
    widest = int(np.argmax(swing))
    if not swing[widest] > SWING_LIMIT:
        return float(swing[widest]), math.nan
    at = crossings(replicas[:, widest])
    return float(swing[widest]), float(np.diff(time[at]).mean()) if at.size > 2 else math.nan


def write_runs(path: Path, study: AutoscalingStudy) -> None:
    """Write the runs into a netCDF file that there is, each as a group `autoscaling/BALANCER`."""
    for row in study.rows:
        found = row.run.to_xarray()
        require_room(path.parent, found.nbytes)
        found.to_netcdf(path, mode="a", group=f"autoscaling/{row.balancer}", engine="h5netcdf")


@dataclass(frozen=True)
class ReplicaLimit:
    """Where the autoscaler of some equal backends begins to swing by itself: its law alone, without rounding, dead band and cool-down.

    - `backends`: their numbers. `stable`: whether it is. `startup`: the limit of the start-up delay, seconds, inf without one;
      `period`: of the swings there. `intervals`: ranges of the interval in which it is stable at the present delay; None of a rule that
      moves all the time.
    """

    backends: tuple[int, ...]
    stable: bool
    startup: float
    period: float
    intervals: list[tuple[float, float]] | None


@dataclass(frozen=True)
class AutoscalerStability:
    """What is known of the stability of an autoscaler, alone and with DGD-LB, in a network at its mean rates.

    - `alone`: one entry for every kind of backend. `default`: step sizes of DGD-LB beside it `(frontends,)`, 1/s^2.
    - `limit`: by which factor these may be multiplied before traffic and replicas swing together, with the `period`, seconds; NaN where
      the autoscaler swings by itself.
    """

    network: Network
    autoscaler: AbstractAutoscaler
    alone: list[ReplicaLimit]
    default: Float[np.ndarray, " frontends"]
    limit: float
    period: float


def autoscaler_stability(network: Network, autoscaler: AbstractAutoscaler, optimum: Optimum) -> AutoscalerStability:
    """Assess an autoscaler at the optimum of a single network at its mean rates.

    **Raises:** `InputError` in single precision.
    """
    network = network.with_arrival_rate(network.arrival_rate)
    rule = each_backend(network, autoscaler, type(autoscaler).__name__)
    loop = replica_loop(network.anonymous(), rule)
    alone = [_alone(loop, group) for group in _alike(loop)]
    default = default_step_size(network, optimum, autoscaler=autoscaler)
    limit = period = math.nan
    if all(each.stable for each in alone):
        mode = critical_mode(network, optimum, direction=default, autoscaler=autoscaler)
        limit, period = float(mode.step_size), float(mode.period)
    return AutoscalerStability(network, autoscaler, alone, np.asarray(default), limit, period)


def _alike(loop: ReplicaLoop) -> list[tuple[int, ...]]:
    """Backends with the same loop."""
    groups: dict[tuple, list[int]] = {}
    for number in range(loop.slope.size):
        key = tuple(float(f"{float(leaf[number]):.9g}") for leaf in jax.tree.leaves(loop))
        groups.setdefault(key, []).append(number)
    return [tuple(group) for group in groups.values()]


def _alone(loop: ReplicaLoop, group: tuple[int, ...]) -> ReplicaLimit:
    one = loop.at(group[0])
    startup, period = one.critical_startup()
    if not one.interval:
        return ReplicaLimit(group, float(one.startup[0]) < startup, startup, period, None)
    low, high = max(one.interval / _SPAN, float(one.startup[0]) / 100), one.interval * _SPAN
    intervals = stable_ranges(lambda seconds: one.with_interval(seconds).radius(), low, high, points=24)
    return ReplicaLimit(group, one.radius() < 1, startup, period, intervals)
