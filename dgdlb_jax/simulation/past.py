"""The past of a run, written down so that its delay line of workloads can run backwards.

Readings are as many as arcs, workloads as many as backends: kept instead of readings they need a tenth of the memory in a network of
ten frontends, and memory is what a long way back waits for. So the way back has the line again, and reads it again.

A step overwrites two rows of the line: with a workload what had been predicted of it, and with the next prediction the oldest workload.
Backwards, both are put back. They stand together here, in the order of the way back, the last first: memory is read fastest upwards
and without gaps.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from dgdlb_jax.numerics import delay_line
from dgdlb_jax.numerics.delay_line import DelayLine
from dgdlb_jax.simulation.dynamics import Arcs, Backends


class Past(eqx.Module):
    """Every workload, and what had been predicted of it.

    - `numbers`: one row per step, what had been predicted of its workload and the oldest workload in the line.
    - `first`: the step that it began with. `earlier`: what frontends had read just before.
    """

    numbers: Float[Array, " numbers"]
    first: Int[Array, ""]
    earlier: Arcs
    rows: int = eqx.field(static=True)
    width: int = eqx.field(static=True)

    def __init__(self, first: Int[Array, ""], workload: Backends, line: DelayLine, earlier: Arcs, steps: int):
        """To begin with: the delay line, and room for so many steps."""
        self.rows, self.width, self.first, self.earlier = line.rows, line.width, first, earlier
        line = delay_line.write(line, first, workload)
        from_oldest = jnp.roll(line.ring.reshape(self.rows, self.width), -(first + 1), axis=0)
        self.numbers = jnp.pad(from_oldest[::-1], ((steps, 0), (self.width, 0))).reshape(-1)

    def add(self, k: Int[Array, ""], predicted: Backends, workload: Backends) -> "Past":
        """With the workload of row `k`."""
        numbers = jax.lax.dynamic_update_slice(self.numbers, predicted, (self._of_prediction(k),))
        numbers = jax.lax.dynamic_update_slice(numbers, workload, (self._of_workload(k),))
        return eqx.tree_at(lambda past: past.numbers, self, numbers)

    def predicted(self, k: Int[Array, ""]) -> Backends:
        """What had been predicted of the workload of row `k`."""
        return jax.lax.dynamic_slice(self.numbers, (self._of_prediction(k),), (self.width,))

    def workload(self, k: Int[Array, ""]) -> Backends:
        """The workload of row `k`."""
        return jax.lax.dynamic_slice(self.numbers, (self._of_workload(k),), (self.width,))

    def line(self, k: Int[Array, ""]) -> DelayLine:
        """The delay line with the workloads up to that of row `k`, the last one of all."""
        from_oldest = self.numbers.reshape(-1, 2 * self.width)[: self.rows, self.width :][::-1]
        return DelayLine(jnp.roll(from_oldest, k + 1, axis=0).reshape(-1), self.rows)

    def back(self, line: DelayLine, k: Int[Array, ""]) -> DelayLine:
        """The delay line as it was read at the end of the step before row `k`, from how it was a step later."""
        line = delay_line.write(line, k, self.predicted(k))
        return delay_line.write(line, k + 1, self.workload(k + 1 - self.rows))

    def read(self, line: DelayLine, k: Int[Array, ""], offset: Int[Array, " arcs"]) -> Arcs:
        """What frontends had read of it then."""
        read = delay_line.read(line, k, offset)
        return jnp.where(k == self.first, self.earlier, read.reshape(self.earlier.shape))

    def _of_prediction(self, k: Int[Array, ""]) -> Int[Array, ""]:
        return (len(self.numbers) // (2 * self.width) - 1 - (k - self.first)) * (2 * self.width)

    def _of_workload(self, k: Int[Array, ""]) -> Int[Array, ""]:
        return self._of_prediction(k + self.rows - 1) + self.width
