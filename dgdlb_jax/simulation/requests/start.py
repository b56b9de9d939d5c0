"""Where a run of whole requests starts."""

import jax
import jax.numpy as jnp
from jaxtyping import Array

from dgdlb_jax.numerics.delay import Carry, ChannelState, DelayedSystem, line
from dgdlb_jax.numerics.delay.line import DelayLine
from dgdlb_jax.numerics.sampling import poisson
from dgdlb_jax.simulation.requests.blocks import Blocks
from dgdlb_jax.simulation.requests.cohorts import Cohorts
from dgdlb_jax.simulation.requests.step import RequestState, RequestSystem
from dgdlb_jax.simulation.requests.streams import Purpose


def begin(system: DelayedSystem, routing: Array, workload: Array) -> Carry:
    """The first carry: wires as full as they are at these rates, whole numbers drawn."""
    parameters: RequestSystem = system.parameters
    field, streams = parameters.field, parameters.streams
    shape, step = field.shape, parameters.clock.frontends[0]
    rows = system.channels[1].rows
    x, seen = shape.arcs(routing), shape.backend_to_arcs(workload)
    start = jnp.zeros_like(step)
    mean = step * field.arrival_rate(start) * x
    # Counters of the start lie beyond those of any step.
    draw = lambda row: streams.for_arcs(jnp.uint32(0xFFFFFFFF) - jnp.asarray(row, jnp.uint32), Purpose.start)[0]
    n = shape.last(workload)
    n = jnp.floor(n + streams.for_backends(jnp.uint32(0xFFFFFFFF), Purpose.start)[0].astype(n.dtype))
    tail = parameters.late * mean
    if parameters.counts_arcs:
        drawn = lambda row: poisson(draw(row), mean).astype(x.dtype)
        sent = jax.lax.map(drawn, jnp.arange(rows, dtype=jnp.uint32))
        tail = poisson(draw(rows), tail).astype(x.dtype)
    else:
        sent = jnp.broadcast_to(mean, (rows, *mean.shape))
    flows = DelayLine(sent.reshape(-1), rows)
    lag = jnp.floor(field.latency / step)
    age = jnp.mod(-jnp.arange(rows), rows)[:, None, None]
    on_wires = jnp.where(age < lag, sent, 0).sum(0) + tail
    observation = field.observe(start, seen, mean / step, step)
    state = RequestState(
        routing=x, workload=n, policy=field.init(observation), tail=tail, in_flight=shape.per_lane(on_wires.sum(0)), peak=n,
        sums=parameters.window.begin(field, jnp.int32(0), n), blocks=Blocks.none(field),
        cohorts=None if parameters.following is None else Cohorts.none(n),
    )  # fmt: skip
    news = ChannelState(line.filled(n, rows), shape.backend_to_arcs(shape.from_last(n)))
    return Carry(jnp.zeros((), jnp.int32), state, (news, ChannelState(flows)))
