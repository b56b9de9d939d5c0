"""Where DGD-LB settles and where it falls into a limit cycle: start distance x step size x load x latency."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from dgdlb_jax.equilibrium.optimum import Optimum, solve_optimum
from dgdlb_jax.model import topologies
from dgdlb_jax.model.network import Network
from dgdlb_jax.stability.critical import critical_step_size
from dgdlb_jax.stability.sufficient import sufficient_step_size
from dgdlb_jax.studies.stability import SCALAR_CONDITIONS, far_starts, from_far, rules_of_equal_gain


@dataclass(frozen=True)
class CycleMap:
    """What became of runs of DGD-LB.

    - `loads`; `latencies`: mean latency over service time; `distances`: of the start, 0 at the optimum, 1 with all traffic of each
      frontend at one backend and hardly a request in the system; `fractions`: step sizes as parts of the critical one.
    - `failed` `(loads, latencies, networks, distances, fractions)`: did not settle; NaN for networks without a critical step size.
    - `proven` `(loads, latencies, networks)`: the largest step size that a condition guarantees, as part of the critical one.
    """

    loads: tuple[float, ...]
    latencies: tuple[float, ...]
    distances: tuple[float, ...]
    fractions: tuple[float, ...]
    failed: np.ndarray
    proven: np.ndarray

    @property
    def share(self) -> np.ndarray:
        """Of the networks that failed, `(loads, latencies, distances, fractions)`."""
        return np.nanmean(self.failed, axis=2)

    @property
    def smallest(self) -> np.ndarray:
        """The smallest step size at which a run failed, from any start, as part of the critical one; inf if none did."""
        failed = (self.failed == 1).any(-2)
        fractions = np.asarray(self.fractions)
        return np.where(failed, fractions, np.inf).min(-1)


def cycle_map(
    loads: tuple[float, ...] = (0.3, 0.5, 0.7, 0.9),
    latencies: tuple[float, ...] = (0.3, 3.0, 30.0),
    distances: tuple[float, ...] = (0.03, 0.1, 0.3, 1.0),
    fractions: tuple[float, ...] = (0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9),
    *,
    count: int = 16,
    periods: float = 200.0,
    seed: int = 0,
) -> CycleMap:
    """Run DGD-LB in random networks of 3 x 3 with exponential curves, `count` for each load and latency, all in one batch.

    **Arguments:** `periods`: length of a run at a tenth of the limit, in periods of its oscillation.
    """
    grid = [(load, latency) for load in loads for latency in latencies]
    sizes = {"frontends": 3, "backends": 3, "count": count}
    draw = topologies.complete(jax.random.key(seed), service=topologies.CURVES["exponential"], **sizes)
    networks = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *(_scaled(draw, *point) for point in grid))
    optimum = solve_optimum(networks)
    limit = critical_step_size(networks, optimum=optimum)
    limited = np.flatnonzero(np.isfinite(np.asarray(limit)))
    some, best = jax.tree.map(lambda leaf: leaf[limited], (networks, optimum))
    guaranteed = [sufficient_step_size(some, best, condition=condition)[:, 0] for condition in SCALAR_CONDITIONS]
    plain = {name: rule for name, rule in rules_of_equal_gain().items() if name == "DGD-LB"}
    starts = [_towards(some, best, distance, seed) for distance in distances]
    found = from_far(some, fractions=fractions, rules=plain, starts=starts, periods=periods).failed[0]

    def spread(values: np.ndarray) -> np.ndarray:
        every = np.full((len(grid) * count, *values.shape[1:]), np.nan)
        every[limited] = values
        return every.reshape(len(loads), len(latencies), count, *values.shape[1:])

    failed = spread(np.moveaxis(found, -1, 0).swapaxes(1, 2).astype(float))
    proven = spread(np.max(np.stack(guaranteed), 0) / np.asarray(limit)[limited])
    return CycleMap(loads, latencies, distances, fractions, failed, proven)


def _scaled(networks: Network, load: float, latency: float) -> Network:
    """The same networks at another load, their mean latency that many service times."""
    service_time = 1 / jax.vmap(lambda service: service.initial_slope)(networks.service)
    factor = latency * service_time.mean(-1) / networks.latency.mean((-1, -2))
    return Network(networks.demand, networks.latency * factor[:, None, None], networks.service).with_load(load)


def _towards(networks: Network, optimum: Optimum, distance: float, seed: int) -> tuple[Array, Array]:
    routing, workload = far_starts(networks, seed=seed)[2]
    return (
        optimum.routing + distance * (routing - optimum.routing),
        optimum.workload + distance * (workload - optimum.workload),
    )
