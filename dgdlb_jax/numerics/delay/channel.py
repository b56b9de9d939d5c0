"""Channels: values that arrive some time after they were sent, every arc with a delay of its own, and their transposes.

There are two kinds. In both a stage sends the signal at the two ends of a step, `(at t_k, at t_{k+1})`.

- `Gather`: every arc reads one source. The value at $t_{k+1}$ may be a prediction, which serves delays shorter than a step and is replaced
  by the value itself one step later. What was read is interpolated: between this reading and the last one.
- `Sum`: every arc ends in one target, and what arrives there is summed. What is sent is interpolated before it is written.

So the fraction of a delay is always applied where every arc has its own number, and a step needs one gather per channel. In reversed
time the two kinds change places: a gather is transposed to a sum, a sum to a gather, with the same lags. Interpolation is its own
transpose. Nothing is scattered.
"""

from abc import abstractmethod
from typing import Any, NamedTuple

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool, Inexact, Int

from dgdlb_jax.numerics.delay import line as lines
from dgdlb_jax.numerics.delay.double_buffer import DoubleBuffer
from dgdlb_jax.numerics.delay.incidence import AbstractIncidence
from dgdlb_jax.numerics.delay.line import DelayLine, interpolate

Arcs = Inexact[Array, "*arcs"]
Ends = Inexact[Array, " ends"]


class ChannelState(eqx.Module):
    """What a channel carries from step to step: the line, and what the arcs of a `Gather` read last."""

    line: DelayLine
    reading: Arcs | None = None


class ReverseState(eqx.Module):
    """The same in reversed time: the line of cotangents, and for a `Gather` those of what was received in the last two steps undone."""

    line: DelayLine
    received: DoubleBuffer | None = None


class Remainder(NamedTuple):
    """The cotangent of a channel's state after the last step, None where it is zero, and the number of that step."""

    state: ChannelState | None
    end: Int[Array, ""]
    rows: int

    def row(self, k: Int[Array, ""]) -> Any:
        """That of row `k` of the line; zero when other rows have taken its place."""
        if self.state is None or self.state.line.ring is None:
            return 0
        return jnp.where(k > self.end - self.rows, lines.row(self.state.line, k + self.rows), 0)


class AbstractChannel(eqx.Module):
    """Arcs with delays.

    - `incidence`: the source or target of every arc. `rows`: of the delay line.
    - `offset`, `return_offset`: where the line is read, and the line of cotangents in reversed time.
    - `fraction`: of a step, by which delays are longer than whole steps; a derivative with respect to a delay is one with respect
      to it. `overflow`: which delays do not fit the line (see `line.split`).
    """

    incidence: eqx.AbstractVar[AbstractIncidence]
    rows: eqx.AbstractVar[int]
    offset: eqx.AbstractVar[Int[Array, " taps"]]
    return_offset: eqx.AbstractVar[Int[Array, " taps"]]
    fraction: eqx.AbstractVar[Any]
    overflow: eqx.AbstractVar[Bool[Array, "*arcs"]]

    @abstractmethod
    def start(self, history: Inexact[Array, "..."]) -> ChannelState:
        """The state of a channel whose signal has always been `history`, one row of it."""

    @abstractmethod
    def enter(self, sent: Any) -> Any:
        """What is written of what a stage sends: local to the arcs, and differentiated by JAX."""

    @abstractmethod
    def receive(self, found: Any) -> Any:
        """What the next stage receives of what was read: local, and differentiated by JAX."""

    @abstractmethod
    def transmit(self, state: ChannelState, k: Int[Array, ""], entering: Any) -> tuple[ChannelState, Any]:
        """One step, `k` -> `k + 1`: write, then read. What was read is an argument of `receive`."""

    @abstractmethod
    def transpose(
        self, state: ReverseState, q: Int[Array, ""], k: Int[Array, ""], received: Any, rest: Remainder
    ) -> tuple[ReverseState, Any]:
        """Undo step `k`, the `q`-th in reversed time: from the cotangent of what was received to that of what entered."""

    @abstractmethod
    def start_in_reverse(self, dtype) -> ReverseState:
        """The reverse state at the end of a run."""

    @abstractmethod
    def before_the_start(
        self, state: ReverseState, q: Int[Array, ""], k: Int[Array, ""], age: Int[Array, ""], rest: Remainder
    ) -> tuple[ReverseState, Int[Array, ""], Any]:
        """Undo "step" `k`, which lies `age` steps before the first one: the number of a row of the line, and its cotangent."""

    def last_reading(self, state: ReverseState, q: Int[Array, ""]) -> Any:
        """The cotangent of the reading before the first step, None without one."""
        del state, q


class Gather(AbstractChannel):
    """Every arc reads one source.

    **Arguments:** `delay`: of every arc in steps, any real number that is not negative, `(*arcs,)`; `incidence`: the source of every
    arc; `rows`: of the delay line, at least two more than there are whole steps in a delay (`rows_for`).
    """

    incidence: AbstractIncidence
    rows: int = eqx.field(static=True)
    offset: Int[Array, " arcs"]
    return_offset: Int[Array, " sorted"]
    at_once: Bool[Array, " sorted"]  # arcs that read the prediction made in the same step
    fraction: Arcs
    overflow: Bool[Array, "*arcs"]

    def __init__(self, delay: Arcs, incidence: AbstractIncidence, rows: int):
        lag, self.fraction, self.overflow = lines.split(delay, rows)
        self.incidence, self.rows = incidence, rows
        self.offset = _per_arc(incidence, lag)
        self.return_offset = _per_end(incidence, jnp.maximum(lag - 1, 0))
        self.at_once = incidence.by_end(lag) < 1

    def start(self, history: Ends) -> ChannelState:
        """From the values of the sources."""
        reading = lines.gather(history, self.incidence.ends.reshape(-1)).reshape(self.incidence.shape)
        return ChannelState(lines.filled(history, self.rows), reading)

    def enter(self, sent: tuple[Ends, Ends]) -> tuple[Ends, Ends]:
        """As it is: the values at `t_k`, and a prediction of those at `t_{k+1}`."""
        return sent

    def receive(self, found: tuple[Arcs, Arcs]) -> Arcs:
        """From this reading and the one before."""
        return interpolate(*found, self.fraction)

    def transmit(self, state: ChannelState, k: Int[Array, ""], entering: tuple[Ends, Ends]):
        """Write rows `k` and `k + 1`, then read."""
        line = lines.write(lines.write(state.line, k, entering[0]), k + 1, entering[1])
        reading = lines.read(line, k + 1, self.offset).reshape(self.incidence.shape)
        return ChannelState(line, reading), (reading, state.reading)

    def start_in_reverse(self, dtype) -> ReverseState:
        """Lines of one number per arc."""
        arcs = self.incidence.shape
        return ReverseState(lines.blank(self.incidence.arcs, self.rows, dtype), DoubleBuffer.zeros(arcs, dtype))

    def transpose(self, state: ReverseState, q, k, received: Arcs, rest: Remainder):
        """A sum. A reading is seen in two steps, in its own and in the next one."""
        assert state.received is not None
        seen = state.received.write(q, received)
        reading = interpolate(seen.at(q), seen.at(q - 1), self.fraction)
        if rest.state is not None and rest.state.reading is not None:
            reading = reading + jnp.where(q == 0, rest.state.reading, 0)
        line = lines.write(state.line, q, reading)
        settled, predicted = self._sources(line, q)
        settled = settled + rest.row(k)
        if rest.state is not None and rest.state.line.ring is not None:
            predicted = predicted + jnp.where(k + 1 == rest.end, rest.row(k + 1), 0)
        return ReverseState(line, seen), (settled, predicted)

    def before_the_start(self, state: ReverseState, q, k, age, rest: Remainder):
        """Row `k`. The first step overwrites its own row, whose place in the ring is that of the oldest one."""
        line = lines.write(state.line, q, jnp.zeros(self.incidence.arcs, state.line.ring.dtype))
        settled = self._sources(line, q)[0] + rest.row(k)
        return ReverseState(line, state.received), k, jnp.where(age < self.rows - 1, settled, 0)

    def last_reading(self, state: ReverseState, q: Int[Array, ""]) -> Arcs:
        """It was seen in the first step."""
        assert state.received is not None
        return self.fraction * state.received.at(q - 1)

    def _sources(self, line: DelayLine, q: Int[Array, ""]) -> tuple[Ends, Ends]:
        """The cotangents of the values in the step being undone, and of what was predicted in it."""
        found = lines.read(line, q, self.return_offset)
        at_once = self.incidence.total(jnp.where(self.at_once, found, 0))
        return self.incidence.total(jnp.where(self.at_once, 0, found)), at_once


class Sum(AbstractChannel):
    """Every arc ends in one target, where arcs are summed.

    **Arguments:** as for `Gather`, with the target of every arc. With `interpolates=False` only the whole steps of a delay are applied,
    and a stage sends the row that is to arrive then, `(*arcs,)`: for signals that do not run straight between grid points.
    """

    incidence: AbstractIncidence
    rows: int = eqx.field(static=True)
    offset: Int[Array, " sorted"]
    return_offset: Int[Array, " arcs"]
    fraction: Arcs | None
    overflow: Bool[Array, "*arcs"]

    def __init__(self, delay: Arcs, incidence: AbstractIncidence, rows: int, *, interpolates: bool = True):
        lag, fraction, self.overflow = lines.split(delay, rows)
        self.fraction = fraction if interpolates else None
        self.incidence, self.rows = incidence, rows
        self.offset = _per_end(incidence, lag)
        self.return_offset = _per_arc(incidence, lag)

    def start(self, history: Arcs) -> ChannelState:
        """From the values on the arcs."""
        return ChannelState(lines.filled(history.reshape(-1), self.rows))

    def enter(self, sent: Any) -> Arcs:
        """From the values at `t_k` and `t_{k+1}`."""
        if self.fraction is None:
            return sent
        before, now = sent
        return interpolate(now, before, self.fraction)

    def receive(self, found: Inexact[Array, "*ends"]) -> Inexact[Array, "*ends"]:
        """As it is: what arrives at every target."""
        return found

    def transmit(self, state: ChannelState, k: Int[Array, ""], entering: Arcs):
        """Write row `k + 1`, then read and sum."""
        line = lines.write(state.line, k + 1, entering)
        return ChannelState(line), self.arriving(line, k + 1)

    def arriving(self, line: DelayLine, k: Int[Array, ""]) -> Ends:
        """What arrives at every target when row `k` is the present."""
        return self.incidence.total(lines.read(line, k, self.offset))

    def start_in_reverse(self, dtype) -> ReverseState:
        """A line of one number per target."""
        return ReverseState(lines.blank(self.incidence.size, self.rows, dtype))

    def transpose(self, state: ReverseState, q, k, received: Ends, rest: Remainder):
        """A gather."""
        line = lines.write(state.line, q, received)
        return ReverseState(line), self._arcs(line, q, k + 1, rest)

    def before_the_start(self, state: ReverseState, q, k, age, rest: Remainder):
        """Row `k + 1`."""
        del age
        line = lines.write(state.line, q, jnp.zeros(self.incidence.size, state.line.ring.dtype))
        return ReverseState(line), k + 1, self._arcs(line, q, k + 1, rest)

    def _arcs(self, line: DelayLine, q, row: Int[Array, ""], rest: Remainder) -> Arcs:
        """The cotangent of what entered as this row: what has arrived of it, or is still there in the end."""
        found = lines.read(line, q, self.return_offset) + rest.row(row)
        return found.reshape(self.incidence.shape)


def _per_arc(incidence: AbstractIncidence, lag: Int[Array, "*arcs"]) -> Int[Array, " arcs"]:
    """Offsets into rows of one number per end, for every arc."""
    return (incidence.ends - lag * incidence.size).reshape(-1)


def _per_end(incidence: AbstractIncidence, lag: Int[Array, "*arcs"]) -> Int[Array, " sorted"]:
    """Offsets into rows of one number per arc, in the order in which they are summed."""
    arcs = jnp.arange(incidence.arcs, dtype=jnp.int32).reshape(incidence.shape)
    return incidence.by_end(arcs - lag * incidence.arcs)
