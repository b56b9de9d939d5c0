"""A run backwards: what has to be recorded for it, and the loop over its steps in reversed order."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.interpreters.partial_eval import dce_jaxpr
from jaxtyping import Array, Int, PyTree

from dgdlb_jax.numerics.delay import line as lines
from dgdlb_jax.numerics.delay.adjoint import Adjoint, Ending, Reread, Reverse, StepRecord, Values, no_slope
from dgdlb_jax.numerics.delay.channel import ChannelState, Gather, Remainder
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
)
from dgdlb_jax.numerics.delay.history import HistoryTape
from dgdlb_jax.numerics.delay.line import DelayLine
from dgdlb_jax.numerics.delay.scan import Runner, first_row
from dgdlb_jax.numerics.delay.system import Carry, DelayedSystem, FrameInput, first_moment
from dgdlb_jax.numerics.delay.tape import Tape, plan_tape

Histories = tuple[HistoryTape | None, ...]


@dataclass(frozen=True)
class Problem:
    """A run that is to be followed backwards.

    - `system_of`: the system, from the values of it that move. `values`: these.
    - `begin`: the carry that it begins with; the numbers in its delay lines are not used. `inputs`: those of the frames, if any.
    """

    system_of: Callable[[Values], DelayedSystem]
    values: Values
    begin: Carry
    inputs: PyTree

    @cached_property
    def system(self) -> DelayedSystem:
        """The system that runs."""
        return self.system_of(self.values)

    @cached_property
    def tape(self) -> Tape:
        """What has to be kept: trace a step backwards, and see which inputs no output needs."""
        system, begin = self.system, self.begin
        adjoint = Adjoint(self.system_of, self.values, Ending(begin.k, begin.state, (None,) * len(system.channels)))
        value = first_row(self.inputs)
        given = None if value is None else FrameInput(value, begin.k)

        def one_step(step):
            reverse = adjoint.start(begin, eqx.filter(begin.state, eqx.is_inexact_array), value)
            seen = no_slope(system.observe(system.parameters, begin.k, begin.state))
            reverse = adjoint.undo_observation(reverse, begin.k, step.after.state, seen)
            return jax.tree.leaves(adjoint.undo(reverse, step._replace(k=begin.k), given))

        step = _like_a_step(system, begin)
        traced = jax.make_jaxpr(one_step)(step).jaxpr
        used = dce_jaxpr(traced, [True] * len(traced.outvars))[1]
        used = jax.tree.unflatten(jax.tree.structure(step), used)
        both = zip(jax.tree.leaves(used.before), jax.tree.leaves(used.after), strict=True)
        return plan_tape(system, begin, tuple(before or after for before, after in both))

    def weight(self) -> tuple[int, int]:
        """How many bytes are kept of a step, and of a checkpoint."""
        step = jax.eval_shape(lambda: self.tape.keep(first_moment(self.system, self.begin)))
        predictions = _like_a_step(self.system, self.begin).predicted
        rings = [state.line.ring for state in self.begin.channels]
        return _bytes(step) + 2 * _bytes(predictions), _bytes(self.begin.state) + _bytes(rings)

    def run(self, program: Node) -> tuple[Carry, PyTree, PyTree]:
        """Forwards: the carry at the end, the observations, and a tape of what is kept."""
        return Runner(self.system, self.tape).run(program, self.begin, self.inputs)

    def run_back(
        self, program: Node, tape: PyTree, ending: Ending, state: PyTree, seen: PyTree, history: bool
    ) -> tuple[Values, Carry, PyTree]:
        """Backwards.

        **Arguments:**

        - `tape`: what `run` kept. `ending`: how it ended.
        - `state`, `seen`: cotangents of the last state and of the observations; parts of them may be None.
        - `history`: whether that of what stood in the delay lines at the start is wanted; zero otherwise.

        **Returns:** cotangents of the values that move, of the carry at the start, of the inputs.
        """
        adjoint = Adjoint(self.system_of, self.values, ending)
        begin = adjoint.start(self.begin, state, first_row(self.inputs))
        reverse, inputs = _Backwards(adjoint, self.tape).follow(program, tape, begin, seen, self.inputs)
        channels = []
        for n, channel in enumerate(self.system.channels):
            ring = self.begin.channels[n].line
            bars = lines.blank(ring.width, ring.rows, ring.ring.dtype)
            bars = _before_the_start(adjoint, n, self.begin.k, reverse, bars) if history else bars
            channels.append(ChannelState(bars, channel.last_reading(reverse.channels[n], reverse.q)))
        return reverse.values, Carry(reverse.q, reverse.state, tuple(channels)), inputs


@dataclass(frozen=True)
class _Backwards:
    """What follows a program backwards."""

    adjoint: Adjoint
    tape: Tape

    def follow(
        self,
        node: Node,
        tape: PyTree,
        reverse: Reverse,
        seen: PyTree,
        inputs: PyTree = None,
        given: FrameInput | None = None,
        histories: Histories | None = None,
    ) -> tuple[Reverse, PyTree]:
        """A part of the program, and the cotangents of its inputs."""
        match node:
            case Loop(times, Step()):
                assert histories is not None

                def step(n, reverse):
                    at = lambda n: [jax.lax.dynamic_index_in_dim(kept, n, keepdims=False) for kept in tape]
                    return self._step(reverse, at(n + 1), at(n), histories, given)

                return jax.lax.fori_loop(0, times, step, reverse), None
            case Step():
                raise AssertionError("a program takes its steps in loops")
            case Loop(times, body):

                def once(reverse, each):
                    tape, seen, inputs = each
                    return self.follow(body, tape, reverse, seen, inputs, given, histories)

                each = (tape, fold(seen, times), fold(inputs, times))
                reverse, bars = jax.lax.scan(once, reverse, each, length=times, reverse=True)
                return reverse, unfold(bars)
            case Sequence(parts):
                bars = []
                pieces = list(zip(parts, tape, split(seen, parts), split(inputs, parts), strict=True))
                for part, own, observed, sent in reversed(pieces):
                    reverse, bar = self.follow(part, own, reverse, observed, sent, given, histories)
                    bars.insert(0, bar)
                return reverse, join(bars)
            case Frame(body):
                return self._frame(body, tape, reverse, seen, inputs, histories)
            case Recording(body):
                tape, recorded = tape
                k = self._reached(reverse)
                reverse = self._read_again(reverse, recorded, [own and own.line(k) for own in recorded], k)
                return self.follow(body, tape, reverse, seen, inputs, given, recorded)
            case Checkpoint(body):
                node = Recording(body)
                tape = Runner(self.adjoint.system, self.tape).run(node, tape, inputs, given)[2]
                return self.follow(node, tape, reverse, seen, inputs, given)

    def _frame(self, body: Node, tape, reverse: Reverse, seen, inputs, histories) -> tuple[Reverse, PyTree]:
        """An observation, and the steps before it."""
        tape, kept = tape
        k, value = self._reached(reverse), first_row(inputs)
        state = kept if histories is None else self.tape.recall(kept, histories, k).state
        given = None if value is None else FrameInput(value, k)
        reverse = eqx.tree_at(lambda r: r.input, reverse, no_slope(value), is_leaf=lambda leaf: leaf is None)
        reverse = self.adjoint.undo_observation(reverse, k, state, first_row(seen))
        reverse, _ = self.follow(body, tape, reverse, None, None, given, histories)
        return reverse, jax.tree.map(lambda bar: bar[None], reverse.input)

    def _step(self, reverse: Reverse, kept, kept_after, histories: Histories, given: FrameInput | None) -> Reverse:
        """One step, between two states that were kept."""
        ahead = self._reached(reverse)
        k = ahead - 1
        reverse = self._read_again(reverse, histories, [own and own.line for own in reverse.reread], k)
        step = StepRecord(
            k,
            before=self.tape.recall(kept, histories, k),
            after=self.tape.recall(kept_after, histories, ahead),
            readings=tuple(own and (own.readings.at(ahead), own.readings.at(k)) for own in reverse.reread),
            predicted=tuple(own and own.predicted(ahead) for own in histories),
        )
        return self.adjoint.undo(reverse, step, given)

    def _read_again(
        self, reverse: Reverse, histories: Histories, later: list[DelayLine | None], k: Int[Array, ""]
    ) -> Reverse:
        """Back with the lines to where they were when state `k` was made, from how they were a step later, and what was read then."""

        def one(channel, history, line, own):
            if history is None:
                return None
            line = history.back(line, k)
            return Reread(line, own.readings.write(k, history.read(line, k, channel.offset)))

        reread = tuple(map(one, self.adjoint.system.channels, histories, later, reverse.reread))
        return eqx.tree_at(lambda r: r.reread, reverse, reread, is_leaf=lambda leaf: leaf is None)

    def _reached(self, reverse: Reverse) -> Int[Array, ""]:
        """Which state has been reached."""
        return self.adjoint.ending.k - reverse.q


def _before_the_start(adjoint: Adjoint, n: int, first: Int[Array, ""], reverse: Reverse, bars: DelayLine) -> DelayLine:
    """On through the history before the first step, in which no step was made: the cotangent of what stood in the line of channel `n`."""
    channel = adjoint.system.channels[n]
    rest = Remainder(adjoint.ending.channels[n], adjoint.ending.k, channel.rows)

    def undo(both, age):
        state, bars = both
        state, row, bar = channel.before_the_start(state, reverse.q + age, first - 1 - age, age, rest)
        return (state, lines.write(bars, row + channel.rows, bar)), None

    ages = jnp.arange(channel.rows, dtype=jnp.int32)
    return jax.lax.scan(undo, (reverse.channels[n], bars), ages)[0][1]


def _like_a_step(system: DelayedSystem, begin: Carry) -> StepRecord:
    """Something of the shapes of what is known of a step."""
    now, readings, predicted = first_moment(system, begin), [], []
    for channel, state in zip(system.channels, begin.channels, strict=True):
        gathers = isinstance(channel, Gather)
        readings.append((state.reading, state.reading) if gathers else None)
        predicted.append(jnp.zeros(channel.incidence.size, state.line.ring.dtype) if gathers else None)
    return StepRecord(begin.k, now, now, tuple(readings), tuple(predicted))


def _bytes(tree: PyTree) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
