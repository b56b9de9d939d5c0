"""Where a run starts: from a routing and a workload with constant history, or from where another run ended."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from dgdlb_jax.model.network import Network
from dgdlb_jax.numerics.delay import Carry, ChannelState, DelayedSystem, Each, Sum, line
from dgdlb_jax.numerics.delay.line import DelayLine
from dgdlb_jax.numerics.precision import with_float_type
from dgdlb_jax.numerics.programs import compiled
from dgdlb_jax.numerics.results import InputError, is_concrete
from dgdlb_jax.numerics.types import Matrices, Matrix
from dgdlb_jax.policies.static import proportional
from dgdlb_jax.simulation import attached, autoscaled, own
from dgdlb_jax.simulation.autoscaled import Scaler
from dgdlb_jax.simulation.dynamics import Arcs, Backends, Field, Frontends
from dgdlb_jax.simulation.lanes import Shape
from dgdlb_jax.simulation.retries import Retries, no_retries
from dgdlb_jax.simulation.state import StepState, flow_channel, news_shape, wire_delay, wire_shape
from dgdlb_jax.simulation.timeline import Left, Wires
from dgdlb_jax.simulation.trajectory import SimulationState

Start = tuple[Float[Array, "batch frontends backends"], Float[Array, "batch backends"]] | SimulationState


@compiled
def default_start(networks: Network) -> tuple[Float[Array, "batch frontends backends"], Float[Array, "batch backends"]]:
    """Routing in proportion to nominal capacity, and the workload that carries it at time 0 (0 where it cannot be carried)."""
    capacity = jnp.broadcast_to(networks.nominal_capacity[:, None], networks.mask.shape)
    share = jax.vmap(jax.vmap(proportional))(capacity, networks.mask)
    workload = jax.vmap(workload_carrying)(networks, share)
    return share, jnp.where(networks.backend_mask, workload, 0)


def workload_carrying(network: Network, routing: Float[Array, "frontends backends"]) -> Float[Array, " backends"]:
    """The workload that serves what this routing sends at time 0, requests; 0 where it cannot be served."""
    start = jnp.zeros((), network.latency.dtype)
    workload = network.service_at(start).inverse(network.demand.rate(start) @ routing)
    return jnp.where(jnp.isfinite(workload), workload, 0)


def check_start(networks: Network, initial: tuple[Matrices, Matrix] | SimulationState) -> Start:
    """The start as arrays of the network's precision.

    **Raises:** `InputError` for wrong shapes, values that are negative or not finite, rows that do not sum to 1.
    """
    if isinstance(initial, SimulationState):
        return with_float_type(initial, networks.latency.dtype)
    routing, workload = (jnp.asarray(values, networks.latency.dtype) for values in initial)
    size, frontends, backends = networks.latency.shape
    for name, found, expected in (
        ("routing", routing.shape, (size, frontends, backends)),
        ("workload", workload.shape, (size, backends)),
    ):
        if found != expected:
            raise InputError(f"initial {name} has shape {found[1:]}: the network needs {expected[1:]}.")
    if is_concrete(networks, routing, workload):
        _check_values(networks, np.asarray(routing), np.asarray(workload))
    return routing, workload


def _check_values(networks: Network, routing: np.ndarray, workload: np.ndarray) -> None:
    for name, values in (("routing", routing), ("workload", workload)):
        bad = np.argwhere(~(np.isfinite(values) & (values >= 0)))
        if bad.size:
            at = tuple(int(index) for index in bad[0])
            raise InputError(
                f"initial {name}{list(at[1:])} is {values[at]:g}: give finite numbers that are not negative."
            )
    with jax.ensure_compile_time_eval():  # a network with values may be used within jit
        open_arcs = np.asarray(networks.mask)
    sums = np.where(open_arcs, routing, 0).sum(-1)
    off = np.argwhere(open_arcs.any(-1) & (np.abs(sums - 1) > 1e-5))
    if off.size:
        n, i = (int(index) for index in off[0])
        raise InputError(
            f"initial routing of frontend {i} sums to {sums[n, i]:.6g} over its arcs: the shares of a frontend sum to 1."
        )


def begin(
    field: Field,
    routing: Array,
    workload: Array,
    dt: Float[Array, " lanes"],
    rows: int,
    count_wires: bool,
    counts_own: bool,
    scaler: Scaler | None = None,
) -> Carry:
    """The first carry of a run with constant history: routing and workload have always been so, and the wires are full.

    `counts_own`: whether own requests are counted; `scaler`: the autoscaler, if any.
    """
    shape = field.shape
    x, n = shape.arcs(routing), shape.last(workload)
    t0, step = jnp.zeros(x.shape[1:], x.dtype), shape.over_frontends(dt)
    seen = shape.backend_to_arcs(workload)
    flow = field.arrival_rate(t0)[None] * x
    requests, answers, scaling, commands, factor, scaled = None, (), None, (), None, None
    if scaler is not None:
        scaling = scaler.begin()
        commands, factor = autoscaled.start_channels(scaler, scaling, rows), scaler.factor(scaling.ready)
        scaled = shape.spread(factor)
    if counts_own:
        requests, line_of_answers = own.begin(field, rows, jnp.zeros_like(n), n, flow, flow * field.latency, factor)
        answers = (line_of_answers,)
    outstanding = jnp.zeros_like(x) if requests is None else requests.count.value
    observation = field.observe(t0, seen, outstanding, step, scaled)
    policy = field.init(observation)
    velocity = field.velocity(t0, x, observation, policy)[0] if field.flows else None
    state = StepState(
        routing=x, workload=n, flow=flow, inflow=shape.arrivals(flow), velocity=velocity, policy=policy, peak=n,
        in_flight=shape.per_lane(jnp.sum(flow * field.latency, axis=0)) if count_wires else None, sums=None,
        tail=_delay(field, step)[1] * _on_the_first(field, flow) if field.counts else None, own=requests,
        lost=None if field.events is None else jnp.zeros_like(n), reported=None if field.events is None else n,
        left=_left(field, seen), retries=_retries(field, seen), scaling=scaling,
    )  # fmt: skip
    wires = _on_the_first(field, flow).reshape(-1)
    heard = news_shape(field).backend_to_arcs(workload)
    news, flows = ChannelState(line.filled(n, rows), heard), ChannelState(line.filled(wires, rows))
    channels = news, *commands, *answers, flows, *_line_of_retries(state, rows)
    return Carry(jnp.zeros((), jnp.int32), state, channels)


def send(system: DelayedSystem, carry: Carry, extra: Arcs) -> Carry:
    """The same carry, had `extra` flow been sent just now besides what was routed."""
    state, k = carry.state, carry.k
    shape, step = system.parameters.field.shape, system.parameters.clock.frontends[0]
    place = flow_channel(state)
    before, flow, behind = carry.channels[:place], carry.channels[place], carry.channels[place + 1 :]
    wires = system.channels[place]
    assert isinstance(wires, Sum)
    late = system.parameters.late if wires.fraction is None else wires.fraction
    # Where counts are on the wires: of a flow that rises and falls, half has been sent by now.
    sent = extra if state.tail is None else extra / 2
    row = line.row(flow.line, k).reshape(extra.shape) + (1 - late) * sent
    flows = line.write(flow.line, k, row)
    arriving = wires.arriving(flows, k)
    if state.own is not None:
        arriving = arriving.reshape(extra.shape)
        # Half of it has been sent by now; where a latency is shorter than a step, some of that has arrived.
        half = jnp.minimum(system.parameters.field.latency, step[None]) / 2
        requests = eqx.tree_at(lambda o: o.arriving, state.own, arriving)
        requests = eqx.tree_at(lambda o: o.count, requests, requests.count.plus(half * extra))
        arriving, state = shape.arrivals(arriving), eqx.tree_at(lambda s: s.own, state, requests)
    state = eqx.tree_at(lambda s: (s.flow, s.inflow), state, (state.flow + extra, arriving))
    if state.tail is not None:
        state = eqx.tree_at(lambda s: s.tail, state, state.tail + late * sent)
    return Carry(k, state, (*before, ChannelState(flows), *behind))


def resume(
    field: Field, state: SimulationState, count_wires: bool, counts_own: bool, scaler: Scaler | None = None
) -> Carry:
    """The carry from which a stopped run goes on, to the bit; own requests that were not counted are begun with, as they would be if
    shares at the backends had always been those of what arrives now."""
    shape = field.shape
    assert state.flow_line is not None  # see checks.resumable
    assert state.workload_line is not None
    wires = wire_shape(field)
    flow, flows = _on_the_first(field, shape.arcs(state.flow)), wires.arcs(_filled_up(wires, state.flow_line))
    tail = None if state.tail is None else wires.arcs(_filled_up(wires, state.tail))
    if tail is None and field.counts:
        # The run before had no jumps: from flows at grid points to the means of the steps between them.
        newest = jnp.take(flows, state.step[0] % flows.shape[0], axis=0)
        tail = _tail(flow, newest, _delay(field, shape.over_frontends(state.time_step))[1])
        flows = (flows + jnp.roll(flows, 1, axis=0)) / 2
    lost, reported = _events_of(field, state)
    now = StepState(
        routing=shape.arcs(state.routing), workload=shape.last(state.workload), flow=shape.arcs(state.flow),
        inflow=shape.last(state.inflow), velocity=shape.arcs(state.velocity) if field.flows else None,
        policy=jax.tree.map(shape.first, state.policy_state), peak=shape.last(state.peak_workload),
        in_flight=state.in_flight if count_wires else None, sums=None, tail=tail, lost=lost, reported=reported,
        left=_left(field, shape.backend_to_arcs(state.workload)) if state.left is None else shape.arcs(state.left),
        retries=_retries(field, shape.backend_to_arcs(state.workload)),
    )  # fmt: skip
    rows, workloads = flows.shape[0], shape.last(state.workload_line).reshape(-1)
    ways = news_shape(field)
    news = ChannelState(DelayLine(workloads, rows), ways.arcs(_filled_up(ways, state.reading)))
    lines = news, ChannelState(DelayLine(flows.reshape(-1), rows)), *_line_of_retries(now, rows)
    carry = Carry(state.step[0], now, lines)
    if counts_own:
        carry = _counting_own(field, carry, state)
    return carry if scaler is None else _scaled(field, carry, state, scaler)


def _scaled(field: Field, carry: Carry, state: SimulationState, scaler: Scaler) -> Carry:
    """With the autoscaler as it was, or, of a run before that had none, with replicas that have always been the fleet's."""
    if state.scaling is None:
        scaling = scaler.begin()
        commands = autoscaled.start_channels(scaler, scaling, carry.channels[0].line.rows)
    else:
        scaling, commands = autoscaled.resume(field.shape, state.scaling)
    now = eqx.tree_at(lambda s: s.scaling, carry.state, scaling, is_leaf=lambda leaf: leaf is None)
    return Carry(carry.k, now, (carry.channels[0], *commands, *carry.channels[1:]))


def _counting_own(field: Field, carry: Carry, state: SimulationState) -> Carry:
    """With own requests, as they were, or counted from now."""
    requests, answers = (
        _count_from_now(field, carry, state) if state.own is None else own.resume(field.shape, state.own)
    )
    now = eqx.tree_at(lambda s: s.own, carry.state, requests, is_leaf=lambda leaf: leaf is None)
    return Carry(carry.k, now, (carry.channels[0], answers, carry.channels[1]))


def _count_from_now(field: Field, carry: Carry, state: SimulationState) -> tuple[own.OwnRequests, ChannelState]:
    """Own requests of a run that has not counted them."""
    now, step = carry.state, field.shape.over_frontends(state.time_step)
    wires, rows = carry.channels[1].line, carry.channels[1].line.rows
    each = Sum(field.latency / step[None], Each(now.flow.shape), rows)
    arriving = each.arriving(wires, carry.k).reshape(now.flow.shape)
    t = carry.k.astype(step.dtype) * field.shape.over_backends(state.time_step)
    on_the_wires = _on_the_wires(field, carry.k, now, wires, state.time_step)
    return own.begin(field, rows, t, now.workload, arriving, on_the_wires)


def suspend(
    field: Field, carry: Carry, steps: Int[Array, " lanes"], dt: Float[Array, " lanes"], resumable: bool
) -> SimulationState:
    """Everything that a later run needs, batch axis first; if there will be none, without the delay lines."""
    shape, now = field.shape, carry.state
    place = flow_channel(now)
    news, flow, others = carry.channels[0], carry.channels[place], carry.channels[place + 1 :]
    if now.retries is not None:
        resumable, others = False, ()  # of what waits to be sent again nothing is kept
    assert news.reading is not None
    nothing = jnp.zeros_like(now.routing)
    flow_line = workload_line = None
    in_flight = now.in_flight
    if resumable:
        rows = flow.line.rows
        flows = flow.line.ring.reshape(rows, shape.backends, -1)
        flow_line, workload_line = wire_shape(field).from_arcs(flows), shape.from_last(news.line.ring.reshape(rows, -1))
        if in_flight is None:
            in_flight = shape.per_lane(_on_the_wires(field, carry.k, now, flow.line, dt).sum(0))
    return SimulationState(
        step=steps.astype(jnp.int32), row=jnp.full(steps.shape, carry.k, jnp.int32), time_step=dt,
        routing=shape.from_arcs(now.routing), workload=shape.from_last(now.workload),
        flow=shape.from_arcs(now.flow), inflow=shape.from_last(now.inflow),
        velocity=shape.from_arcs(nothing if now.velocity is None else now.velocity),
        reading=news_shape(field).from_arcs(news.reading), in_flight=in_flight, peak_workload=shape.from_last(now.peak),
        flow_line=flow_line, workload_line=workload_line, policy_state=jax.tree.map(shape.from_first, now.policy),
        tail=None if now.tail is None else wire_shape(field).from_arcs(now.tail),
        extensions=attached.suspend(shape, now.extended, others, resumable),
        own=None if now.own is None else own.suspend(shape, now.own, carry.channels[place - 1], resumable),
        lost=None if now.lost is None else shape.from_last(now.lost),
        reported=None if now.reported is None else shape.from_last(now.reported),
        left=None if now.left is None else shape.from_arcs(now.left),
        scaling=None
        if now.scaling is None
        else autoscaled.suspend(shape, now.scaling, carry.channels[1 : 1 + now.scaling.channels], resumable),
    )  # fmt: skip


def _left(field: Field, reported: Arcs) -> Left | None:
    """What news will leave behind where its latencies change; None where they do not."""
    if field.events is None or field.events.news is None:
        return None
    return jnp.broadcast_to(reported, field.events.news.times.shape)


def _retries(field: Field, arcs: Arcs) -> Retries | None:
    """None where nothing is sent again."""
    return None if field.events is None or field.events.timeout is None else no_retries(arcs)


def _line_of_retries(state: StepState, rows: int) -> tuple[ChannelState, ...]:
    """The channel of what is sent again, empty."""
    return () if state.retries is None else (ChannelState(line.filled(state.retries.lost.reshape(-1), rows)),)


def _events_of(field: Field, state: SimulationState) -> tuple[Backends, Backends] | tuple[None, None]:
    """What has been lost, and what frontends hear next; a run before this one that had no events has lost nothing."""
    if field.events is None:
        return None, None
    workload = field.shape.last(state.workload)
    lost, reported = (None if each is None else field.shape.last(each) for each in (state.lost, state.reported))
    return jnp.zeros_like(workload) if lost is None else lost, workload if reported is None else reported


def _on_the_wires(
    field: Field, k: Int[Array, ""], now: StepState, wires: DelayLine, dt: Float[Array, " lanes"]
) -> Wires:
    """Requests on the forward wires at step `k`, read off the delay line: what a run that counts them step by step would have found.

    By the trapezoidal rule over the whole steps of a latency, where the line does not hold counts; what it holds is a fraction of a
    step old already.
    """
    step = field.shape.over_frontends(dt)
    lag, fraction = _delay(field, step)
    rows = wires.ring.reshape(wires.rows, *lag.shape)
    age = jnp.mod(k - jnp.arange(wires.rows, dtype=k.dtype), wires.rows)[:, None, None].astype(lag.dtype)
    if now.tail is not None:
        return wire_shape(field).over_frontends(dt)[None] * (jnp.where(age < lag[None], rows, 0).sum(0) + now.tail)
    of_both_ends = [counts.astype(rows.dtype) for counts in (age < lag[None], (age > 0) & (age <= lag[None]))]
    whole = (sum(of_both_ends) / 2 * rows).sum(0)
    newest = line.row(wires, k).reshape(lag.shape)
    return step[None] * (whole + _tail(now.flow, newest, fraction))


def _delay(field: Field, step: Frontends) -> tuple[Wires, Wires]:
    """The latency of every wire in steps: whole ones, and the fraction."""
    delay = wire_delay(field, step)
    return jnp.floor(delay), delay - jnp.floor(delay)


def _on_the_first(field: Field, flow: Arcs) -> Wires:
    """Flow on the wires, before anything happens to links."""
    return flow if field.events is None else field.events.on_the_first(flow)


def _filled_up(wires: Shape, values: Array) -> Array:
    """What is on the wires of another run, which may have had fewer of them."""
    extra = wires.frontends - values.shape[-2]
    return jnp.pad(values, [(0, 0)] * (values.ndim - 2) + [(0, extra), (0, 0)]) if extra > 0 else values


def _tail(flow: Wires, newest: Wires, fraction: Wires) -> Wires:
    """What of the last step's flow lies beyond the whole steps of a latency, by the trapezoidal rule; `newest` is the last row."""
    return (fraction * flow + newest - (1 - fraction) * flow) / 2
