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
from functools import partial
from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from dgdlb_jax.numerics import bits
from dgdlb_jax.numerics.delay import StepContext, hold
from dgdlb_jax.numerics.delay.line import interpolate
from dgdlb_jax.numerics.simplex import hold_on_simplex, project_simplex
from dgdlb_jax.policies.base import Observation, State
from dgdlb_jax.policies.static import proportional
from dgdlb_jax.simulation.clock import Lanes, length, time
from dgdlb_jax.simulation.dynamics import Arcs, Backends, Field, Frontends, PerArc
from dgdlb_jax.simulation.retries import (
    by_arc,
    lost_for_a_while,
    returns,
    waiting_cost,
)
from dgdlb_jax.simulation.state import (
    Answers,
    Predicted,
    Routed,
    Seen,
    StepState,
    System,
)
from dgdlb_jax.simulation.tile_statistic import higher, set_by
from dgdlb_jax.simulation.timeline import Survival, total


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


def route_by_own(
    system: System, context: StepContext, seen: Seen, returned: Float[Array, "*arcs"]
) -> tuple[Routed, Any]:
    """`route` for a policy that looks at its own requests, when so many answers come in."""
    answers = Answers(seen.left, returned.reshape(seen.left.shape))
    return route(system, context, seen.held, seen.seen, answers, seen.replicas)


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
    flow = field.arrival_rate(t)[None] * routing
    flow = flow if extra is None else flow + extra
    move = Routed(now, held.workload, routing, velocity, policy, flow, answers=answers, ready=held.ready)
    if system.late is None or now.tail is None:
        return move, (now.flow, flow)
    dispatched = partial(_dispatched, system, k, now, routing, extra)
    if field.events is None or not field.events.links:
        sent, first = dispatched(jnp.ones_like(t)[None]), dispatched(1 - system.late)
        return move._replace(sent=sent, tail=sent - first), now.tail + first
    # In the shape of wires, arc by arc: rounded in the same way as on them, so that a link that is intact loses nothing.
    sent, begin = dispatched(jnp.ones_like(routing)), time(k, clock.frontends)
    by_wire = partial(field.events.sent_by_wire, field.events.what_arrives(dispatched, begin, step), begin, step)
    wired, first = by_wire(jnp.ones_like(system.late)), jnp.concatenate(by_wire(1 - system.late), axis=-1)
    return move._replace(sent=sent, wired=wired, tail=jnp.concatenate(wired, axis=-1) - first), now.tail + first


def arrive(
    system: System, context: StepContext, move: Routed, inflow: Float[Array, "*arcs"] | Backends
) -> tuple[StepState, None]:
    """The state after the step: workloads by the trapezoidal rule, and what is summed up; `inflow` comes on arcs where own requests are
    counted."""
    shape, clock, now, k, recorded = system.field.shape, system.clock, move.now, context.k, context.recorded
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
        again = retries.back[None] * (now.routing + move.routing) / 2
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
    peak = higher(now.peak, workload) if end is None else set_by(now.peak, workload, end.peak)
    scaling = None
    if now.scaling is not None and system.scaler is not None and move.ready is not None:
        rate = system.rate(k, k + 1, workload, _extensions_ahead(system, k, now), move.ready)
        ends = (now.workload, workload), (first, rate)
        scaling = system.scaler.after(k, clock, now.scaling, move.ready, *ends)
    sums = None
    if system.summary is not None and now.sums is not None:
        scalings = None if now.scaling is None or scaling is None else (now.scaling, scaling)
        sums = system.summary.add(
            now.sums, k, clock, sent, (before, workload), scaling=scalings, detour=detour, end=end and end.sums
        )
    after = StepState(
        routing=move.routing, workload=workload, flow=move.flow, inflow=inflow, velocity=move.velocity, policy=move.policy,
        peak=peak, in_flight=in_flight, sums=sums, tail=move.tail, measured=now.measured, extended=now.extended, own=own,
        lost=lost, reported=reported, left=left, retries=retries, scaling=scaling,
    )  # fmt: skip
    return after, None


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
    system: System, k: Int[Array, ""], now: StepState, routing: Arcs, extra: Arcs | None, part: PerArc
) -> Arcs:
    """What is sent in the first part of a step, over the length of all of it; routing and extra flow move on straight lines."""
    field, clock = system.field, system.clock.frontends
    start, step = time(k, clock), length(k, clock)
    besides = now.flow - field.arrival_rate(start)[None] * now.routing
    extra = jnp.zeros_like(besides) if extra is None else extra
    middle = lambda before, after: interpolate(before, after, part / 2)
    routed = part * field.mean_arrival_rate(start, step, part) * middle(now.routing, routing)
    if field.events is not None and field.events.closing:
        routed = _routed_around(field, start, step, part, now.routing, routing, routed)
    if now.retries is not None:
        routed = routed + part * now.retries.back[None] * middle(now.routing, routing)
    return routed + part * middle(besides, extra)


def _routed_around(
    field: Field, start: Frontends, step: Frontends, part: PerArc, before: Arcs, after: Arcs, straight: Arcs
) -> Arcs:
    """What is sent in the first part of a step in which arcs close or open: by the old routing until then, by the new one from then on.
    It is `straight` where none does."""
    assert field.events is not None
    count, place = field.events.turn(start, step, field.mask)
    first = jnp.minimum(part, place[None])
    sent = lambda until: until * field.mean_arrival_rate(start, step, until)
    split = sent(first) * before + (sent(part) - sent(first)) * after
    return jnp.where(count > 0, split, straight)


def _until_arcs_change(field: Field, now: StepState, start: Frontends, step: Frontends, weight: PerArc) -> Arcs:
    """The routing after the first part of a step; on the simplex of the arcs that were open until then, if some close or open."""
    assert now.velocity is not None
    moved = now.routing + step[None] * weight * now.velocity
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
    expected = project_simplex(now.routing + step[None] * now.velocity, open_arcs, guess)
    observation = observe()
    velocity, policy = field.velocity(t, expected, observation, now.policy)
    weight = field.weight_of_start(t - step, step)
    if weight is None:
        target = now.routing + step[None] / 2 * (now.velocity + velocity)
    else:
        start = _until_arcs_change(field, now, t - step, step, weight)
        target = start + step[None] * (1 - weight) * velocity
    if context.recorded is None:
        return project_simplex(target, open_arcs, guess), velocity, policy
    known = context.recorded.after.routing, bits.unpack(context.recorded.memo, len(target))
    return hold_on_simplex(target, *known), velocity, policy
