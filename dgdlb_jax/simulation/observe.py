"""What is saved of one instant."""

from collections.abc import Callable
from dataclasses import dataclass

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from dgdlb_jax.simulation.clock import time
from dgdlb_jax.simulation.retries import cost_of_retries
from dgdlb_jax.simulation.state import StepState, System

OBSERVED: dict[str, Callable[[System, Int[Array, ""], StepState], Array]] = {
    "routing": lambda system, k, now: system.field.shape.from_arcs(now.routing),
    "workload": lambda system, k, now: system.field.shape.from_last(now.workload),
    "arrival_rate": lambda system, k, now: _arrival_rate(system, k),
    "cost_rate": lambda system, k, now: _cost_rate(system, k, now),
    "in_flight": lambda system, k, now: jnp.asarray(now.in_flight),
}
"""What may be saved of an instant, batch axis first. `Trajectory` has a labelled field for each."""


@dataclass(frozen=True)
class ObserveFields:
    """The time and some fields of an instant, batch axis first."""

    fields: tuple[str, ...]

    def __call__(self, system: System, k: Int[Array, ""], now: StepState) -> dict[str, Array]:
        """Of the state at step `k`."""
        last = system.field.shape.from_last
        found = {"time": time(k, system.clock.lanes)} | {name: OBSERVED[name](system, k, now) for name in self.fields}
        if now.lost is not None and self.fields:
            found["lost"] = last(now.lost)
        if now.scaling is not None and self.fields:
            found["replicas"], found["commanded"] = map(last, (now.scaling.ready, now.scaling.commanded))
        if system.plugins is not None and system.plugins.plugins.observable is not None:
            found["observed"] = system.plugins.observe(k, now)
        return found


def _arrival_rate(system: System, k: Int[Array, ""]) -> Float[Array, "lanes frontends"]:
    return system.field.shape.from_last(system.field.arrival_rate(time(k, system.clock.frontends)))


def _cost_rate(system: System, k: Int[Array, ""], now: StepState) -> Float[Array, " lanes"]:
    """Requests in service and on the network, and those that wait to be sent again."""
    field, shape = system.field, system.field.shape
    latency = field.cost_latency_at(time(k, system.clock.frontends))
    rate = shape.per_lane(now.workload) + shape.per_lane(jnp.sum(now.flow * latency, axis=0))
    return rate if now.retries is None else rate + cost_of_retries(field, now.retries, now.routing, latency)
