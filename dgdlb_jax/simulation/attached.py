"""Plug-ins in a tile of networks: what is written for one network, applied to all lanes; their states have the lanes first.

An extension is one more channel and one more stage behind those of the network. Its delayed readings are arcs of a `Gather`:
`(signal, others * lanes)`, where `others` are the axes that the delay has before those of the signal.
"""

import math
from dataclasses import dataclass
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from dgdlb_jax.model.network import Network
from dgdlb_jax.model.service import replicas
from dgdlb_jax.numerics.delay import Carry, ChannelState, Complete, Gather, line
from dgdlb_jax.numerics.delay.line import DelayLine, rows_for
from dgdlb_jax.numerics.labelled import Label
from dgdlb_jax.numerics.precision import with_float_type
from dgdlb_jax.numerics.results import InputError, is_concrete
from dgdlb_jax.simulation.autoscaled import Scaler
from dgdlb_jax.simulation.clock import Clock, Lanes, length, time
from dgdlb_jax.simulation.dynamics import Backends, Field
from dgdlb_jax.simulation.lanes import Shape
from dgdlb_jax.simulation.plugins import AbstractExtension, AbstractStatistic, Observable, View, label_of


class Plugins(eqx.Module):
    """What a user adds to a run; its numbers are shared by all networks."""

    observable: Observable | None = None
    statistics: tuple[AbstractStatistic, ...] = ()
    extensions: tuple[AbstractExtension, ...] = ()

    @property
    def labels(self) -> tuple[Label, ...]:
        """How the observable and the statistics are called in labelled arrays, the observable first if there is one."""
        return tuple(map(label_of, [*([] if self.observable is None else [self.observable]), *self.statistics]))

    def __bool__(self) -> bool:
        return self.observable is not None or bool(self.statistics) or bool(self.extensions)


class Extended(eqx.Module):
    """The state of an extension, and what it received last, lanes first."""

    state: PyTree
    received: Float[Array, "lanes *arcs"]


class ExtensionState(eqx.Module):
    """What an extension needs to go on with; in a batch every array has a leading axis.

    `state`, `received`: its own. `line`, `reading`: its delay line, None in a run that is not `resumable`.
    """

    state: PyTree
    received: Float[Array, "..."]
    line: Float[Array, "*batch rows signal"] | None
    reading: Float[Array, "*batch others signal"] | None


class Attached(eqx.Module):
    """Plug-ins with the networks that they see, and the step with which the window of statistics begins."""

    plugins: Plugins
    networks: Network
    begin: Int[Array, " lanes"]


def collect(observable: Observable | None, statistics: tuple, extensions: tuple, dtype) -> Plugins:
    """Plug-ins with arrays of the network's floating-point type.

    **Raises:** `InputError` for names that occur twice, and fields that are no numbers.
    """
    for kind, several, base in (
        ("statistic", statistics, AbstractStatistic),
        ("extension", extensions, AbstractExtension),
    ):
        for one in several:
            if not isinstance(one, base):
                raise InputError(f"{one!r} is no {kind}: derive its class from {base.__name__}.")
        names = [one.name for one in several]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise InputError(f"Two {kind}s are called {twice!r}: give each a name of its own.")

    def convert(path, leaf):
        try:
            return jnp.asarray(leaf)
        except TypeError:
            where = jax.tree_util.keystr(path)
            raise InputError(
                f"A plug-in has the field {where} = {leaf!r}, which is no number: declare it with eqx.field(static=True)."
            ) from None

    plugins = Plugins(observable, tuple(statistics), tuple(extensions))
    return with_float_type(jax.tree_util.tree_map_with_path(convert, plugins), dtype)


def extension_rows(plugins: Plugins, networks: Network, dt: np.ndarray, max_latency: float | None) -> tuple[int, ...]:
    """How many rows the delay line of every extension has.

    **Raises:** `InputError` for delays that are negative, not finite, or traced with no `max_latency` given.
    """
    return tuple(_rows(extension, networks, dt, max_latency) for extension in plugins.extensions)


def _rows(extension: AbstractExtension, networks: Network, dt: np.ndarray, max_latency: float | None) -> int:
    if is_concrete(networks, extension):
        with jax.ensure_compile_time_eval():
            delay = np.asarray(jax.vmap(extension.delay)(networks))
        if not np.all(np.isfinite(delay) & (delay >= 0)):
            raise InputError(f"{extension.name}.delay gives {delay.min()} s: give finite delays that are not negative.")
        largest = delay.reshape(len(dt), -1).max(axis=1)
        return max(rows_for(float(tau), float(h)) for tau, h in zip(largest, dt, strict=True))
    if max_latency is None:
        raise InputError(
            f"The delays of {extension.name} are traced, so the size of its delay buffer is unknown: give max_latency=, a number of "
            "seconds that no latency exceeds."
        )
    return rows_for(float(max_latency), float(dt.min()))


@dataclass(frozen=True)
class Applied:
    """Plug-ins at work in a tile: what stages call."""

    field: Field
    clock: Clock
    attached: Attached
    scaler: Scaler | None = None

    @property
    def plugins(self) -> Plugins:
        """What the user gave."""
        return self.attached.plugins

    def view(self, k: Int[Array, ""], state: Any) -> View:
        """As statistics and observables see it."""
        named = {e.name: own.state for e, own in zip(self.plugins.extensions, state.extended, strict=True)}
        return self._view(k, state, [own.state for own in state.extended], named)

    def join(self, carry: Carry, initial: Any, rows: tuple[int, ...]) -> tuple[Carry, tuple[Gather, ...]]:
        """The carry with what plug-ins need, and the channels of extensions; `initial` is where the run goes on from."""
        several = getattr(initial, "extensions", None)
        extended, states = self.start(carry.state, rows) if several is None else resume(several)
        state = eqx.tree_at(lambda s: (s.measured, s.extended), carry.state, (self.init(), extended))
        return Carry(carry.k, state, (*carry.channels, *states)), self.channels(state, rows)

    def observe(self, k: Int[Array, ""], state: Any) -> PyTree:
        """The user's observable, lanes first."""
        observable = self.plugins.observable
        assert observable is not None
        return jax.vmap(lambda seen: jax.tree.map(jnp.asarray, observable(seen.time, seen)))(self.view(k, state))

    def init(self) -> tuple[PyTree, ...]:
        """States of all statistics."""
        return tuple(jax.vmap(one.init)(self.attached.networks) for one in self.plugins.statistics)

    def measure(self, k: Int[Array, ""], before: Any, after: Any) -> tuple[PyTree, ...]:
        """The states of all statistics after step `k`."""
        step = length(k, self.clock.lanes)
        counts = (k >= self.attached.begin) & (step > 0)
        seen = self.view(k, before), self.view(k + 1, after)
        return tuple(
            _where(counts, jax.vmap(one.update)(own, *seen, step), own)
            for one, own in zip(self.plugins.statistics, before.measured, strict=True)
        )

    def finish(self, states: tuple[PyTree, ...]) -> dict[str, PyTree]:
        """The results of all statistics by name."""
        dt, last = self.clock.lanes
        duration = (last - self.attached.begin).astype(dt.dtype) * dt
        several = zip(self.plugins.statistics, states, strict=True)
        return {one.name: jax.vmap(one.finish)(own, duration) for one, own in several}

    def factor(self, states: list[PyTree]) -> Backends | None:
        """What extensions multiply service rates with."""
        product = None
        for extension, state in zip(self.plugins.extensions, states, strict=True):
            own = jax.vmap(extension.capacity)(state)
            if own is not None:
                own = self.field.shape.last(own)
                product = own if product is None else product * own
        return product

    def predicted(self, k: Int[Array, ""], state: Any) -> list[PyTree]:
        """The states of all extensions one step ahead, by Euler."""
        step, seen = length(k, self.clock.lanes), self._seen(k, state, [own.state for own in state.extended])
        return [
            _along(own.state, jax.vmap(e.velocity)(seen, own.state, own.received), step)
            for e, own in zip(self.plugins.extensions, state.extended, strict=True)
        ]

    def sent(self, number: int, k: Int[Array, ""], before: Any, after: Any, ahead: list[PyTree]) -> tuple[Array, Array]:
        """What extension `number` sends: its signal at step `k`, and a prediction of that at `k + 1`, as rows of its line."""
        extension, own = self.plugins.extensions[number], before.extended[number].state
        now = self._seen(k, before, [one.state for one in before.extended])
        row = lambda seen, state: _row(jax.vmap(extension.signal)(seen, state))
        return row(now, own), row(self._seen(k + 1, after, ahead), ahead[number])

    def moved(
        self, number: int, k: Int[Array, ""], before: Any, after: Any, ahead: list[PyTree], reading: Array
    ) -> Extended:
        """Extension `number` after the step, by the trapezoidal rule."""
        extension, own = self.plugins.extensions[number], before.extended[number]
        step = length(k, self.clock.lanes)
        split = reading.reshape(len(reading), -1, len(step))
        received = jnp.moveaxis(split, (0, 1, 2), (2, 1, 0)).reshape(own.received.shape)
        start = jax.vmap(extension.velocity)(
            self._seen(k, before, [one.state for one in before.extended]), own.state, own.received
        )
        end = jax.vmap(extension.velocity)(self._seen(k + 1, after, ahead), ahead[number], received)
        mean = jax.tree.map(lambda a, b: (a + b) / 2, start, end)
        return Extended(_along(own.state, mean, step), received)

    def channels(self, state: Any, rows: tuple[int, ...]) -> tuple[Gather, ...]:
        """The channel of every extension; `state`: that of the run, for shapes."""
        dt = self.clock.lanes[0]
        found = []
        for number, size in enumerate(rows):
            delay, count = self._delay(number, state)
            arcs = jnp.moveaxis(delay / dt[:, None, None], (0, 1, 2), (2, 1, 0))
            incidence = Complete(count, delay.shape[1], len(dt))
            found.append(Gather(arcs.reshape(incidence.shape), incidence, size))
        return tuple(found)

    def start(self, state: Any, rows: tuple[int, ...]) -> tuple[tuple[Extended, ...], tuple[ChannelState, ...]]:
        """Extensions at the start of a run with constant history, and their channels."""
        k, extended, channels = jnp.zeros((), jnp.int32), [], []
        states = [jax.vmap(extension.init)(self.attached.networks) for extension in self.plugins.extensions]
        states = with_float_type(jax.tree.map(jnp.asarray, states), self.field.latency.dtype)
        seen = self._seen(k, state, states)
        for number, extension in enumerate(self.plugins.extensions):
            signal = jax.vmap(extension.signal)(seen, states[number])
            delay = jax.vmap(extension.delay)(self.attached.networks)
            shape = _arcs_of(extension.name, delay.shape[1:], signal.shape[1:])
            others = [1] * (len(shape) + 1 - signal.ndim)
            received = jnp.broadcast_to(signal.reshape(len(signal), *others, *signal.shape[1:]), (len(signal), *shape))
            extended.append(Extended(states[number], received))
            reading = jnp.moveaxis(received.reshape(len(signal), -1, math.prod(signal.shape[1:])), (0, 1, 2), (2, 1, 0))
            channels.append(
                ChannelState(line.filled(_row(signal), rows[number]), reading.reshape(reading.shape[0], -1))
            )
        return tuple(extended), tuple(channels)

    def _seen(self, k: Int[Array, ""], state: Any, states: list[PyTree]) -> View:
        """As extensions see it, which know nothing of each other."""
        return self._view(k, state, states, {})

    def _view(self, k: Int[Array, ""], state: Any, states: list[PyTree], named: dict[str, PyTree]) -> View:
        """All networks at step `k`, lanes first, with extensions in these states."""
        field, clock, shape = self.field, self.clock, self.field.shape
        ready, scaled = replicas(field.service), None
        if self.scaler is not None:
            ready, scaled = state.ready, self.scaler.factor(state.ready)
        rate, factor = field.service_rate(time(k, clock.backends), state.workload, None, scaled), self.factor(states)
        return View(
            time=time(k, clock.lanes),
            routing=shape.from_arcs(state.routing),
            workload=shape.from_last(state.workload),
            flow=shape.from_arcs(state.flow),
            inflow=shape.from_last(state.inflow),
            service_rate=shape.from_last(rate if factor is None else factor * rate),
            arrival_rate=shape.from_last(field.arrival_rate(time(k, clock.frontends))),
            network=self.attached.networks,
            extensions=named,
            replicas=shape.from_last(ready),
        )

    def _delay(self, number: int, state: Any) -> tuple[Float[Array, "lanes others signal"], int]:
        """The delays of an extension in seconds, and the size of its signal."""
        extension, own = self.plugins.extensions[number], state.extended[number]
        seen = jax.eval_shape(
            lambda: self._seen(jnp.zeros((), jnp.int32), state, [one.state for one in state.extended])
        )
        signal = jax.eval_shape(jax.vmap(extension.signal), seen, own.state).shape[1:]
        delay = jnp.broadcast_to(jax.vmap(extension.delay)(self.attached.networks), own.received.shape)
        return delay.reshape(len(delay), -1, math.prod(signal)), math.prod(signal)


def _arcs_of(name: str, delay: tuple[int, ...], signal: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of what is received.

    **Raises:** `InputError` when the delay's last axes are not those of the signal.
    """
    try:
        shape = np.broadcast_shapes(delay, signal)
    except ValueError:
        shape = ()
    if len(shape) < len(signal) or shape[len(shape) - len(signal) :] != signal:
        raise InputError(
            f"{name}.delay has shape {delay} and {name}.signal {signal}: give the delay the axes of the signal, with others before "
            "them if every entry is read several times."
        )
    return shape


def _row(signal: Float[Array, "lanes *signal"]) -> Float[Array, " signal_lanes"]:
    return signal.reshape(len(signal), -1).T.reshape(-1)


def _along(state: PyTree, velocity: PyTree, step: Lanes) -> PyTree:
    """A step on; a state of one network has any shape."""
    return jax.tree.map(lambda z, v: z + step.reshape(-1, *[1] * (z.ndim - 1)) * v, state, velocity)


def _where(lanes: Array, one: PyTree, other: PyTree) -> PyTree:
    return jax.tree.map(lambda a, b: jnp.where(lanes.reshape(-1, *[1] * (b.ndim - 1)), a, b), one, other)


def suspend(
    shape: Shape, extended: tuple[Extended, ...], channels: tuple, resumable: bool
) -> tuple[ExtensionState, ...]:
    """What extensions need to go on with, batch axis first."""
    several = []
    for own, channel in zip(extended, channels, strict=True):
        ring = reading = None
        if resumable:
            split = channel.line.ring.reshape(channel.line.rows, -1, shape.lanes)
            ring, reading = jnp.moveaxis(split, -1, 0), None
            reading = jnp.moveaxis(channel.reading.reshape(split.shape[1], -1, shape.lanes), (0, 1, 2), (2, 1, 0))
        several.append(ExtensionState(own.state, own.received, ring, reading))
    return tuple(several)


def resume(several: tuple[ExtensionState, ...]) -> tuple[tuple[Extended, ...], tuple[ChannelState, ...]]:
    """Extensions and channels as they were."""
    extended = tuple(Extended(own.state, own.received) for own in several)
    channels = []
    for own in several:
        assert own.line is not None
        assert own.reading is not None
        ring = jnp.moveaxis(own.line, 0, -1)
        reading = jnp.moveaxis(own.reading, (0, 1, 2), (2, 1, 0))
        channels.append(ChannelState(DelayLine(ring.reshape(-1), len(ring)), reading.reshape(len(reading), -1)))
    return extended, tuple(channels)
