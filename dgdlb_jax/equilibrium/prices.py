"""What a little more of everything is worth at the optimum."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from dgdlb_jax.equilibrium.optimum import Optimum, solve_optimum
from dgdlb_jax.model.batch import over_networks
from dgdlb_jax.model.network import Network
from dgdlb_jax.model.service import Replicas
from dgdlb_jax.numerics.programs import compiled
from dgdlb_jax.numerics.promotion import standard_promotion
from dgdlb_jax.numerics.results import Result, raise_on_failure


class ShadowPrices(eqx.Module):
    r"""Derivatives of the optimal mean latency, seconds per request. In a batch every array has one leading axis.

    - `request` `(frontends,)`: for one more request per second at this frontend, s/(request/s).
    - `latency` `(frontends, backends)`: for one more second of network time charged on this arc, s/s; 0 on arcs that are not in use.
    - `replica` `(backends,)`: for one more replica of this backend (one more of the whole backend where its curve does not count
      replicas), s; not positive.

    All with the traffic rerouted to the new optimum; to first order, that is free.
    """

    request: Float[Array, "*batch frontends"]
    latency: Float[Array, "*batch frontends backends"]
    replica: Float[Array, "*batch backends"]


@standard_promotion
def shadow_prices(network: Network, *, throw: bool = True) -> ShadowPrices:
    r"""What one more request per second, a longer link, one more replica change in the optimal mean latency $\bar L$.

    $$ \frac{\partial \bar L}{\partial \lambda_i},\qquad \frac{\partial \bar L}{\partial \tau^{cost}_{ij}},\qquad
       \frac{\partial \bar L}{\partial n_j} \ \text{ with } \ \ell_j(N) \to n_j\, \ell_{1j}(N / n_j) $$

    **Arguments:** `network`: one network or a batch. `throw`: raise when there is no optimum; otherwise prices are NaN there.

    **Returns:** `ShadowPrices`; a frontend without traffic has the price of its first request.

    **Raises:** `InputError` as `solve_optimum`.

    **Source:** the envelope theorem; own derivation.
    """
    optimum = solve_optimum(network, throw=throw)
    if throw:
        raise_on_failure(optimum.result, "shadow_prices")
    prices = _prices(network.anonymous(), optimum)
    solved = optimum.result == Result.successful
    good = lambda leaf: solved.reshape(*solved.shape, *(1,) * (leaf.ndim - solved.ndim))
    return jax.tree.map(lambda leaf: jnp.where(good(leaf), leaf, jnp.nan), prices)


@compiled
def _prices(network: Network, optimum: Optimum) -> ShadowPrices:
    """By the envelope theorem: what changes the cost at fixed flows, over the total rate."""
    service, rate = network.service, network.arrival_rate
    factor = jnp.ones_like(optimum.workload) if network.capacity is None else network.capacity.mean_rate
    count = service.count if isinstance(service, Replicas) else jnp.ones_like(optimum.workload)
    everything = rate.sum(-1, keepdims=True)
    everything = jnp.where(everything > 0, everything, 1)
    flow = rate[..., None] * optimum.routing
    inflow = flow.sum(-2)
    slope = factor * over_networks(lambda one, workload: one.service.slope(workload), network, optimum.workload)
    used = (inflow > 0) & (slope > 0)
    # N = n u(r / n) with u the inverse of the curve of one copy, so dN/dn = (N - r / l') / n.
    saved = jnp.where(used, optimum.workload - inflow / jnp.where(used, slope, 1), 0)
    return ShadowPrices(
        request=(optimum.multiplier - optimum.mean_latency[..., None]) / everything,
        latency=flow / everything[..., None],
        replica=jnp.minimum(saved, 0) / (count * everything),
    )
