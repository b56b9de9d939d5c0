"""The run of a system forwards: the loop over its steps, observed now and then, recorded if it is to be followed backwards."""

from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, PyTree

from dgdlb_jax.numerics.delay.channel import Gather
from dgdlb_jax.numerics.delay.checkpoint import (
    Checkpoint,
    Frame,
    Loop,
    Node,
    Recording,
    Sequence,
    Step,
    fold,
    join,
    split,
    unfold,
    unroll,
)
from dgdlb_jax.numerics.delay.history import HistoryTape
from dgdlb_jax.numerics.delay.system import Carry, DelayedSystem, FrameInput, advance, first_moment, moment
from dgdlb_jax.numerics.delay.tape import Tape


class Runner(eqx.Module):
    """What runs a program: the system, and what is kept of every step for the reverse pass (nothing if None)."""

    system: DelayedSystem
    tape: Tape | None = eqx.field(static=True, default=None)

    def run(
        self, node: Node, carry: Carry, inputs: PyTree = None, given: FrameInput | None = None
    ) -> tuple[Carry, Any, Any]:
        """Follow the program: the carry after it, the observations (frames first), and a tape of what was kept: of the states before,
        between and after the steps of a loop, and of those observed."""
        match node:
            case Step():
                return advance(self.system, carry, given)[0], None, None
            case Loop(times, Step() as step) if self.tape is not None:
                carry, tape = self._recorded(times, step, carry, given)
                return carry, None, tape
            case Loop(times, body):

                def once(carry, inputs):
                    carry, *rest = self.run(body, carry, inputs, given)
                    return carry, tuple(rest)

                carry, (seen, tape) = jax.lax.scan(
                    once, carry, fold(inputs, times), length=times, unroll=unroll(times, body)
                )
                return carry, unfold(seen), tape
            case Sequence(parts):
                seen, tapes = [], []
                for part, own in zip(parts, split(inputs, parts), strict=True):
                    carry, one, tape = self.run(part, carry, own, given)
                    seen.append(one)
                    tapes.append(tape)
                return carry, join(seen), tuple(tapes)
            case Frame(body, steps):
                given = None if inputs is None else FrameInput(first_row(inputs), carry.k + steps)
                carry, _, tape = self.run(body, carry, None, given)
                seen = self.system.observe(self.system.parameters, carry.k, carry.state)
                seen = jax.tree.map(lambda leaf: leaf[None], seen)
                if self.tape is None:
                    return carry, seen, None
                # Outside a recording there is no history to tell the rest; such frames are far apart.
                if carry.histories is None:
                    return carry, seen, (tape, carry.state)
                return carry, seen, (tape, self.tape.keep(first_moment(self.system, carry)))
            case Recording(body):
                if self.tape is None:
                    return self.run(body, carry, inputs, given)
                histories = self._histories(carry, node.steps)
                end, seen, tape = self.run(body, Carry(carry.k, carry.state, carry.channels, histories), inputs, given)
                assert end.histories is not None
                histories = self.tape.finish(end.histories, end)
                return Carry(end.k, end.state, end.channels), seen, (tape, histories)
            case Checkpoint(body):
                end, seen, _ = Runner(self.system).run(body, carry, inputs, given)
                return end, seen, None if self.tape is None else carry

    def _histories(self, carry: Carry, steps: int) -> tuple:
        both = zip(self.system.channels, carry.channels, strict=True)
        begin = lambda state: HistoryTape(carry.k, state.line, state.reading, steps)
        return tuple(begin(state) if isinstance(channel, Gather) else None for channel, state in both)

    def _recorded(self, times: int, step: Step, carry: Carry, given: FrameInput | None) -> tuple[Carry, PyTree]:
        """Some steps, and a tape of the states before, between and after them, the last first (see `history`)."""
        assert self.tape is not None
        keep = self.tape.keep

        def once(n, both):
            carry, tape = both
            carry, received = advance(self.system, carry, given)
            kept = keep(moment(self.system, carry.state, received))
            return carry, jax.tree.map(partial(_put, place=times - 1 - n), tape, kept)

        blank = lambda first: _put(jnp.zeros((times + 1, *first.shape), first.dtype), first, times)
        begun = carry, jax.tree.map(blank, keep(first_moment(self.system, carry)))
        return jax.lax.fori_loop(0, times, once, begun, unroll=unroll(times, step))


def run_as_told(
    system: DelayedSystem, carry: Carry, steps: Int[Array, ""], every: Int[Array, ""] | None, frames: int
) -> tuple[Carry, PyTree]:
    """A run whose length and observations are data: there is room for `frames` of them, and what is left over repeats the last one.

    Observed at the start, after every `every` steps and at the end; without `every` at the end only. The step number goes on to a whole
    multiple of `every`. Not for derivatives in reverse mode.
    """

    def several(carry, count):
        return jax.lax.fori_loop(0, count, lambda _, c: advance(system, c)[0], carry)

    def observe(carry):
        return system.observe(system.parameters, carry.k, carry.state)

    if every is None:
        carry = several(carry, steps)
        return carry, jax.tree.map(lambda last: last[None], observe(carry))

    def frame(number, both):
        carry, seen = both
        carry = several(carry, every)
        return carry, jax.tree.map(partial(_put, place=number), seen, observe(carry))

    seen = jax.tree.map(lambda now: _put(jnp.zeros((frames, *now.shape), now.dtype), now, 0), observe(carry))
    used = -(-steps // every) + 1
    carry, seen = jax.lax.fori_loop(1, used, frame, (carry, seen))
    place = jnp.minimum(jnp.arange(frames, dtype=used.dtype), used - 1)
    return carry, jax.tree.map(lambda kept: kept[place], seen)


def first_row(inputs: PyTree) -> PyTree:
    """The first of several rows."""
    return jax.tree.map(lambda leaf: leaf[0], inputs)


def _put(frames: Array, frame: Array, place: int | Int[Array, ""]) -> Array:
    """The frames with another one at this place. (Indexed assignment is a scatter to JAX, which no native function can do.)"""
    return jax.lax.dynamic_update_index_in_dim(frames, frame, place, axis=0)
