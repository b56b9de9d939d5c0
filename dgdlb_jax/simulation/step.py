r"""One time step, of second order, as a chain of local stages with two channels between them (see `numerics.delay`).

From `t_k` to `t_{k+1}`, for delays that are any real number of steps, shorter than one and zero included:

1. `predict` the workload by Euler, and send it to the frontends (`news`: every arc reads its backend after the feedback latency);
2. `route`: move the routing with the mean of old and new velocity, and project once (an instant policy jumps); send the flow to the
   backends (`flow`: summed over the arcs of a backend, after the latency);
3. `arrive`: move the workload by the trapezoidal rule, and sum up what is summed up along the way.

Where demand jumps, rates at grid points say little of what is sent in a step, and the channel of flow carries *counts* instead: row k+1
holds what is sent on an arc between `t_k` and `t_{k+1}` less the fraction of a step, which arrives in one step. Everything that
arrives does so exactly when it should, whatever dt is.

Where the policy looks at its frontend's own requests, a stage between 1 and 2 sends the `answers` back, and flow arrives arc by arc (see
`own`). Where an autoscaler moves replicas, stages before that send commands to their backends and news of replicas to the frontends (see
`autoscaled`).

The stages know of no delay. In the reverse pass they are told what the run has recorded (`context.recorded`), so that nothing is
computed again that is known: the routing by its support, the workload, and which workload was the extreme one in the end.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from dgdlb_jax.numerics import bits
from dgdlb_jax.numerics.delay import DelayedSystem, Each, Gather, StepContext, Sum, hold
from dgdlb_jax.numerics.delay.line import interpolate, split
from dgdlb_jax.numerics.simplex import hold_on_simplex, project_simplex
from dgdlb_jax.policies.base import Observation, State
from dgdlb_jax.policies.static import proportional
from dgdlb_jax.simulation import autoscaled
from dgdlb_jax.simulation.attached import Applied, Attached, Extended
from dgdlb_jax.simulation.autoscaled import Scaler, Scaling, Told
from dgdlb_jax.simulation.clock import Clock, Lanes, length, time
from dgdlb_jax.simulation.dynamics import Arcs, Backends, Field, Frontends
from dgdlb_jax.simulation.lanes import Shape
from dgdlb_jax.simulation.own import OwnRequests
from dgdlb_jax.simulation.replica_sums import add_step
from dgdlb_jax.simulation.retries import (
    Retries,
    by_arc,
    late_part,
    lost_for_a_while,
    retry_delay,
    returns,
    waiting_cost,
)
from dgdlb_jax.simulation.summary import Sums, Window, higher, set_by
from dgdlb_jax.simulation.timeline import Left, Survival, Wires, total


class System(eqx.Module):
    """Everything that stays the same from step to step; `late`: where the channel of flow carries counts, the fraction of a step in
    every latency."""

    field: Field
    clock: Clock
    window: Window | None
    late: Wires | None
    attached: Attached | None = None
    scaler: Scaler | None = None

    def rate(
        self,
        k: Int[Array, ""],
        at: Int[Array, ""],
        workload: Backends,
        extensions: list[PyTree],
        ready: Backends | None,
        of: Callable = Field.service_rate,
    ) -> Backends:
        """A service rate at one end of step k, with extensions in these states and so many replicas; `of`: all requests of a backend, or
        each."""
        clock = self.clock.backends
        replicas = None if self.scaler is None or ready is None else self.scaler.factor(ready)
        rate = of(self.field, time(at, clock), workload, (time(k, clock), length(k, clock)), replicas)
        factor = self.plugins.factor(extensions) if self.plugins is not None else None
        return rate if factor is None else factor * rate

    @property
    def plugins(self) -> Applied | None:
        """What a user has added, None if nothing."""
        return None if self.attached is None else Applied(self.field, self.clock, self.attached, self.scaler)


class StepState(eqx.Module):
    """What changes from step to step, the channels apart. Few arrays and no scalars: many small ones are slow in XLA's loops."""

    routing: Arcs
    workload: Backends
    flow: Arcs
    inflow: Backends
    velocity: Arcs | None
    policy: State
    peak: Backends
    in_flight: Lanes | None
    sums: Sums | None
    tail: Wires | None = None  # of a channel that carries counts: what of the last step arrives a step after the rest
    measured: tuple[PyTree, ...] = ()  # by statistics of the user's
    extended: tuple[Extended, ...] = ()  # by state variables of the user's
    own: OwnRequests | None = None  # where the policy looks at them
    lost: Backends | None = None  # with events: requests lost since the start
    reported: Backends | None = None  # with events: the workload as frontends hear of it
    left: Left | None = None  # where news changes its ways: what was reported then
    retries: Retries | None = None  # with events: what backends that failed have lost for a while
    scaling: Scaling | None = None  # with an autoscaler

    @property
    def ready(self) -> Backends | None:
        """Replicas that serve, where an autoscaler moves them."""
        return None if self.scaling is None else self.scaling.ready


class Predicted(NamedTuple):
    """What `predict` hands on; with an autoscaler, `ready`: replicas at the end of the step."""

    now: StepState
    workload: Backends
    ready: Backends | None = None


class Seen(NamedTuple):
    """What `answer` hands on: what frontends see of workloads (and replicas), and the rate at which own requests are answered in the
    step."""

    held: Predicted
    seen: Arcs
    left: Arcs
    replicas: Arcs | None = None


class Answers(NamedTuple):
    """Of own requests: the rates at which they leave backends in the step, and at which answers reach frontends."""

    left: Arcs
    returned: Arcs


class Routed(NamedTuple):
    """What `route` hands on; with counts, `sent`: what is sent in the step, requests/s, and the `tail` of it; with events that concern
    links, `wired`: what of it is on each wire."""

    now: StepState
    predicted: Backends
    routing: Arcs
    velocity: Arcs | None
    policy: State
    flow: Arcs
    sent: Arcs | None = None
    tail: Wires | None = None
    answers: Answers | None = None
    wired: list[Arcs] | None = None
    ready: Backends | None = None


def delayed_system(
    field: Field,
    clock: Clock,
    window: Window | None,
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
    system = System(field, clock, window, split(delay, rows)[1] if counts else None, attached, scaler)
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
    answers = Sum(field.feedback_latency / step, each, rows)
    flow = Sum(delay, each, rows, interpolates=not counts)
    stages = (predict, *seeing, answering, route_by_own, *last)
    return DelayedSystem(system, (*before, answers, flow, *extensions), stages, observe, support)


def flow_channel(state: StepState) -> int:
    """Which channel is that of flow."""
    return 1 + (state.own is not None) + (0 if state.scaling is None else state.scaling.channels)


def wire_shape(field: Field) -> Shape:
    """The sizes of a tile of wires: as many as there are arcs, or more where events change latencies."""
    return (
        field.shape
        if field.events is None
        else replace(field.shape, frontends=field.events.wires * field.shape.frontends)
    )


def wire_delay(field: Field, step: Frontends) -> Wires:
    """The latency of every wire in steps."""
    delay = field.latency / step
    return delay if field.events is None else field.events.by_wire(delay)


def news_shape(field: Field) -> Shape:
    """The sizes of a tile of ways of news: as many as there are arcs, or more where events change their latencies."""
    ways = 1 if field.events is None else field.events.ways_of_news
    return replace(field.shape, frontends=ways * field.shape.frontends)


def news_delay(field: Field, step: Frontends) -> Wires:
    """The latency of every way of news in steps."""
    if field.events is None or field.events.news is None:
        return field.feedback_latency / step
    return jnp.concatenate([*(field.events.news.values / step)], axis=-1)


def overflow(system: DelayedSystem) -> Bool[Array, " lanes"]:
    """In which lanes a latency does not fit the delay lines."""
    lanes = system.parameters.field.shape.lanes
    late = [channel.overflow.reshape(-1, lanes).any(0) for channel in system.channels]
    return jnp.stack(late).any(0)


def support(state: StepState) -> Array:
    """Where traffic goes, packed: often all that the reverse pass needs of a routing."""
    return bits.pack(state.routing > 0)


def predict(system: System, context: StepContext, now: StepState, received: None) -> tuple[Predicted, Any]:
    """The workload one step ahead, by Euler."""
    del received
    k, extensions = context.k, [own.state for own in now.extended]
    if now.scaling is not None:
        assert system.scaler is not None
        rate = system.rate(k, k, now.workload, extensions, now.ready)
        decided = system.scaler.decided(k, system.clock.backends, now.scaling, now.workload, rate)
        now = eqx.tree_at(lambda s: s.scaling, now, decided)
    served = system.rate(k, k, now.workload, extensions, now.ready)
    events, step = system.field.events, length(k, system.clock.backends)
    running = 1.0 if events is None else events.running(time(k, system.clock.backends), step)
    predicted = now.workload + running * step * (now.inflow - served)
    if context.recorded is not None:
        predicted = hold(predicted, context.recorded.predicted)
    return Predicted(now, predicted), (now.workload if now.reported is None else now.reported, predicted)


def answer(system: System, context: StepContext, held: Predicted, seen: Arcs) -> tuple[Seen, Any]:
    """Own requests that backends answer in the step: known before those that arrive in it, as the workload predicted is."""
    now, k = held.now, context.k
    assert now.own is not None
    (served, ahead), spread = (
        _at_both_ends(system, k, now, held, Field.rate_per_request),
        system.field.shape.spread,
    )
    left = now.own.leaving(length(k, system.clock.frontends), spread(served), spread(ahead))
    return Seen(held, seen, left), (now.own.left, left)


def answer_scaled(system: System, context: StepContext, told: Told, replicas: Arcs) -> tuple[Seen, Any]:
    """`answer` where an autoscaler moves replicas."""
    seen, sent = answer(system, context, told.held, told.seen)
    return seen._replace(replicas=replicas), sent


def route_by_own(
    system: System, context: StepContext, seen: Seen, returned: Float[Array, "*arcs"]
) -> tuple[Routed, Any]:
    """`route` for a policy that looks at its own requests, when so many answers come in."""
    answers = Answers(seen.left, returned.reshape(seen.left.shape))
    return route(system, context, seen.held, seen.seen, answers, seen.replicas)


def route_scaled(system: System, context: StepContext, told: Told, replicas: Arcs) -> tuple[Routed, Any]:
    """`route` where an autoscaler moves replicas."""
    return route(system, context, told.held, told.seen, None, replicas)


def route(
    system: System,
    context: StepContext,
    held: Predicted,
    seen: Arcs,
    answers: Answers | None = None,
    replicas: Arcs | None = None,
) -> tuple[Routed, Any]:
    """What the frontends do when they see these workloads, and replicas where they move; the input of a frame is flow that is sent at its
    end besides."""
    field, clock, now, k = system.field, system.clock, held.now, context.k
    t, step = time(k + 1, clock.frontends), length(k, clock.frontends)
    seen = seen if field.events is None else field.events.newest(seen, now.left, t)
    extra = None if context.input is None else jnp.where(context.ends_frame, context.input, 0)
    outstanding = jnp.zeros_like(seen)
    if now.own is not None and answers is not None:
        outstanding = now.own.ahead(step, now.flow, answers.returned)
    observe = partial(field.observe, t, seen, outstanding, step, replicas)
    routing, velocity, policy = _route(field, now, t, step, observe, context)
    flow = field.arrival_rate(t) * routing
    flow = flow if extra is None else flow + extra
    move = Routed(now, held.workload, routing, velocity, policy, flow, answers=answers, ready=held.ready)
    if system.late is None or now.tail is None:
        return move, (now.flow, flow)
    dispatched = partial(_dispatched, system, k, now, routing, extra)
    sent, begin = dispatched(jnp.ones_like(t)), time(k, clock.frontends)
    if field.events is None or not field.events.links:
        first = dispatched(1 - system.late)
        return move._replace(sent=sent, tail=sent - first), now.tail + first
    by_wire = partial(field.events.sent_by_wire, field.events.what_arrives(dispatched, begin, step), begin, step)
    wired, first = by_wire(jnp.ones_like(system.late)), jnp.concatenate(by_wire(1 - system.late), axis=-1)
    return move._replace(sent=sent, wired=wired, tail=jnp.concatenate(wired, axis=-1) - first), now.tail + first


def arrive(
    system: System, context: StepContext, move: Routed, inflow: Float[Array, "*arcs"] | Backends
) -> tuple[StepState, None]:
    """The state after the step: workloads by the trapezoidal rule, and what is summed up; `inflow` comes on arcs where own requests are
    counted."""
    shape, clock, window = system.field.shape, system.clock, system.window
    now, k, recorded = move.now, context.k, context.recorded
    step_f, step_b = length(k, clock.frontends), length(k, clock.backends)
    own = None
    if now.own is not None and move.answers is not None:
        arriving = inflow.reshape(now.routing.shape)
        sent = (now.flow + move.flow) / 2 if move.sent is None else move.sent
        arrived = (now.own.arriving + arriving) / 2 if move.sent is None else arriving
        own = now.own.after(step_f, sent, arrived, arriving, *move.answers)
        inflow = shape.arrivals(arriving)
    arcs = None
    if now.retries is not None:
        arcs = by_arc(system.field, inflow)
        inflow = shape.arrivals(arcs)
    if move.sent is None:
        sent, arrived = now.flow + move.flow, now.inflow + inflow  # twice the mean of the step
    else:
        sent, arrived = 2 * move.sent, 2 * inflow
    first, last = _at_both_ends(system, k, now, move, Field.service_rate)
    served = first + last  # twice the mean, as above
    before, lost, reported, carried, detour = now.workload, now.lost, now.reported, sent, None
    gone = failed = jnp.zeros_like(before)
    if system.field.events is None:
        workload = now.workload + step_b / 2 * (arrived - served)
    else:
        (workload, gone, reported, before), failed, carried, detour = _through_events(
            system, k, move, sent, arrived, served
        )
        lost = gone if lost is None else lost + gone
    left = now.left
    if system.field.events is not None and left is not None:
        first = now.workload if now.reported is None else now.reported
        ends = shape.spread(first), shape.spread(workload if reported is None else reported)
        left = system.field.events.leave(left, time(k, clock.frontends), step_f, *ends)
    if recorded is not None:
        workload = hold(workload, recorded.after.workload)
    in_flight, retries = now.in_flight, now.retries
    if retries is not None and arcs is not None and lost is not None:
        # Requests count once, when they are sent first; while they wait to be sent again they are under way.
        again = retries.back * (now.routing + move.routing) / 2
        returning = lost_for_a_while(system.field, failed, arcs)
        for_good = gone - failed + jnp.where(returns(system.field), 0, failed)
        lost, sent = for_good if now.lost is None else now.lost + for_good, sent - 2 * again
        retries = retries.after(step_f, returning)
        carried = carried + 2 * (retries.lost - again)
        cost = 2 * shape.per_lane(waiting_cost(system.field, retries, again))
        detour = cost if detour is None else detour + cost
    if in_flight is not None:
        gained = shape.per_lane(jnp.sum(carried, axis=0)) - shape.per_lane(arrived)
        in_flight = in_flight + length(k, clock.lanes) / 2 * gained
    end = None if recorded is None else recorded.end
    sums = None
    if window is not None and now.sums is not None:
        sums = window.add(now.sums, k, step_f, step_b, sent, before, workload, end and end.sums)
        sums = window.add_detour(sums, k, length(k, clock.lanes), detour)
    peak = higher(now.peak, workload) if end is None else set_by(now.peak, workload, end.peak)
    scaling = None
    if now.scaling is not None and system.scaler is not None and move.ready is not None:
        rate = system.rate(k, k + 1, workload, _extensions_ahead(system, k, now), move.ready)
        ends = (now.workload, workload), (first, rate)
        scaling = system.scaler.after(k, clock, now.scaling, move.ready, *ends)
        scaling = add_step(window, k, step_b, now.scaling, scaling, end and end.scaling)
    after = StepState(
        routing=move.routing, workload=workload, flow=move.flow, inflow=inflow, velocity=move.velocity, policy=move.policy,
        peak=peak, in_flight=in_flight, sums=sums, tail=move.tail, measured=now.measured, extended=now.extended, own=own,
        lost=lost, reported=reported, left=left, retries=retries, scaling=scaling,
    )  # fmt: skip
    return after, None


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


def _through_events(
    system: System, k: Int[Array, ""], move: Routed, sent: Arcs, arrived: Backends, served: Backends
) -> tuple[Survival, Backends, Arcs, Lanes | None]:
    """What a step with events leaves; what backends that failed have lost in it; what of `sent` is on the wires; what is charged for
    other latencies than the first. Rates are twice their means."""
    field, clock, events = system.field, system.clock.backends, system.field.events
    assert events is not None
    step = length(k, clock)
    left = events.survive((time(k, clock), time(k + 1, clock)), step, move.now.workload, arrived, served)
    if move.wired is None:
        return left, left.lost, sent, None
    carried = 2 * total(move.wired)
    lost = left.lost + step / 2 * field.shape.arrivals(sent - carried)
    detour = jnp.sum(2 * events.detour(move.wired) * field.cost_latency, axis=0)
    return left._replace(lost=lost), left.lost, carried, field.shape.per_lane(detour)


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


def _at_both_ends(
    system: System, k: Int[Array, ""], now: StepState, held: Predicted | Routed, of: Callable
) -> tuple[Backends, Backends]:
    """A service rate at the two ends of step k, at its end with the workload predicted."""
    predicted = held.workload if isinstance(held, Predicted) else held.predicted
    states = [own.state for own in now.extended]
    first = system.rate(k, k, now.workload, states, now.ready, of)
    return first, system.rate(k, k + 1, predicted, _extensions_ahead(system, k, now), held.ready, of)


def _extensions_ahead(system: System, k: Int[Array, ""], now: StepState) -> list[PyTree]:
    """The states of extensions at the end of step k, as predicted."""
    return [] if system.plugins is None else system.plugins.predicted(k, now)


def _dispatched(
    system: System, k: Int[Array, ""], now: StepState, routing: Arcs, extra: Arcs | None, part: Arcs | Frontends
) -> Arcs:
    """What is sent in the first part of a step, over the length of all of it; routing and extra flow move on straight lines."""
    field, clock = system.field, system.clock.frontends
    start, step = time(k, clock), length(k, clock)
    besides = now.flow - field.arrival_rate(start) * now.routing
    extra = jnp.zeros_like(besides) if extra is None else extra
    middle = lambda before, after: interpolate(before, after, part / 2)
    routed = part * field.mean_arrival_rate(start, step, part) * middle(now.routing, routing)
    if field.events is not None and field.events.closing:
        routed = _routed_around(field, start, step, part, now.routing, routing, routed)
    if now.retries is not None:
        routed = routed + part * now.retries.back * middle(now.routing, routing)
    return routed + part * middle(besides, extra)


def _routed_around(
    field: Field, start: Frontends, step: Frontends, part: Arcs | Frontends, before: Arcs, after: Arcs, straight: Arcs
) -> Arcs:
    """What is sent in the first part of a step in which arcs close or open: by the old routing until then, by the new one from then on.
    It is `straight` where none does."""
    assert field.events is not None
    count, place = field.events.turn(start, step, field.mask)
    first = jnp.minimum(part, place)
    sent = lambda until: until * field.mean_arrival_rate(start, step, until)
    split = sent(first) * before + (sent(part) - sent(first)) * after
    return jnp.where(count > 0, split, straight)


def _until_arcs_change(
    field: Field, now: StepState, start: Frontends, step: Frontends, weight: Arcs | Frontends
) -> Arcs:
    """The routing after the first part of a step; on the simplex of the arcs that were open until then, if some close or open."""
    assert now.velocity is not None
    moved = now.routing + step * weight * now.velocity
    if field.events is None or not field.events.closing:
        return moved
    count, _ = field.events.turn(start, step, field.mask)
    return jnp.where(count > 0, project_simplex(moved, field.open_arcs(start), now.routing > 0), moved)


def _route(
    field: Field,
    now: StepState,
    t: Frontends,
    step: Frontends,
    observe: Callable[[], Observation],
    context: StepContext,
) -> tuple[Arcs, Arcs | None, State]:
    guess, open_arcs = now.routing > 0, field.open_arcs(t)
    if now.velocity is None:
        observation = observe()
        routing, policy = field.route(t, observation, now.policy)
        routing = jnp.where(open_arcs, routing, 0) if field.events is None else proportional(routing, open_arcs)
        return jnp.where(step > 0, routing, now.routing), None, policy
    # Only rules that look at their own routing need this prediction; for the others XLA removes it.
    expected = project_simplex(now.routing + step * now.velocity, open_arcs, guess)
    observation = observe()
    velocity, policy = field.velocity(t, expected, observation, now.policy)
    weight = field.weight_of_start(t - step, step)
    if weight is None:
        target = now.routing + step / 2 * (now.velocity + velocity)
    else:
        start = _until_arcs_change(field, now, t - step, step, weight)
        target = start + step * (1 - weight) * velocity
    if context.recorded is None:
        return project_simplex(target, open_arcs, guess), velocity, policy
    known = context.recorded.after.routing, bits.unpack(context.recorded.memo, len(target))
    return hold_on_simplex(target, *known), velocity, policy
