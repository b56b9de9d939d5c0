"""What a demand that moves is compared with: the optimum of every moment, as if the network were always at rest."""

import math
from dataclasses import dataclass

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from dgdlb_jax.equilibrium.optimum import Optimum, solve_optimum
from dgdlb_jax.model.demand import AbstractDemand, Constant, DailyCycle, Jumps, Trace
from dgdlb_jax.model.network import Network
from dgdlb_jax.numerics.results import InputError, Result

FOLLOWED = 5.0
"""How many times as long as a time in service a demand has to stay as it is for queues to follow it."""


@dataclass(frozen=True)
class QuasiStatic:
    r"""The moving quasi-static optimum: a reference, not a bound.

    At every instant the optimum for the rates of that instant. Workloads would have to jump to follow it, so no
    balancer can be there all the time; and since a queue may be shorter for a moment than at rest, a balancer can
    also be below it for a while.

    $$ \bar L = \int \sum_i \lambda_i(t)\, L^*(\lambda(t))\, dt \Big/ \int \sum_i \lambda_i(t)\, dt $$

    - `time` `(time,)`: seconds. `optimum`: the optima, with a leading time axis.
    - `total_rate` `(time,)`: requests/s.
    - `latency` `(time,)`: $L^*$, seconds; NaN where there is no certified optimum, above capacity above all.
    - `mean_latency`: $\bar L$, seconds, over the instants that have an optimum.
    - `missing`: how many instants have none.
    """

    time: Float[np.ndarray, " time"]
    optimum: Optimum
    total_rate: Float[np.ndarray, " time"]
    latency: Float[np.ndarray, " time"]
    mean_latency: float
    missing: int


def quasi_static_optimum(network: Network, time: ArrayLike) -> QuasiStatic:
    """Solve the optimum at the rates of every given instant, one after the other: all of them run the code that is compiled already for
    the optimum at the mean rates.

    **Arguments:** `network` with a demand over time; `time` `(time,)` seconds, evenly spaced or not.

    **Returns:** a `QuasiStatic`.

    **Raises:** `InputError` when demand exceeds capacity at every instant.
    """
    still = network.anonymous()
    instants = jnp.asarray(time)
    rates = jax.vmap(still.demand.rate)(instants)
    factors = None if still.capacity is None else jax.vmap(still.capacity.rate)(instants)
    found = [
        solve_optimum(_frozen(still, rates[k], None if factors is None else factors[k]), throw=False)
        for k in range(instants.size)
    ]
    optimum = jax.tree.map(lambda *leaves: np.stack(leaves), *found)
    good = np.asarray(optimum.result) == Result.successful
    if not good.any():
        raise InputError("The demand exceeds what the backends can serve at all times: lower the load or add capacity.")
    total = np.asarray(rates).sum(-1)
    latency = np.where(good, np.asarray(optimum.mean_latency), np.nan)
    weight = np.where(good, np.gradient(np.asarray(instants, float)) if instants.size > 1 else 1.0, 0.0) * total
    mean = float(np.sum(weight * np.where(good, latency, 0)) / np.sum(weight))
    return QuasiStatic(np.asarray(instants), optimum, total, latency, mean, int((~good).sum()))


def steady_for(network: Network) -> float:
    """About how long demand and capacity stay as they are, seconds: a bin of a trace, the time between two jumps (median), the radian of a
    cycle; inf for what does not move or is of an unknown kind."""
    moving = [part for part in (network.demand, network.capacity) if part is not None]
    return min(map(_steady_for, moving), default=math.inf)


def _steady_for(demand: AbstractDemand) -> float:
    match demand:
        case Trace(bin_width=width):
            return float(np.min(width))
        case DailyCycle(period=period):
            return float(np.min(period)) / (2 * math.pi)
        case Jumps(times=times):
            between = np.diff(np.unique(np.asarray(times)))
            return float(np.median(between)) if between.size else math.inf
    return math.inf


def _frozen(network: Network, rate: Array, factor: Array | None) -> Network:
    """The network as it is at one instant, for ever."""
    found = eqx.tree_at(lambda n: n.demand, network, Constant(rate))
    return found if factor is None else eqx.tree_at(lambda n: n.capacity, found, Constant(factor))
