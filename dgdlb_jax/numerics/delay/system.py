"""A system of local stages with channels between them, and one step of it."""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, PyTree

from dgdlb_jax.numerics.delay.channel import AbstractChannel, ChannelState, Sum
from dgdlb_jax.numerics.delay.history import HistoryTape


class Recorded(NamedTuple):
    """What the reverse pass knows of a step beforehand.

    A stage may use it in place of what it would have to compute, as long as the derivative of what it returns stays that of its own
    computation (see `hold`). What no stage uses is not recorded.

    - `predicted`: what the stage sent through its `Gather` as the prediction; None if it has none.
    - `after`, `memo`: the state after the step, and `system.memo` of it. `end`: the state after the last step of all.
    """

    predicted: Any
    after: Any
    memo: Any
    end: Any


class StepContext(NamedTuple):
    """What a stage is told of the step from `t_k` to `t_{k+1}`.

    - `k`. `input`: that of the frame which the step belongs to, None without. `ends_frame`: whether it is observed at `t_{k+1}`.
    - `recorded`: None in a run forwards.
    """

    k: Int[Array, ""]
    input: Any = None
    ends_frame: Bool[Array, ""] | bool = False
    recorded: Recorded | None = None


class DelayedSystem(eqx.Module):
    r"""A chain of local stages, with a channel between each two.

    $$ (h_1, s_1) = stage_1(x_k, -), \quad (h_{n+1}, s_{n+1}) = stage_{n+1}(h_n, channel_n(s_n)), \quad x_{k+1} = h_{last} $$

    **Arguments:**

    - `parameters`: a pytree that all stages are given.
    - `stages`: functions `stage(parameters, context, held, received) -> (held, sent)`, one more than there are channels; `context` is
      a `StepContext`. The first is given the state at `t_k` and receives None. Each hands on what it holds, any pytree, to the next.
      The last returns the state at `t_{k+1}`, and sends None.
    - `channels`: channel `n` carries what stage `n` sends to stage `n + 1`.
    - `observe`: `observe(parameters, k, state)`, what is observed of a state: a pytree of arrays.
    - `memo`: what the reverse pass is told of the state after a step (see `Recorded`): a pytree of arrays.

    The state may hold arrays of any type; those that are no floating-point numbers have no derivative.
    """

    parameters: PyTree
    channels: tuple[AbstractChannel, ...]
    stages: tuple[Callable, ...] = eqx.field(static=True)
    observe: Callable = eqx.field(static=True, default=lambda parameters, k, state: ())
    memo: Callable = eqx.field(static=True, default=lambda state: ())

    def __check_init__(self):
        if len(self.stages) != len(self.channels) + 1:
            count = len(self.channels)
            raise ValueError(f"{count} channels lie between {count + 1} stages, not {len(self.stages)}.")


class Carry(eqx.Module):
    """What changes from step to step; `histories` in a run that is recorded, one for every `Gather`, None for other channels."""

    k: Int[Array, ""]
    state: PyTree
    channels: tuple[ChannelState, ...]
    histories: tuple[HistoryTape | None, ...] | None = None


def start(system: DelayedSystem, state: PyTree, history: tuple) -> Carry:
    """The beginning of a run from `state` at step 0; `history` has, for every channel, the constant row before the start."""
    channels = tuple(channel.start(row) for channel, row in zip(system.channels, history, strict=True))
    return Carry(jnp.zeros((), jnp.int32), state, channels)


class FrameInput(eqx.Module):
    """The input of a frame, and the step that the frame ends with."""

    value: PyTree
    due: Int[Array, ""]


def context(k: Int[Array, ""], given: FrameInput | None, recorded: Recorded | None = None) -> StepContext:
    """Of a step, in a frame with this input."""
    if given is None:
        return StepContext(k, recorded=recorded)
    return StepContext(k, given.value, k + 1 == given.due, recorded)


def advance(system: DelayedSystem, carry: Carry, given: FrameInput | None = None) -> tuple[Carry, tuple]:
    """One step, and what every stage but the first received in it."""
    told = context(carry.k, given)
    held, found = carry.state, None
    channels, receipts, histories = [], [], []
    for n, stage in enumerate(system.stages):
        held, sent = stage(system.parameters, told, held, found)
        if n < len(system.channels):
            channel = system.channels[n]
            entering = channel.enter(sent)
            state, read = channel.transmit(carry.channels[n], carry.k, entering)
            found = channel.receive(read)
            channels.append(state)
            receipts.append(found)
            history = None if carry.histories is None else carry.histories[n]
            histories.append(None if history is None else history.add(carry.k, *entering))
    kept = None if carry.histories is None else tuple(histories)
    return Carry(carry.k + 1, held, tuple(channels), kept), tuple(receipts)


@jax.custom_jvp
def hold(computed: PyTree, known: PyTree) -> PyTree:
    """What is known, with the derivative of how it is computed."""
    del computed
    return known


hold.defjvp(lambda primals, tangents: (primals[1], tangents[0]))


class Moment(NamedTuple):
    """What is known of a state and of the step that led to it: the state, its memo, and what every `Sum` delivered (None for others)."""

    state: PyTree
    memo: PyTree
    delivered: tuple


def moment(system: DelayedSystem, state: PyTree, received: tuple) -> Moment:
    """Of a state, and what stages had received in the step that led to it."""
    both = zip(system.channels, received, strict=True)
    return Moment(state, system.memo(state), tuple(one if isinstance(c, Sum) else None for c, one in both))


def first_moment(system: DelayedSystem, carry: Carry) -> Moment:
    """Of the state that a recording begins with; what was delivered before is not known, and not needed."""
    both = zip(system.channels, carry.channels, strict=True)
    return moment(system, carry.state, tuple(jnp.zeros(c.incidence.size, s.line.ring.dtype) for c, s in both))
