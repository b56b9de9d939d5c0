"""A delay line: the recent past of a vector signal, kept in a ring buffer of fixed size.

The order of use decides its speed: **write first, then read**. XLA then updates the buffer in place; the other order copies all of it
in every step. The buffer is one-dimensional, rows (time) are its slow axis, and the row index is one scalar for all columns.

A delay is a real number of rows, `lag + fraction`. `taps` splits it; reading gathers whole rows, and `interpolate` does the rest, either
on a value that is about to be written or on this reading and the last one.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Inexact, Int

from dgdlb_jax.numerics import device
from dgdlb_jax.numerics.results import is_concrete

_MANY = 64  # slices


class DelayLine(eqx.Module):
    """A ring of `rows` rows, `width` numbers each. Row `k` of the signal stands in row `k mod rows` of the ring."""

    ring: Inexact[Array, " numbers"]
    rows: int = eqx.field(static=True)

    @property
    def width(self) -> int:
        """How many numbers a row holds."""
        return self.ring.shape[0] // self.rows


class DelayTaps(eqx.Module):
    """Where a reader looks: flat offsets into the ring, the fraction of a row beyond, and what did not fit.

    `offset` is relative to the start of the row of the present, so that reading costs one addition, one comparison and one gather.
    """

    offset: Int[Array, " taps"]
    fraction: Float[Array, "*shape"]
    overflow: Bool[Array, "*shape"]


def rows_for(delay: float, dt: float) -> int:
    """How many rows a line needs for delays up to `delay` seconds at a step of `dt` seconds: the whole rows, the present, one spare."""
    return int(-(-delay // dt)) + 2


def delay_for(rows: int, dt: float) -> float:
    """A delay for which `rows_for` gives so many rows, whatever the rounding: seconds."""
    return (rows - 2.5) * dt


def fits(delay: Any, rows: int) -> Any:
    """Whether a line of so many rows holds what was `delay` rows ago; not for what is no number."""
    return (jnp if isinstance(delay, jax.Array) else np).floor(delay) <= rows - 2


def steps_for(duration: ArrayLike, dt: ArrayLike) -> Any:
    """How many steps of `dt` seconds begin before `duration`, but for the rounding of the quotient; traced if `duration` is."""
    library = np if is_concrete(duration) else jnp
    exact = library.asarray(duration) / dt
    return library.ceil(exact * (1 - max(1e-12, 4 * float(jnp.finfo(exact.dtype).eps))))


def filled(row: Inexact[Array, " width"], rows: int) -> DelayLine:
    """A line whose signal has always been `row`."""
    return DelayLine(jnp.tile(row, rows), rows)


def blank(width: int, rows: int, dtype) -> DelayLine:
    """A line of zeros."""
    return DelayLine(jnp.zeros(width * rows, dtype), rows)


def split(
    delay: Float[Array, "*shape"], rows: int
) -> tuple[Int[Array, "*shape"], Float[Array, "*shape"], Bool[Array, "*shape"]]:
    """A delay in rows as whole rows, the fraction of a row, and whether a line of `rows` rows is too short for it.

    A delay that does not fit, or is no number, counts as 0: what is read then has no meaning, but lies inside the ring.
    """
    whole = jnp.floor(delay)
    overflow = ~fits(delay, rows)
    return jnp.where(overflow, 0, whole).astype(jnp.int32), jnp.where(overflow, 0, delay - whole), overflow


def taps(delay: Float[Array, "*shape"], column: Int[Array, "*shape"], width: int, rows: int) -> DelayTaps:
    """Taps that read `column` of the signal after `delay` rows.

    **Arguments:**

    - `delay`: how long ago, a real number of rows, not negative.
    - `column`: which number of a row to read.
    - `width`, `rows`: the size of the line. A delay longer than the line holds is reported in `overflow` (see `split`).
    """
    lag, fraction, overflow = split(delay, rows)
    return DelayTaps((column.astype(jnp.int32) - lag * width).reshape(-1), fraction, overflow)


def write(line: DelayLine, k: Int[Array, ""], row: Inexact[Array, "..."]) -> DelayLine:
    """The line with `row` as row `k` of its signal.

    On CPU a two-dimensional `row` is written slice by slice: flattening it first would cost a division per element inside the loop.
    Very many slices take long to compile, and on an accelerator each is a kernel.
    """
    start = _start(line, k)
    ring = line.ring
    slices = row if row.ndim == 2 and row.shape[0] <= _MANY and device.on_cpu() else row.reshape(1, -1)
    for number, values in enumerate(slices):
        ring = jax.lax.dynamic_update_slice(ring, values, (start + number * values.shape[0],))
    return DelayLine(ring, line.rows)


def read(line: DelayLine, k: Int[Array, ""], offset: Int[Array, " taps"]) -> Inexact[Array, " taps"]:
    """What the taps see when row `k` is the present: row `k - lag` of the signal, whole rows only."""
    index = _start(line, k) + offset
    return gather(line.ring, jnp.where(index < 0, index + line.ring.shape[0], index))


def gather(values: Inexact[Array, " numbers"], index: Int[Array, " taps"]) -> Inexact[Array, " taps"]:
    """`values[index]` where all indices are in range: without what indexing does about negative ones, element by element."""
    numbers = jax.lax.GatherDimensionNumbers(offset_dims=(), collapsed_slice_dims=(0,), start_index_map=(0,))
    mode = jax.lax.GatherScatterMode.PROMISE_IN_BOUNDS
    return jax.lax.gather(values, index[:, None], numbers, (1,), mode=mode)


def row(line: DelayLine, k: Int[Array, ""]) -> Inexact[Array, " width"]:
    """Row `k` of the signal."""
    return jax.lax.dynamic_slice(line.ring, (_start(line, k),), (line.width,))


def interpolate(
    now: Inexact[Array, "..."], before: Inexact[Array, "..."], fraction: Inexact[Array, "..."]
) -> Inexact[Array, "..."]:
    """The signal `fraction` of a row before `now`, on the straight line to `before`, one row earlier."""
    return now + fraction * (before - now)


def _start(line: DelayLine, k: Int[Array, ""]) -> Int[Array, ""]:
    return jax.lax.rem(k, jnp.int32(line.rows)) * line.width
