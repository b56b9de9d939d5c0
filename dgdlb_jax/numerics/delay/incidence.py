"""Which of several ends every arc of a channel has, and sums over the arcs of an end, in an order that is quick to sum.

Ends are sources where arcs read them, and targets where arcs are summed.
"""

from abc import abstractmethod

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Shaped


class AbstractIncidence(eqx.Module):
    """The end of every arc. `shape` is that in which stages handle arcs, `size` the number of ends."""

    shape: eqx.AbstractVar[tuple[int, ...]]
    size: eqx.AbstractVar[int]

    @property
    def arcs(self) -> int:
        """How many arcs there are."""
        return int(np.prod(self.shape))

    @property
    @abstractmethod
    def ends(self) -> Int[Array, "*shape"]:
        """The number of every arc's end."""

    @abstractmethod
    def by_end(self, arcs: Shaped[Array, "*shape"]) -> Shaped[Array, " sorted"]:
        """Values of arcs in the order in which `total` takes them."""

    @abstractmethod
    def total(self, by_end: Shaped[Array, " sorted"]) -> Shaped[Array, " ends"]:
        """The sum over the arcs of every end, from values in that order."""


class Table(AbstractIncidence):
    """Arcs with any ends.

    **Arguments:** `ends`: of every arc the number of its end, an array of integers in the shape of the arcs; `size`: how many ends
    there are, those without an arc included.
    """

    numbers: tuple[int, ...] = eqx.field(static=True)
    shape: tuple[int, ...] = eqx.field(static=True)
    size: int = eqx.field(static=True)

    def __init__(self, ends, size: int):
        ends = np.asarray(ends)
        self.numbers, self.shape, self.size = tuple(int(end) for end in ends.ravel()), ends.shape, size

    @property
    def ends(self) -> Int[Array, "*shape"]:
        """The number of every arc's end."""
        return jnp.asarray(self.numbers, jnp.int32).reshape(self.shape)

    def by_end(self, arcs: Shaped[Array, "*shape"]) -> Shaped[Array, " sorted"]:
        """One row for the first arc of every end, one for the second, and so on; where an end has no more arcs, any value."""
        return arcs.reshape(-1)[np.maximum(self._table(), 0)].reshape(-1)

    def total(self, by_end: Shaped[Array, " sorted"]) -> Shaped[Array, " ends"]:
        """The sum over the arcs of every end."""
        table = self._table()
        return jnp.sum(jnp.where(table >= 0, by_end.reshape(table.shape), 0), axis=0)

    def _table(self) -> np.ndarray:
        """The arcs of every end, one column for each, filled up with -1."""
        ends = np.array(self.numbers, int)
        counts = np.bincount(ends, minlength=self.size)
        order = np.argsort(ends, kind="stable")
        rank = np.arange(ends.size) - np.repeat(np.cumsum(counts) - counts, counts)
        table = np.full((max(counts.max(), 1), self.size), -1)
        table[rank, ends[order]] = order
        return table


class Each(AbstractIncidence):
    """Every arc has an end of its own; `shape`: that of the arcs."""

    shape: tuple[int, ...] = eqx.field(static=True)
    size: int = eqx.field(static=True)

    def __init__(self, shape: tuple[int, ...]):
        self.shape, self.size = shape, int(np.prod(shape))

    @property
    def ends(self) -> Int[Array, "*shape"]:
        """The number of every arc."""
        return jnp.arange(self.arcs, dtype=jnp.int32).reshape(self.shape)

    def by_end(self, arcs: Shaped[Array, "*shape"]) -> Shaped[Array, " sorted"]:
        """In the order of the arcs."""
        return arcs.reshape(-1)

    def total(self, by_end: Shaped[Array, " sorted"]) -> Shaped[Array, " ends"]:
        """The values themselves."""
        return by_end


class Complete(AbstractIncidence):
    """Arcs from each of `others` to each of `groups`, in `lanes` systems side by side.

    Arcs are `(groups, others * lanes)`, ends `(groups * lanes,)`: nothing of the size of the arcs is compiled in, and nothing inside
    a loop is reshaped but the operand of a sum.
    """

    shape: tuple[int, ...] = eqx.field(static=True)
    size: int = eqx.field(static=True)
    groups: int = eqx.field(static=True)
    others: int = eqx.field(static=True)
    lanes: int = eqx.field(static=True)

    def __init__(self, groups: int, others: int, lanes: int = 1):
        self.groups, self.others, self.lanes = groups, others, lanes
        self.shape, self.size = (groups, others * lanes), groups * lanes

    @property
    def ends(self) -> Int[Array, "*shape"]:
        """The number of every arc's end."""
        sizes = (self.groups, self.others, self.lanes)
        group, _, lane = jnp.meshgrid(*(jnp.arange(n, dtype=jnp.int32) for n in sizes), indexing="ij")
        return (group * self.lanes + lane).reshape(self.shape)

    def by_end(self, arcs: Shaped[Array, "*shape"]) -> Shaped[Array, " sorted"]:
        """In whatever order XLA sums fastest: others first, so that vectors go over groups and lanes.

        A single lane is too narrow for that, and there they go over the others that are summed.
        """
        if self.lanes == 1:
            return arcs.reshape(-1)
        return jnp.swapaxes(arcs.reshape(self.groups, self.others, self.lanes), 0, 1).reshape(-1)

    def total(self, by_end: Shaped[Array, " sorted"]) -> Shaped[Array, " ends"]:
        """The sum over the arcs of every end."""
        if self.lanes == 1:
            return jnp.sum(by_end.reshape(self.groups, self.others), axis=1)
        return jnp.sum(by_end.reshape(self.others, -1), axis=0)
