"""The past of a run: every workload, so that on the way back frontends can read again what they read.

Readings are as many as arcs, workloads as many as backends: kept instead of readings they need a tenth of the memory in a network of
ten frontends, and memory that the system has to hand out is what a long way back waits for.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from dgdlb_jax.numerics import delay_line
from dgdlb_jax.numerics.delay_line import DelayLine
from dgdlb_jax.simulation.dynamics import Arcs, Backends


class Past(eqx.Module):
    """A delay line that forgets nothing. A workload stands beside what had been predicted of it, not in its place.

    - `numbers`: row after row, `width` predictions and `width` workloads each; the first row is the oldest of the delay line that
      stood at the beginning.
    - `first`: the step that it began with. `earlier`: what frontends had read just before.
    """

    numbers: Float[Array, " numbers"]
    first: Int[Array, ""]
    earlier: Arcs
    rows: int = eqx.field(static=True)
    width: int = eqx.field(static=True)

    def __init__(self, first: Int[Array, ""], workload: Backends, line: DelayLine, earlier: Arcs, steps: int):
        """To begin with: the delay line from its oldest row on, and room for so many steps."""
        self.rows, self.width, self.first, self.earlier = line.rows, line.width, first, earlier
        line = delay_line.write(line, first, workload)
        before = jnp.roll(line.ring.reshape(self.rows, self.width), -(first + 1), axis=0)
        self.numbers = jnp.pad(before, ((0, steps), (self.width, 0))).reshape(-1)

    def add(self, k: Int[Array, ""], predicted: Backends, workload: Backends) -> "Past":
        """With the workload of row `k`."""
        numbers = self.numbers
        for place, values in enumerate((predicted, workload)):
            numbers = jax.lax.dynamic_update_slice(numbers, values, (self._row(k) + place * self.width,))
        return eqx.tree_at(lambda past: past.numbers, self, numbers)

    def predicted(self, k: Int[Array, ""]) -> Backends:
        """What had been predicted of the workload of row `k`."""
        return jax.lax.dynamic_slice(self.numbers, (self._row(k),), (self.width,))

    def workload(self, k: Int[Array, ""]) -> Backends:
        """The workload of row `k`."""
        return jax.lax.dynamic_slice(self.numbers, (self._row(k) + self.width,), (self.width,))

    def read(self, k: Int[Array, ""], offset: Int[Array, " arcs"]) -> Arcs:
        """What frontends read in step `k`."""
        read = delay_line.gather(self.numbers, self._row(jnp.maximum(k, self.first) + 1) + offset)
        return jnp.where(k < self.first, self.earlier, read.reshape(self.earlier.shape))

    def _row(self, k: Int[Array, ""]) -> Int[Array, ""]:
        return (k - self.first + self.rows - 1) * (2 * self.width)


def past_offset(lag: Int[Array, " arcs"], column: Int[Array, " arcs"], width: int) -> Int[Array, " arcs"]:
    """Where those look who read a column after so many rows: what is read at once has only been predicted."""
    return column + jnp.where(lag > 0, width, 0) - lag * (2 * width)
