"""Finished runs of a sweep, and what measures are computed from."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Float, Int

from dgdlb_jax.equilibrium.optimum import Optimum
from dgdlb_jax.model.network import Network
from dgdlb_jax.policies.base import AbstractPolicy
from dgdlb_jax.simulation.trajectory import Trajectory
from dgdlb_jax.studies.assess import Assessment
from dgdlb_jax.studies.verdict import Verdict


@dataclass(frozen=True)
class Runs:
    """Finished runs of cases side by side, and what they ran with; every array has a leading axis of cases.

    - `assessed`: the runs and their verdicts. `dt`, `duration`: seconds.
    - `default`, `sufficient`: `(cases, frontends)`, `critical`: `(cases,)`, 1/s^2, when needed.
    """

    assessed: Assessment
    policy: AbstractPolicy
    optimum: Optimum
    dt: Float[np.ndarray, " cases"]
    duration: Float[np.ndarray, " cases"]
    default: Float[np.ndarray, "cases frontends"] | None
    sufficient: Float[np.ndarray, "cases frontends"] | None
    critical: Float[np.ndarray, " cases"] | None

    @property
    def networks(self) -> Network:
        """What they ran in."""
        return self.assessed.networks

    @property
    def trajectory(self) -> Trajectory:
        """The runs themselves."""
        return self.assessed.run

    @property
    def verdict(self) -> Int[np.ndarray, " cases"]:
        """Codes of `Verdict`."""
        return self.assessed.verdict

    @cached_property
    def distance(self) -> Float[np.ndarray, "cases time"]:
        """Relative distance of the workloads to the optimum over time."""
        best = np.asarray(self.optimum.workload, float)[:, None]
        return np.abs(self.workload - best).sum(-1) / best.sum(-1)

    @cached_property
    def workload(self) -> Float[np.ndarray, "cases time backends"]:
        """Workloads over time, requests."""
        return np.asarray(self.trajectory.workload, float)

    @cached_property
    def time(self) -> Float[np.ndarray, "cases time"]:
        """Seconds of the saved instants; shorter runs repeat their last one."""
        return np.asarray(self.trajectory.time, float)

    @cached_property
    def requests(self) -> dict[str, Float[np.ndarray, " cases"]]:
        """What whole requests make of the cases, seconds; NaN where queues grow without end, or nothing ran."""
        from dgdlb_jax.studies.sweep.requests import run_requests

        found = run_requests(self.networks, self.policy, self.optimum, self.trajectory, self.dt)
        steady = ~np.isin(self.verdict, (Verdict.diverging, Verdict.failed))
        return {name: np.where(steady, values, np.nan) for name, values in found.items()}

    def where(self, verdict: Verdict, one: Callable[[int], float]) -> Float[np.ndarray, " cases"]:
        """`one(case)` for the cases with this verdict, NaN for the others."""
        return np.array([one(k) if code == verdict else np.nan for k, code in enumerate(self.verdict)])

    def moving_part(self, case: int) -> slice:
        """The saved instants of a case up to the end of its run."""
        return slice(0, int(np.searchsorted(self.time[case], self.time[case, -1])) + 1)
