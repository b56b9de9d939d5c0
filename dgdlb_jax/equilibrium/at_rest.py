"""The mean latency of routings that never change."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from dgdlb_jax.model.batch import require_single
from dgdlb_jax.model.network import Network
from dgdlb_jax.model.service import AbstractService
from dgdlb_jax.numerics.programs import compiled


def latency_at_rest(network: Network, routing: ArrayLike) -> float | Float[np.ndarray, "..."]:
    r"""The mean latency at rest of a routing that never changes, at the mean rates.

    $$ \Big( \sum_j N_j + \sum_{ij} \lambda_i x_{ij} \tau^{cost}_{ij} \Big) / \sum_i \lambda_i,
       \quad \ell_j(N_j) = \sum_i \lambda_i x_{ij} $$

    **Arguments:** a single `network`; `routing`: shares `(..., frontends, backends)`.

    **Returns:** seconds, `(...)`; inf where a backend is sent more than it can serve.

    **Raises:** `InputError` for a batch.
    """
    require_single(network, "latency_at_rest")
    flow = np.asarray(network.arrival_rate, float)[:, None] * np.asarray(routing, float)
    network_cost = np.asarray((flow * np.asarray(network.cost_latency, float)).sum((-2, -1)))
    return latency_of_flows(network, flow.sum(-2), network_cost)


def latency_of_flows(
    network: Network, inflow: Float[np.ndarray, "... backends"], network_cost: Float[np.ndarray, "..."]
) -> float | Float[np.ndarray, "..."]:
    r"""The same from what each backend gets, requests/s, and $\sum_{ij} \lambda_i x_{ij} \tau^{cost}_{ij}$, requests."""
    flat = jnp.asarray(inflow.reshape(-1, inflow.shape[-1]), network.latency.dtype)
    workload = np.asarray(_workload(network.mean_service, flat), float).reshape(inflow.shape)
    held = np.where(inflow > 0, workload, 0.0).sum(-1)
    return (held + network_cost) / float(network.arrival_rate.sum())


@compiled
def _workload(service: AbstractService, inflow: Float[Array, "many backends"]) -> Float[Array, "many backends"]:
    return jax.vmap(service.inverse)(inflow)
