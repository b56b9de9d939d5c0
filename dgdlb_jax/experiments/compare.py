"""Balancers side by side in one network, against its optimum."""

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from dgdlb_jax.analysis.feasibility import require_traffic
from dgdlb_jax.analysis.optimum import Optimum, solve_optimum
from dgdlb_jax.analysis.shadow_prices import ShadowPrices, shadow_prices
from dgdlb_jax.analysis.step_size import default_step_size, suggest_dt, suggest_duration
from dgdlb_jax.experiments.balancers import BALANCERS as BALANCERS
from dgdlb_jax.experiments.balancers import DGD as DGD
from dgdlb_jax.experiments.balancers import balancers
from dgdlb_jax.experiments.outcome import Outcome, outcome
from dgdlb_jax.experiments.reference import QuasiStatic, quasi_static_optimum
from dgdlb_jax.experiments.verdict import LAST_PART
from dgdlb_jax.model.demand import Constant, DailyCycle, Jumps, Trace
from dgdlb_jax.model.network import Network
from dgdlb_jax.numerics.results import InputError, Result
from dgdlb_jax.policies.base import AbstractPolicy, least, share_equally
from dgdlb_jax.policies.static import proportional
from dgdlb_jax.simulation.engine import simulate
from dgdlb_jax.simulation.trajectory import SaveAt, Trajectory

Progress = Callable[[int, int, str], None]
"""Called with the pieces of work done, how many there are, and what was done last."""

CURRENT = "current routing"
"""Name of the user's own routing table in tables and pictures."""
STARTS = ("proportional", "nearest", "uniform")
"""The routings a comparison can start from."""


@dataclass(frozen=True)
class Comparison:
    """Balancers that ran in the same network from the same start.

    - `network`, `optimum`: what they ran in, and the optimum at its mean rates.
    - `step_size` `(frontends,)` 1/s^2 of DGD-LB, `dt` and `duration` in seconds, `start`: what they ran with.
    - `runs`: name -> `Trajectory`, all saved at the same instants; statistics cover the last fifth, or all of the run
      when demand moves.
    - `reference`: the moving quasi-static optimum; None when demand is constant.
    """

    network: Network
    optimum: Optimum
    step_size: Float[Array, " frontends"]
    dt: float
    duration: float
    start: str
    runs: dict[str, Trajectory] = field(repr=False)
    reference: QuasiStatic | None = field(default=None, repr=False)

    @cached_property
    def prices(self) -> ShadowPrices:
        """What a little more of everything is worth at the optimum."""
        return shadow_prices(self.network)

    @property
    def moving(self) -> bool:
        """Whether demand moves, so that there is a reference instead of an optimum."""
        return self.reference is not None

    @property
    def best_latency(self) -> float:
        """Mean latency of the optimum, or of the reference when demand moves, seconds."""
        return float(self.optimum.mean_latency) if self.reference is None else self.reference.mean_latency

    @cached_property
    def outcomes(self) -> dict[str, Outcome]:
        """Name -> figures of that balancer."""
        return {
            name: outcome(self.network, name, run, self.best_latency, moving=self.moving)
            for name, run in self.runs.items()
        }

    def table(self) -> list[Outcome]:
        """The figures, DGD-LB first, then from the best to the worst."""

        def rank(row: Outcome):
            finite = bool(np.isfinite(row.mean_latency))
            return row.balancer != DGD, not finite, row.mean_latency if finite else row.short_by

        return sorted(self.outcomes.values(), key=rank)

    @property
    def steepest_latency(self) -> float:
        r"""$\max \tau_{ij} \ell_j'(N_j)$ over the arcs in use at the optimum: latency on the backends' time scale."""
        slope = self.network.service.slope(self.optimum.workload)
        used = (self.optimum.routing > 1e-6) & (self.network.arrival_rate > 0)[:, None]
        return float(jnp.max(jnp.where(used, self.network.latency * slope, 0)))

    @property
    def conclusion(self) -> str:
        """One or two sentences that say what these numbers mean for the network."""
        from dgdlb_jax.experiments.words import conclusion

        return conclusion(self)

    def to_xarray(self):
        """All of it as an `xarray.Dataset`, with inputs, units and versions."""
        from dgdlb_jax.experiments.results import to_dataset

        return to_dataset(self)


def compare(
    network: Network,
    policies: Mapping[str, AbstractPolicy] | Sequence[str] | None = None,
    *,
    also: Mapping[str, AbstractPolicy] | None = None,
    step_size: float | ArrayLike | None = None,
    dt: float | None = None,
    duration: float | None = None,
    start: str | tuple[ArrayLike, ArrayLike] = "proportional",
    instants: int = 1500,
    workers: int | None = None,
    progress: Progress | None = None,
) -> Comparison:
    """Run balancers in the same network from the same start, and hold them against the optimum.

    **Arguments:**

    - `network`: a single network. When its demand or capacity moves, the runs are held against the moving
      quasi-static optimum.
    - `policies`: name -> policy, or keys of `BALANCERS`; by default those of `balancers.DEFAULT`.

    Other arguments:

    - `also`: name -> policy, in addition to `policies`: your own against the usual ones.
    - `step_size`: of DGD-LB, 1/s^2, a scalar or `(frontends,)`; `default_step_size` by default.
    - `dt`, `duration`: seconds; `suggest_dt` and `suggest_duration` by default.
    - `start`: one of `STARTS`, with the workloads that carry that routing, or `(routing, workload)`.
    - `instants`: about how many instants to keep of every run (fewer in very large networks).
    - `workers`: how many balancers run at the same time; the number of cores by default, at most 4.
    - `progress`: told after every piece of work.

    **Returns:** a `Comparison`.

    **Raises:** `InputError` when there is no demand or it exceeds capacity, when a value is out of range, for an unknown name, or when
    dt is too large for the fastest backend. A run that fails by itself is a row that says so.
    """
    if network.batch is not None:
        raise InputError("compare takes a single network: network[k] picks one out of a batch.")
    require_traffic(network)
    moving = not isinstance(network.demand, Constant) or network.capacity is not None
    initial = start_state(network, start)
    optimum = solve_optimum(network)
    step = default_step_size(network, optimum) if step_size is None else jnp.asarray(step_size, float)
    chosen = policies if isinstance(policies, Mapping) else balancers(network, optimum, step, policies)
    chosen = {**chosen, **(also or {})}
    dt = _positive("dt", float(suggest_dt(network, step, optimum)) if dt is None else dt)
    if duration is None:
        duration = _natural_duration(network, float(suggest_duration(network, step, optimum)))
    duration = _positive("duration", duration)
    save = SaveAt(
        _every(network, duration, dt, instants),
        after=0.0 if moving else (1 - LAST_PART) * duration,
        reference=optimum.workload,
    )

    def job(policy: AbstractPolicy):
        return lambda: _run(network, policy, duration=duration, dt=dt, initial=initial, save=save)

    jobs: dict[str, Callable[[], Any]] = {name: job(policy) for name, policy in chosen.items()}
    if moving:
        jobs[_REFERENCE] = lambda: quasi_static_optimum(network, _reference_instants(network, duration))
    if progress is not None:
        progress(0, len(jobs), "")
    runs = _at_the_same_time(jobs, workers, progress)
    return Comparison(
        network=network,
        optimum=optimum,
        step_size=jnp.broadcast_to(step, (network.frontends,)),
        dt=dt,
        duration=duration,
        start=start if isinstance(start, str) else "given",
        reference=runs.pop(_REFERENCE, None),
        runs={name: runs[name] for name in chosen},
    )


_REFERENCE = "quasi-static optimum"


def start_state(network: Network, start: str | tuple[ArrayLike, ArrayLike]) -> tuple[ArrayLike, ArrayLike]:
    """The start of a comparison: a routing `(frontends, backends)` and the workload `(backends,)` that carries it.

    Where a backend cannot carry what the routing sends it, its workload starts at 0.

    **Arguments:** `start`: one of `STARTS`, or `(routing, workload)`, which is returned as it is.
    """
    if not isinstance(start, str):
        return start
    if start not in STARTS:
        raise InputError(f"start={start!r}: choose from {', '.join(STARTS)}{_did_you_mean(start, STARTS)}")
    rule = {
        "proportional": lambda mask, _: proportional(network.nominal_capacity, mask),
        "nearest": lambda mask, latency: least(latency, mask),
        "uniform": lambda mask, latency: share_equally(mask, latency.dtype),
    }[start]
    routing = jax.vmap(rule)(network.mask, network.cost_latency)
    inflow = network.demand.rate(jnp.zeros(network.frontends)) @ routing
    workload = network.service.inverse(inflow)
    return routing, jnp.where(jnp.isfinite(workload), workload, 0)


def _did_you_mean(word: str, known) -> str:
    close = get_close_matches(word, list(known), n=1)
    return f"; did you mean {close[0]}?" if close else "."


def _positive(name: str, value: float) -> float:
    if not (np.isfinite(value) and value > 0):
        raise InputError(f"{name} = {value} s: give a finite number above 0.")
    return float(value)


def _every(network: Network, duration: float, dt: float, instants: int) -> int:
    steps = duration / dt
    if steps > 1e9:
        raise InputError(
            f"duration {duration:.6g} s at dt {dt:.3g} s is {steps:.3g} steps: a comparison takes up to 1e9."
        )
    kept = max(100, min(instants, 4_000_000 // (network.frontends * network.backends)))
    return max(1, round(steps / kept))


def _natural_duration(network: Network, settling: float) -> float:
    """Seconds that show all of a demand: the time to settle, the whole trace, a whole cycle."""
    match network.demand:
        case Trace(bin_width=width, rates=rates):
            return float(jnp.max(width)) * rates.shape[0]
        case DailyCycle(period=period):
            return float(jnp.max(period))
        case Jumps(times=times):
            return float(jnp.max(times)) + settling
    return settling


def _reference_instants(network: Network, duration: float):
    """Where the reference is solved: at the knots of a trace (edges and middles of bins) if they are not too many."""
    halves = 400
    if isinstance(network.demand, Trace):
        halves = min(1000, max(2, round(2 * duration / float(jnp.min(network.demand.bin_width)))))
    return np.linspace(0, duration, halves + 1)


def _run(network: Network, policy: AbstractPolicy, **options) -> Trajectory:
    run = jax.block_until_ready(simulate(network, policy, throw=False, **options))
    result = Result(int(run.result))
    if result in (Result.step_too_large, Result.latency_overflow):
        raise InputError(f"dt = {options['dt']:.6g} s: {result.sentence}")
    return run


def _at_the_same_time(
    jobs: dict[str, Callable[[], Any]], workers: int | None, progress: Progress | None
) -> dict[str, Any]:
    """Compiling and running release the interpreter: threads use the cores, the main thread stays free for Ctrl-C."""
    double = jnp.result_type(float) == jnp.float64  # a context manager sets precision for its own thread only

    def here(work):
        with jax.enable_x64(double):
            return work()

    pool = ThreadPoolExecutor(workers or min(4, os.cpu_count() or 1), thread_name_prefix="dgdlb")
    try:
        names = {pool.submit(here, work): name for name, work in jobs.items()}
        done = {}
        for future in as_completed(names):
            done[names[future]] = future.result()
            if progress is not None:
                progress(len(done), len(jobs), names[future])
        return done
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
