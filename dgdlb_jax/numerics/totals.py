"""Sums of very many small parts."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from dgdlb_jax.numerics.linear_map import linear_map


class Total(eqx.Module):
    """A sum of many small parts. In single precision what rounding took away is kept and given back (Kahan's summation).

    Without it a sum stands still as soon as a step adds less than a ten-millionth of it.
    """

    value: Float[Array, "..."]
    lost: Float[Array, "..."] | None

    @classmethod
    def zero(cls, like: Float[Array, "..."]) -> "Total":
        """Nothing yet, in the shape of an array."""
        zero = jnp.zeros_like(like)
        return cls(zero, None if like.dtype == jnp.float64 else zero)

    def plus(self, part: Float[Array, "..."]) -> "Total":
        """The sum with one more part."""
        if self.lost is None:
            return Total(self.value + part, None)
        return Total(*_compensated(self.value, self.lost, part))


@jax.custom_jvp
def _compensated(value: Array, lost: Array, part: Array) -> tuple[Array, Array]:
    """The sum of the first and the last, and what rounding will have taken away."""
    part = part - lost
    total = value + part
    return total, (total - value) - part


@_compensated.defjvp
def _compensated_jvp(primals, tangents):
    """Sums of slopes are compensated as well. The reverse pass has nothing to sum: to it, what is lost is zero."""

    def back(_, cotangents):
        total, lost = cotangents
        total = jnp.zeros_like(lost) if total is None else total
        return [total, jnp.zeros_like(total), total]

    slopes = linear_map(lambda _, slopes: list(_compensated(*slopes)), back, [], tangents)
    return _compensated(*primals), tuple(slopes)
