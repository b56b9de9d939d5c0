"""Sums over equal parts of a run, whose scatter says how far the means of the whole can be trusted (the method of batch means).

What is summed up for the statistics is noted where a part ends; the sum over a part is the difference of two notes. So parts cost a step
nothing beyond one sum that the statistics have not, that of the service rate.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from dgdlb_jax.numerics.totals import Total
from dgdlb_jax.simulation.dynamics import Arcs, Backends, Field
from dgdlb_jax.simulation.statistics import CostSums

BLOCKS = 20


class Blocks(eqx.Module):
    """Sums up to the end of each part, in the making.

    - `rate`: of the service rate in time, so far.
    - `workload`, `service`, `sent`, `network`: of workload and service rate in time, of requests sent and of what they are charged for
      the network, up to the end of each part. The last row is for steps that end none.
    """

    rate: Total
    workload: Float[Array, "rows backend_lanes"]
    service: Float[Array, "rows backend_lanes"]
    sent: Float[Array, "rows frontend_lanes"]
    network: Float[Array, "rows frontend_lanes"]

    @classmethod
    def none(cls, field: Field) -> "Blocks":
        """Empty ones."""
        shape, dtype = field.shape, field.latency.dtype
        backends = jnp.zeros((BLOCKS + 1, shape.backends * shape.lanes), dtype)
        frontends = jnp.zeros((BLOCKS + 1, shape.frontends * shape.lanes), dtype)
        return cls(Total.zero(backends[0]), backends, backends, frontends, frontends)

    def add(self, part: Int[Array, ""], sums: CostSums, served: Backends, cost: Arcs) -> "Blocks":
        """One step, which ends `part`, or none if that is `BLOCKS`; `sums` with this step, and what backends `served` in it."""
        rate, flow = self.rate.plus(served), sums.flow.value
        nothing = jnp.zeros_like(self.sent[0])
        # Sums over arcs are taken 20 times in a run, not in every step.
        sent, network = jax.lax.cond(
            part < BLOCKS,
            lambda: (jnp.sum(flow, axis=0), jnp.sum(flow * cost, axis=0)),
            lambda: (nothing, nothing),
        )
        put = lambda rows, values: jax.lax.dynamic_update_slice_in_dim(rows, values[None], part, 0)
        return Blocks(
            rate=rate,
            workload=put(self.workload, sums.workload.value),
            service=put(self.service, rate.value),
            sent=put(self.sent, sent),
            network=put(self.network, network),
        )


def of_parts(up_to: Float[Array, "rows *rest"]) -> Float[Array, "parts *rest"]:
    """The sum over each part. An empty part notes nothing: it ends where the one before it does."""
    return jnp.diff(jax.lax.cummax(up_to[:BLOCKS]), axis=0, prepend=0)


def part_edges(steps: Int[Array, ""]) -> Int[Array, " edges"]:
    """Where the equal parts of a window of so many steps begin, and the end of the last one."""
    number = jnp.arange(BLOCKS + 1, dtype=jnp.int32)
    return (
        number * (steps // BLOCKS) + number * (steps % BLOCKS) // BLOCKS
    )  # no product is above that of two small numbers


def ended_part(k: Int[Array, ""], first: Int[Array, ""], last: Int[Array, ""]) -> Int[Array, ""]:
    """Which part of the window, from step `first` to `last`, ends with step `k`, without the empty ones after it; `BLOCKS` if none does."""
    ends = part_edges(last - first)[1:]
    ended = lambda k: jnp.sum((ends <= k - first).astype(jnp.int32))
    return jnp.where(ended(k + 1) > ended(k), ended(k), BLOCKS)


def add_row(
    sums: Float[Array, "rows *rest"], row: Int[Array, ""], part: Float[Array, "*rest"]
) -> Float[Array, "rows *rest"]:
    """`sums[row] + part` in its place, in a form that a native loop can do."""
    now = jax.lax.dynamic_slice_in_dim(sums, row, 1)
    return jax.lax.dynamic_update_slice_in_dim(sums, now + part[None], row, 0)
