"""What came of one balancer's run: the row it gets in a table."""

import math
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
from jaxtyping import ArrayLike, Bool, Float

from dgdlb_jax.model.network import Network
from dgdlb_jax.numerics.results import Result
from dgdlb_jax.simulation.trajectory import Trajectory
from dgdlb_jax.studies.assess import Assessment
from dgdlb_jax.studies.names import backend_names as backend_names
from dgdlb_jax.studies.names import frontend_names as frontend_names
from dgdlb_jax.studies.verdict import Judgement, Verdict, moving_mean, time_to_settle


@dataclass(frozen=True)
class Outcome:
    """One balancer's figures, over the window that its run's statistics cover.

    - `balancer`: its name.
    - `duration`: how long its run was, seconds.
    - `mean_latency`: seconds per request; infinite when a queue grows without end, NaN when the run failed.
    - `excess`: mean latency over that of the optimum (or of the reference), minus 1.
    - `network_share`: the part of the mean latency spent on the network.
    - `verdict`: a `Verdict`. `reason`: why, and what to do about it; None for the verdicts that are answers (settled, oscillating).
    - `short_by`: what the diverging backends lack, requests/s; `short_backends` names them.
    - `settle_time`: seconds from the start, or from the last event; NaN when the run did not settle, or under a demand that moves.
    - `swing`: largest (max - min) / mean of a workload that matters. `drift`: the same of one that moves in one direction, else 0.
    - `resolved`: whether the time step resolves the swing, if there is one.
    - `highest_latency`: highest moving mean of the run, seconds.
    - `beyond_measured`: the backends whose workload left the measured range of their curve, at any time.
    - `still_beyond_measured`: those that were outside it in the window as well.
    - `result`: how the computation ended.
    """

    balancer: str
    duration: float
    mean_latency: float
    excess: float
    network_share: float
    verdict: Verdict
    reason: str | None
    short_by: float
    short_backends: tuple[str, ...]
    settle_time: float
    swing: float
    drift: float
    resolved: bool
    highest_latency: float
    beyond_measured: tuple[str, ...]
    still_beyond_measured: tuple[str, ...]
    result: Result


def outcome(
    network: Network,
    balancer: str,
    run: Trajectory,
    best_latency: float,
    *,
    moving: bool = False,
    resolved: bool = True,
    begin: float = 0.0,
) -> Outcome:
    """Read a run's figures.

    **Arguments:**

    - `network`: the network it ran in. `balancer`: a name for the row.
    - `run`: a trajectory with saved `workload`, `cost_rate` and `arrival_rate`, and with statistics of its last fifth (of all of
      it when `moving`).
    - `best_latency`: what to compare with, seconds: mean latency of the optimum, or of the quasi-static reference.
    - `moving`: whether demand moves at some time, so that figures are held against the reference and there is no time to settle.
    - `resolved`: whether the time step resolves what the rule does; the swing of one that jumps may be finer.
    - `begin`: when the last event was, seconds, from which the time to settle counts.

    **Returns:** an `Outcome`.
    """
    assessed = Assessment(network, run, np.asarray(best_latency))
    statistics, found, latency = assessed.statistics, assessed.judgement, float(assessed.mean_latency)
    result, verdict, names = Result(int(run.result)), Verdict(int(found.verdict)), backend_names(network)
    short = _pick(names, found.shortfall > 0)
    smooth = smooth_latency(network, run)
    settled = verdict is Verdict.settled and not moving
    return Outcome(
        balancer=balancer,
        duration=float(np.subtract(*np.asarray(run.time)[[-1, 0]])),
        mean_latency=latency,
        excess=float(assessed.excess),
        network_share=float(statistics.network_share) if math.isfinite(latency) else math.nan,
        verdict=verdict,
        reason=_reason(found, short, result),
        short_by=float(found.short_by),
        short_backends=short,
        settle_time=float(np.maximum(time_to_settle(run.time, smooth, best_latency, latency) - begin, 0))
        if settled
        else math.nan,
        swing=float(found.swing),
        drift=float(found.drift),
        resolved=resolved,
        highest_latency=float(np.max(smooth)),
        beyond_measured=_pick(names, beyond_measured(network, statistics.peak_workload)),
        still_beyond_measured=_pick(names, beyond_measured(network, statistics.highest_workload)),
        result=result,
    )


def beyond_measured(network: Network, workload: Float[ArrayLike, " backends"]) -> Bool[np.ndarray, " backends"]:
    """Which backends have a workload outside the measured range of their curve."""
    return np.asarray(workload) > np.broadcast_to(network.service.measured_workload, network.backends) * (1 + 1e-9)


def smooth_latency(network: Network, run: Trajectory) -> Float[np.ndarray, " time"]:
    """Moving mean of a run's latency over the largest network latency, or 1 % of the run if that is longer; seconds."""
    time = np.asarray(run.time, float)
    window = max(float(jnp.max(network.latency)), 0.01 * float(time[-1] - time[0]))
    rate = np.asarray(run.arrival_rate, float).sum(-1)
    return moving_mean(time, np.asarray(run.mean_latency, float) * rate, rate, window)


def _reason(found: Judgement, short: tuple[str, ...], result: Result) -> str | None:
    match Verdict(int(found.verdict)):
        case Verdict.failed:
            return result.sentence
        case Verdict.diverging:
            return f"diverging: short by {float(found.short_by):.3g} requests/s at {', '.join(short)}"
    return found.reason


def _pick(names: tuple[str, ...], chosen: np.ndarray) -> tuple[str, ...]:
    return tuple(name for name, take in zip(names, chosen, strict=True) if take)
