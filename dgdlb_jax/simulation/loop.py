"""The loop over time steps, as a small program that can be run, and run backwards.

A run is frames of steps with a look after each. `schedule` says how they are nested; with checkpoints in it, the state is kept there
and what lies between is computed again on the way back. `run` follows it forwards; `adjoint` has the way back.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from dgdlb_jax.simulation.dynamics import Arcs
from dgdlb_jax.simulation.past import Past
from dgdlb_jax.simulation.step import Carry, Now, System, advance, time

# From so many steps on, two at once: a tenth faster, since XLA copies much of what a loop carries, and half as long again to compile.
# Not on the way back, which gains nothing.
_MANY = 1000
Extra = Float[Array, "frames backends frontend_lanes"]


@dataclass(frozen=True)
class Step:
    """One step. `in_pairs`: whether a loop does two of them at once."""

    in_pairs: bool = False
    frames = 0
    steps = 1


@dataclass(frozen=True)
class Loop:
    """The same again and again."""

    times: int
    body: "Node"

    @property
    def frames(self) -> int:
        """How many looks there are in it."""
        return self.times * self.body.frames

    @property
    def steps(self) -> int:
        """How many steps there are in it."""
        return self.times * self.body.steps


@dataclass(frozen=True)
class Sequence:
    """One after the other."""

    parts: tuple["Node", ...]

    @property
    def frames(self) -> int:
        """How many looks there are in it."""
        return sum(part.frames for part in self.parts)

    @property
    def steps(self) -> int:
        """How many steps there are in it."""
        return sum(part.steps for part in self.parts)


@dataclass(frozen=True)
class Frame:
    """Some steps and a look."""

    body: "Node"
    steps: int
    frames = 1


@dataclass(frozen=True)
class _Same:
    """The same as its body."""

    body: "Node"

    @property
    def frames(self) -> int:
        """How many looks there are in it."""
        return self.body.frames

    @property
    def steps(self) -> int:
        """How many steps there are in it."""
        return self.body.steps


class Recording(_Same):
    """Something that is remembered for the way back, step by step."""


class Checkpoint(_Same):
    """Something that is computed again on the way back, from its beginning, and is a recording then."""


Node = Step | Loop | Sequence | Frame | Recording | Checkpoint


def schedule(steps: int, every: int | None, segment: int | None = None) -> Node:
    """`steps` steps, with a look after every `every` of them and at the end; without `every` at the end only.

    With `segment`, checkpoints are about that many steps apart, never more. Without, all of it is a recording.
    """
    step = Step(in_pairs=steps >= _MANY)
    every = steps if every is None else min(every, steps)
    full, rest = divmod(steps, every)
    in_frame = None if segment is None or segment >= every else segment
    of_frames = None if segment is None or segment < every else segment // every
    parts = [_repeated(full, of_frames, Frame(_repeated(every, in_frame, step), every))]
    if rest:
        last = Frame(_repeated(rest, in_frame, step), rest)
        parts.append(last if of_frames is None else Recording(last))
    return Recording(_sequence(parts)) if segment is None else _sequence(parts)


def count_frames(steps: int, every: int | None) -> int:
    """How many looks such a run takes, the start apart."""
    return 1 if every is None else -(-steps // min(every, steps))


def unroll(times: int, body: Node) -> int:
    """How many steps an iteration makes. A step left over would be compiled apart."""
    return 2 if isinstance(body, Step) and body.in_pairs and times % 2 == 0 else 1


def _repeated(times: int, size: int | None, body: Node) -> Node:
    """`body` several times, in checkpoints of `size` repetitions."""
    if size is None:
        return Loop(times, body)
    full, rest = divmod(times, size)
    parts: list[Node] = [Loop(full, Checkpoint(Loop(size, body)))] if full else []
    return _sequence([*parts, Checkpoint(Loop(rest, body))] if rest else parts)


def _sequence(parts: list[Node]) -> Node:
    return parts[0] if len(parts) == 1 else Sequence(tuple(parts))


class Pending(eqx.Module):
    """Extra flow that is due at the end of a frame, and when that is."""

    flow: Arcs
    due: Int[Array, ""]

    def at(self, k: Int[Array, ""]) -> Arcs:
        """What of it enters in step k."""
        return jnp.where(k + 1 == self.due, self.flow, 0)


class Machine(eqx.Module):
    """What runs a program: the system, what is looked at, and what is kept of every step for the way back (nothing if None)."""

    system: System
    look: Callable[[System, Now], PyTree] = eqx.field(static=True)
    keep: Callable[[Now], PyTree] | None = eqx.field(static=True)

    def run(
        self, node: Node, carry: Carry, extra: Extra | None = None, pending: Pending | None = None
    ) -> tuple[Carry, Any, Any]:
        """Follow the program: the state after it, the looks (frames first), and a tape of what was kept: of the states before, between
        and after the steps of a loop, and of those looked at."""
        match node:
            case Step():
                return advance(self.system, carry, pending and pending.at(carry.now.k)), None, None
            case Loop(times, Step() as step) if self.keep is not None:
                carry, tape = self._recorded(times, step, carry, pending)
                return carry, None, tape
            case Loop(times, body):

                def once(carry, extra):
                    carry, *rest = self.run(body, carry, extra, pending)
                    return carry, tuple(rest)

                carry, (looks, tape) = jax.lax.scan(
                    once, carry, fold(extra, times), length=times, unroll=unroll(times, body)
                )
                return carry, unfold(looks), tape
            case Sequence(parts):
                looks, tapes = [], []
                for part, own in zip(parts, split(extra, parts), strict=True):
                    carry, look, tape = self.run(part, carry, own, pending)
                    looks.append(look)
                    tapes.append(tape)
                return carry, join(looks), tuple(tapes)
            case Frame(body, steps):
                pending = None if extra is None else Pending(extra[0], carry.now.k + steps)
                carry, _, tape = self.run(body, carry, None, pending)
                looks = jax.tree.map(lambda leaf: leaf[None], self.look(self.system, carry.now))
                if self.keep is None:
                    return carry, looks, None
                # Outside a recording there is no past to tell the rest; such frames are far apart.
                return carry, looks, (tape, carry.now if carry.past is None else self.keep(carry.now))
            case Recording(body):
                now, past = carry.now, None
                if self.keep is not None:
                    past = Past(now.k, now.workload, carry.workloads, now.reading, node.steps)
                carry = Carry(now, carry.flows, carry.workloads, past)
                carry, looks, tape = self.run(body, carry, extra, pending)
                end = Carry(carry.now, carry.flows, carry.workloads)
                return end, looks, None if past is None else (tape, carry.past)
            case Checkpoint(body):
                end, looks, _ = Machine(self.system, self.look, None).run(body, carry, extra, pending)
                return end, looks, None if self.keep is None else carry

    def _recorded(self, times: int, step: Step, carry: Carry, pending: Pending | None) -> tuple[Carry, PyTree]:
        """Some steps, and a tape of the states before, between and after them, the last first (see `Past`)."""
        assert self.keep is not None
        keep = self.keep

        def once(n, state):
            carry, tape = state
            carry = self.run(step, carry, None, pending)[0]
            return carry, jax.tree.map(partial(_put, place=times - 1 - n), tape, keep(carry.now))

        blank = lambda first: _put(jnp.zeros((times + 1, *first.shape), first.dtype), first, times)
        start = carry, jax.tree.map(blank, keep(carry.now))
        return jax.lax.fori_loop(0, times, once, start, unroll=unroll(times, step))


def _put(frames: Array, frame: Array, place: int | Int[Array, ""]) -> Array:
    """The frames with another one at this place. (Indexed assignment is a scatter to JAX, which no native function can do.)"""
    return jax.lax.dynamic_update_index_in_dim(frames, frame, place, axis=0)


def fold(frames: PyTree, times: int) -> PyTree:
    """The leading axis in `times` parts."""
    return jax.tree.map(lambda leaf: leaf.reshape(times, -1, *leaf.shape[1:]), frames)


def unfold(frames: PyTree) -> PyTree:
    """The way back from `fold`."""
    return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), frames)


def split(frames: PyTree, parts: tuple[Node, ...]) -> list[PyTree]:
    """The leading axis cut into what belongs to each part."""
    ends = [sum(part.frames for part in parts[: k + 1]) for k in range(len(parts))]
    return [
        jax.tree.map(lambda leaf, a=end - part.frames, b=end: leaf[a:b], frames)
        for part, end in zip(parts, ends, strict=True)
    ]


def join(parts: list[PyTree]) -> PyTree:
    """The way back from `split`."""
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *parts)


def run_as_told(
    system: System,
    carry: Carry,
    steps: Int[Array, ""],
    every: Int[Array, ""] | None,
    fields: tuple[str, ...],
    frames: int,
) -> tuple[Carry, dict[str, Array]]:
    """A run whose length and looks are data: looks have room for `frames` instants, what is left over repeats the last one.

    A look at the start, after every `every` steps and at the end, time as second axis; without `every` at the end only. The step number
    goes on to a whole multiple of `every`; lanes stand still at their end. Not for derivatives in reverse mode.
    """

    def several(carry, count):
        return jax.lax.fori_loop(0, count, lambda _, c: advance(system, c), carry)

    def look(carry):
        return observe_fields(fields, system, carry.now)

    if every is None:
        carry = several(carry, steps)
        return carry, jax.tree.map(lambda last: last[:, None], look(carry))

    def frame(number, state):
        carry, looks = state
        carry = several(carry, every)
        return carry, jax.tree.map(partial(_put, place=number), looks, look(carry))

    looks = jax.tree.map(lambda now: _put(jnp.zeros((frames, *now.shape), now.dtype), now, 0), look(carry))
    used = -(-steps // every) + 1
    carry, looks = jax.lax.fori_loop(1, used, frame, (carry, looks))
    place = jnp.minimum(jnp.arange(frames), used - 1)
    return carry, jax.tree.map(lambda kept: jnp.moveaxis(kept[place], 0, 1), looks)


def observe_fields(fields: tuple[str, ...], system: System, now: Now) -> dict[str, Array]:
    """What is saved of one instant, batch axis first: its time and the fields asked for."""
    field, clock = system.field, system.clock
    shape = field.shape
    looks = {
        "routing": lambda: shape.from_arcs(now.routing),
        "workload": lambda: shape.from_last(now.workload),
        "arrival_rate": lambda: shape.from_last(field.arrival_rate(time(now.k, clock.frontends))),
        "cost_rate": lambda: (
            shape.per_lane(now.workload) + shape.per_lane(jnp.sum(now.flow * field.cost_latency, axis=0))
        ),
        "in_flight": lambda: now.in_flight,
    }
    return {"time": time(now.k, clock.lanes)} | {name: looks[name]() for name in fields}
