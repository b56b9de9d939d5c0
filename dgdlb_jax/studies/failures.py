"""Every backend fails in turn (N + 1): what is best without it, and how balancers get there, one batch for each balancer."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from dgdlb_jax.equilibrium.feasibility import require_traffic
from dgdlb_jax.equilibrium.optimum import Optimum, solve_optimum
from dgdlb_jax.model.events import Fails
from dgdlb_jax.model.network import Network, stack
from dgdlb_jax.numerics.patience import patience
from dgdlb_jax.numerics.rounding import round_down, round_up
from dgdlb_jax.policies.base import AbstractPolicy
from dgdlb_jax.policies.estimates import Scraped
from dgdlb_jax.simulation.engine import simulate_batch
from dgdlb_jax.simulation.trajectory import SaveAt, Trajectory
from dgdlb_jax.studies.assess import Setup
from dgdlb_jax.studies.balancers import BALANCERS, check_keys
from dgdlb_jax.studies.names import backend_names
from dgdlb_jax.studies.schedule import Phase, Recovery, Schedule, recovery
from dgdlb_jax.studies.time_steps import usual_step
from dgdlb_jax.studies.what_if import best_latency, without

FEW = ("dgd-lb", "least-latency", "least-workload")
"""The balancers that fit on a screen."""
_PATIENCE = 10.0  # seconds that all runs may take on an idle core of the usual kind
_BEFORE = 0.2  # of a run, from the optimum, is over when the backend fails
_INSTANTS = 1000


@dataclass(frozen=True)
class Loss:
    """One backend fails.

    - `backend`: its name. `latency`: optimal mean latency without it, seconds; NaN where the others cannot serve the demand (`short_by`
      requests/s are too many then), and nothing is run.
    - `recoveries`: balancer -> how it gets over it.
    """

    backend: str
    latency: float
    short_by: float
    recoveries: dict[str, Recovery]


@dataclass(frozen=True)
class Failures:
    """What the loss of every backend means, in the order of backends.

    - `optimum`: that of the whole `network`. `begin`, `duration`: when backends fail, and how long runs last, seconds.
    - `time_steps`: balancer -> seconds.
    """

    network: Network
    optimum: Optimum
    begin: float
    duration: float
    time_steps: dict[str, float]
    losses: tuple[Loss, ...]


class FailuresInProgress:
    """The same, balancer by balancer.

    **Arguments:** a single `network`, constant in time; `keys` of `BALANCERS` (`FEW` by default); `chosen`: names of backends, all by
    default; `duration`, `dt`: seconds, suggested by default; `news`: how frontends get their reports.

    **Raises:** `InputError` as `compare`, and for a backend that there is not.
    """

    def __init__(
        self,
        network: Network,
        keys: Sequence[str] | None = None,
        *,
        chosen: Sequence[str] | None = None,
        duration: float | None = None,
        dt: float | None = None,
        news: Scraped | None = None,
    ):
        self._keys = tuple(FEW if keys is None else keys)
        check_keys(self._keys)
        require_traffic(network)
        self._network, names = network, backend_names(network)
        self.optimum = solve_optimum(network)
        self._names = names if chosen is None else tuple(chosen)
        self._best = {name: best_latency(without(network, names.index(name))) for name in self._names}
        self._served = [name for name in self._names if math.isfinite(self._best[name][0])]
        start = self.optimum.routing, self.optimum.workload
        # The time is not known before the step sizes are: any will do for these.
        setups = [
            Schedule(network, [Fails(1.0, names.index(name))]).set_up(start=start, news=news) for name in self._served
        ]
        self._setups = [before for before, _ in setups]
        settling = max((float(after.settling) for _, after in setups), default=1.0)
        steps = {key: min((self._time_step(key, both) for both in setups), default=1.0) for key in self._keys}
        self._dt = steps if dt is None else dict.fromkeys(steps, dt)
        self.duration = self._affordable(settling / (1 - _BEFORE)) if duration is None else duration
        self.begin = _BEFORE * self.duration
        self._found: dict[str, dict[str, Recovery]] = {name: {} for name in self._names}

    @property
    def balancers(self) -> tuple[str, ...]:
        """What will run."""
        return tuple(BALANCERS[key].label for key in self._keys)

    @property
    def failures(self) -> Failures:
        """What is known by now."""
        steps = {BALANCERS[key].label: dt for key, dt in self._dt.items()}
        losses = (Loss(name, *self._best[name], self._found[name]) for name in self._names)
        return Failures(self._network, self.optimum, self.begin, self.duration, steps, tuple(losses))

    def finished(self) -> Iterator[str]:
        """Run one balancer after the other; the name of each when it is done."""
        for key in self._keys:
            if self._served:
                self._run(key)
            yield BALANCERS[key].label

    def _run(self, key: str) -> None:
        label, count = BALANCERS[key].label, len(self._served)
        schedules = [Schedule(self._network, [Fails(self.begin, name)]) for name in self._served]
        every = max(1, int(self.duration / self._dt[key]) // _INSTANTS)
        runs = simulate_batch(
            stack([self._network] * count),
            _stacked([setup.balancer(key) for setup in self._setups]),
            duration=self.duration,
            dt=self._dt[key],
            initial=(jnp.stack([self.optimum.routing] * count), jnp.stack([self.optimum.workload] * count)),
            save=SaveAt(every, fields=("cost_rate", "arrival_rate"), resumable=False),
            events=jax.tree.map(lambda *leaves: jnp.stack(leaves), *(schedule.signals for schedule in schedules)),
            throw=False,
        )
        for n, name in enumerate(self._served):
            run: Trajectory = jax.tree.map(lambda leaf, n=n: jax.device_put(np.asarray(leaf)[n]), runs)
            phase = Phase(
                self.begin, math.inf, schedules[n].events, schedules[n].network_at(self.begin), *self._best[name]
            )
            self._found[name][label] = recovery(phase, label, self._network, run)

    def _time_step(self, key: str, setups: tuple[Setup, Setup]) -> float:
        return min(float(one.time_step(one.balancer(key))) for one in setups)

    def _affordable(self, duration: float) -> float:
        """A round number of seconds in which all can settle, or fewer where that takes too long."""
        each = usual_step(self._network.latency.size) * max(1, len(self._served))
        affordable = patience(_PATIENCE) / sum(each / dt for dt in self._dt.values())
        return round_up(duration) if round_up(duration) < affordable else round_down(affordable)


def _stacked(policies: Sequence[AbstractPolicy]) -> AbstractPolicy:
    """One policy with parameters for every network: numbers as `(batch, 1)`."""
    return jax.tree.map(lambda *leaves: jnp.stack([jnp.atleast_1d(leaf) for leaf in leaves]), *policies)
