"""What came of one balancer's run: the row it gets in a table."""

import math
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from dgdlb_jax.experiments.verdict import Verdict, judge, moving_mean, shortage, time_to_settle
from dgdlb_jax.model.network import Network
from dgdlb_jax.numerics.results import InputError, Result
from dgdlb_jax.simulation.trajectory import Statistics, Trajectory


@dataclass(frozen=True)
class Outcome:
    """One balancer's figures, over the window that its run's statistics cover.

    - `balancer`: its name.
    - `mean_latency`: seconds per request; infinite when a queue grows without end, NaN when the run failed.
    - `excess`: mean latency over that of the optimum (or of the reference), minus 1.
    - `network_share`: the part of the mean latency spent on the network.
    - `verdict`: a `Verdict`; None under a demand that moves, where nothing can settle.
    - `short_by`: what the overloaded backends lack, requests/s; `short_backends` names them.
    - `settle_time`: seconds from the start; NaN when the run did not settle.
    - `swing`: largest (max - min) / mean of a backend's workload.
    - `highest_latency`: highest moving mean of the run, seconds.
    - `beyond_measured`: the backends whose workload left the measured range of their curve, at any time.
    - `still_beyond_measured`: those that were outside it in the window as well.
    - `result`: how the computation ended.
    """

    balancer: str
    mean_latency: float
    excess: float
    network_share: float
    verdict: Verdict | None
    short_by: float
    short_backends: tuple[str, ...]
    settle_time: float
    swing: float
    highest_latency: float
    beyond_measured: tuple[str, ...]
    still_beyond_measured: tuple[str, ...]
    result: Result

    @property
    def reason(self) -> str | None:
        """Why there is no mean latency; None when there is one."""
        if self.verdict is Verdict.diverging:
            return f"diverging: short by {self.short_by:.3g} requests/s at {', '.join(self.short_backends)}"
        return self.result.sentence if self.verdict is Verdict.failed else None


def outcome(network: Network, balancer: str, run: Trajectory, best_latency: float, *, moving: bool = False) -> Outcome:
    """Read a run's figures.

    **Arguments:**

    - `network`: the network it ran in. `balancer`: a name for the row.
    - `run`: a trajectory with saved `cost_rate` and `arrival_rate`, and with statistics of its last fifth (of all of
      it when `moving`).
    - `best_latency`: what to compare with, seconds: mean latency of the optimum, or of the quasi-static reference.
    - `moving`: whether demand moves, so that no verdict on settling is possible.

    **Returns:** an `Outcome`.
    """
    statistics = statistics_of(run)
    result = Result(int(run.result))
    verdict = Verdict.failed if result is not Result.successful else Verdict(int(judge(statistics)))
    if moving and verdict is not Verdict.failed:
        verdict = None
    short = np.asarray(shortage(statistics)) if verdict is Verdict.diverging else np.zeros(network.backends)
    latency = float(statistics.mean_latency)
    latency = math.inf if verdict is Verdict.diverging else math.nan if verdict is Verdict.failed else latency
    smooth = smooth_latency(network, run)
    settled = verdict is Verdict.settled
    measured = np.asarray(jnp.broadcast_to(network.service.measured_workload, (network.backends,))) * (1 + 1e-9)
    names = backend_names(network)
    return Outcome(
        balancer=balancer,
        mean_latency=latency,
        excess=latency / best_latency - 1,
        network_share=float(statistics.network_share) if math.isfinite(latency) else math.nan,
        verdict=verdict,
        short_by=float(short.sum()),
        short_backends=_pick(names, short > 0),
        settle_time=time_to_settle(run.time, smooth, best_latency, latency) if settled else math.nan,
        swing=float(statistics.swing),
        highest_latency=float(np.max(smooth)),
        beyond_measured=_pick(names, np.asarray(statistics.peak_workload) > measured),
        still_beyond_measured=_pick(names, np.asarray(statistics.highest_workload) > measured),
        result=result,
    )


def backend_names(network: Network) -> tuple[str, ...]:
    """Names of the backends, made up where the network has none."""
    return network.backend_names or tuple(f"backend {j}" for j in range(network.backends))


def frontend_names(network: Network) -> tuple[str, ...]:
    """Names of the frontends, made up where the network has none."""
    return network.frontend_names or tuple(f"frontend {i}" for i in range(network.frontends))


def statistics_of(run: Trajectory) -> Statistics:
    """The statistics of a run, which has to have been saved with some."""
    if run.statistics is None:
        raise InputError("A comparison needs runs with statistics: save with SaveAt(...), not SaveAt.final().")
    return run.statistics


def smooth_latency(network: Network, run: Trajectory) -> Float[np.ndarray, " time"]:
    """Moving mean of a run's latency over the largest network latency, or 1 % of the run if that is longer; seconds."""
    time = np.asarray(run.time, float)
    window = max(float(jnp.max(network.latency)), 0.01 * float(time[-1] - time[0]))
    rate = np.asarray(run.arrival_rate, float).sum(-1)
    return moving_mean(time, np.asarray(run.mean_latency, float) * rate, rate, window)


def _pick(names: tuple[str, ...], chosen: np.ndarray) -> tuple[str, ...]:
    return tuple(name for name, take in zip(names, chosen, strict=True) if take)
