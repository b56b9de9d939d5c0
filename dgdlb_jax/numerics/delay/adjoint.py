"""One step backwards in time: cotangents instead of values, and the same delay lines in reversed time (derived in the package's
docstring).

Between the channels a step is a chain of local stages, and their transposes are JAX's own. A channel transposes itself.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, PyTree

from dgdlb_jax.numerics.delay.channel import AbstractChannel, ChannelState, Gather, Remainder, ReverseState
from dgdlb_jax.numerics.delay.double_buffer import DoubleBuffer
from dgdlb_jax.numerics.delay.line import DelayLine, blank
from dgdlb_jax.numerics.delay.system import Carry, DelayedSystem, FrameInput, Moment, Recorded, context

Values = list[Array]


class Reread(eqx.Module):
    """The line of a `Gather` as it was when the state reached was made, and its last two readings."""

    line: DelayLine
    readings: DoubleBuffer


class Reverse(eqx.Module):
    """What changes from step to step in the reverse pass.

    - `q`: steps undone.
    - `reread`, `channels`: for every channel, the line that is read again (None if it is no `Gather`), and the line of cotangents.
    - `state`: the cotangent of the state reached, but for what the lines hold.
    - `values`: cotangents of the parts of the system that move. `input`: that of the input of this frame.
    """

    q: Int[Array, ""]
    reread: tuple[Reread | None, ...]
    channels: tuple[ReverseState, ...]
    state: PyTree
    values: Values
    input: PyTree


class Ending(eqx.Module):
    """The last step and the state after it; the cotangents of what the channels hold then, None where they are zero."""

    k: Int[Array, ""]
    state: PyTree
    channels: tuple[ChannelState | None, ...]


class StepRecord(NamedTuple):
    """What is known of step `k`: the moments before and after it; for every `Gather` what it read in this step and the one before, and
    what had been predicted for it (None for other channels)."""

    k: Int[Array, ""]
    before: Moment
    after: Moment
    readings: tuple
    predicted: tuple


@dataclass(frozen=True)
class Adjoint:
    """The transposed step of a system.

    - `system_of`: the system, from the values of it that move. `values`: these. Other values cost nothing.
    - `ending`: how the run ended.
    """

    system_of: Callable[[Values], DelayedSystem]
    values: Values
    ending: Ending

    @cached_property
    def system(self) -> DelayedSystem:
        """The system that runs."""
        return self.system_of(self.values)

    def start(self, begin: Carry, state: PyTree, value: PyTree) -> Reverse:
        """At the end of a run that began there, with the cotangent of its last state, parts of which may be None; `value`: the input
        of a frame."""
        each = list(zip(self.system.channels, begin.channels, strict=True))
        return Reverse(
            q=jnp.zeros((), jnp.int32),
            reread=tuple(_unread(own) if isinstance(channel, Gather) else None for channel, own in each),
            channels=tuple(channel.start_in_reverse(own.line.ring.dtype) for channel, own in each),
            state=jax.tree.map(lambda zero, own: zero if own is None else own, no_slope(begin.state), state),
            values=[jnp.zeros_like(value) for value in self.values],
            input=no_slope(value),
        )

    def undo_observation(self, reverse: Reverse, k: Int[Array, ""], state: PyTree, seen: PyTree) -> Reverse:
        """What the cotangents of an observation mean for the state observed; parts of them may be None."""
        bars, structure = jax.tree.flatten(seen, is_leaf=lambda leaf: leaf is None)
        wanted = [n for n, bar in enumerate(bars) if bar is not None]
        if not wanted:
            return reverse

        def observe(values, state):
            system = self.system_of(values)
            leaves = structure.flatten_up_to(system.observe(system.parameters, k, state))
            return [leaves[n] for n in wanted]

        _, pull = _linearise(observe, self.values, state)
        values, bar = pull([bars[n] for n in wanted])
        where = lambda r: (r.values, r.state)
        return eqx.tree_at(where, reverse, (_sum(reverse.values, values), _sum(reverse.state, bar)))

    def undo(self, reverse: Reverse, step: StepRecord, given: FrameInput | None) -> Reverse:
        """One step backwards: the stages and channels in reversed order, transposed."""
        stages, links = self._local_parts(step, given)
        channels, sent = list(reverse.channels), None
        values, held, received, value = stages[-1]((reverse.state, sent))
        values, value = _sum(reverse.values, values), _sum(reverse.input, value)
        for n in reversed(range(len(channels))):
            rest = Remainder(self.ending.channels[n], self.ending.k, self.system.channels[n].rows)
            (by_receiving,) = links[n].receive(received)
            channels[n], entered = self.system.channels[n].transpose(channels[n], reverse.q, step.k, received, rest)
            by_entering, sent = links[n].enter(entered)
            by_stage, held, received, own = stages[n]((held, sent))
            values, value = _sum(values, by_receiving, by_entering, by_stage), _sum(value, own)
        return Reverse(reverse.q + 1, reverse.reread, tuple(channels), held, values, value)

    def _local_parts(self, step: StepRecord, given: FrameInput | None) -> tuple[list[Callable], list["_Link"]]:
        """The transposes of all stages, and of what channels do locally, linearised about what is known of the step."""
        held, found, stages, links = step.before.state, None, [], []
        for n in range(len(self.system.channels)):
            (held, sent), stage = self._stage(n, step, given, held, found)
            channel = partial(self._channel, n)
            _, enter = _linearise(lambda values, sent, own=channel: own(values).enter(sent), self.values, sent)
            read = step.after.delivered[n] if step.readings[n] is None else step.readings[n]
            found, receive = _linearise(lambda values, own=channel, read=read: own(values).receive(read), self.values)
            stages.append(stage)
            links.append(_Link(enter, receive))
        _, stage = self._stage(len(links), step, given, held, found)
        return [*stages, stage], links

    def _channel(self, n: int, values: Values) -> AbstractChannel:
        return self.system_of(values).channels[n]

    def _stage(self, n: int, step: StepRecord, given: FrameInput | None, held, found) -> tuple[Any, Callable]:
        """What a stage returns, and its transpose with respect to the values that move, what it held, received and was given."""
        predicted = step.predicted[n] if n < len(step.predicted) else None
        recorded = Recorded(predicted, step.after.state, step.after.memo, self.ending.state)

        def stage(values, held, found, value):
            own = None if given is None else FrameInput(value, given.due)
            return self.system.stages[n](self.system_of(values).parameters, context(step.k, own, recorded), held, found)

        return _linearise(stage, self.values, held, found, None if given is None else given.value)


class _Link(NamedTuple):
    """The transposes of what a channel does locally, before it writes and after it has read."""

    enter: Callable
    receive: Callable


def no_slope(values: PyTree) -> PyTree:
    """Zero cotangents of floating-point numbers, None for the rest."""
    return jax.tree.map(jnp.zeros_like, eqx.filter(values, eqx.is_inexact_array))


def _linearise(function: Callable, *arguments: Any) -> tuple[Any, Callable]:
    """What it returns, and the transpose of its derivative with respect to every floating-point number in its arguments."""
    real, rest = eqx.partition(arguments, eqx.is_inexact_array)

    def local(*real):
        return eqx.partition(function(*eqx.combine(real, rest)), eqx.is_inexact_array)

    outputs, pull, others = jax.vjp(local, *real, has_aux=True)
    return eqx.combine(outputs, others), pull


def _unread(own: ChannelState) -> Reread:
    assert own.reading is not None
    dtype = own.line.ring.dtype
    return Reread(blank(own.line.width, own.line.rows, dtype), DoubleBuffer.zeros(own.reading.shape, dtype))


def _sum(*trees: PyTree) -> PyTree:
    return jax.tree.map(lambda *leaves: sum(leaves[1:], leaves[0]), *trees)
