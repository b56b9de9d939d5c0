"""A demand over time that something multiplies from some instants on."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from dgdlb_jax.model.demand import AbstractDemand, AbstractJumpingDemand, Numbers
from dgdlb_jax.numerics.knots import NEVER, Steps, aligned


class Modulated(AbstractJumpingDemand):
    r"""$\lambda_i(t) = r_i(t)\, \lambda^0_i(t)$, with a factor $r$ that jumps: what an event makes of a trace or a day's cycle.

    Means over an interval are those of the pieces between the jumps of $r$: exact where $\lambda^0$ is constant, linear or jumps, of second
    order where it bends.

    **Arguments:** `demand`: $\lambda^0$. `factor`: over the same frontends.
    """

    demand: AbstractDemand
    factor: Steps

    def rate(self, t: ArrayLike) -> Float[Array, "..."]:
        now = jnp.asarray(t, self.factor.times.dtype)
        return self._rate(now) * self.factor.at(now)

    def mean_over(self, start: ArrayLike, length: ArrayLike) -> Float[Array, "..."]:
        dtype = self.factor.times.dtype
        interval = jnp.asarray(start, dtype), jnp.asarray(length, dtype)
        (times, values), (begin, whole) = aligned((self.factor.times, self.factor.values), interval)
        end, total, at = begin + whole, 0.0, begin
        for k, value in enumerate(values):
            until = jnp.clip(times[k], begin, end) if k < len(times) else end
            total = total + value * (until - at) * self._mean(at, until - at)
            at = until
        return jnp.where(whole > 0, total / jnp.where(whole > 0, whole, 1), self.rate(begin))

    def jumps_within(self, start: ArrayLike, length: ArrayLike) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
        dtype = self.factor.times.dtype
        interval = jnp.asarray(start, dtype), jnp.asarray(length, dtype)
        count, place = self.factor.jumps_within(*interval)
        if not isinstance(self.demand, AbstractJumpingDemand):
            return count, place
        more, there = self.demand.jumps_within(*interval)
        return count + more, (count * place + more * there) / jnp.maximum(count + more, 1)

    @property
    def mean_rate(self) -> Float[Array, "..."]:
        """Of the demand, times the factor after the last jump."""
        return self.demand.mean_rate * self.factor.values[..., -1, :]

    @property
    def largest_rate(self) -> Float[Array, "..."]:
        return self.demand.largest_rate * self.factor.values.max(-2)

    def scaled(self, factor: Numbers) -> "Modulated":
        return Modulated(self.demand.scaled(factor), self.factor)

    def pad(self, frontends: int, fill: float = 0.0) -> "Modulated":
        """Those added have no jumps."""
        more = [(0, 0)] * (self.factor.times.ndim - 1) + [(0, frontends - self.factor.times.shape[-1])]
        padded = lambda table, value: jnp.pad(table, more, constant_values=value)
        factor = Steps(padded(self.factor.times, NEVER), padded(self.factor.values, 1.0))
        return Modulated(self.demand.pad(frontends, fill), factor)

    def _rate(self, t: Float[Array, "..."]) -> Float[Array, "..."]:
        """Of the demand itself, at one time for all frontends, one for each, or several for each."""
        return _over_rows(self.demand.rate, self.factor.times[0], t)

    def _mean(self, start: Float[Array, "..."], length: Float[Array, "..."]) -> Float[Array, "..."]:
        """Of the demand itself."""
        if isinstance(self.demand, AbstractJumpingDemand):
            return _over_rows(self.demand.mean_over, self.factor.times[0], start, length)
        return (self._rate(start) + self._rate(start + length)) / 2


def _over_rows(function: Callable[..., Array], like: Float[Array, "..."], *times: Float[Array, "..."]) -> Array:
    """A function of times, one for each column or one for all, for several rows of them."""
    deepest = max(time.ndim for time in times)
    if deepest <= like.ndim:
        return function(*times)
    rows = tuple(jnp.broadcast_arrays(*times))
    return jax.vmap(lambda *row: _over_rows(function, like, *row))(*rows)
