"""Tables over knots in time, one column per signal, looked up within XLA's native loops.

Such a loop has no room for a reduction over a large table, and none for the scatter that JAX's transpose of an index is.
"""

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from dgdlb_jax.numerics.linear_map import linear_map

_FEW = 8  # knots that are written out; of more, so many at a time

NEVER = 1e30
"""The time of a jump that does not happen, seconds: far beyond any run, and finite, so that arithmetic with it is."""


class Steps(eqx.Module):
    """Signals that are constant but for jumps, each with times of its own.

    - `times` `(jumps, *columns)`: seconds, in rising order; `NEVER` fills up signals that have fewer jumps than others.
    - `values` `(jumps + 1, *columns)`: before the first jump, between jumps, after the last. A new value holds from its time on.
    """

    times: Float[Array, "..."]
    values: Float[Array, "..."]

    def at(self, t: Float[Array, "..."]) -> Float[Array, "..."]:
        """The values at a time, one for all signals or one for each."""
        return self.mean_over(t, jnp.zeros_like(t))

    def mean_over(self, start: Float[Array, "..."], length: Float[Array, "..."]) -> Float[Array, "..."]:
        """The exact mean values of an interval; those at its start for length 0."""
        return mean_of_steps(self.times, self.values, start, length)

    def jumps_within(
        self, start: Float[Array, "..."], length: Float[Array, "..."]
    ) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
        """How many jumps an interval has, and what part of it lies before them, see `places_within`."""
        return places_within(self.times, start, length)


def pick(table: Float[Array, "knots *columns"], index: Int[Array, "*columns"]) -> Float[Array, "*columns"]:
    """One row per column: `table[index[i], i]`. Its transpose compares with every row instead of scattering."""
    rows = jax.lax.broadcasted_iota(index.dtype, table.shape, 0)
    return linear_map(_picked, _put_back, [index, rows], [table])[0]


def mean_of_steps(
    times: Float[Array, "jumps *columns"],
    values: Float[Array, "knots *columns"],
    start: Float[Array, "..."],
    length: Float[Array, "..."],
) -> Float[Array, "..."]:
    """The mean over an interval of what has the next value from each of these times on; what it has at its start for length 0.

    Exact: every value counts with the part of the interval in which it holds, and only that one where nothing jumps.
    """
    (times, values), (start, length) = aligned((times, values), (start, length))
    zero = _zeros(times, start, length)
    total, rest, *_ = _fold(_add_value, (zero, zero + 1, start, length), (times, values[:-1]))
    return total + rest * values[-1]


def places_within(
    times: Float[Array, "jumps *columns"], start: Float[Array, "..."], length: Float[Array, "..."]
) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
    """How many of these times lie in an interval, and the mean part of it that lies before them; 0 where none.

    A time at an end counts, even if rounding puts it just outside.
    """
    (times,), (start, length) = aligned((times,), (start, length))
    zero = _zeros(times, start, length)
    count, total, *_ = _fold(_add_place, (zero, zero, start, length), (times,))
    return count, total / jnp.maximum(count, 1)


def aligned(tables: tuple[Array, ...], signals: tuple[Array, ...]) -> tuple[list[Array], list[Array]]:
    """Tables and signals with as many axes for columns, which may be the last ones of the others' only."""
    rank = max(*(table.ndim - 1 for table in tables), *(signal.ndim for signal in signals))
    wide = lambda table: jnp.expand_dims(table, range(1, rank + 2 - table.ndim))
    return [wide(table) for table in tables], [jax.lax.broadcast_to_rank(signal, rank) for signal in signals]


def _zeros(times: Array, start: Array, length: Array) -> Array:
    return jnp.zeros(jnp.broadcast_shapes(times.shape[1:], start.shape, length.shape), times.dtype)


def _fold(add: Callable[..., tuple], state: tuple, knots: tuple[Array, ...]) -> tuple:
    """Knot by knot."""
    if len(knots[0]) > _FEW:
        return jax.lax.scan(_scanned(add), state, knots, unroll=_FEW)[0]
    for knot in zip(*knots, strict=True):
        state = add(*state, *knot)
    return state


@cache
def _scanned(add: Callable[..., tuple]) -> Callable[[tuple, tuple], tuple[tuple, None]]:
    """The same function every time, which JAX then compiles once."""
    return lambda state, knot: (add(*state, *knot), None)


def _add_value(total, before, start, length, time, value):
    """Add the value before a time, with the part of the interval since the last one; `before` is the part from then on."""
    place = (time - start) / jnp.where(length > 0, length, 1)
    after = jnp.where(length > 0, 1 - jnp.clip(place, 0, 1), (place <= 0).astype(place.dtype)).astype(total.dtype)
    return total + (before - after) * value, jnp.broadcast_to(after, total.shape), start, length


def _add_place(count, total, start, length, time):
    """Add a time if it lies in the interval, and its place there."""
    rounding = 8 * jnp.finfo(time.dtype).eps * (time + length)
    after = time - start
    within = (length > 0) & (after >= -rounding) & (after <= length + rounding)
    place = jnp.clip(after / jnp.where(length > 0, length, 1), 0, 1)
    return count + within.astype(count.dtype), total + jnp.where(within, place, 0), start, length


def _picked(given: Sequence[Any], tables: Sequence[Any]) -> list[Any]:
    return [jnp.take_along_axis(table, given[0][None], axis=0)[0] for table in tables]


def _put_back(given: Sequence[Any], values: Sequence[Any]) -> list[Any]:
    index, rows = given
    return [jnp.where(rows == index, value, 0) for value in values]
