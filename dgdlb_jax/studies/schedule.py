"""Events in a network as a study needs them: the network between them, what is best there, and how balancers get over them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from dgdlb_jax.model.events import Event
from dgdlb_jax.model.network import Network
from dgdlb_jax.model.signals import signals
from dgdlb_jax.numerics.results import InputError
from dgdlb_jax.numerics.rounding import enough
from dgdlb_jax.simulation.trajectory import Trajectory
from dgdlb_jax.studies.assess import Setup, set_up
from dgdlb_jax.studies.evidence import LAST_PART
from dgdlb_jax.studies.outcome import smooth_latency
from dgdlb_jax.studies.what_if import best_latency

BACK = 0.01
"""Relative distance from the new optimum within which a balancer has recovered."""
_CALM = 0.5  # of the time until the last event: how much longer a run is at least, so that its last fifth is calm


@dataclass(frozen=True, eq=False)
class Phase:
    """The time from some events to the next ones.

    - `begin`, `end`: seconds since the start; `events`: what happens at its beginning.
    - `network`: as everybody knows it in the end. `latency`: optimal mean latency there, seconds; NaN where demand cannot be served
      (`short_by` requests/s are too many then).
    """

    begin: float
    end: float
    events: tuple[Event, ...]
    network: Network
    latency: float
    short_by: float


@dataclass(frozen=True)
class Recovery:
    """How a balancer gets over the events at the beginning of a phase.

    - `balancer`, `phase`: who and when.
    - `worst_latency`: highest moving mean of the latency in the phase, seconds. `lost`: requests lost in it.
    - `time`: seconds from the events on after which the moving mean stays within 1 % of the new optimum until the phase ends; NaN
      where it does not.
    """

    balancer: str
    phase: Phase
    worst_latency: float
    lost: float
    time: float


class Schedule:
    """Events in a single network whose demand and capacity are constant otherwise.

    **Raises:** `InputError` as `signals`; for a network that varies in time besides.
    """

    def __init__(self, network: Network, events: Sequence[Event]):
        if network.varies:
            raise InputError(
                "Events are compared in a network that is constant otherwise, and its demand or capacity is a function of time: take the "
                'mean rates (demand="constant"), or put the changes into the demand.'
            )
        self.network, self.events = network, tuple(sorted(events, key=lambda event: event.at))
        self.signals = signals(network, self.events)
        self.times = sorted({event.at for event in self.events})

    def network_at(self, t: float) -> Network:
        """As everybody knows it, once the news have travelled."""
        return self.signals.network_at(self.network, t)

    def phases(self, duration: float) -> list[Phase]:
        """What the events divide a run of so many seconds into; the first one is that before all events."""
        ends = [*self.times, duration]
        return [replace(phase, end=end) for phase, end in zip(self._phases, ends, strict=True) if phase.begin < end]

    @cached_property
    def _phases(self) -> list[Phase]:
        found = []
        for time in (0.0, *self.times):
            network = self.network_at(time)
            latency, short_by = best_latency(network)
            now = tuple(event for event in self.events if event.at == time)
            found.append(Phase(time, math.inf, now, network, latency, short_by))
        return found

    @property
    def last(self) -> float:
        """When the last event happens, seconds."""
        return self.times[-1]

    def duration(self, settling: float) -> float:
        """Seconds that show all of it: until the last event, and until what follows has settled and can be judged."""
        return self.last + max(settling, _CALM * self.last)

    @property
    def shortest(self) -> float:
        """Seconds after which the last fifth of a run lies after the last event."""
        return enough(self.last / (1 - LAST_PART))

    def check_duration(self, duration: float) -> None:
        """Raise `InputError` for a run whose end cannot be judged."""
        if duration < self.shortest * (1 - 1e-9):
            raise InputError(
                f"duration = {duration:.6g} s: the last event is at {self.last:.6g} s, and a run is judged by its last fifth, which has to "
                f"come after it: run at least {self.shortest:.6g} s."
            )

    def set_up(self, **options: Any) -> tuple[Setup, Setup]:
        """What runs start with, by the options of `assess.set_up`: for the network at first, and for that after the last event.

        Both start as the first one does, and have the step size that is cautious enough for both.
        """
        before = set_up(self.network_at(0.0), **options)
        try:
            after = set_up(self.network_at(self.last), **options)
        except InputError as error:
            raise InputError(f"After the last event, at {self.last:g} s: {error}") from error
        one, other = before.step_size, after.step_size
        # A frontend that has no choice in one of the two has no step size of its own there.
        step = jnp.where((one > 0) & (other > 0), jnp.minimum(one, other), jnp.maximum(one, other))
        both = (replace(setup, step_size=step, initial=before.initial) for setup in (before, after))
        return next(both), next(both)


def recovery(phase: Phase, balancer: str, network: Network, run: Trajectory) -> Recovery:
    """How a run gets over a phase."""
    time, latency = np.asarray(run.time, float), smooth_latency(network, run)
    inside = (time >= phase.begin) & (time <= phase.end)
    after = _time_back(time[inside] - phase.begin, latency[inside], phase.latency)
    lost = max(0.0, _lost_before(phase.end, time, run) - _lost_before(phase.begin, time, run))  # which is rounded
    return Recovery(balancer, phase, float(latency[inside].max(initial=0.0)), lost, after)


def _lost_before(t: float, time: Float[np.ndarray, " time"], run: Trajectory) -> float:
    """Requests lost at the last saved instant before a time (the end of the run counts as before): what fails at `t` is not among them."""
    if run.lost is None:
        return 0.0
    index = np.searchsorted(time, t, side="left") - 1 if t < time[-1] else time.size - 1
    return float(np.asarray(run.lost, float).sum(-1)[max(index, 0)])


def _time_back(time: Float[np.ndarray, " time"], latency: Float[np.ndarray, " time"], best: float) -> float:
    outside = np.flatnonzero(~(np.abs(latency / best - 1) <= BACK))
    if outside.size == 0:
        return 0.0
    return float(time[outside[-1] + 1]) if outside[-1] + 1 < time.size else math.nan
