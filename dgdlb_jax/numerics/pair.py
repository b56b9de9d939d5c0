"""This and the last value of an array, side by side in one: what a loop carries from step to step without copying it.

A loop that computes a value anew, while it still looks at the last one, copies both in every step, since nothing tells XLA which comes
first. As with a delay line, write first and read then: the new value is written beside the last one, and both are read from there.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


class Pair(eqx.Module):
    """The values of two steps, one after the other; value `k` stands in place `k mod 2`."""

    values: Float[Array, "two_rows columns"]

    def at(self, k: Int[Array, ""]) -> Float[Array, "rows columns"]:
        """Value `k`, one of the two that were written last."""
        return jax.lax.dynamic_slice_in_dim(self.values, self._start(k), len(self.values) // 2)

    def write(self, k: Int[Array, ""], value: Float[Array, "rows columns"]) -> "Pair":
        """With value `k` in place of value `k - 2`."""
        return Pair(jax.lax.dynamic_update_slice_in_dim(self.values, value, self._start(k), 0))

    def _start(self, k: Int[Array, ""]) -> Int[Array, ""]:
        return (k & 1) * (len(self.values) // 2)


def blank(like: Float[Array, "rows columns"]) -> Pair:
    """Two values of zeros."""
    return Pair(jnp.zeros((2 * len(like), *like.shape[1:]), like.dtype))
