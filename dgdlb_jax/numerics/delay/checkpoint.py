"""The order in which a run takes its steps, as a small program: frames of steps, in loops, with checkpoints between them.

`schedule` says how they are nested. With checkpoints, the state is kept there, and what lies between is computed again by the reverse
pass. `scan` runs such a program forwards, `adjoint` backwards.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

# From so many steps on, two at once: a tenth faster, since XLA copies much of what a loop carries, and half as long again to compile.
# Not in the reverse pass, which gains nothing.
_MANY = 1000


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
        """How many frames there are in it."""
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
        """How many frames there are in it."""
        return sum(part.frames for part in self.parts)

    @property
    def steps(self) -> int:
        """How many steps there are in it."""
        return sum(part.steps for part in self.parts)


@dataclass(frozen=True)
class Frame:
    """Some steps, and an observation after them."""

    body: "Node"
    steps: int
    frames = 1


@dataclass(frozen=True)
class _Wrapper:
    """As many steps and frames as its body."""

    body: "Node"

    @property
    def frames(self) -> int:
        """How many frames there are in it."""
        return self.body.frames

    @property
    def steps(self) -> int:
        """How many steps there are in it."""
        return self.body.steps


class Recording(_Wrapper):
    """Something that is recorded for the reverse pass, step by step."""


class Checkpoint(_Wrapper):
    """Something that the reverse pass computes again, from its beginning, and records then."""


Node = Step | Loop | Sequence | Frame | Recording | Checkpoint


def schedule(steps: int, every: int | None, segment: int | None = None) -> Node:
    """`steps` steps, observed after every `every` of them and at the end; without `every` at the end only.

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
    """How many observations such a run takes, the start apart."""
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


def fold(frames: PyTree, times: int) -> PyTree:
    """The leading axis in `times` parts."""
    return jax.tree.map(lambda leaf: leaf.reshape(times, -1, *leaf.shape[1:]), frames)


def unfold(frames: PyTree) -> PyTree:
    """The inverse of `fold`."""
    return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), frames)


def split(frames: PyTree, parts: tuple[Node, ...]) -> list[PyTree]:
    """The leading axis cut into what belongs to each part."""
    ends = [sum(part.frames for part in parts[: k + 1]) for k in range(len(parts))]
    return [
        jax.tree.map(lambda leaf, a=end - part.frames, b=end: leaf[a:b], frames)
        for part, end in zip(parts, ends, strict=True)
    ]


def join(parts: list[PyTree]) -> PyTree:
    """The inverse of `split`."""
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *parts)
