"""Do the verdicts of a fluid comparison hold when requests are whole and come at random?

Every balancer of a comparison runs again with whole requests, several times with different random numbers, from the end of its fluid
run. What comes out: mean latency with its standard error, percentiles, and what noise costs.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float

from dgdlb_jax.model.network import Network
from dgdlb_jax.numerics.results import InputError, Result
from dgdlb_jax.policies.base import AbstractPolicy
from dgdlb_jax.simulation.own import counts_own
from dgdlb_jax.simulation.requests.engine import simulate_requests_batch
from dgdlb_jax.simulation.trajectory import Trajectory
from dgdlb_jax.stability.noise import Noise, noise
from dgdlb_jax.studies.balancers import DGD
from dgdlb_jax.studies.comparison import Comparison
from dgdlb_jax.studies.noise import stationary_latency
from dgdlb_jax.studies.verdict import Verdict

QUANTILES = (0.5, 0.95, 0.99)
PERCENTILES = tuple(f"p{100 * q:.0f}" for q in QUANTILES)
LEVELS = tuple(float(1 - later) for later in np.geomspace(1, 1e-3, 61)[1:])
"""Parts of the requests at which the distribution of their latencies is kept."""
DISCIPLINES = {"ps": "processor sharing", "fcfs": "first come, first served"}
SEEDS = 16
_WORK, _MOST, _LEAST = 2e8, 100_000, 5_000
"""Arcs times steps of all runs of a balancer, a few seconds; steps of a run at most and at least."""
_MOST_WORK = 1000 * _WORK
_SURE, _CERTAIN = 2.0, 3.0  # standard errors beyond which a figure counts, and one of many differences


@dataclass(frozen=True)
class RequestOutcome:
    """What whole requests make of a balancer.

    - `balancer`: its name. `fluid`: mean latency of the fluid run, seconds.
    - `mean`, `error`: mean latency with whole requests over all runs, and its standard error from their scatter, seconds: by
      `stationary_latency`, which varies less than the latencies themselves.
    - `quantiles`: latencies that the parts `QUANTILES` of the requests do not exceed, seconds; NaN where requests live longer than
      they were followed.
    - `distribution`: the same at the parts `LEVELS`.
    - `counts_own`: whether its rule looks at the number of its own requests, and so may be another rule at another scale.
    """

    balancer: str
    fluid: float
    mean: float
    error: float
    quantiles: tuple[float, ...]
    distribution: tuple[float, ...] = ()
    counts_own: bool = False

    @property
    def noise(self) -> float:
        """What randomness costs: relative difference to the fluid run."""
        return self.mean / self.fluid - 1

    @property
    def noise_error(self) -> float:
        """Its standard error."""
        return self.error / self.fluid


def changed_places(
    fluid: Float[np.ndarray, " rows"], mean: Float[np.ndarray, " rows"], error: Float[np.ndarray, " rows"]
) -> Bool[np.ndarray, "rows rows"]:
    """`[k, n]`: the first is better than the second in the fluid model, by 0.1 % and more, and worse with whole requests, for sure."""
    better = fluid[:, None] * 1.001 < fluid[None]
    return better & (mean[:, None] - mean[None] > _CERTAIN * np.hypot(error[:, None], error[None]))


@dataclass(frozen=True)
class RequestStudy:
    """Balancers with whole requests.

    - `scale`: rates and replicas were multiplied by it. `seeds`: runs of each. `discipline`: "ps" or "fcfs". `duration`: seconds that
      statistics cover, of each run.
    - `optimum`: the least mean latency of a static routing in the fluid model, seconds.
    - `left_out`: balancers that were not run, since their fluid run has no latency to compare with.
    - `predicted`: what linear theory says of DGD-LB, None where it is not among them or does not rest by itself.
    """

    scale: float
    seeds: int
    discipline: str
    duration: float
    optimum: float
    rows: tuple[RequestOutcome, ...]
    left_out: tuple[str, ...] = ()
    predicted: Noise | None = None

    @property
    def swaps(self) -> list[tuple[str, str]]:
        """Pairs whose order is the other one with whole requests: who was better in the fluid run first; only where both are sure."""
        rows = sorted(self.rows, key=lambda row: row.fluid)
        fluid, mean, error = (np.array([getattr(row, name) for row in rows]) for name in ("fluid", "mean", "error"))
        return [(rows[k].balancer, rows[n].balancer) for k, n in np.argwhere(changed_places(fluid, mean, error))]

    def document(self) -> dict[str, Any]:
        """What a script reads; None where a figure is not known."""
        plain = lambda value: value if math.isfinite(value) else None
        rows = [
            {
                "balancer": row.balancer,
                "fluid_mean_latency": plain(row.fluid),
                "mean_latency": plain(row.mean),
                "standard_error": plain(row.error),
                **{name: plain(value) for name, value in zip(PERCENTILES, row.quantiles, strict=True)},
            }
            for row in self.rows
        ]
        return {
            "scale": self.scale, "seeds": self.seeds, "discipline": self.discipline, "duration": self.duration,
            "balancers": rows, "left_out": list(self.left_out), "predicted": self._prediction(),
        }  # fmt: skip

    def _prediction(self) -> dict[str, Any] | None:
        found = self.predicted
        if found is None:
            return None
        distance = float(found.distance)
        return {
            "balancer": DGD, "static_seconds": float(found.static), "jitter_seconds": float(found.jitter),
            "standard_deviations_to_a_change_of_links": distance if math.isfinite(distance) else None, "trusted": bool(found.holds),
        }  # fmt: skip

    def holds_from(self, row: RequestOutcome, within: float = 0.01) -> float:
        """The scale from which noise costs this balancer no more than a part `within` of its latency, were the cost to fall like 1/n."""
        return self.scale * max(abs(row.noise), _SURE * row.noise_error) / within


class RequestStudyInProgress:
    """A study whose balancers come one after the other.

    **Arguments:** `comparison`: a fluid one at constant rates; `policies`: name -> policy, those of the comparison. `scale`, `seeds`,
    `discipline`: as for `RequestStudy`.

    **Raises:** `InputError` under a demand that moves, for fewer than two seeds, and for what `simulate_requests` refuses.
    """

    def __init__(
        self,
        comparison: Comparison,
        policies: Mapping[str, AbstractPolicy],
        *,
        scale: float = 1.0,
        seeds: int = SEEDS,
        discipline: str = "ps",
    ):
        if comparison.moving:
            raise InputError(
                "Whole requests are compared at constant rates: give the comparison under the mean demand."
            )
        check_seeds(comparison.network, seeds)
        self._comparison, self._policies = comparison, policies
        self._scale, self._seeds, self._discipline = scale, seeds, discipline
        self._rows: list[RequestOutcome] = []
        steady = {
            name: row
            for name, row in comparison.outcomes.items()
            if row.verdict not in (Verdict.diverging, Verdict.failed)
        }
        self.names: Sequence[str] = [name for name in policies if name in steady]
        self._left_out = tuple(name for name in policies if name in comparison.runs and name not in steady)
        self._duration = 0.0
        self._predicted = self._predict()

    @property
    def study(self) -> RequestStudy:
        """What is known by now."""
        return RequestStudy(
            self._scale, self._seeds, self._discipline, self._duration, float(self._comparison.optimum.mean_latency),
            tuple(self._rows), self._left_out, self._predicted,
        )  # fmt: skip

    def _predict(self) -> Noise | None:
        """What linear theory says of DGD-LB, where it settles and gets its reports at once."""
        network, held = self._comparison.network, self._comparison.news is not None
        if held or DGD not in self.names or network.latency.dtype != jnp.float64:
            return None
        found = noise(network, self._policies[DGD], self._comparison.optimum, scale=self._scale, throw=False)
        return found if found.result == Result.successful else None

    def finished(self) -> Iterator[RequestOutcome]:
        """Run everything; each row as soon as it is known."""
        fluid = self._comparison.outcomes
        for name in self.names:
            run = self._run(name)
            each = stationary_latency(run, self._comparison.network, self._comparison.optimum, self._scale)
            mean, error = float(each.mean()), float(each.std(ddof=1) / math.sqrt(self._seeds))
            found = [float(value) for value in run.latency_quantiles((*QUANTILES, *LEVELS))]
            quantiles, distribution = tuple(found[: len(QUANTILES)]), tuple(found[len(QUANTILES) :])
            counts = counts_own(self._comparison.network, self._policies[name])
            self._rows.append(
                RequestOutcome(name, fluid[name].mean_latency, mean, error, quantiles, distribution, counts)
            )
            yield self._rows[-1]

    def _run(self, name: str):
        comparison = self._comparison
        dt = comparison.time_steps.get(name, comparison.dt)
        arcs = comparison.network.frontends * comparison.network.backends
        steps = int(np.clip(_WORK / (arcs * self._seeds), _LEAST, _MOST))
        after = steps // 5
        self._duration = (steps - after) * dt
        return simulate_requests_batch(
            comparison.network, self._policies[name], jax.random.split(jax.random.key(0), self._seeds), duration=steps * dt, dt=dt,
            scale=self._scale, discipline=self._discipline, after=after * dt,
            initial=state_at_the_end(comparison.network, comparison.judged[name], self._scale),
        )  # fmt: skip


def check_seeds(network: Network, seeds: int) -> None:
    """Raise `InputError` for fewer runs of a balancer than a standard error needs, and for more than anybody waits for."""
    if seeds < 2:
        raise InputError(f"seeds is {seeds}: a standard error needs at least 2 runs.")
    most = int(_MOST_WORK / (_LEAST * network.frontends * network.backends))
    if seeds > most:
        raise InputError(f"seeds is {seeds}: so many runs of this network take hours: give at most {most:,}.")


def state_at_the_end(network: Network, run: Trajectory, scale: float = 1.0):
    """Where a fluid run ended, or those of a batch, as a start: shares that sum to 1 where nothing could be sent as well."""
    routing, mask = np.nan_to_num(np.asarray(run.final.routing, float)), np.asarray(network.mask)
    total = routing.sum(-1, keepdims=True)
    even = mask / np.maximum(mask.sum(-1, keepdims=True), 1)
    workload = np.nan_to_num(np.asarray(run.final.workload, float), posinf=0.0) * scale
    shares = np.where(total > 0, routing / np.where(total > 0, total, 1), even)
    return jnp.asarray(shares, network.latency.dtype), jnp.asarray(workload, network.latency.dtype)
