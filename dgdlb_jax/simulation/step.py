"""One time step, of second order, and what is summed up along the way.

From `t_k` to `t_{k+1}`, for delays that are any real number of steps, shorter than one and zero included:

1. predict the workload by Euler, write workloads of rows k and k+1, read what the frontends see at `t_{k+1} - feedback`;
2. move the routing with the mean of old and new velocity, and project once (an instant policy jumps);
3. write the flow of row k+1, read what reaches the backends at `t_{k+1}`;
4. move the workload by the trapezoidal rule.

Each line is written before it is read: the order that lets XLA update it in place. Flow is interpolated when it is written, because
its fraction of a step belongs to the arc that is written; workload when it is read, from this reading and the last one.
"""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from dgdlb_jax.numerics import delay_line
from dgdlb_jax.numerics.delay_line import DelayLine, Taps
from dgdlb_jax.numerics.simplex import project_simplex
from dgdlb_jax.policies.base import State
from dgdlb_jax.simulation.dynamics import Arcs, Backends, Field, Frontends
from dgdlb_jax.simulation.summary import Sums, Window

Lanes = Float[Array, " lanes"]


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

    flow: Taps  # one per arc in order (frontends, backends * lanes), so that arrivals sum over the leading axis
    workload: Taps  # one per arc in order (backends, frontends * lanes)
    flow_fraction: Arcs
    overflow: Bool[Array, " lanes"]

    def __init__(self, field: Field, dt: Frontends, rows: int):
        shape = field.shape
        sizes = (shape.backends, shape.frontends, shape.lanes)
        j, i, lane = jnp.meshgrid(*(jnp.arange(n, dtype=jnp.int32) for n in sizes), indexing="ij")

        def to_backends(values):
            return jnp.swapaxes(values.reshape(sizes), 0, 1).reshape(shape.frontends, -1)

        delay = field.latency / dt
        flow_column = (j * shape.frontends + i) * shape.lanes + lane
        self.flow = delay_line.taps(to_backends(delay), to_backends(flow_column), flow_column.size, rows)
        flow = delay_line.taps(delay, flow_column.reshape(delay.shape), flow_column.size, rows)
        self.flow_fraction = flow.fraction
        workload_column = (j * shape.lanes + lane).reshape(delay.shape)
        self.workload = delay_line.taps(
            field.feedback_latency / dt, workload_column, shape.backends * shape.lanes, rows
        )
        late = flow.overflow | self.workload.overflow
        self.overflow = late.reshape(sizes).any((0, 1))


class Carry(eqx.Module):
    """The state between two steps. Few arrays, no scalars but the counter: many small ones are slow in XLA's loops."""

    k: Int[Array, ""]
    routing: Arcs
    workload: Backends
    flow: Arcs
    inflow: Backends
    velocity: Arcs | None
    reading: Arcs
    flows: DelayLine
    workloads: DelayLine
    policy: State
    peak: Backends
    in_flight: Lanes | None
    sums: Sums | None


def advance(field: Field, wiring: Wiring, clock: Clock, window: Window | None, carry: Carry) -> Carry:
    """One step."""
    k, ahead = carry.k, carry.k + 1
    time_f, step_f = time(ahead, clock.frontends), length(k, clock.frontends)
    time_b, step_b = time(ahead, clock.backends), length(k, clock.backends)

    slope = carry.inflow - field.service_rate(time(k, clock.backends), carry.workload)
    predicted = carry.workload + step_b * slope
    workloads = delay_line.write(delay_line.write(carry.workloads, k, carry.workload), ahead, predicted)
    reading = delay_line.read(workloads, ahead, wiring.workload.offset).reshape(carry.routing.shape)
    seen = delay_line.interpolate(reading, carry.reading, wiring.workload.fraction)

    routing, velocity, policy = _route(field, carry, time_f, step_f, seen)

    flow = field.arrival_rate(time_f) * routing
    flows = delay_line.write(carry.flows, ahead, delay_line.interpolate(flow, carry.flow, wiring.flow_fraction))
    inflow = jnp.sum(delay_line.read(flows, ahead, wiring.flow.offset).reshape(field.shape.frontends, -1), axis=0)
    slope_ahead = inflow - field.service_rate(time_b, predicted)
    workload = carry.workload + step_b / 2 * (slope + slope_ahead)

    in_flight = carry.in_flight
    if in_flight is not None:
        sent = field.shape.per_lane(jnp.sum(carry.flow + flow, axis=0))
        in_flight = in_flight + length(k, clock.lanes) / 2 * (sent - field.shape.per_lane(carry.inflow + inflow))
    return Carry(
        k=ahead, routing=routing, workload=workload, flow=flow, inflow=inflow, velocity=velocity, reading=reading,
        flows=flows, workloads=workloads, policy=policy, peak=jnp.maximum(carry.peak, workload), in_flight=in_flight,
        sums=None if window is None or carry.sums is None else window.add(
            carry.sums, k, step_f, step_b, carry.flow + flow, carry.workload, workload
        ),
    )  # fmt: skip


def _route(field: Field, carry: Carry, t: Frontends, step: Frontends, seen: Arcs) -> tuple[Arcs, Arcs | None, State]:
    guess = carry.routing > 0
    if carry.velocity is None:
        observation = field.observe(t, seen, carry.flow, step)
        routing, policy = field.route(t, observation, carry.policy)
        return jnp.where(step > 0, jnp.where(field.mask, routing, 0), carry.routing), None, policy
    # Only rules that look at their own routing or flow need this prediction; for the others XLA removes it.
    expected = project_simplex(carry.routing + step * carry.velocity, field.mask, guess)
    observation = field.observe(t, seen, field.arrival_rate(t) * expected, step)
    velocity, policy = field.velocity(t, expected, observation, carry.policy)
    target = carry.routing + step / 2 * (carry.velocity + velocity)
    return project_simplex(target, field.mask, guess), velocity, policy
