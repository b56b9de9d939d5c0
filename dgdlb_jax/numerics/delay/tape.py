"""What a recorded run keeps of every step, and how a state is put together from it again."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from dgdlb_jax.numerics.delay.channel import Gather
from dgdlb_jax.numerics.delay.history import HistoryTape
from dgdlb_jax.numerics.delay.system import Carry, DelayedSystem, Moment, context, first_moment


@dataclass(frozen=True)
class Tape:
    """Which leaves of a `Moment` are kept.

    - `structure`, `like`: of the moment and its leaves. `kept`: which of them are.
    - `rows`: for every channel, which leaf is the row that a `Gather` sends in the next step, so that its history has it; None if none.
    """

    structure: Any
    like: tuple[jax.ShapeDtypeStruct, ...]
    kept: tuple[bool, ...]
    rows: tuple[int | None, ...]

    def keep(self, now: Moment) -> list[Array]:
        """What is kept of a moment. Flat, because XLA copies a slice of unknown place in vectors only if it has one axis."""
        return [leaf.reshape(-1) for leaf, on in zip(jax.tree.leaves(now), self.kept, strict=True) if on]

    def finish(self, histories: tuple[HistoryTape | None, ...], carry: Carry) -> tuple[HistoryTape | None, ...]:
        """The histories with the rows of the last state, which has not been sent."""
        leaves = jax.tree.leaves(carry.state)
        write = lambda history, leaf: history if leaf is None else history.write(carry.k, leaves[leaf])
        return tuple(map(write, histories, self.rows))

    def recall(self, kept: list[Array], histories: tuple[HistoryTape | None, ...], k: Int[Array, ""]) -> Moment:
        """The moment of state `k`; what is not kept is zero, and not used."""
        values = iter(kept)
        leaves = [
            next(values).reshape(like.shape) if on else jnp.zeros(like.shape, like.dtype)
            for like, on in zip(self.like, self.kept, strict=True)
        ]
        for history, leaf in zip(histories, self.rows, strict=True):
            if history is not None and leaf is not None:
                leaves[leaf] = history.row(k)
        return jax.tree.unflatten(self.structure, leaves)


def plan_tape(system: DelayedSystem, carry: Carry, needed: tuple[bool, ...]) -> Tape:
    """A tape for moments of which these leaves are needed."""
    leaves, structure = jax.tree.flatten(jax.eval_shape(lambda: first_moment(system, carry)))
    like = tuple(jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in leaves)
    rows = _rows(system, carry)
    return Tape(structure, like, tuple(on and k not in rows for k, on in enumerate(needed)), rows)


def _rows(system: DelayedSystem, carry: Carry) -> tuple[int | None, ...]:
    """For every `Gather`, which leaf of the state is sent as it is: trace the stages, and see which inputs come out unchanged."""
    leaves, structure = jax.tree.flatten(carry.state)

    def sent(leaves):
        held, received, rows = jax.tree.unflatten(structure, leaves), None, []
        for channel, stage, before in zip(system.channels, system.stages, carry.channels, strict=False):
            held, values = stage(system.parameters, context(carry.k, None), held, received)
            gathers, dtype = isinstance(channel, Gather), before.line.ring.dtype
            rows.append(channel.enter(values)[0] if gathers else jnp.zeros((), dtype))
            received = jnp.zeros(channel.incidence.shape if gathers else channel.incidence.size, dtype)
        return rows

    traced = jax.make_jaxpr(sent)(leaves).jaxpr
    places = {id(variable): k for k, variable in enumerate(traced.invars)}
    flat = lambda k: k is not None and traced.invars[k].aval.ndim == 1
    found = [places.get(id(variable)) for variable in traced.outvars]
    return tuple(k if flat(k) else None for k in found)
