"""What is saved of one instant."""

from collections.abc import Callable
from dataclasses import dataclass

import jax.numpy as jnp
from jaxtyping import Array, Int

from dgdlb_jax.simulation.step import StepState, System, time


@dataclass(frozen=True)
class ObserveFields:
    """The time and some fields of an instant, batch axis first."""

    fields: tuple[str, ...]

    def __call__(self, system: System, k: Int[Array, ""], now: StepState) -> dict[str, Array]:
        """Of the state at step `k`."""
        field, clock = system.field, system.clock
        shape = field.shape
        values: dict[str, Callable[[], Array]] = {
            "routing": lambda: shape.from_arcs(now.routing),
            "workload": lambda: shape.from_last(now.workload),
            "arrival_rate": lambda: shape.from_last(field.arrival_rate(time(k, clock.frontends))),
            "cost_rate": lambda: (
                shape.per_lane(now.workload)
                + shape.per_lane(jnp.sum(now.flow * field.cost_latency_at(time(k, clock.frontends)), axis=0))
            ),
            "in_flight": lambda: jnp.asarray(now.in_flight),
        }
        found = {"time": time(k, clock.lanes)} | {name: values[name]() for name in self.fields}
        if now.lost is not None and self.fields:
            found["lost"] = shape.from_last(now.lost)
        if now.scaling is not None and self.fields:
            found["replicas"], found["commanded"] = map(shape.from_last, (now.scaling.ready, now.scaling.commanded))
        if system.plugins is not None and system.plugins.plugins.observable is not None:
            found["observed"] = system.plugins.observe(k, now)
        return found
