"""Sums over equal parts of a run, whose scatter says how far the means of the whole can be trusted (the method of batch means)."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from dgdlb_jax.numerics.totals import Total
from dgdlb_jax.simulation.dynamics import Arcs, Backends, Field, Frontends

BLOCKS = 20


class Blocks(eqx.Module):
    """Sums over each part, in the making: workload and service rate in time, requests sent and what they are charged for the network."""

    workload: Total
    service: Total
    sent: Total
    network: Total

    @classmethod
    def none(cls, field: Field) -> "Blocks":
        """Empty ones."""
        shape, dtype = field.shape, field.latency.dtype
        backends = Total.zero(jnp.zeros((BLOCKS, shape.backends * shape.lanes), dtype))
        frontends = Total.zero(jnp.zeros((BLOCKS, shape.frontends * shape.lanes), dtype))
        return cls(backends, backends, frontends, frontends)

    def add(
        self,
        number: Int[Array, ""],
        step: Backends,
        before: Backends,
        after: Backends,
        rate: Backends,
        sent: Arcs,
        cost: Arcs,
    ) -> "Blocks":
        """One step of part `number`; outside the window its number is negative, and it does not count."""
        counts = (number >= 0).astype(step.dtype)
        row = jnp.maximum(number, 0)
        requests: Frontends = jnp.sum(sent, axis=0)
        return Blocks(
            workload=_add(self.workload, row, counts * step / 2 * (before + after)),
            service=_add(self.service, row, counts * step * rate),
            sent=_add(self.sent, row, counts * requests),
            network=_add(self.network, row, counts * jnp.sum(sent * cost, axis=0)),
        )


def part_edges(steps: Int[Array, ""]) -> Int[Array, " edges"]:
    """Where the equal parts of a window of so many steps begin, and the end of the last one."""
    number = jnp.arange(BLOCKS + 1, dtype=jnp.int32)
    return (
        number * (steps // BLOCKS) + number * (steps % BLOCKS) // BLOCKS
    )  # no product is above that of two small numbers


def block_of(k: Int[Array, ""], first: Int[Array, ""], last: Int[Array, ""]) -> Int[Array, ""]:
    """Which part of the window step `k` belongs to; -1 before it."""
    passed = jnp.sum((k - first >= part_edges(last - first)[1:-1]).astype(jnp.int32))
    return jnp.where(k < first, -1, passed)


def add_row(
    sums: Float[Array, "rows *rest"], row: Int[Array, ""], part: Float[Array, "*rest"]
) -> Float[Array, "rows *rest"]:
    """`sums[row] + part` in its place, in a form that a native loop can do."""
    now = jax.lax.dynamic_slice_in_dim(sums, row, 1)
    return jax.lax.dynamic_update_slice_in_dim(sums, now + part[None], row, 0)


def _add(total: Total, row: Int[Array, ""], part: Float[Array, "..."]) -> Total:
    slice_of = lambda sums: jax.lax.dynamic_slice_in_dim(sums, row, 1)
    now = jax.tree.map(slice_of, total).plus(part[None])
    put = lambda sums, new: jax.lax.dynamic_update_slice_in_dim(sums, new, row, 0)
    return jax.tree.map(put, total, now)
