"""Where a run of whole requests starts."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from dgdlb_jax.numerics.delay import Carry, ChannelState, DelayedSystem, line
from dgdlb_jax.numerics.delay.line import DelayLine
from dgdlb_jax.numerics.sampling import poisson
from dgdlb_jax.simulation import own as own_requests
from dgdlb_jax.simulation.requests.blocks import Blocks
from dgdlb_jax.simulation.requests.cohorts import Cohorts
from dgdlb_jax.simulation.requests.own import age_of_answers
from dgdlb_jax.simulation.requests.own import begin as begin_own
from dgdlb_jax.simulation.requests.step import RequestState, RequestSystem
from dgdlb_jax.simulation.requests.streams import Purpose


def begin(
    system: DelayedSystem,
    routing: Float[Array, "lanes frontends backends"],
    workload: Float[Array, "lanes backends"],
    count_wires: bool,
) -> Carry:
    """The first carry: wires as full as they are at these rates, whole numbers drawn; requests on them are counted if `count_wires`."""
    parameters: RequestSystem = system.parameters
    field, streams = parameters.field, parameters.streams
    shape, step = field.shape, parameters.clock.frontends[0]
    rows = system.channels[-1].rows
    x, seen = shape.arcs(routing), shape.backend_to_arcs(workload)
    start = jnp.zeros_like(step)
    mean = (step * field.arrival_rate(start))[None] * x
    # Counters of the start lie beyond those of any step.
    draw = lambda row: streams.for_arcs(jnp.uint32(0xFFFFFFFF) - jnp.asarray(row, jnp.uint32), Purpose.start)[0]
    n = shape.last(workload)
    drawn = lambda row, mean: poisson(draw(row), mean).astype(x.dtype)
    fluid = None
    if parameters.counting.own:
        # What is at a backend belongs to frontends as in the fluid model; each number is rounded at random.
        fluid = own_requests.begin(field, rows, jnp.zeros_like(n), n, mean / step[None], jnp.zeros_like(x))[0]
        fluid = eqx.tree_at(
            lambda o: o.in_service, fluid, jnp.floor(fluid.in_service + draw(2 * rows + 4).astype(x.dtype))
        )
        n = shape.arrivals(fluid.in_service)
    else:
        n = jnp.floor(n + streams.for_backends(jnp.uint32(0xFFFFFFFF), Purpose.start)[0].astype(n.dtype))
    tail = parameters.late * mean
    if parameters.counting.arcs:
        sent = jax.lax.map(lambda row: drawn(row, mean), jnp.arange(rows, dtype=jnp.uint32))
    else:
        sent = jnp.broadcast_to(mean, (rows, *mean.shape))
    flows = DelayLine(sent.reshape(-1), rows)
    lag = jnp.floor(field.latency / step[None])
    age = jnp.mod(-jnp.arange(rows), rows)[:, None, None].astype(lag.dtype)
    on_wires = jnp.where(age < lag[None], sent, 0).sum(0)
    if parameters.counting.known_when_sent:
        tail = drawn(rows, tail)
    if parameters.counting.known_when_sent or not parameters.counting.arcs:
        on_wires = on_wires + tail
    own, answers = None, ()
    if fluid is not None and parameters.back is not None:
        later = lambda row, mean: drawn(row + jnp.uint32(rows + 1), mean)
        lag_of_answers = jnp.floor(age_of_answers(field, step))
        own, line_of_answers = begin_own(
            fluid.in_service, on_wires, later, rows, step[None] * fluid.left, parameters.back, lag_of_answers
        )
        answers = (ChannelState(DelayLine(line_of_answers.reshape(-1), rows)),)
    observation = field.observe(start, seen, jnp.zeros_like(x) if own is None else own.count, step)
    state = RequestState(
        routing=x, workload=n, policy=field.init(observation), tail=tail, peak=n,
        in_flight=shape.per_lane(on_wires.sum(0)) if count_wires else None,
        sums=parameters.summary.begin(field, jnp.int32(0), n), blocks=Blocks.none(field),
        cohorts=None if parameters.following is None else Cohorts.none(n), own=own,
        due=jnp.full_like(step, 0.5) if parameters.counting.recorded else None,
    )  # fmt: skip
    news = ChannelState(line.filled(n, rows), shape.backend_to_arcs(shape.from_last(n)))
    return Carry(jnp.zeros((), jnp.int32), state, (news, *answers, ChannelState(flows)))
