"""One time step of whole requests: a chain of three stages with two channels between them (see `numerics.delay`).

From `t_k` to `t_{k+1}`:

1. `report`: the workload at `t_k` goes to the frontends (`news`);
2. `dispatch`: routing lives at half steps. A policy with a velocity makes a leapfrog step with the news of `t_k`, one that jumps sees the
   news of the middle of the step. So the shares of a step are those of its middle, of second order without a prediction. The requests of
   a step are a Poisson number, thinned by the shares: every arc draws its own. Since a latency ends within a step, some of them arrive as
   many steps later as it has whole ones, the others one step after that. Together with the others of the step before they are one
   Poisson number: nobody sees which is which, and those others count as sent a step later;
3. `serve`: those that arrive join, and each request leaves with the probability that `hazard` says.

With `count="backend"` arrivals are drawn where they arrive, from the mean of what was sent: one number per backend in place of one per
arc. Parts of a Poisson stream that are thinned independently are independent, and nobody sees the wires, so the law of the workloads is
the same; what is on the wires is then a mean. With `count="own"` requests are counted until the answer is back (see `own`), each from
the step in which it was sent: two numbers per arc. Recorded arrivals are not drawn: the requests of a step are as many as the demand
adds up to, and it is drawn where each of them goes (see `sharing`).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from dgdlb_jax.numerics.delay import DelayedSystem, Each, Gather, StepContext, Sum
from dgdlb_jax.numerics.delay.line import split
from dgdlb_jax.numerics.sampling import binomial, poisson
from dgdlb_jax.numerics.simplex import project_simplex
from dgdlb_jax.policies.base import Observation, State
from dgdlb_jax.simulation.clock import Clock, Lanes, length, time
from dgdlb_jax.simulation.dynamics import Arcs, Backends, Field, Frontends
from dgdlb_jax.simulation.requests.blocks import Blocks, ended_part
from dgdlb_jax.simulation.requests.cohorts import Cohorts, Following, follow
from dgdlb_jax.simulation.requests.counting import Counting
from dgdlb_jax.simulation.requests.hazard import chances, hazard_of_step
from dgdlb_jax.simulation.requests.own import OwnCounts, age_of_answers, leaving, one_by_one, send_back
from dgdlb_jax.simulation.requests.sharing import shared_out, whole
from dgdlb_jax.simulation.requests.streams import Purpose, Streams
from dgdlb_jax.simulation.statistics import Summary, costs_in
from dgdlb_jax.simulation.tile_statistic import higher


class RequestSystem(eqx.Module):
    """Everything that stays the same from step to step; `late`: the fraction of a step in every latency; `bounds`: first and last step
    of the window in which statistics count."""

    field: Field
    clock: Clock
    summary: Summary
    bounds: tuple[Int[Array, ""], Int[Array, ""]]
    streams: Streams
    late: Arcs
    following: Following | None
    counting: Counting = eqx.field(static=True)
    back: Arcs | None = None  # where own requests are counted: the fraction of a step in the age of every answer


class RequestState(eqx.Module):
    """What changes from step to step, the channels apart. Counts are whole numbers, held as floating-point ones."""

    routing: Arcs
    workload: Backends
    policy: State
    tail: Arcs  # of what was sent in the last step: what comes a step after the rest, or its mean
    in_flight: Lanes | None  # only where it is saved
    peak: Backends
    sums: tuple[PyTree, ...]
    blocks: Blocks
    cohorts: Cohorts | None
    own: OwnCounts | None = None
    due: Frontends | None = None  # of recorded arrivals: the part of a request that has come, and not been sent


class Seen(NamedTuple):
    """What `answer` hands on."""

    now: RequestState
    seen: Arcs


class Dispatched(NamedTuple):
    """What `dispatch` hands on."""

    now: RequestState
    routing: Arcs
    policy: State
    sent: Arcs
    tail: Arcs


def request_system(
    field: Field,
    clock: Clock,
    summary: Summary,
    bounds: tuple[Int[Array, ""], Int[Array, ""]],
    rows: int,
    streams: Streams,
    following: Following | None,
    counting: Counting,
    observe: Callable,
) -> DelayedSystem:
    """A tile of networks as a system with delays."""
    step, ends = clock.frontends[0], field.shape.ends
    delay = field.latency / step[None]
    # What a stage receives in step k has the age that it would have at t_{k+1}.
    news = Gather(_age_of_news(field, step), ends, rows)
    each = Each(delay.shape)
    flow = Sum(delay, each if counting.own else ends, rows, interpolates=False)
    age = age_of_answers(field, step)
    system = RequestSystem(
        field, clock, summary, bounds, streams, split(delay, rows)[1], following, counting,
        split(age, rows)[1] if counting.own else None,
    )  # fmt: skip
    if not counting.own:
        return DelayedSystem(system, (news, flow), (report, dispatch, serve), observe)
    answers = Sum(age, each, rows, interpolates=False)
    return DelayedSystem(system, (news, answers, flow), (report, answer, dispatch_by_own, serve), observe)


def _age_of_news(field: Field, step: Frontends) -> Arcs:
    """In steps before the end of a step: seen from its start by a rule that moves, from its middle by one that jumps."""
    age = field.feedback_latency / step[None] + (1 if field.flows else 0.5)
    return jnp.maximum(age, 1)  # the workload of t_k is the latest that there is


def report(system: RequestSystem, context: StepContext, now: RequestState, received: None) -> tuple[RequestState, Any]:
    """The workload; there is no prediction, and nothing reads one."""
    del system, context, received
    return now, (now.workload, now.workload)


def answer(system: RequestSystem, context: StepContext, now: RequestState, seen: Arcs) -> tuple[Seen, Arcs]:
    """The answers that are on their way back."""
    assert now.own is not None
    assert system.back is not None
    own, sent = send_back(now.own, system.streams, context.k, system.back)
    return Seen(eqx.tree_at(lambda s: s.own, now, own), seen), sent


def dispatch_by_own(
    system: RequestSystem, context: StepContext, held: Seen, returned: Float[Array, " arcs"]
) -> tuple[Dispatched, Arcs]:
    """`dispatch`, when these answers come in."""
    now, k = held.now, context.k
    assert now.own is not None
    count = now.own.count - returned.reshape(held.seen.shape)
    now = eqx.tree_at(lambda s: s.own.count, now, count)
    if not system.counting.one_by_one:
        return dispatch(system, context, now, held.seen)
    field, clock = system.field, system.clock.frontends
    start, step = time(k, clock), length(k, clock)
    observation = _observed(system, now, k, held.seen)
    routing, policy = _route(system, now, k, observation)
    mean = step * field.mean_arrival_rate(start, step, jnp.ones_like(start)[None])[0]
    sent, late = one_by_one(field, system.streams, k, start + step / 2, observation, policy, mean, 1 - system.late)
    return Dispatched(now, routing, policy, sent, late), now.tail + sent - late


def dispatch(system: RequestSystem, context: StepContext, now: RequestState, seen: Arcs) -> tuple[Dispatched, Arcs]:
    """What the frontends send in the step when they see these workloads."""
    field, clock, k = system.field, system.clock.frontends, context.k
    start, step = time(k, clock), length(k, clock)
    routing, policy = _route(system, now, k, _observed(system, now, k, seen))
    part = 1 - system.late
    all_of_it = jnp.ones_like(start)[None]
    mean = step[None] * field.mean_arrival_rate(start, step, all_of_it) * routing
    mean_soon = part * step[None] * field.mean_arrival_rate(start, step, part) * routing
    mean_late = jnp.maximum(mean - mean_soon, 0)
    if not system.counting.arcs:
        return Dispatched(now, routing, policy, mean_soon + mean_late, mean_late), now.tail + mean_soon
    if system.counting.recorded:
        come = step * field.mean_arrival_rate(start, step, all_of_it)[0]
        number, due = whole(now.due, come)
        u, v = system.streams.for_arcs(k, Purpose.dispatch)
        sent = shared_out(u, number, routing)
        soon = binomial(v, sent, part, system.late).astype(mean.dtype)
        return Dispatched(eqx.tree_at(lambda s: s.due, now, due), routing, policy, sent, sent - soon), now.tail + soon
    if not system.counting.own:
        u = system.streams.one_for_arcs(k, Purpose.dispatch)
        sent = poisson(u, now.tail + mean_soon).astype(mean.dtype)
        return Dispatched(now, routing, policy, sent, mean_late), sent
    u, v = system.streams.for_arcs(k, Purpose.dispatch)
    soon, late = (poisson(*pair).astype(mean.dtype) for pair in ((u, mean_soon), (v, mean_late)))
    return Dispatched(now, routing, policy, soon + late, late), now.tail + soon


def serve(
    system: RequestSystem, context: StepContext, move: Dispatched, arriving: Float[Array, "*arcs"] | Backends
) -> tuple[RequestState, None]:
    """The state after the step: who has arrived, who was answered, and what is summed up; arrivals come on arcs where own requests
    are counted."""
    field, clock, now, k = system.field, system.clock.backends, move.now, context.k
    shape, step, n = field.shape, length(k, clock), now.workload
    u, v = system.streams.for_backends(k, Purpose.arrive)
    arcs = arriving.reshape(move.sent.shape) if system.counting.own else None
    arriving = arriving if arcs is None else shape.arrivals(arcs)
    arrived = arriving if system.counting.arcs else poisson(u, arriving).astype(n.dtype)
    middle = time(k, clock) + step / 2
    hazard, rate = hazard_of_step(field, middle, step, n, arrived, v < 0.5)
    chance = chances(hazard)
    own = now.own
    if own is not None and arcs is not None:
        from_old, from_new = leaving(field, own, system.streams, k, arcs, chance)
        old, new, left = shape.arrivals(from_old), shape.arrivals(from_new), from_old + from_new
        own = OwnCounts(own.count + move.sent, own.in_service + arcs - left, left, own.late)
    else:
        u, v = system.streams.for_backends(k, Purpose.serve)
        old = binomial(u, n, chance.leave, chance.stay).astype(n.dtype)
        new = binomial(v, arrived, chance.new_leave, chance.new_stay).astype(n.dtype)
    after = n + arrived - old - new
    step_f = length(k, system.clock.frontends)
    flows = move.sent * jnp.where(step_f > 0, 2 / jnp.where(step_f > 0, step_f, 1), 0)[None]
    sums = system.summary.add(now.sums, k, system.clock, flows, (n, after))
    served = jnp.where(k >= system.bounds[0], step * rate, 0)
    cohorts = now.cohorts
    if system.following is not None and cohorts is not None:
        cohorts = follow(system.following, cohorts, k, n, arrived, old, new)
    state = RequestState(
        routing=move.routing, workload=after, policy=move.policy, tail=move.tail,
        in_flight=None
        if now.in_flight is None
        else now.in_flight + shape.per_lane(jnp.sum(move.sent, axis=0)) - shape.per_lane(arrived),
        peak=higher(now.peak, after),
        sums=sums,
        blocks=now.blocks.add(ended_part(k, *system.bounds), costs_in(sums), served, field.cost_latency),
        cohorts=cohorts, own=own, due=now.due,
    )  # fmt: skip
    return state, None


def _observed(system: RequestSystem, now: RequestState, k: Int[Array, ""], seen: Arcs) -> Observation:
    """What frontends see in the middle of the step."""
    start, step = time(k, system.clock.frontends), length(k, system.clock.frontends)
    outstanding = jnp.zeros_like(seen) if now.own is None else now.own.count
    return system.field.observe(start + step / 2, seen, outstanding, step)


def _route(system: RequestSystem, now: RequestState, k: Int[Array, ""], observation: Observation) -> tuple[Arcs, State]:
    """The routing in the middle of the step."""
    field, clock = system.field, system.clock.frontends
    start, step = time(k, clock), length(k, clock)
    middle = start + step / 2
    if not field.flows:
        routing, policy = field.route(middle, observation, now.policy)
        return jnp.where(field.mask, routing, 0), policy
    velocity, policy = field.velocity(start, now.routing, observation, now.policy)
    return project_simplex(now.routing + step[None] * velocity, field.mask, now.routing > 0), policy
