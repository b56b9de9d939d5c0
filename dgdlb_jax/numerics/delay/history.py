"""What a recorded run keeps of a delay line, so that the line can run backwards.

Readings are as many as arcs, what is written as many as sources: kept instead of readings it takes a fraction of the memory, and memory
is what a long reverse pass waits for. So the reverse pass has the line again, and reads it again.

A step overwrites two rows of the line: with the signal what had been predicted of it, and with the next prediction the oldest row.
Backwards, both are put back. They stand together here, in the order of the reverse pass, the last first: memory is read fastest upwards
and without gaps.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Inexact, Int

from dgdlb_jax.numerics.delay import line as lines
from dgdlb_jax.numerics.delay.line import DelayLine

Row = Inexact[Array, " width"]


class HistoryTape(eqx.Module):
    """Every row of a signal, and what had been predicted of it.

    - `numbers`: for every step, what had been predicted of its row and the oldest row in the line.
    - `first`: the step that it began with. `earlier`: what arcs had read just before.
    """

    numbers: Inexact[Array, " numbers"]
    first: Int[Array, ""]
    earlier: Inexact[Array, "*arcs"]
    rows: int = eqx.field(static=True)
    width: int = eqx.field(static=True)

    def __init__(self, first: Int[Array, ""], line: DelayLine, earlier: Inexact[Array, "*arcs"], steps: int):
        """To begin with: the delay line, and room for so many steps."""
        self.rows, self.width, self.first, self.earlier = line.rows, line.width, first, earlier
        from_oldest = jnp.roll(line.ring.reshape(self.rows, self.width), -(first + 1), axis=0)
        self.numbers = jnp.pad(from_oldest[::-1], ((steps, 0), (self.width, 0))).reshape(-1)

    def add(self, k: Int[Array, ""], settled: Row, predicted: Row) -> "HistoryTape":
        """With what was written in step `k`: row `k`, and a prediction of row `k + 1`."""
        return self.write(k, settled)._put(predicted, self._of_prediction(k + 1))

    def write(self, k: Int[Array, ""], settled: Row) -> "HistoryTape":
        """With row `k`."""
        return self._put(settled, self._of_row(k))

    def predicted(self, k: Int[Array, ""]) -> Row:
        """What had been predicted of row `k`."""
        return jax.lax.dynamic_slice(self.numbers, (self._of_prediction(k),), (self.width,))

    def row(self, k: Int[Array, ""]) -> Row:
        """Row `k`."""
        return jax.lax.dynamic_slice(self.numbers, (self._of_row(k),), (self.width,))

    def line(self, k: Int[Array, ""]) -> DelayLine:
        """The delay line after the last step of all, the one before row `k`, but for row `k` itself: `back` is still to come."""
        from_oldest = self.numbers.reshape(-1, 2 * self.width)[: self.rows, self.width :][::-1]
        return DelayLine(jnp.roll(from_oldest, k + 1, axis=0).reshape(-1), self.rows)

    def back(self, line: DelayLine, k: Int[Array, ""]) -> DelayLine:
        """The delay line as it was read at the end of the step before row `k`, from how it was a step later."""
        line = lines.write(line, k, self.predicted(k))
        return lines.write(line, k + 1, self.row(k + 1 - self.rows))

    def read(self, line: DelayLine, k: Int[Array, ""], offset: Int[Array, " arcs"]) -> Inexact[Array, "*arcs"]:
        """What arcs had read of it then."""
        read = lines.read(line, k, offset)
        return jnp.where(k == self.first, self.earlier, read.reshape(self.earlier.shape))

    def _put(self, row: Row, place: Int[Array, ""]) -> "HistoryTape":
        numbers = jax.lax.dynamic_update_slice(self.numbers, row, (place,))
        return eqx.tree_at(lambda tape: tape.numbers, self, numbers)

    def _of_prediction(self, k: Int[Array, ""]) -> Int[Array, ""]:
        return (len(self.numbers) // (2 * self.width) - 1 - (k - self.first)) * (2 * self.width)

    def _of_row(self, k: Int[Array, ""]) -> Int[Array, ""]:
        return self._of_prediction(k + self.rows - 1) + self.width
