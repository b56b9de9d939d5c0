"""How long a comparison runs: by its demand, by what it takes to be judged, and what can be run at all."""

from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np

from dgdlb_jax.equilibrium.optimum import Optimum
from dgdlb_jax.model.batch import as_batch
from dgdlb_jax.model.demand import DailyCycle, Jumps, Trace
from dgdlb_jax.model.network import Network
from dgdlb_jax.numerics import device
from dgdlb_jax.numerics.results import InputError
from dgdlb_jax.simulation import checks
from dgdlb_jax.simulation.memory import LINES
from dgdlb_jax.studies.names import backend_names, frontend_names

MOST_STEPS = 1e9
"""Time steps that a run may have: some hours on one core."""


def check_times(network: Network, dt: float | None, duration: float | None) -> None:
    """Raise `InputError` for a time step or a duration that cannot be run in a network, as far as they are given."""
    for name, value in (("dt", dt), ("duration", duration)):
        if value is not None and not (np.isfinite(value) and value > 0):
            raise InputError(f"{name} = {value} s: give a finite number above 0.")
    if dt is None and duration is not None:
        _check_span(network, None, "duration", duration)
    if dt is not None:
        if duration is not None:
            steps_of(duration, dt)
        batch = as_batch(network)
        checks.explain(batch, checks.grid(batch, dt, dt, None), None)


def steps_of(duration: float, dt: float) -> float:
    """How many steps a run has; `InputError` for more than anybody waits for."""
    steps = duration / dt
    if steps > MOST_STEPS:
        raise InputError(
            f"duration = {duration:.6g} s at dt = {dt:.3g} s is {steps:.3g} steps, but a run has at most {MOST_STEPS:.0e}: "
            f"shorten it to {MOST_STEPS * dt:.2g} s, or raise dt."
        )
    return steps


def check_span(network: Network, dt: float | None, lasting: Mapping[str, float], runs: int = 2) -> None:
    """Raise `InputError` before any work where something lasts longer than can be run, or a latency than can be kept in memory, in steps
    that resolve the fastest service.

    **Arguments:** `dt`: the time step, seconds; about a tenth of a lone request's service if it is not given. `lasting`: seconds, by what
    takes them, in words that name the field; the longest latency is among them anyway. `runs`: how many go side by side.
    """
    where, longest = longest_latency(network)
    latency = f"[latency] {where}"
    lasting = {latency: longest, **lasting}
    what = max(lasting, key=lambda what: lasting[what])
    _check_span(network, dt, what, lasting[what])
    step, why = _longest_step(network, dt)
    needed = line_bytes(network, longest / step, runs)
    if needed > room():
        raise InputError(
            f"{latency} is {longest:.3g} s, and what is on the way for so long takes about {needed / 1e9:.3g} GB of memory, here with a dt "
            f"of {step:.2g} s{why}, but there is room for {room() / 1e9:.3g} GB: correct one of the two."
        )


def room() -> float:
    """Bytes of memory that runs may take."""
    return device.PLANNED * device.memory()


def line_bytes(network: Network, rows: float, runs: int) -> float:
    """About what delay lines of so many rows take of so many runs side by side."""
    return runs * LINES * rows * network.backends * (network.frontends + 1) * network.latency.dtype.itemsize


def _check_span(network: Network, dt: float | None, what: str, lasts: float) -> None:
    step, why = _longest_step(network, dt)
    if lasts / step > MOST_STEPS:
        raise InputError(
            f"{what} is {lasts:.3g} s, but a run has at most {MOST_STEPS:.0e} steps, here with a dt of {step:.2g} s{why}: "
            "correct one of the two."
        )


def _longest_step(network: Network, dt: float | None) -> tuple[float, str]:
    """The time step, or the longest that may be suggested, and why."""
    slopes = np.where(network.backend_mask, network.fastest_service.initial_slope, 0)
    fastest = int(np.argmax(slopes))
    alone = 1 / max(slopes[fastest], np.finfo(float).tiny)
    why = f", as backend {backend_names(network)[fastest]} serves a lone request in {alone:.3g} s"
    return (0.1 * alone, why) if dt is None else (dt, "")


def longest_latency(network: Network) -> tuple[str, float]:
    """Of all arcs, forward or back: between whom, and how many seconds."""
    both = np.maximum(network.latency, network.feedback_latency)
    i, j = np.unravel_index(int(np.argmax(both)), both.shape)
    return f"from {frontend_names(network)[i]} to {backend_names(network)[j]}", float(both[i, j])


def largest_latency(network: Network) -> float:
    """Of all arcs, forward or back, seconds."""
    return float(np.maximum(network.latency, network.feedback_latency).max())


def longest_service(network: Network, optimum: Optimum) -> float:
    """The longest mean time in service of a backend in use at the optimum, seconds."""
    inflow = np.asarray(network.arrival_rate) @ np.asarray(optimum.routing)
    in_use = inflow > 1e-3 * inflow.sum()
    return float(np.where(in_use, optimum.workload / np.where(in_use, inflow, 1), 0).max())


def natural_duration(network: Network, settling: float) -> float:
    """Seconds that show all of a demand: the time to settle, the whole trace, a whole cycle."""
    match network.demand:
        case Trace(bin_width=width, rates=rates):
            return float(jnp.max(width)) * rates.shape[0]
        case DailyCycle(period=period):
            return float(jnp.max(period))
        case Jumps(times=times):
            return float(jnp.max(times)) + settling
    return settling


def reference_instants(network: Network, duration: float) -> np.ndarray:
    """Where the reference is solved: at the knots of a trace (edges and middles of bins) if they are not too many."""
    halves = 400
    if isinstance(network.demand, Trace):
        halves = min(1000, max(2, round(2 * duration / float(jnp.min(network.demand.bin_width)))))
    return np.linspace(0, duration, halves + 1)
