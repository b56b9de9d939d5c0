"""One time step, of second order, and what is summed up along the way.

From `t_k` to `t_{k+1}`, for delays that are any real number of steps, shorter than one and zero included:

1. predict the workload by Euler, write workloads of rows k and k+1, read what the frontends see at `t_{k+1} - feedback`;
2. move the routing with the mean of old and new velocity, and project once (an instant policy jumps);
3. write the flow of row k+1, read what reaches the backends at `t_{k+1}`;
4. move the workload by the trapezoidal rule.

Each line is written before it is read: the order that lets XLA update it in place. Flow is interpolated when it is written, because
its fraction of a step belongs to the arc that is written; workload when it is read, from this reading and the last one.

Where demand jumps, rates at grid points say little of what is sent in a step, and the line of flow carries *counts* instead: row k+1
holds what is sent on an arc between `t_k` and `t_{k+1}` less the fraction of a step, which arrives in one step. Everything that
arrives does so exactly when it should, whatever dt is.

What a step does between the lines is four functions, `predict`, `see`, `route` and `arrive`. They know of no delay: the reverse pass
(see `reverse`) differentiates the same four, and runs its own lines between them.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from dgdlb_jax.numerics import delay_line
from dgdlb_jax.numerics.delay_line import DelayLine, Taps
from dgdlb_jax.numerics.simplex import hold_on_simplex, project_simplex
from dgdlb_jax.policies.base import State
from dgdlb_jax.simulation.dynamics import Arcs, Backends, Field, Frontends
from dgdlb_jax.simulation.past import Past
from dgdlb_jax.simulation.summary import Sums, Window, higher

Lanes = Float[Array, " lanes"]
Known = tuple[Arcs, Bool[Array, "backends frontend_lanes"]]


class Clock(eqx.Module):
    """How long a step is and how many there are, lane by lane, repeated in the shapes that the step needs."""

    lanes: tuple[Lanes, Int[Array, " lanes"]]
    frontends: tuple[Frontends, Int[Array, " frontend_lanes"]]
    backends: tuple[Backends, Int[Array, " backend_lanes"]]

    def __init__(self, shape, dt: Lanes, last: Int[Array, " lanes"]):
        self.lanes = dt, last
        self.frontends = shape.over_frontends(dt), shape.over_frontends(last)
        self.backends = shape.over_backends(dt), shape.over_backends(last)


def time(k: Int[Array, ""], clock) -> Float[Array, "..."]:
    """The time of step k, from integers; it stands still when a lane has made its last step."""
    dt, last = clock
    return jnp.minimum(k, last).astype(dt.dtype) * dt


def length(k: Int[Array, ""], clock) -> Float[Array, "..."]:
    """The length of step k -> k+1: dt, or 0 in lanes that have made their last step."""
    dt, last = clock
    return jnp.where(k < last, dt, 0)


class Wiring(eqx.Module):
    """Where the two delay lines are read."""

    flow: Taps  # offsets `by_backend`, as they arrive; the fraction belongs to the arc that is written
    workload: Taps
    overflow: Bool[Array, " lanes"]

    def __init__(self, field: Field, dt: Frontends, rows: int):
        shape = field.shape
        sizes = (shape.backends, shape.frontends, shape.lanes)
        j, i, lane = jnp.meshgrid(*(jnp.arange(n, dtype=jnp.int32) for n in sizes), indexing="ij")

        delay = field.latency / dt
        flow_column = (j * shape.frontends + i) * shape.lanes + lane
        flow = delay_line.taps(delay, flow_column.reshape(delay.shape), flow_column.size, rows)
        self.flow = Taps(shape.by_backend(flow.offset.reshape(delay.shape)), flow.fraction, flow.overflow)
        workload_column = (j * shape.lanes + lane).reshape(delay.shape)
        self.workload = delay_line.taps(
            field.feedback_latency / dt, workload_column, shape.backends * shape.lanes, rows
        )
        late = flow.overflow | self.workload.overflow
        self.overflow = late.reshape(sizes).any((0, 1))


class System(eqx.Module):
    """Everything that stays the same from step to step."""

    field: Field
    wiring: Wiring
    clock: Clock
    window: Window | None


class Now(eqx.Module):
    """What changes from step to step, the delay lines apart. Few arrays, no scalars but the counter: many small ones are slow in
    XLA's loops."""

    k: Int[Array, ""]
    routing: Arcs
    workload: Backends
    flow: Arcs
    inflow: Backends
    velocity: Arcs | None
    reading: Arcs
    policy: State
    peak: Backends
    in_flight: Lanes | None
    sums: Sums | None
    tail: Arcs | None = None  # of a line that carries counts: what of the last step arrives a step after the rest


class Carry(eqx.Module):
    """The state between two steps; `past` in a run that can be followed backwards."""

    now: Now
    flows: DelayLine
    workloads: DelayLine
    past: Past | None = None


class Move(eqx.Module):
    """What the frontends do in one step: `entering` is what goes onto the wires, interpolated for where it will be read.

    Where the line carries counts: `sent`, what is sent in the step, requests/s, and the `tail` of it.
    """

    routing: Arcs
    velocity: Arcs | None
    policy: State
    flow: Arcs
    entering: Arcs
    sent: Arcs | None = None
    tail: Arcs | None = None


def advance(system: System, carry: Carry, extra: Arcs | None = None) -> Carry:
    """One step; `extra` is flow that is sent at its end besides what is routed."""
    shape, wiring, now = system.field.shape, system.wiring, carry.now
    k, ahead = now.k, now.k + 1
    predicted = predict(system, now)
    workloads = delay_line.write(delay_line.write(carry.workloads, k, now.workload), ahead, predicted)
    reading = delay_line.read(workloads, ahead, wiring.workload.offset).reshape(now.routing.shape)
    move = route(system, now, see(system, reading, now.reading), extra)
    flows = delay_line.write(carry.flows, ahead, move.entering)
    inflow = shape.arrivals(delay_line.read(flows, ahead, wiring.flow.offset))
    after = arrive(system, now, predicted, reading, move, inflow)
    past = None if carry.past is None else carry.past.add(ahead, predicted, after.workload)
    return Carry(after, flows, workloads, past)


def predict(system: System, now: Now) -> Backends:
    """The workload one step ahead, by Euler."""
    served = _served(system, now.k, now.k, now.workload)
    return now.workload + length(now.k, system.clock.backends) * (now.inflow - served)


def see(system: System, reading: Arcs, before: Arcs) -> Arcs:
    """The workloads that frontends see: what they read, and read one step before, interpolated."""
    return delay_line.interpolate(reading, before, system.wiring.workload.fraction)


def route(system: System, now: Now, seen: Arcs, extra: Arcs | None = None, known: Known | None = None) -> Move:
    """What the frontends do when they see these workloads; `known` is the new routing where it is known already, and its support."""
    field, clock, wiring = system.field, system.clock, system.wiring
    t, step = time(now.k + 1, clock.frontends), length(now.k, clock.frontends)
    routing, velocity, policy = _route(field, now, t, step, seen, known)
    flow = field.arrival_rate(t) * routing
    flow = flow if extra is None else flow + extra
    if now.tail is None:
        return Move(routing, velocity, policy, flow, delay_line.interpolate(flow, now.flow, wiring.flow.fraction))
    sent = _dispatched(system, now, routing, extra, jnp.ones_like(t))
    first = _dispatched(system, now, routing, extra, 1 - wiring.flow.fraction)
    return Move(routing, velocity, policy, flow, now.tail + first, sent, sent - first)


def arrive(
    system: System,
    now: Now,
    predicted: Backends,
    reading: Arcs,
    move: Move,
    inflow: Backends,
    known: Backends | None = None,
) -> Now:
    """The state after the step: workloads by the trapezoidal rule, and what is summed up; `known` is its workload where it is known
    already."""
    shape, clock, window, k = system.field.shape, system.clock, system.window, now.k
    step_f, step_b = length(k, clock.frontends), length(k, clock.backends)
    if move.sent is None:
        sent, arrived = now.flow + move.flow, now.inflow + inflow  # twice the mean of the step
    else:
        sent, arrived = 2 * move.sent, 2 * inflow
    served = _served(system, k, k, now.workload) + _served(system, k, k + 1, predicted)
    workload = now.workload + step_b / 2 * (arrived - served)
    workload = workload if known is None else _hold(workload, known)
    in_flight = now.in_flight
    if in_flight is not None:
        gained = shape.per_lane(jnp.sum(sent, axis=0)) - shape.per_lane(arrived)
        in_flight = in_flight + length(k, clock.lanes) / 2 * gained
    return Now(
        k=k + 1, routing=move.routing, workload=workload, flow=move.flow, inflow=inflow, velocity=move.velocity,
        reading=reading, policy=move.policy, peak=higher(now.peak, workload), in_flight=in_flight,
        sums=None if window is None or now.sums is None else window.add(
            now.sums, k, step_f, step_b, sent, now.workload, workload
        ), tail=move.tail,
    )  # fmt: skip


@jax.custom_jvp
def _hold(computed: Backends, known: Backends) -> Backends:
    """What is known, with the derivative of how it is computed."""
    del computed
    return known


_hold.defjvp(lambda primals, tangents: (primals[1], tangents[0]))


def _served(system: System, k: Int[Array, ""], at: Int[Array, ""], workload: Backends) -> Backends:
    """The service rate at one end of step k."""
    clock = system.clock.backends
    return system.field.service_rate(time(at, clock), workload, (time(k, clock), length(k, clock)))


def _dispatched(system: System, now: Now, routing: Arcs, extra: Arcs | None, part: Arcs | Frontends) -> Arcs:
    """What is sent in the first part of a step, over the length of all of it; routing and extra flow move on straight lines."""
    field, clock = system.field, system.clock.frontends
    start, step = time(now.k, clock), length(now.k, clock)
    besides = now.flow - field.arrival_rate(start) * now.routing
    extra = jnp.zeros_like(besides) if extra is None else extra
    middle = lambda before, after: delay_line.interpolate(before, after, part / 2)
    return part * (field.mean_arrival_rate(start, step, part) * middle(now.routing, routing) + middle(besides, extra))


def _route(
    field: Field, now: Now, t: Frontends, step: Frontends, seen: Arcs, known: Known | None
) -> tuple[Arcs, Arcs | None, State]:
    guess = now.routing > 0
    if now.velocity is None:
        observation = field.observe(t, seen, now.flow, step)
        routing, policy = field.route(t, observation, now.policy)
        return jnp.where(step > 0, jnp.where(field.mask, routing, 0), now.routing), None, policy
    # Only rules that look at their own routing or flow need this prediction; for the others XLA removes it.
    expected = project_simplex(now.routing + step * now.velocity, field.mask, guess)
    observation = field.observe(t, seen, field.arrival_rate(t) * expected, step)
    velocity, policy = field.velocity(t, expected, observation, now.policy)
    weight = field.weight_of_start(t - step, step)
    if weight is None:
        target = now.routing + step / 2 * (now.velocity + velocity)
    else:
        target = now.routing + step * delay_line.interpolate(velocity, now.velocity, weight)
    routing = project_simplex(target, field.mask, guess) if known is None else hold_on_simplex(target, *known)
    return routing, velocity, policy
