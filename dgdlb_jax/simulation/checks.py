"""What can be said about a simulation's inputs before it runs: sizes of the buffer and the loop, and sentences for people."""

import dataclasses
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PyTree

from dgdlb_jax.model.batch import over_networks
from dgdlb_jax.model.network import Network
from dgdlb_jax.model.signals import Signals, closest_pair
from dgdlb_jax.numerics.delay import rows_for, steps_for
from dgdlb_jax.numerics.delay.line import fits
from dgdlb_jax.numerics.knots import Steps
from dgdlb_jax.numerics.results import InputError, is_concrete
from dgdlb_jax.numerics.types import Numbers
from dgdlb_jax.policies.autoscalers.base import AbstractAutoscaler, AbstractSampledAutoscaler
from dgdlb_jax.policies.base import AbstractPolicy
from dgdlb_jax.simulation.trajectory import SimulationState

LARGEST_STEP = 2**31 - 2  # steps are counted in int32
LARGEST_LINE = 2**31 - 1  # so are the numbers of a delay line


class Grid(NamedTuple):
    """The time grid of a batch: concrete numbers, known before anything is compiled."""

    dt: Float[np.ndarray, " batch"]
    steps: Int[np.ndarray, " batch"]
    rows: int


def grid(networks: Network, duration: Numbers, dt: Numbers, max_latency: float | None) -> Grid:
    """Steps and buffer rows from durations, steps and latencies in seconds.

    **Raises:** `InputError` for a dt or duration that is not positive, or not known outside `jit`, and for latencies without values.
    """
    size = networks.latency.shape[0]
    step = _positive("dt", dt, size)
    steps = steps_for(_positive("duration", duration, size), step)
    if steps.max() > LARGEST_STEP:
        raise InputError(
            f"duration / dt is {steps.max():.3g} steps, more than the {LARGEST_STEP} that can be counted: raise dt, or shorten the run."
        )
    rows = _rows(networks, step, max_latency)
    _, frontends, backends = networks.latency.shape
    if rows * frontends * backends > LARGEST_LINE:
        raise InputError(
            f"The delay buffer needs {rows} rows (the largest latency over dt) of {frontends} x {backends} arcs, more than the "
            f"{LARGEST_LINE} numbers that can be counted: raise dt, or lower that latency."
        )
    return Grid(step, np.maximum(steps, 1).astype(np.int64), rows)


def check_window(after: Numbers, grid: Grid) -> None:
    """Raise `InputError` for statistics that begin when the run is over, if it is known."""
    if not is_concrete(after):
        return
    begin, end = np.broadcast_arrays(np.asarray(after, float), grid.dt * grid.steps)
    late = np.flatnonzero(begin >= end)
    if late.size:
        raise InputError(
            f"Statistics are wanted after {begin.flat[late[0]]:.6g} s, but the run ends at {end.flat[late[0]]:.6g} s: begin earlier, "
            "or run longer."
        )


def _positive(name: str, value: Numbers, size: int) -> Float[np.ndarray, " batch"]:
    if not is_concrete(value):
        raise InputError(f"{name} is traced: give it as a Python number (or a NumPy array), outside jit.")
    numbers = np.asarray(value, float)
    if numbers.shape not in ((), (1,), (size,)):
        raise InputError(f"{name} has shape {numbers.shape}: give one number, or one for each of the {size} networks.")
    if not np.all(np.isfinite(numbers) & (numbers > 0)):
        worst = numbers.flat[np.argmin(np.isfinite(numbers) & (numbers > 0))]
        raise InputError(f"{name} is {worst}: give a finite positive number of seconds.")
    return np.broadcast_to(numbers, (size,))


def _rows(networks: Network, dt: Float[np.ndarray, " batch"], max_latency: float | None) -> int:
    if max_latency is not None:
        return rows_for(float(max_latency), float(dt.min()))
    if not is_concrete(networks.latency, networks.feedback_latency):
        raise InputError(
            "The network is traced, so the size of the delay buffer is unknown: "
            "give max_latency=, a number of seconds that no latency exceeds."
        )
    largest = np.maximum(np.asarray(networks.latency), np.asarray(networks.feedback_latency)).max(axis=(1, 2))
    return max(rows_for(float(tau), float(h)) for tau, h in zip(largest, dt, strict=True))


def too_large_step(networks: Network, dt: Float[Array, " batch"]) -> Bool[Array, " batch"]:
    """Whether a step is longer than the shortest service of all times: the trapezoidal rule would overshoot an empty backend."""
    return ((dt[:, None] * _fastest(networks) > 1) & networks.backend_mask).any(-1)


def _fastest(networks: Network) -> Float[Array, "batch backends"]:
    return over_networks(lambda network: network.fastest_service.initial_slope, networks)


def resumable(state: Any, time_grid: Grid) -> None:
    """Check that a run can go on from a state, if it does, with this grid; under tracing only that its delay lines were kept.

    **Raises:** `InputError` for a state without delay lines, another dt or buffer, or networks that do not stand at the same step.
    """
    if not isinstance(state, SimulationState):
        return
    if state.flow_line is None:
        raise InputError(
            "The state to go on from was saved with resumable=False, without its delay lines: leave that out of the first run's SaveAt, "
            "or start afresh from (routing, workload)."
        )
    if not is_concrete(state):
        return
    step, dt = np.asarray(state.step), np.asarray(state.time_step)
    if state.flow_line.shape[1] != time_grid.rows:
        raise InputError(
            f"The state to go on from has a delay buffer of {state.flow_line.shape[1]} rows, this run needs {time_grid.rows}: "
            "use the same latencies, dt and max_latency."
        )
    if not np.allclose(dt, time_grid.dt, rtol=1e-6, atol=0):
        raise InputError(
            f"The state to go on from has dt = {dt.flat[0]:.6g} s, this run {time_grid.dt.flat[0]:.6g} s: use the same."
        )
    waited = np.flatnonzero(step != np.asarray(state.row))
    if waited.size:
        raise InputError(
            f"The network to go on from (number {waited[0]}) ended at step {step.flat[waited[0]]} of a batch that ran to step "
            f"{np.asarray(state.row).flat[waited[0]]}, and its wires have drained since: start afresh from (routing, workload), "
            "or give all networks of a batch equally many steps."
        )
    if step.min() != step.max():
        raise InputError(
            f"The networks to go on from stand at different steps ({step.min()} to {step.max()}): go on with those of equal step."
        )
    if step.max() + time_grid.steps.max() > LARGEST_STEP:
        raise InputError(
            f"The run would pass step {LARGEST_STEP}, the last that can be counted: start afresh from (routing, workload)."
        )


def same_extensions(initial: Any, rows: tuple[int, ...]) -> None:
    """Check that a run goes on with the extensions that it had.

    **Raises:** `InputError` for others, or other delay buffers.
    """
    if not isinstance(initial, SimulationState):
        return
    before = tuple(-1 if own.line is None else own.line.shape[1] for own in initial.extensions)
    if before != rows:
        raise InputError(
            f"The state to go on from has {len(before)} extensions with delay buffers of {list(before)} rows, this run has {len(rows)} of "
            f"{list(rows)}: give the same extensions, latencies and dt, or start afresh from (routing, workload)."
        )


def same_autoscaler(initial: Any, autoscaler: AbstractAutoscaler | None, rows: int | None) -> None:
    """Check that a run goes on with the autoscaler that it had, if any.

    **Raises:** `InputError` for none, or one that keeps another number of commands.
    """
    if not isinstance(initial, SimulationState) or initial.scaling is None:
        return
    before = initial.scaling
    kept = rows if isinstance(autoscaler, AbstractSampledAutoscaler) or rows is None else 1
    lines = () if before.lines is None or kept != 1 else before.lines[:-1]
    if kept != before.commands.shape[-2] or any(line.shape[-2] != rows for line in lines):
        raise InputError(
            "The state to go on from is of a run with another autoscaler, or start-up delay: give the same one and the same dt, or start "
            "afresh from (routing, workload)."
        )


def one_event_at_a_time(signals: Signals, time_grid: Grid) -> None:
    """Raise `InputError` where something happens twice at one place within a step, which a step cannot tell apart."""
    if not is_concrete(signals):
        return
    for steps in (getattr(signals, field.name) for field in dataclasses.fields(signals)):
        gap = closest_pair(steps.times) if isinstance(steps, Steps) else np.inf
        if gap <= time_grid.dt.max():
            raise InputError(
                f"Two events at the same place are {gap:.3g} s apart, which dt = {time_grid.dt.max():.3g} s does not resolve: "
                "leave one of them out, or lower dt."
            )


def refuse_derivatives(policy: AbstractPolicy, values: PyTree, autoscaler: AbstractAutoscaler | None = None) -> PyTree:
    """The same values, without a derivative if the policy or the autoscaler jumps.

    **Raises:** `InputError` when they are differentiated then.
    """
    if policy.differentiable and (autoscaler is None or autoscaler.differentiable):
        return values
    refuse = jax.custom_jvp(lambda values: values)

    @refuse.defjvp
    def _(primals, tangents):
        if policy.differentiable:
            raise InputError(
                f"{type(autoscaler).__name__} jumps from one number of replicas to another, so a run with it has no gradient: use its "
                "smooth relative, Proportional."
            )
        raise InputError(
            f"{type(policy).__name__} jumps from one routing to another, so a run with it has no gradient: use its smooth "
            "relative, a softmin of the same signal, or a flow policy such as DGDLB."
        )

    return refuse(values)


def explain(networks: Network, time_grid: Grid, max_latency: float | None) -> None:
    """Name the backend that dt is too large for, or the arc that does not fit the buffer; nothing under tracing.

    **Raises:** `InputError` with the values and the remedy.
    """
    if not is_concrete(networks):
        return
    place = "" if networks.latency.shape[0] == 1 else "network {}, "
    with jax.ensure_compile_time_eval():  # a network with values may be used within jit
        slope = np.where(np.asarray(networks.backend_mask), np.asarray(_fastest(networks)), 0)
    over = time_grid.dt[:, None] * slope > 1
    if over.any():
        n, j = np.argwhere(over)[0]
        backend = networks.backend_names[j] if networks.backend_names else str(j)
        raise InputError(
            f"dt = {time_grid.dt[n]:.4g} s is too large for {place.format(n)}backend {backend}, which serves a lone request in "
            f"{1 / slope[n, j]:.4g} s{'' if networks.capacity is None else ' when its capacity is largest'}: "
            f"use a dt of at most a tenth of that, {0.1 / slope[n, j]:.3g} s."
        )
    for field in ("latency", "feedback_latency") if max_latency is not None else ():
        values = np.asarray(getattr(networks, field))
        late = ~fits(values / time_grid.dt[:, None, None], time_grid.rows)
        if late.any():
            n, i, j = np.argwhere(late)[0]
            raise InputError(
                f"Network.{field}[{i}, {j}] = {values[n, i, j]:.6g} s {place.format(n)}does not fit the delay buffer of "
                f"max_latency = {max_latency:.6g} s: raise max_latency, or leave it out."
            )
