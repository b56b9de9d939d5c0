"""The simulator: `simulate` and `simulate_batch`, which are one."""

import dataclasses
import warnings
from collections.abc import Hashable, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Int, PyTree

from dgdlb_jax.model.batch import as_batch, each_frontend, of_batch, only_one, require_single
from dgdlb_jax.model.events import Event
from dgdlb_jax.model.network import Network
from dgdlb_jax.model.signals import Signals, as_signals
from dgdlb_jax.numerics.delay import (
    Carry,
    DelayedSystem,
    ReverseMode,
    delayed_scan,
    run_as_told,
    steps_for,
)
from dgdlb_jax.numerics.delay.checkpoint import count_frames, join
from dgdlb_jax.numerics.native import one_native_loop, or_without
from dgdlb_jax.numerics.precision import with_float_type
from dgdlb_jax.numerics.programs import compiled
from dgdlb_jax.numerics.promotion import standard_promotion
from dgdlb_jax.numerics.results import InputError, Result, first_failure, is_concrete, raise_on_failure
from dgdlb_jax.numerics.threads import in_threads
from dgdlb_jax.numerics.tiles import map_tiles, one_by_one, with_automatic_axes
from dgdlb_jax.numerics.types import Matrices, Matrix, Numbers
from dgdlb_jax.policies.autoscalers.base import AbstractAutoscaler
from dgdlb_jax.policies.base import AbstractPolicy
from dgdlb_jax.simulation import autoscaled, checks
from dgdlb_jax.simulation.attached import Applied, Attached, Plugins
from dgdlb_jax.simulation.autoscaled import Scaler
from dgdlb_jax.simulation.chain import delayed_system, overflow
from dgdlb_jax.simulation.clock import Clock
from dgdlb_jax.simulation.dynamics import Field
from dgdlb_jax.simulation.inputs import Inputs, check_fused, check_together
from dgdlb_jax.simulation.observe import ObserveFields
from dgdlb_jax.simulation.plan import Execution, Plan, Program, plan
from dgdlb_jax.simulation.plugins import AbstractExtension
from dgdlb_jax.simulation.start import begin, check_start, default_start, resume, send, suspend
from dgdlb_jax.simulation.state import StepState
from dgdlb_jax.simulation.statistics import Summary
from dgdlb_jax.simulation.trajectory import FIELDS, SaveAt, SimulationState, Trajectory


@standard_promotion
def simulate(
    network: Network,
    policy: AbstractPolicy,
    *,
    duration: float,
    dt: float,
    initial: tuple[Matrices, Matrix] | SimulationState | None = None,
    save: SaveAt | None = None,
    max_latency: float | None = None,
    throw: bool = True,
    adjoint: ReverseMode | None = None,
    extra_flow: Matrices | None = None,
    extensions: tuple[AbstractExtension, ...] = (),
    events: Sequence[Event] | Signals | None = None,
    autoscaler: AbstractAutoscaler | None = None,
) -> Trajectory:
    r"""Simulate a policy in a network with latencies.

    $$ \dot N_j = \sum_i f_{ij}(t - \tau^{fwd}_{ij}) - \ell_j(N_j), \qquad f_{ij} = \lambda_i x_{ij}, \qquad
       \dot x_i = \mathrm{Proj}_{T(x_i)}(v_i) $$

    with $v_i$ the policy's velocity at what frontend $i$ sees after the feedback latency. History before the start is constant.
    A fixed step of second order, for latencies that are any real number of seconds. Jumps of demand and capacity, and events, may lie
    anywhere: what is sent and what arrives in a step is counted exactly.

    **Arguments:**

    - `network`: a `Network`, whose floating-point type is that of the run: all other inputs are converted to it. `policy`: how its
      frontends route; parameters are scalars or have a leading frontend axis.
    - `duration`: seconds to simulate; rounded up to whole steps.
    - `dt`: length of a step, seconds; `suggest_dt(network)` proposes one.

    Other arguments:

    - `initial`: `(routing, workload)`, or the `final` of a run to go on from. Default: routing in proportion to nominal capacity,
      with the workload that carries it.
    - `save`: what to keep, a `SaveAt`; every step by default.
    - `max_latency`: the largest latency that the delay buffer has to hold, seconds; read from the network by default. Under `jit`,
      where the network has no values yet, it must be given.
    - `throw`: raise when the run fails. Otherwise, and under `jit` or `vmap`, look at `result`.
    - `adjoint`: what reverse mode remembers, `FullStorage()` or `Checkpoints(every=...)`; by default every step while that takes
      little memory. Nothing else depends on it; forward mode needs none.
    - `extra_flow`: `(time, frontends, backends)`, requests/s that are sent at the saved instants (`save.every` steps apart) for the
      length of a step, besides what is routed: something to differentiate with respect to. Zero by default.
    - `extensions`: state variables of your own that observe the network through delays, see `AbstractExtension`.
    - `events`: what fails, drains, recovers or changes on the way, of `dgdlb_jax.events`. What an arc is used for when it closes goes to
      the others: a flow policy projects, an instant one keeps their proportions. `run.lost` counts the requests that are lost;
      a latency is a mean over all requests sent, and a lost one costs until it is lost.
    - `autoscaler`: what moves the replicas of every backend, from those of the network on; of `dgdlb_jax.autoscalers`. Parameters are
      scalars or `(backends,)`. `run.replicas` are those that serve, `run.statistics.replica_seconds` what they cost.

    **Returns:** a `Trajectory`. `jax.grad`, `jax.vjp`, `jax.jvp` and `jax.linearize` work, with respect to all numbers in the network
    (latencies as well), the policy, `initial`, `extra_flow` and what `save`, `extensions` and `autoscaler` contain; second derivatives do
    not. An autoscaler that decides every so often jumps, and has none.

    **Raises:** `InputError` for a step too large for the fastest backend, a latency longer than the buffer, values that are not
    finite, a start of the wrong shape.

    **Source:** the model of arXiv:2504.10693; the scheme is this project's own.
    """
    require_single(network, "simulate", otherwise="simulate_batch")
    if isinstance(initial, tuple):
        routing, workload = initial
        initial = jnp.asarray(routing), jnp.asarray(workload)
    policy = each_frontend(network, policy, type(policy).__name__)
    if autoscaler is not None:
        autoscaler = as_batch(autoscaled.resolved(network, autoscaler), shared_scalars=True)
    # A network with values keeps them within somebody's jit, so that the size of the delay buffer is known.
    with jax.ensure_compile_time_eval() if is_concrete(network) else nullcontext():
        networks = as_batch(network)
    runs = simulate_batch(
        networks,
        as_batch(policy, shared_scalars=True),
        duration=duration,
        dt=dt,
        initial=as_batch(initial),
        save=None
        if save is None
        else eqx.tree_at(
            lambda s: (s.after, s.reference), save, replace_fn=as_batch, is_leaf=lambda leaf: leaf is None
        ),
        max_latency=max_latency,
        throw=throw,
        execution=Execution(devices=1),
        adjoint=adjoint,
        extra_flow=None if extra_flow is None else as_batch(jnp.asarray(extra_flow)),
        extensions=extensions,
        events=events if events is None else as_batch(as_signals(network, events)),
        autoscaler=autoscaler,
    )
    return only_one(runs)


@standard_promotion
def simulate_batch(
    networks: Network,
    policy: AbstractPolicy,
    *,
    duration: Numbers,
    dt: Numbers,
    initial: tuple[Matrices, Matrix] | SimulationState | None = None,
    save: SaveAt | None = None,
    max_latency: float | None = None,
    frames: int | None = None,
    throw: bool = True,
    execution: Execution | None = None,
    adjoint: ReverseMode | None = None,
    extra_flow: ArrayLike | None = None,
    extensions: tuple[AbstractExtension, ...] = (),
    events: Sequence[Event] | Signals | None = None,
    autoscaler: AbstractAutoscaler | None = None,
    **once: Any,
) -> Trajectory:
    """Simulate many networks at once: `simulate` for each of them, with the same answers.

    **Arguments:** as for `simulate`, with a leading batch axis:

    - `networks`: a batch, from `stack` or a topology family.
    - `policy`: parameters are scalars, `(frontends,)` and shared by all networks, or `(batch, frontends, ...)`, where either axis may
      be 1: `(batch, 1)` is one number for each network.
    - `duration`, `dt`: scalars or `(batch,)`. A network that reaches its end first stands still until all have.
    - `frames`: room for this many saved instants. With it the number of steps is data, not compiled in: batches of other durations,
      time steps and `save.every` share compiled code if their delay lines are equally long (`max_latency`). Room that is left over
      repeats the last instant. Not for reverse-mode derivatives.
    - `execution`: where it runs and how much at a time, an `Execution(devices=..., threads=..., lanes=..., fused=...)`; chosen by default,
      as `plan` says. (`devices=...` and the like, given directly, are deprecated.)
    - `extensions`: as for `simulate`; like statistics of your own (`save`) they are written for one network, and their numbers are
      shared by all networks.
    - `events`: shared by all networks, or `signals` of each, stacked. `autoscaler`: its parameters are scalars, `(backends,)` and shared,
      or `(batch, backends)`, where either axis may be 1.

    **Returns:** a `Trajectory` whose arrays have a leading batch axis. With `throw=False` the failure of one network
    leaves the others alone and shows in `result`.

    **Raises:** as `simulate`, naming the first network that failed.
    """
    networks = networks.in_one_type()
    if networks.batch is None:
        raise InputError(
            "simulate_batch takes a batch: stack([network, ...]) makes one, simulate takes a single network."
        )
    save, dtype = SaveAt() if save is None else save, networks.latency.dtype
    policy = each_frontend(networks, policy, type(policy).__name__)
    found = None if events is None else with_float_type(as_signals(networks, events), dtype)
    networks = networks if found is None else found.demand_of(networks)
    autoscaler = None if autoscaler is None else autoscaled.resolved(networks, autoscaler)
    made = plan(
        networks if found is None else found.with_longest(networks), duration=duration, dt=dt, save=save, max_latency=max_latency,
        frames=frames, execution=_execution(execution, once), adjoint=adjoint, extensions=extensions, policy=policy,
        autoscaler=autoscaler, data=(policy, initial, extra_flow, found, autoscaler),
    )  # fmt: skip
    if throw:
        checks.explain(networks, made.grid, max_latency)
    checks.resumable(initial, made.grid)
    inputs = Inputs(
        network=networks.anonymous(),
        policy=policy,
        events=None
        if found is None
        else eqx.tree_at(lambda s: s.demand, found, None, is_leaf=lambda leaf: leaf is None),
        initial=of_batch(default_start, networks) if initial is None else check_start(networks, initial),
        reference=None if save.reference is None else jnp.asarray(save.reference, dtype),
        dt=jnp.asarray(made.grid.dt, dtype),
        steps=jnp.asarray(made.grid.steps, jnp.int32),
        after=jnp.asarray(steps_for(save.after, made.grid.dt), jnp.int32),
        every=None if frames is None or save.every is None else jnp.asarray(save.every, jnp.int32),
        extra=None if extra_flow is None else jnp.asarray(extra_flow, dtype),
        autoscaler=autoscaler,
    )
    checks.same_extensions(inputs.initial, made.program.extensions)
    checks.same_autoscaler(inputs.initial, autoscaler, made.program.commands)
    if found is not None:
        checks.one_event_at_a_time(found, made.grid)
    check_together(made, inputs)
    made.memory.check()
    runs = _carry_out(made, inputs)
    if throw:
        raise_on_failure(runs.result, "The simulation" if networks.batch == 1 else "simulate_batch")
    names = {"frontend_names": networks.frontend_names, "backend_names": networks.backend_names}
    return dataclasses.replace(runs, **names, labels=made.plugins.labels)


def _execution(chosen: Execution | None, once: dict[str, Any]) -> Execution:
    """How to run, also from arguments by which that was said before there was an `Execution`."""
    unknown = once.keys() - {each.name for each in dataclasses.fields(Execution)}
    if unknown:
        raise TypeError(f"simulate_batch() got an unexpected keyword argument '{min(unknown)}'")
    if once:
        given = ", ".join(f"{name}={value!r}" for name, value in once.items())
        warnings.warn(
            f"simulate_batch({given}) is deprecated: write execution=Execution({given}).",
            DeprecationWarning,
            stacklevel=4,
        )
    return dataclasses.replace(chosen or Execution(), **once)


def _kernels():
    """Loaded when asked for: Pallas is experimental, and takes time to import."""
    try:
        from dgdlb_jax.simulation import fused
    except ImportError as error:
        raise InputError(
            f"fused=True needs Pallas with its Triton backend, which jax {jax.__version__} lacks ({error}): leave it out."
        ) from error
    return fused


_without_kernel: set[Hashable] = set()
"""Of which runs no kernel can be made: found out once."""


def _carry_out(made: Plan, inputs: Inputs) -> Trajectory:
    """In a kernel if that is planned; in a loop where there is none, unless it must be one."""
    if not made.program.fused:
        return _in_loops(made, inputs)
    sizes = tuple((leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(inputs))
    key = jax.tree.structure((inputs, made.program)), sizes
    if made.must_fuse or key not in _without_kernel:
        try:
            check_fused(made, inputs)
            with _kernels().compiling(inputs.policy):
                return _run(inputs, made.plugins, made.program, made.devices, made.lanes)
        except Exception:  # of whatever compiles kernels; what is wrong with the run itself the loop finds as well
            if made.must_fuse:
                raise
            _without_kernel.add(key)
    return _in_loops(dataclasses.replace(made, program=dataclasses.replace(made.program, fused=False)), inputs)


def _in_loops(made: Plan, inputs: Inputs) -> Trajectory:
    def run(native: bool) -> Trajectory:
        program = dataclasses.replace(made.program, native=native)
        return in_threads(
            lambda part: _run(part, made.plugins, program, made.devices, made.lanes), inputs, made.threads
        )

    sizes = tuple((leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(inputs))
    return or_without(run, (jax.tree.structure((inputs, made.program, made.plugins)), sizes, made.devices, made.lanes))


@compiled
def _run(inputs: Inputs, plugins: Plugins, program: Program, devices: int, lanes: int) -> Trajectory:
    """Cut the batch into tiles of lanes, spread the tiles over devices, run them one after the other on each."""
    shared, batched = eqx.partition(inputs, lambda leaf: leaf.ndim == 0)
    run_tile = lambda batched, shared: _run_tile(eqx.combine(batched, shared[0]), shared[1], program)
    if program.fused:
        run_tile = one_by_one(run_tile)
    run = lambda batched, shared: map_tiles(run_tile, batched, shared, lanes=lanes, devices=devices)
    return with_automatic_axes(run, inputs.network.latency)(batched, (shared, plugins))


def _run_tile(inputs: Inputs, plugins: Plugins, program: Program) -> Trajectory:
    network, dt = inputs.network, inputs.dt
    field = Field(network, inputs.policy, inputs.events)
    count_wires, scaler = "in_flight" in program.fields, None
    if inputs.autoscaler is not None and program.commands is not None:
        scaler = Scaler(field.shape, network, inputs.autoscaler, program.commands)
    if isinstance(inputs.initial, SimulationState):
        carry = resume(field, inputs.initial, count_wires, program.counts_own, scaler)
    else:
        carry = begin(field, *inputs.initial, dt, program.rows, count_wires, program.counts_own, scaler)
    first = carry.k
    last = first + inputs.steps
    clock, counts = Clock(field.shape, dt, last), carry.state.tail is not None
    summary, after = None, first + jnp.minimum(inputs.after, inputs.steps - 1)
    if program.summary:
        summary = Summary(field.shape, after, last, inputs.reference, scales=scaler is not None)
        sums = summary.begin(field, first, carry.state.workload, carry.state.scaling)
        carry = eqx.tree_at(lambda c: c.state.sums, carry, sums, is_leaf=lambda leaf: leaf is None)
    attached = Attached(plugins, network, after) if plugins else None
    own, more = None, ()
    if attached is not None:
        own = Applied(field, clock, attached, scaler)
        carry, more = own.join(carry, inputs.initial, program.extensions)
    observe = ObserveFields(program.fields)
    system = delayed_system(
        field, clock, summary, program.rows, counts, observe, attached, more, program.counts_own, scaler
    )
    carry, saved = _integrate(system, carry, inputs, program)
    now, statistics = carry.state, None
    if summary is not None and now.sums is not None:
        statistics = summary.finish(field, dt, now.sums, now.peak)
    results = (
        _code(overflow(system), Result.latency_overflow),
        _code(checks.too_large_step(network, dt), Result.step_too_large),
        _code(~_finite(field, now), Result.not_finite),
    )
    final = suspend(field, carry, last, dt, program.resumable)
    fields: dict[str, Any] = dict.fromkeys(FIELDS) | saved
    measured = {} if own is None else own.finish(now.measured)
    return Trajectory(**fields, statistics=statistics, final=final, result=first_failure(*results), measured=measured)


def _integrate(system: DelayedSystem, carry: Carry, inputs: Inputs, program: Program) -> tuple[Carry, dict[str, Any]]:
    """The run, and what is saved of it: time as second axis, behind the batch."""
    batch_first = partial(jax.tree.map, lambda leaf: jnp.moveaxis(leaf, 0, 1))
    observe = lambda carry: system.observe(system.parameters, carry.k, carry.state)
    instant = partial(jax.tree.map, lambda leaf: leaf[None])
    first = [] if program.every is None else [instant(observe(carry))]
    if program.fused:
        carry, saved = _in_kernels(system, carry, inputs, program)
        return carry, batch_first(saved)
    if program.steps is None:
        told = partial(run_as_told, frames=program.frames)
        carry, saved = one_native_loop(told, program.native)(system, carry, inputs.steps.max(), inputs.every)
        return carry, batch_first(saved)
    shape, extra = system.parameters.field.shape, None
    if inputs.extra is not None:
        extra = shape.arcs(inputs.extra)
        carry, extra = send(system, carry, extra[0]), extra[1:]
    system, carry, extra = checks.refuse_derivatives(inputs.policy, (system, carry, extra), inputs.autoscaler)
    carry, saved = delayed_scan(
        system, carry, program.steps, program.every, inputs=extra, memory=program.adjoint, runs=program.networks / shape.lanes,
        native=program.native,
    )  # fmt: skip
    return carry, batch_first(join([*first, saved]))


def _in_kernels(system: DelayedSystem, carry: Carry, inputs: Inputs, program: Program) -> tuple[Carry, PyTree]:
    """The same, of a tile of one network: a kernel for all steps up to the next instant that is saved, as many as the network takes.

    What changes is in memory in between. Room that is left over repeats the last instant: no step is made for it.
    """
    total = inputs.steps[0]
    every = program.every if inputs.every is None else inputs.every
    frames = program.frames - 1 if program.steps is None else count_frames(program.steps, program.every)
    observe = lambda carry: system.observe(system.parameters, carry.k, carry.state)
    instant = partial(jax.tree.map, lambda leaf: leaf[None])
    if every is None:
        carry = _kernels().run_fused(system, carry, total)
        return carry, instant(observe(carry))
    end = carry.k + total

    def frame(carry: Carry, _) -> tuple[Carry, PyTree]:
        carry = _kernels().run_fused(system, carry, jnp.minimum(jnp.int32(every), end - carry.k))
        return carry, observe(carry)

    begun = instant(observe(carry))
    carry, seen = jax.lax.scan(frame, carry, length=frames)
    return carry, join([begun, seen])


def _finite(field: Field, now: StepState) -> Bool[Array, " lanes"]:
    lanes = field.shape.lanes
    routing = jnp.isfinite(now.routing).reshape(-1, lanes).all(0)
    finite = routing & jnp.isfinite(now.workload).reshape(-1, lanes).all(0)
    return finite if now.ready is None else finite & jnp.isfinite(now.ready).reshape(-1, lanes).all(0)


def _code(failed: Bool[Array, " lanes"], result: Result) -> Int[Array, " lanes"]:
    return jnp.where(failed, jnp.int32(result), jnp.int32(Result.successful))
