"""What a little more of everything is worth at the optimum."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from dgdlb_jax.analysis.optimum import Optimum, solve_optimum
from dgdlb_jax.model.demand import Constant
from dgdlb_jax.model.network import Network
from dgdlb_jax.model.service import Replicas
from dgdlb_jax.numerics.results import raise_on_failure


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


def shadow_prices(network: Network, *, throw: bool = True) -> ShadowPrices:
    r"""What one more request per second, a longer link, one more replica change in the optimal mean latency $\bar L$.

    $$ \frac{\partial \bar L}{\partial \lambda_i},\qquad \frac{\partial \bar L}{\partial \tau^{cost}_{ij}},\qquad
       \frac{\partial \bar L}{\partial n_j} \ \text{ with } \ \ell_j(N) \to n_j\, \ell_{1j}(N / n_j) $$

    **Arguments:** `network`: one network or a batch. `throw`: raise when there is no optimum; otherwise prices are NaN there.

    **Returns:** `ShadowPrices`, by the implicit function theorem at the optimum.

    **Raises:** `InputError` as `solve_optimum`.

    **Source:** the envelope theorem; own derivation.
    """
    optimum = solve_optimum(network, throw=throw)
    if throw:
        raise_on_failure(optimum.result, "shadow_prices")
    prices = _prices(network.anonymous())
    if network.batch is None:
        return jax.tree.map(lambda leaf: jnp.where(optimum.result == 0, leaf, jnp.nan), prices)
    good = lambda leaf: (optimum.result == 0).reshape(-1, *(1,) * (leaf.ndim - 1))
    return jax.tree.map(lambda leaf: jnp.where(good(leaf), leaf, jnp.nan), prices)


@eqx.filter_jit
def _prices(network: Network) -> ShadowPrices:
    service = network.service
    if isinstance(service, Replicas):
        curve, count = service.curve, service.count
    else:
        curve, count = service, jnp.ones_like(service.nominal_capacity)

    def total(changes: tuple[Array, Array, Array]) -> Array:
        request, latency, replica = changes
        changed = eqx.tree_at(
            lambda n: (n.demand, n.cost_latency, n.service),
            network,
            (Constant(network.arrival_rate + request), network.cost_latency + latency, _copies(curve, count + replica)),
        )
        return _mean_latency(changed).sum()

    nothing = (jnp.zeros_like(network.arrival_rate), jnp.zeros_like(network.cost_latency), jnp.zeros_like(count))
    request, latency, replica = jax.grad(total)(nothing)
    # A frontend without traffic is not part of the problem that was solved: the first request there costs its multiplier.
    best = solve_optimum(network, throw=False)
    everything = network.arrival_rate.sum(-1, keepdims=True)
    first = (best.multiplier - best.mean_latency[..., None]) / jnp.where(everything > 0, everything, 1)
    return ShadowPrices(jnp.where(network.arrival_rate > 0, request, first), latency, replica)


def _mean_latency(network: Network) -> Array:
    optimum: Optimum = solve_optimum(network, throw=False)
    return optimum.mean_latency


def _copies(curve: Any, count: Array) -> Replicas:
    """`Replicas` in a batch as well, where its constructor would not know the axes."""
    made = object.__new__(Replicas)
    object.__setattr__(made, "curve", curve)
    object.__setattr__(made, "count", count)
    return made
