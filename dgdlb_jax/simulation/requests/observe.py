"""What is saved of one instant of a run of whole requests."""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Int

from dgdlb_jax.simulation.clock import time
from dgdlb_jax.simulation.requests.step import RequestState, RequestSystem


class ObserveRequests(eqx.Module):
    """The time and some fields of an instant, batch axis first."""

    fields: tuple[str, ...] = eqx.field(static=True)

    def __call__(self, system: RequestSystem, k: Int[Array, ""], now: RequestState) -> dict[str, Array]:
        """Of the state at step `k`; the cost rate charges the network for what is sent on average."""
        field, clock = system.field, system.clock
        shape, rate = field.shape, field.arrival_rate(time(k, clock.frontends))
        network = jnp.sum(rate[None] * now.routing * field.cost_latency, axis=0)
        values = {
            "routing": lambda: shape.from_arcs(now.routing),
            "workload": lambda: shape.from_last(now.workload),
            "arrival_rate": lambda: shape.from_last(rate),
            "cost_rate": lambda: shape.per_lane(now.workload) + shape.per_lane(network),
            "in_flight": lambda: now.in_flight,
        }
        return {"time": time(k, clock.lanes)} | {name: values[name]() for name in self.fields}
