"""`simulate_requests` and `simulate_requests_batch`: whole requests in the networks of the fluid engine."""

import dataclasses
import math
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree, Shaped, UInt32

from dgdlb_jax.model.batch import as_batch, each_frontend, only_one, require_single
from dgdlb_jax.model.network import Network
from dgdlb_jax.numerics.delay import Carry, run_as_told, steps_for
from dgdlb_jax.numerics.delay.checkpoint import count_frames
from dgdlb_jax.numerics.native import one_native_loop, or_without
from dgdlb_jax.numerics.programs import compiled
from dgdlb_jax.numerics.promotion import standard_promotion
from dgdlb_jax.numerics.results import InputError, Result, first_failure, is_concrete, raise_on_failure
from dgdlb_jax.numerics.threads import in_threads, parts_for
from dgdlb_jax.numerics.tiles import map_tiles
from dgdlb_jax.numerics.types import Matrices, Matrix, Numbers
from dgdlb_jax.policies.base import AbstractPolicy
from dgdlb_jax.simulation import checks
from dgdlb_jax.simulation.clock import Clock
from dgdlb_jax.simulation.dynamics import Field
from dgdlb_jax.simulation.lanes import Shape
from dgdlb_jax.simulation.memory import Memory
from dgdlb_jax.simulation.own import OwnState
from dgdlb_jax.simulation.requests.blocks import Blocks, of_parts, part_edges
from dgdlb_jax.simulation.requests.cohorts import COHORTS, PHASES, Cohorts, Following
from dgdlb_jax.simulation.requests.counting import Counting, counting_for
from dgdlb_jax.simulation.requests.observe import ObserveRequests
from dgdlb_jax.simulation.requests.own import OwnCounts
from dgdlb_jax.simulation.requests.start import begin
from dgdlb_jax.simulation.requests.step import RequestState, request_system
from dgdlb_jax.simulation.requests.streams import LARGEST, Streams
from dgdlb_jax.simulation.requests.trajectory import Parts, RequestTrajectory, Sojourns
from dgdlb_jax.simulation.start import check_start, default_start
from dgdlb_jax.simulation.statistics import Summary
from dgdlb_jax.simulation.trajectory import FIELDS, SaveAt, SimulationState

_LANES = 8  # networks side by side: what they draw with stays in the cache
_LONGEST_STAY = 15.0  # times in service for which requests are followed


@standard_promotion
def simulate_requests(
    network: Network,
    policy: AbstractPolicy,
    key: Array,
    *,
    duration: float,
    dt: float,
    scale: float = 1.0,
    discipline: str = "ps",
    count: str | None = None,
    arrivals: str = "poisson",
    after: float = 0.0,
    save: SaveAt | None = None,
    initial: tuple[Matrices, Matrix] | None = None,
    follow: bool = True,
    longest_stay: float | None = None,
    max_latency: float | None = None,
    throw: bool = True,
) -> RequestTrajectory:
    r"""Simulate whole requests: Poisson arrivals, routed by the policy's shares, delayed, served at a total rate of $\ell_j(N_j)$.

    $$ N_j \to N_j + 1 \text{ at rate } \sum_i \lambda_i x_{ij}(t - \tau_{ij}), \qquad N_j \to N_j - 1 \text{ at rate } \ell_j(N_j) $$

    A fixed step of second order in the mean and in the variance of $N_j$, for any latencies; $N_j$ is never negative.

    **Arguments:**

    - `network`, `policy`, `initial`: as for `simulate`. Workloads of the start are rounded at random to whole numbers of the same mean.
      Under a demand over time rates move: of a `Trace` the recorded counts are the means of those that are drawn, bin by bin, unless
      `arrivals` says otherwise.
    - `key`: of `jax.random`; equal keys give equal runs.
    - `duration`, `dt`: seconds to simulate, and the length of a step; `suggest_dt(network, policy)` proposes one.

    Other arguments:

    - `scale`: rates and replicas are multiplied by it. The fluid run is the limit of large ones.
    - `discipline`: `"ps"`, processor sharing: each of the $N$ requests is served at rate $\ell(N) / N$; or `"fcfs"`: requests leave a
      backend in the order in which they came. Workloads have the same law, latencies have not.
    - `count`: `"backend"`, where arrivals are drawn at the backends (the wires hold means); `"arc"`: whole numbers on every arc, about
      three times the work, the same law of the workloads; or `"own"`: whole numbers of every arc from dispatch until the answer is back.
      By default `"own"` for a policy that looks at its own outstanding requests, which needs it, and `"backend"` for any other. A rule
      that jumps then sees each request by itself: the ones before it count.
    - `arrivals`: `"poisson"`, or `"recorded"`: as many as the demand adds up to, at equal distances as long as the rate stays: a `Trace`
      of measured counts is replayed, request by request. Drawn is then only where each of them goes. Requests are counted on arcs.
    - `after`: seconds from which statistics count. `save`: instants to keep, `SaveAt(every=...)`; none by default.
    - `follow`: follow requests, which `latency_quantiles` needs. `longest_stay`: up to which age, seconds; by default 15 times the mean
      time at the slowest backend at the start.
    - `max_latency`, `throw`: as for `simulate`.

    **Returns:** a `RequestTrajectory`. It has no derivative.

    **Raises:** as `simulate`; `InputError` for a scale that is not positive, an unknown discipline or way to count, and when it is
    differentiated.

    **Source:** own derivation of the scheme (`hazard`).
    """
    require_single(network, "simulate_requests", otherwise="simulate_requests_batch")
    policy = each_frontend(network, policy, type(policy).__name__)
    initial = None if initial is None else as_batch((jnp.asarray(initial[0]), jnp.asarray(initial[1])))
    runs = simulate_requests_batch(
        as_batch(network), as_batch(policy, shared_scalars=True), jnp.asarray(key)[None],
        duration=duration, dt=dt, scale=scale, discipline=discipline, count=count, arrivals=arrivals, after=after, save=save,
        initial=initial, follow=follow, longest_stay=longest_stay, max_latency=max_latency, throw=throw,
    )  # fmt: skip
    return only_one(runs)


@standard_promotion
def simulate_requests_batch(
    networks: Network,
    policy: AbstractPolicy,
    keys: Array,
    *,
    duration: Numbers,
    dt: Numbers,
    scale: Numbers = 1.0,
    discipline: str = "ps",
    count: str | None = None,
    arrivals: str = "poisson",
    after: Numbers = 0.0,
    save: SaveAt | None = None,
    initial: tuple[Matrices, Matrix] | None = None,
    follow: bool = True,
    longest_stay: float | None = None,
    max_latency: float | None = None,
    lanes: int | None = None,
    threads: int | None = None,
    throw: bool = True,
) -> RequestTrajectory:
    """Simulate whole requests in many networks at once, or in one network with many keys.

    **Arguments:** as for `simulate_requests`, with a leading batch axis; a single network is repeated for every key. `policy`, `duration`,
    `dt`, `scale`, `after`: scalars or `(batch,)`; all networks have to take equally many steps. `lanes`: how many networks run side by
    side; `threads`: as for `simulate_batch`. No answer depends on either.

    **Returns:** a `RequestTrajectory` whose arrays have a leading batch axis.

    **Raises:** as `simulate_requests`, naming the first network that failed; `InputError` for another number of keys than networks, and for
    networks that would take different numbers of steps.
    """
    words, names = _words(keys), (networks.frontend_names, networks.backend_names)
    if networks.batch is None:
        repeat = partial(jax.tree.map, lambda leaf: jnp.repeat(jnp.asarray(leaf)[None], len(words), axis=0))
        networks = repeat(networks)
        initial = None if initial is None else repeat(initial)
        policy = as_batch(policy, shared_scalars=True)
    _check(networks, len(words), discipline)
    networks, policy, initial = _refuse_derivatives((networks, policy, initial))
    networks = networks.in_one_type().with_scale(scale)
    save = SaveAt.statistics() if save is None else _checked(save)
    grid = checks.grid(networks, duration, dt, max_latency)
    checks.check_window(after, grid)
    steps = _common("duration / dt", grid.steps)
    if throw:
        checks.explain(networks, grid, max_latency)
    policy = each_frontend(networks, policy, type(policy).__name__)
    networks, dtype = networks.anonymous(), networks.latency.dtype
    counting = counting_for(networks, policy, count, arrivals)
    start = default_start(networks) if initial is None else check_start(networks, initial)
    assert isinstance(start, tuple)
    first = _common("after / dt", steps_for(np.broadcast_to(np.asarray(after, float), grid.dt.shape), grid.dt))
    inputs = _Inputs(
        network=networks,
        policy=policy,
        initial=start,
        words=words,
        dt=jnp.asarray(grid.dt, dtype),
        steps=jnp.int32(steps),
        first=jnp.int32(min(max(first, 0), steps - 1)),
        spacing=jnp.int32(_spacing(networks, start[1], grid.dt, longest_stay) if follow else 1),
        every=None if save.every is None else jnp.int32(save.every),
    )
    instants = 1 if save.every is None else count_frames(steps, save.every) + 1
    kept = _Kept(grid.rows + 1, instants, save.fields, discipline == "fcfs", counting, follow)
    parts = parts_for(len(words), inputs, threads)
    lanes = min(lanes or _LANES, math.ceil(len(words) / parts))
    size = len(words), networks.frontends, networks.backends
    Memory(size, parts * lanes, kept.rows, instants, save.fields, False, dtype.itemsize, counting.own).check()
    sizes = tuple((leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(inputs))
    runs = or_without(
        lambda native: in_threads(
            lambda part: _run(part, dataclasses.replace(kept, native=native), lanes), inputs, parts
        ),
        (jax.tree.structure((inputs, kept)), sizes, lanes),
    )
    if throw:
        raise_on_failure(runs.result, "The simulation" if len(words) == 1 else "simulate_requests_batch")
    return dataclasses.replace(runs, frontend_names=names[0], backend_names=names[1])


class _Inputs(eqx.Module):
    """What is data: with a batch axis, or the same for all."""

    network: Network
    policy: AbstractPolicy
    initial: tuple[Float[Array, "batch frontends backends"], Float[Array, "batch backends"]]
    words: UInt32[Array, "batch 2"]
    dt: Float[Array, " batch"]
    steps: Int[Array, ""]
    first: Int[Array, ""]
    spacing: Int[Array, ""]
    every: Int[Array, ""] | None


class _Kept(eqx.Module):
    """What is compiled in."""

    rows: int = eqx.field(static=True)
    instants: int = eqx.field(static=True)
    fields: tuple[str, ...] = eqx.field(static=True)
    in_order: bool = eqx.field(static=True)
    counting: Counting = eqx.field(static=True)
    follow: bool = eqx.field(static=True)
    native: bool = eqx.field(static=True, default=True)


def _words(keys: Array) -> UInt32[Array, "batch 2"]:
    keys = jnp.asarray(keys)
    data = jax.random.key_data(keys) if jnp.issubdtype(keys.dtype, jax.dtypes.prng_key) else keys
    if data.ndim != 2 or not jnp.issubdtype(data.dtype, jnp.unsignedinteger):
        raise InputError(
            f"The keys have shape {keys.shape} and type {keys.dtype}: give jax.random.split(jax.random.key(0), n), one for each run."
        )
    return data[:, jnp.array([0, -1])].astype(jnp.uint32)


def _check(networks: Network, keys: int, discipline: str) -> None:
    if networks.batch != keys:
        raise InputError(f"There are {keys} keys for {networks.batch} networks: give one for each.")
    if discipline not in ("ps", "fcfs"):
        raise InputError(
            f'discipline is {discipline!r}: choose "ps" (processor sharing) or "fcfs" (first come, first served).'
        )
    if max(networks.frontends, networks.backends) > LARGEST:
        raise InputError(
            f"A network of {networks.frontends} x {networks.backends} is too large: at most {LARGEST} on each side."
        )


def _checked(save: SaveAt) -> SaveAt:
    """What to save, where a run of whole requests knows all of it."""
    asked = {
        "fn": save.fn is not None,
        "statistics": bool(save.own_statistics),
        "reference": save.reference is not None,
    }
    asked["after"] = not is_concrete(save.after) or bool(np.any(np.asarray(save.after) > 0))
    for name in (name for name, given in asked.items() if given):
        remedy = "give after= to the function itself" if name == "after" else "leave it out, or use simulate"
        raise InputError(f"SaveAt({name}=...) is not for whole requests: {remedy}.")
    return save


def _common(what: str, numbers: Shaped[np.ndarray, " batch"]) -> int:
    """The number that all networks have in common."""
    if np.unique(numbers).size > 1:
        raise InputError(
            f"{what} is {numbers.min():g} to {numbers.max():g} steps: "
            "networks of one batch have to take equally many; choose dt in proportion."
        )
    return int(numbers.flat[0])


def _spacing(
    networks: Network,
    workload: Float[Array, "batch backends"],
    dt: Float[np.ndarray, " batch"],
    longest_stay: float | None,
) -> int:
    """Steps between two looks at the requests that are followed: such that the oldest are `longest_stay` seconds old."""
    if longest_stay is None:
        stay = jax.vmap(lambda network, n: network.service_at(0.0).average_latency(n))(networks, workload)
        if not is_concrete(stay):
            raise InputError(
                "Inside a transformation longest_stay has to be given, in seconds; or follow=False, which needs none."
            )
        used = np.asarray(networks.backend_mask) & np.isfinite(np.asarray(stay))
        longest_stay = _LONGEST_STAY * float(np.max(np.asarray(stay), initial=0.0, where=used))
    elif not (math.isfinite(longest_stay) and longest_stay > 0):
        raise InputError(f"longest_stay is {longest_stay}: give a positive finite number of seconds.")
    return max(1, min(round(longest_stay / (dt.min() * COHORTS * PHASES)), 2**31 // (4 * COHORTS * PHASES)))


@compiled
def _run(inputs: _Inputs, kept: _Kept, lanes: int) -> RequestTrajectory:
    shared, batched = eqx.partition(inputs, lambda leaf: leaf.ndim == 0)
    tile = lambda batched, shared: _run_tile(eqx.combine(batched, shared), kept)
    return map_tiles(tile, batched, shared, lanes=lanes, devices=1)


@jax.custom_jvp
def _refuse_derivatives(values: PyTree) -> PyTree:
    """The same values.

    **Raises:** `InputError` when they are differentiated.
    """
    return values


@_refuse_derivatives.defjvp
def _(primals, tangents):
    raise InputError(
        "A run of whole requests has no gradient, since it counts: differentiate simulate(...) of the same network, the limit of many "
        "requests, or take differences of runs with the same key."
    )


def _run_tile(inputs: _Inputs, kept: _Kept) -> RequestTrajectory:
    field = Field(inputs.network, inputs.policy)
    shape = field.shape
    last = jnp.broadcast_to(inputs.steps, (shape.lanes,))
    clock = Clock(shape, inputs.dt, last)
    summary = Summary(shape, jnp.broadcast_to(inputs.first, last.shape), last)
    following = Following(inputs.spacing, inputs.first, kept.in_order) if kept.follow else None
    observe = ObserveRequests(kept.fields)
    system = request_system(
        field, clock, summary, (inputs.first, inputs.steps), kept.rows, Streams(shape, inputs.words), following,
        kept.counting, observe,
    )  # fmt: skip
    carry = begin(system, *inputs.initial, "in_flight" in kept.fields)
    told = partial(run_as_told, frames=kept.instants)
    carry, saved = one_native_loop(told, kept.native)(system, carry, inputs.steps, inputs.every)
    now: RequestState = carry.state
    saved = jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 0, 1), saved)
    fields: dict[str, Any] = dict.fromkeys(FIELDS) | saved
    finite = jnp.isfinite(now.workload).reshape(-1, shape.lanes).all(0) & jnp.isfinite(now.routing).reshape(
        -1, shape.lanes
    ).all(0)
    too_long = jnp.stack([channel.overflow.reshape(-1, shape.lanes).any(0) for channel in system.channels]).any(0)
    results = (
        jnp.where(too_long, Result.latency_overflow, Result.successful),
        jnp.where(finite, Result.successful, Result.not_finite),
    )
    return RequestTrajectory(
        **fields,
        statistics=summary.finish(field, inputs.dt, now.sums, now.peak),
        final=_final(field, carry, inputs.dt),
        result=first_failure(*(result.astype(jnp.int32) for result in results)),
        parts=_parts(field, now.blocks, inputs),
        sojourns=None if now.cohorts is None else _sojourns(field, now.cohorts, inputs),
        cost_latency=shape.from_arcs(field.cost_latency),
    )


def _final(field: Field, carry: Carry, dt: Float[Array, " lanes"]) -> SimulationState:
    """The state at the end, without delay lines."""
    shape, now = field.shape, carry.state
    steps = jnp.broadcast_to(carry.k, dt.shape)
    arcs = shape.from_arcs(now.routing)
    nothing, none = jnp.zeros_like(arcs), shape.from_last(jnp.zeros_like(now.workload))
    return SimulationState(
        step=steps, row=steps, time_step=dt, routing=arcs, workload=shape.from_last(now.workload), flow=nothing, inflow=none,
        velocity=nothing, reading=nothing, in_flight=now.in_flight, peak_workload=shape.from_last(now.peak), flow_line=None,
        workload_line=None, policy_state=jax.tree.map(shape.from_first, now.policy), own=_own(shape, now.own),
    )  # fmt: skip


def _own(shape: Shape, own: OwnCounts | None) -> OwnState | None:
    if own is None:
        return None
    count, in_service, left = map(shape.from_arcs, (own.count, own.in_service, own.left))
    return OwnState(count, None, in_service, jnp.zeros_like(count), left, None)


def _parts(field: Field, blocks: Blocks, inputs: _Inputs) -> Parts:
    """The finished sums over parts of the window, batch axis first."""
    shape, count = field.shape, inputs.steps - inputs.first
    edges = part_edges(count)
    duration = (edges[1:] - edges[:-1]).astype(inputs.dt.dtype)[None] * inputs.dt[:, None]
    of = lambda up_to: shape.from_last(of_parts(up_to))
    per_time = 1 / jnp.where(duration > 0, duration, 1)[..., None]
    return Parts(
        duration=duration,
        arrivals=of(blocks.sent),
        cost=of(blocks.workload).sum(-1) + of(blocks.network).sum(-1),
        workload=of(blocks.workload) * per_time,
        service_rate=of(blocks.service) * per_time,
    )


def _sojourns(field: Field, cohorts: Cohorts, inputs: _Inputs) -> Sojourns:
    """The share of requests that is left at each age, batch axis first. A request arrives in the middle of a step on average."""
    shape = field.shape
    flat = lambda values: shape.from_last(jnp.swapaxes(values, 0, 1).reshape(COHORTS * PHASES, -1))
    alive, born = flat(cohorts.alive), flat(cohorts.born)
    looks = (jnp.arange(COHORTS * PHASES, dtype=inputs.dt.dtype) + 0.5) * inputs.spacing.astype(inputs.dt.dtype)
    age = looks[None] * inputs.dt[:, None]
    return Sojourns(age, jnp.where(born > 0, alive / jnp.where(born > 0, born, 1), 0), born[:, 0])
