r"""Replicas that an autoscaler moves: a state variable of every backend, with a delay of its own.

$$ \ell_j(t) = R_j\,\phi_j(N_j / R_j), \qquad R_j(t) = C_j(t - L_j) \quad \text{or, removed at once,} \quad
   \min_{t - L_j \le s \le t} C_j(s) $$

with $C$ the replicas commanded, $R$ those ready, $\phi$ the curve of one. Counted from the fleet's own: the curve of a backend with $n$
replicas is $n\,\phi(N / n)$, so that $r = R / n$ is a factor on it, which frontends see after the feedback latency, as they see workloads.

A rule that moves all the time sends its command through a channel, with which everything stays of second order and has derivatives. One
that decides every so often does so at the first grid point of an interval, from the state there; its commands are kept, one for each
interval, and what is ready is read off them. If time steps divide interval and start-up delay, both happen when they should; if not, up
to a step later. In between such replicas stand still. (News of them are interpolated over a step.)
"""

import math
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PyTree

from dgdlb_jax.model.batch import each_backend
from dgdlb_jax.model.network import Network
from dgdlb_jax.model.service import replicas
from dgdlb_jax.numerics.delay import ChannelState, Each, Gather, StepContext, line
from dgdlb_jax.numerics.delay.line import DelayLine, rows_for
from dgdlb_jax.numerics.precision import with_float_type
from dgdlb_jax.numerics.results import InputError, is_concrete
from dgdlb_jax.policies.autoscalers.base import (
    MOST_DECISIONS,
    AbstractAutoscaler,
    AbstractContinuousAutoscaler,
    AbstractSampledAutoscaler,
    Measured,
    per_replica,
    within,
)
from dgdlb_jax.simulation.clock import Clock, length, time
from dgdlb_jax.simulation.dynamics import Arcs, Backends
from dgdlb_jax.simulation.lanes import Shape

_NEARLY = 1e-3  # of a time step: what comes so much before its time is due


class Scaling(eqx.Module):
    """What changes from step to step.

    - `ready`: replicas that serve. `commands` `(rows, backend_lanes)`: those commanded, the present number first, then those of the
      intervals before. `memory`: the rule's own. `used`: the integral of the metric of all replicas since the last decision, where the
      rule averages.
    """

    ready: Backends
    commands: Float[Array, "rows backend_lanes"]
    memory: PyTree
    used: Backends | None
    continuous: bool = eqx.field(static=True)

    @property
    def commanded(self) -> Backends:
        """Replicas asked for."""
        return self.commands[0]

    @property
    def channels(self) -> int:
        """How many channels there are: news of replicas, and commands on their way."""
        return 1 + self.continuous


class ScalingState(eqx.Module):
    """What an autoscaler needs to go on with. In a batch every array has a leading axis.

    - `ready` `(backends,)`, `commands` `(rows, backends)`, `memory`, `used`: as in `Scaling`.
    - `lines`, `readings`: of the channels of commands (if there is one) and news; None in a run that is not `resumable`.
    """

    ready: Float[Array, "*batch backends"]
    commands: Float[Array, "*batch rows backends"]
    memory: PyTree
    used: Float[Array, "*batch backends"] | None
    lines: tuple[Array, ...] | None
    readings: tuple[Array, ...] | None


class Scaler(eqx.Module):
    """The autoscaler of a tile, laid out for the time step.

    - `rule`: with parameters that are scalars or over backends. `rows`: of its delay line, or commands that are kept.
    - `count`: replicas that the curves stand for; `capacity`: of one, requests/s; `alone`: the time of a lone request, seconds.
    """

    rule: AbstractAutoscaler
    count: Backends
    capacity: Backends
    alone: Backends
    shape: Shape
    rows: int = eqx.field(static=True)

    def __init__(self, shape: Shape, network: Network, rule: AbstractAutoscaler, rows: int):
        """From a batched network and a rule whose parameters are scalars or `(lanes, backends)`."""
        rule = with_float_type(rule, network.latency.dtype)
        self.rule = jax.tree.map(lambda leaf: leaf if leaf.ndim == 0 else shape.last(leaf), rule)
        self.shape, self.rows = shape, rows
        service = jax.tree.map(shape.last, network.service)
        self.count = jnp.broadcast_to(replicas(service), service.nominal_capacity.shape)
        self.capacity = service.nominal_capacity / self.count
        self.alone = 1 / service.initial_slope

    def factor(self, ready: Backends) -> Backends:
        """Of the replicas that the curves stand for."""
        return ready / self.count

    def metric(self, ready: Backends, workload: Backends, rate: Backends) -> Backends:
        """Per ready replica."""
        return per_replica(self.rule.metric, ready, workload, rate, self.capacity, self.alone)

    def velocity(self, ready: Backends, commanded: Backends, workload: Backends, rate: Backends) -> Backends:
        """Of a rule that moves all the time."""
        assert isinstance(self.rule, AbstractContinuousAutoscaler)
        return self.rule.velocity(Measured(ready, commanded, self.metric(ready, workload, rate)))

    def begin(self) -> Scaling:
        """The fleet's replicas, within limits, have always been commanded and ready."""
        ready = within(self.rule.least, self.count, self.rule.most)
        commands = jnp.broadcast_to(ready, (1 if self.continuous else self.rows, *ready.shape))
        memory, used = (), None
        if isinstance(self.rule, AbstractSampledAutoscaler):
            memory, used = self.rule.init(ready), jnp.zeros_like(ready) if self.rule.averages else None
        return Scaling(ready, commands, memory, used, self.continuous)

    @property
    def continuous(self) -> bool:
        """Whether the rule moves all the time."""
        return isinstance(self.rule, AbstractContinuousAutoscaler)

    def decided(self, k: Int[Array, ""], clock, now: Scaling, workload: Backends, rate: Backends) -> Scaling:
        """With the decision that is due at step `k`, if one is, and what is ready from then on."""
        rule = self.rule
        if not isinstance(rule, AbstractSampledAutoscaler):
            return now
        t, step, dt = time(k, clock), length(k, clock), clock[0]
        passed = lambda at: jnp.floor((at + _NEARLY * dt) / rule.interval)
        count = passed(t)
        due = (count > passed(t - dt)) & (step > 0)
        metric = self.metric(now.ready, workload, rate)
        if now.used is not None:
            before = jnp.ceil((count - 1) * rule.interval / dt - _NEARLY) * dt
            mean = now.used / jnp.where(count > 0, t - before, 1) / now.ready
            metric = jnp.where(count > 0, mean, metric)
        measured = Measured(now.ready, now.commanded, metric)
        command, memory = rule.decide(measured, now.commands[1 : 1 + rule.past], now.memory)
        commands = jnp.concatenate([command[None], now.commands])[: self.rows]
        commands, memory = _where(due, (commands, memory), (now.commands, now.memory))
        used = None if now.used is None else jnp.where(due, 0, now.used)
        ready = self._ready(commands, t - count * rule.interval + _NEARLY * dt)
        return Scaling(jnp.where(step > 0, ready, now.ready), commands, memory, used, now.continuous)

    def _ready(self, commands: Float[Array, "rows backend_lanes"], age: Backends) -> Backends:
        """What is ready when the last decision is so old: the least that has been commanded within the start-up delay, or the first."""
        rule = self.rule
        assert isinstance(rule, AbstractSampledAutoscaler)
        number = jnp.arange(len(commands), dtype=age.dtype)[:, None]
        startup = jnp.broadcast_to(rule.startup, age.shape)[None]
        counts = (number < 1) | (age[None] + (number - 1) * rule.interval < startup)
        if rule.removal == "at once":
            return jnp.where(counts, commands, jnp.inf).min(0)
        return jnp.where(number == counts.sum(0, dtype=age.dtype)[None] - 1, commands, 0).sum(0)

    def after(
        self,
        k: Int[Array, ""],
        clock: Clock,
        now: Scaling,
        ready: Backends,
        workloads: tuple[Backends, Backends],
        rates: tuple[Backends, Backends],
    ) -> Scaling:
        """After step `k`, at whose end so many are ready; `workloads` and service `rates` at both ends."""
        step = length(k, clock.backends)
        commands, used = now.commands, now.used
        if now.continuous:
            begin = self.velocity(now.ready, now.commanded, workloads[0], rates[0])
            ahead = now.commanded + step * begin
            then = self.velocity(ready, ahead, workloads[1], rates[1])
            commands = (now.commanded + step / 2 * (begin + then))[None]
        elif used is not None:
            metrics = [self.metric(now.ready, *ends) for ends in zip(workloads, rates, strict=True)]
            used = used + step / 2 * now.ready * (metrics[0] + metrics[1])
        return Scaling(ready, commands, now.memory, used, now.continuous)


class Told(NamedTuple):
    """What stages of an autoscaler hand on: what `predict` did, and the workloads that frontends see."""

    held: Any
    seen: Arcs


def command(system: Any, context: StepContext, held: Any, seen: Arcs) -> tuple[Told, Any]:
    """Send the command of a rule that moves all the time, and where it will be a step ahead, by Euler."""
    now, k, scaler = held.now.scaling, context.k, system.scaler
    rate = system.rate(k, k, held.now.workload, [own.state for own in held.now.extended], now.ready)
    velocity = scaler.velocity(now.ready, now.commanded, held.now.workload, rate)
    ahead = now.commanded + length(k, system.clock.backends) * velocity
    return Told(held, seen), (now.commanded, ahead)


def tell(system: Any, context: StepContext, told: Told, ready: Backends) -> tuple[Told, Any]:
    """Send news of the replicas that are ready, now and at the end of the step."""
    now = told.held.now.scaling.ready
    ready = jnp.where(length(context.k, system.clock.backends) > 0, ready, now)  # at its end a lane stands still
    factor = system.scaler.factor
    return Told(told.held._replace(ready=ready), told.seen), (factor(now), factor(ready))


def tell_what_stands(system: Any, context: StepContext, held: Any, seen: Arcs) -> tuple[Told, Any]:
    """The same where replicas stand still between decisions."""
    return tell(system, context, Told(held, seen), held.now.scaling.ready)


def channels(
    scaler: Scaler, delay_of_news: Arcs, rows: int, step: Backends
) -> tuple[tuple[Any, ...], tuple[Gather, ...]]:
    """The stages behind that of `predict`, and the channels that they send through."""
    news = Gather(delay_of_news, scaler.shape.ends, rows)
    if not scaler.continuous:
        return (tell_what_stands,), (news,)
    startup = jnp.broadcast_to(scaler.rule.startup, step.shape) / step
    return (command, tell), (Gather(startup, Each(step.shape), scaler.rows), news)


def start_channels(scaler: Scaler, now: Scaling, rows: int) -> tuple[ChannelState, ...]:
    """Where replicas have always been as they are."""
    factor = scaler.factor(now.ready)
    news = ChannelState(line.filled(factor, rows), scaler.shape.spread(factor))
    if not now.continuous:
        return (news,)
    return ChannelState(line.filled(now.commanded, scaler.rows), now.commanded), news


def suspend(shape: Shape, now: Scaling, states: tuple[ChannelState, ...], resumable: bool) -> ScalingState:
    """What a later run needs, batch axis first."""
    lines = readings = None
    if resumable:
        lines = tuple(shape.from_last(own.line.ring.reshape(own.line.rows, -1)) for own in states)
        split = [shape.from_last(own.reading) for own in states[:-1]]  # pyright: ignore[reportArgumentType]
        readings = (*split, shape.from_arcs(states[-1].reading))  # pyright: ignore[reportArgumentType]
    used = None if now.used is None else shape.from_last(now.used)
    ready, commands, memory = jax.tree.map(shape.from_last, (now.ready, now.commands, now.memory))
    return ScalingState(ready, commands, memory, used, lines, readings)


def resume(shape: Shape, state: ScalingState) -> tuple[Scaling, tuple[ChannelState, ...]]:
    """As it was."""
    assert state.lines is not None
    assert state.readings is not None
    readings = [*map(shape.last, state.readings[:-1]), shape.arcs(state.readings[-1])]
    rings = [shape.last(each) for each in state.lines]
    states = [
        ChannelState(DelayLine(ring.reshape(-1), len(ring)), own) for ring, own in zip(rings, readings, strict=True)
    ]
    ready, commands, memory, used = jax.tree.map(shape.last, (state.ready, state.commands, state.memory, state.used))
    return Scaling(ready, commands, memory, used, len(states) > 1), tuple(states)


def resolved(networks: Network, autoscaler: AbstractAutoscaler) -> AbstractAutoscaler:
    """With parameters that are scalars or `(batch, backends)`, checked."""
    if not isinstance(autoscaler, AbstractAutoscaler):
        raise InputError(f"{autoscaler!r} is no autoscaler: derive its class from AbstractAutoscaler.")
    return each_backend(networks, autoscaler, type(autoscaler).__name__)


def rows_of(autoscaler: AbstractAutoscaler, dt: np.ndarray, max_latency: float | None) -> int:
    """How many rows the delay line of commands has, or how many commands are kept.

    **Raises:** `InputError` for a start-up delay that is traced with no `max_latency` given, or an interval shorter than a step.
    """
    if not is_concrete(autoscaler.startup) and max_latency is None:
        raise InputError(
            f"{type(autoscaler).__name__}.startup is traced, so the size of its delay buffer is unknown: give max_latency=, a number of "
            "seconds that neither it nor a latency exceeds."
        )
    longest = max_latency if not is_concrete(autoscaler.startup) else np.max(np.asarray(autoscaler.startup))
    assert longest is not None
    if not isinstance(autoscaler, AbstractSampledAutoscaler):
        return rows_for(float(longest), float(dt.min()))
    if dt.max() > autoscaler.interval * (1 + _NEARLY):
        raise InputError(
            f"dt = {dt.max():.4g} s is longer than the interval of the autoscaler, {autoscaler.interval:.4g} s: use a dt that divides it."
        )
    decisions = float(longest) / autoscaler.interval - _NEARLY
    if decisions > MOST_DECISIONS:
        raise InputError(
            f"The start-up delay of the autoscaler is {float(longest):.4g} s, {decisions:.2g} intervals of {autoscaler.interval:.4g} s, "
            f"more than the {MOST_DECISIONS} decisions that can be kept: shorten it, or lengthen the interval."
        )
    return max(math.ceil(decisions), autoscaler.past) + 1


def _where(due: Bool[Array, " backend_lanes"], new: PyTree, old: PyTree) -> PyTree:
    return jax.tree.map(lambda one, other: jnp.where(due, one, other), new, old)
