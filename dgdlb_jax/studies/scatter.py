"""How the recommended routing, and what it brings, move within the scatter of the measured service curves."""

from dataclasses import dataclass

import equinox as eqx
import numpy as np
from jaxtyping import ArrayLike

from dgdlb_jax.equilibrium.at_rest import latency_at_rest
from dgdlb_jax.equilibrium.optimum import Optimum, solve_optimum
from dgdlb_jax.fleets import Service
from dgdlb_jax.model.network import Network
from dgdlb_jax.model.service import redrawn, scatter
from dgdlb_jax.numerics.results import Result
from dgdlb_jax.studies.outcome import backend_names

DRAWS = 40
_RANGE = (0.05, 0.95)


@dataclass(frozen=True)
class Scatter:
    """What curves that fit the measurements as well would have recommended. Ranges hold nine tenths of what was drawn.

    - `draws`: how many sets of curves were drawn. `unserved`: how many of them cannot carry the demand at all.
    - `error`: curve -> standard deviation of its measurements about the curve, relative.
    - `too_short`: the curves with too few points to tell; these stay as they are.
    - `latency`: range of the optimal mean latency, seconds.
    - `backend`, `inflow`: the backend whose part of all requests moves most at the optimum, and its range.
    - `gain`: range of what the recommended routing (of the curves as fitted) takes off the mean latency of the current one, relative;
      NaN without a current one, or where that is overloaded.
    """

    draws: int
    unserved: int
    error: dict[str, float]
    too_short: tuple[str, ...]
    latency: tuple[float, float]
    backend: str
    inflow: tuple[float, float]
    gain: tuple[float, float]


def measure_scatter(
    network: Network, optimum: Optimum, service: Service, current: ArrayLike | None = None, *, draws: int = DRAWS
) -> Scatter | None:
    """Draw the measured curves anew (`redrawn`), and solve for the optimum each time.

    **Arguments:** a single `network`, of whose demand the means count, its `optimum` and `service`; `current`: shares
    `(frontends, backends)` of a routing in use.

    **Returns:** a `Scatter`; None where no curve was measured, or nothing could be solved.
    """
    errors = {name: scatter(fit) for name, fit in service.fits.items()}
    known = {name: found for name, found in errors.items() if found is not None}
    if not known:
        return None
    network, names = network.with_arrival_rate(network.arrival_rate).anonymous(), backend_names(network)
    rate = np.asarray(network.arrival_rate, float)
    routings = np.stack([np.asarray(shares, float) for shares in (optimum.routing, current) if shares is not None])
    draw, inflows, latencies, gains, unserved = np.random.default_rng(0), [], [], [], 0
    for _ in range(draws):
        fits = {name: redrawn(service.fits[name], found, draw) for name, found in known.items()}
        other = eqx.tree_at(lambda n: n.service, network, service.refitted(fits))
        best = solve_optimum(other, throw=False)
        if int(best.result) != Result.successful:
            unserved += 1
            continue
        inflows.append(rate @ np.asarray(best.routing, float) / rate.sum())
        latencies.append(float(best.mean_latency))
        if current is not None:
            recommended, used = np.asarray(latency_at_rest(other, routings))
            gains.append(1 - recommended / used if np.isfinite(used) else np.nan)
    if not latencies:
        return None
    low, high = np.quantile(np.asarray(inflows), _RANGE, axis=0)
    j = int(np.argmax(high - low))
    return Scatter(
        draws=draws,
        unserved=unserved,
        error={name: float(np.std(found)) for name, found in known.items()},
        too_short=tuple(name for name, found in errors.items() if found is None),
        latency=_range(latencies),
        backend=names[j],
        inflow=(float(low[j]), float(high[j])),
        gain=_range(gains) if gains and np.isfinite(gains).all() else (np.nan, np.nan),
    )


def _range(values: list[float]) -> tuple[float, float]:
    low, high = np.quantile(np.asarray(values), _RANGE)
    return float(low), float(high)
