"""This and the last value of an array, side by side in one: what a loop carries from step to step without copying it.

A loop that computes a value anew, while it still reads the last one, copies both in every step, since nothing tells XLA which comes
first. As with a delay line, write first and read then: the new value is written beside the last one, and both are read from there.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Inexact, Int


class DoubleBuffer(eqx.Module):
    """The values of two steps, one after the other; value `k` stands in place `k mod 2`."""

    values: Inexact[Array, "two_rows *columns"]

    @classmethod
    def zeros(cls, shape: tuple[int, ...], dtype) -> "DoubleBuffer":
        """Two values of zeros."""
        return cls(jnp.zeros((2 * shape[0], *shape[1:]), dtype))

    def at(self, k: Int[Array, ""]) -> Inexact[Array, "rows *columns"]:
        """Value `k`, one of the two that were written last."""
        return jax.lax.dynamic_slice_in_dim(self.values, self._start(k), len(self.values) // 2)

    def write(self, k: Int[Array, ""], value: Inexact[Array, "rows *columns"]) -> "DoubleBuffer":
        """With value `k` in place of value `k - 2`."""
        return DoubleBuffer(jax.lax.dynamic_update_slice_in_dim(self.values, value, self._start(k), 0))

    def _start(self, k: Int[Array, ""]) -> Int[Array, ""]:
        return (k & 1) * (len(self.values) // 2)
