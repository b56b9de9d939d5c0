"""The chain of stages and channels that a time step is, for a tile of networks: those of `step`, and more where something asks for them."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from dgdlb_jax.numerics import bits
from dgdlb_jax.numerics.delay import DelayedSystem, Each, Gather, StepContext, Sum
from dgdlb_jax.numerics.delay.line import split
from dgdlb_jax.simulation import autoscaled
from dgdlb_jax.simulation.attached import Attached
from dgdlb_jax.simulation.autoscaled import Scaler, Told
from dgdlb_jax.simulation.clock import Clock
from dgdlb_jax.simulation.dynamics import Arcs, Backends, Field
from dgdlb_jax.simulation.retries import (
    late_part,
    retry_delay,
)
from dgdlb_jax.simulation.state import (
    Routed,
    Seen,
    StepState,
    System,
    news_delay,
    news_shape,
    wire_delay,
    wire_shape,
)
from dgdlb_jax.simulation.statistics import Summary
from dgdlb_jax.simulation.step import answer, arrive, predict, route, route_by_own


def delayed_system(
    field: Field,
    clock: Clock,
    summary: Summary | None,
    rows: int,
    counts: bool,
    observe: Callable,
    attached: Attached | None = None,
    extensions: tuple[Gather, ...] = (),
    counts_own: bool = False,
    scaler: Scaler | None = None,
) -> DelayedSystem:
    """A tile of networks as a system with delays.

    **Arguments:** `counts`: whether the channel of flow carries counts; `attached`: what a user adds; `extensions`: the channels of the
    state variables among it; `counts_own`: whether own requests are counted, which takes a channel of answers, and arcs that arrive
    each by itself; `scaler`: the autoscaler, if any.
    """
    step = clock.frontends[0]
    delay = wire_delay(field, step)
    late = news_delay(field, step)
    news = Gather(late, news_shape(field).ends, rows)
    system = System(field, clock, summary, split(delay, rows)[1] if counts else None, attached, scaler)
    last = _last_stages(len(extensions), attached)
    if field.events is not None and field.events.timeout is not None:
        again = Sum(retry_delay(field, step), Each(field.feedback_latency.shape), rows, interpolates=False)
        flow = Sum(delay, Each(delay.shape), rows, interpolates=False)
        stages = (predict, route, partial(arrive_and_lose, rows=rows), collect)
        return DelayedSystem(system, (news, flow, again), stages, observe, support)
    before, seeing, answering, routing = (news,), (), answer, route
    if scaler is not None:
        seeing, more = autoscaled.channels(scaler, late, rows, clock.backends[0])
        before = (news, *more)
        answering, routing = answer_scaled, route_scaled
    if not counts_own:
        flow = Sum(delay, wire_shape(field).ends, rows, interpolates=not counts)
        return DelayedSystem(system, (*before, flow, *extensions), (predict, *seeing, routing, *last), observe, support)
    each = Each(delay.shape)
    answers = Sum(field.feedback_latency / step[None], each, rows)
    flow = Sum(delay, each, rows, interpolates=not counts)
    stages = (predict, *seeing, answering, route_by_own, *last)
    return DelayedSystem(system, (*before, answers, flow, *extensions), stages, observe, support)


def overflow(system: DelayedSystem) -> Bool[Array, " lanes"]:
    """In which lanes a latency does not fit the delay lines."""
    lanes = system.parameters.field.shape.lanes
    late = [channel.overflow.reshape(-1, lanes).any(0) for channel in system.channels]
    return jnp.stack(late).any(0)


def support(state: StepState) -> Array:
    """Where traffic goes, packed: often all that the reverse pass needs of a routing."""
    return bits.pack(state.routing > 0)


def answer_scaled(system: System, context: StepContext, told: Told, replicas: Arcs) -> tuple[Seen, Any]:
    """`answer` where an autoscaler moves replicas."""
    seen, sent = answer(system, context, told.held, told.seen)
    return seen._replace(replicas=replicas), sent


def route_scaled(system: System, context: StepContext, told: Told, replicas: Arcs) -> tuple[Routed, Any]:
    """`route` where an autoscaler moves replicas."""
    return route(system, context, told.held, told.seen, None, replicas)


def arrive_and_lose(
    system: System, context: StepContext, move: Routed, inflow: Float[Array, " wires"], *, rows: int
) -> tuple[StepState, Arcs]:
    """As `arrive`; and what failed backends lose in the step sets out for the frontends."""
    after, _ = arrive(system, context, move, inflow)
    assert after.retries is not None
    late = late_part(system.field, system.clock.frontends[0], rows)
    retries, entering = after.retries.enter(late)
    return replace(after, retries=retries), entering


def collect(
    system: System, context: StepContext, after: StepState, returned: Float[Array, " arcs"]
) -> tuple[StepState, None]:
    """What has come back, to be sent in the next step."""
    del context
    assert after.retries is not None
    back = jnp.sum(returned.reshape(system.field.shape.backends, -1), axis=0)
    return replace(after, retries=replace(after.retries, back=back)), None


def _last_stages(extensions: int, attached: Attached | None) -> tuple[Callable, ...]:
    """The stages behind the channel of flow: `arrive`, one more for every extension, and the statistics of the user's in the last."""
    if attached is None:
        return (arrive,)
    if not extensions:
        return (arrive_and_measure,)
    return (arrive_and_send, *(Extend(number) for number in range(extensions)))


class Arrived(NamedTuple):
    """What stages of extensions hand on: the state before the step, that after it as far as known, extensions by Euler."""

    now: StepState
    after: StepState
    ahead: list[PyTree]


def arrive_and_measure(
    system: System, context: StepContext, move: Routed, inflow: Float[Array, "*arcs"] | Backends
) -> tuple[StepState, None]:
    """As `arrive`, with statistics of the user's."""
    after, _ = arrive(system, context, move, inflow)
    return _measured(system, context.k, move.now, after), None


def arrive_and_send(
    system: System, context: StepContext, move: Routed, inflow: Float[Array, "*arcs"] | Backends
) -> tuple[Arrived, Any]:
    """As `arrive`; and what the first extension sends."""
    after, _ = arrive(system, context, move, inflow)
    plugins = system.plugins
    assert plugins is not None
    held = Arrived(move.now, after, plugins.predicted(context.k, move.now))
    return held, plugins.sent(0, context.k, *held)


@dataclass(frozen=True)
class Extend:
    """The stage of an extension: its state after the step; and what the next one sends."""

    number: int

    def __call__(self, system: System, context: StepContext, held: Arrived, reading: Array) -> tuple[Any, Any]:
        """From what the extension reads."""
        k, plugins = context.k, system.plugins
        assert plugins is not None
        moved = plugins.moved(self.number, k, *held, reading)
        extended = tuple(moved if n == self.number else own for n, own in enumerate(held.after.extended))
        held = held._replace(after=eqx.tree_at(lambda s: s.extended, held.after, extended))
        if self.number + 1 < len(extended):
            return held, plugins.sent(self.number + 1, k, *held)
        return _measured(system, k, held.now, held.after), None


def _measured(system: System, k: Int[Array, ""], now: StepState, after: StepState) -> StepState:
    assert system.plugins is not None
    return eqx.tree_at(lambda s: s.measured, after, system.plugins.measure(k, now, after))
