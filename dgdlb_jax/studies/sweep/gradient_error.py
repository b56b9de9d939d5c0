"""How wrong the approximate gradient is in a run, from the saved workloads alone: cheap enough for every case of a sweep."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from dgdlb_jax.model.network import Network


def largest_gradient_error(
    network: Network, time: Float[np.ndarray, " time"], workload: Float[np.ndarray, "time backends"]
) -> float:
    r"""The largest error of the approximate gradient in a run: mean over arcs of $|g^{approx}_{ij} / g^{exact}_{ij} - 1|$.

    $$ g^{approx}_{ij}(t) = \frac{1}{\ell_j'(N_j(t - \tau^{fb}_{ij}))} + \tau^{cost}_{ij}, \qquad
       g^{exact}_{ij}(t) = p_j(t + \tau_{ij}) + \tau^{cost}_{ij}, \qquad \dot p_j = \ell_j'(N_j)\, p_j - 1 $$

    with $p_j$ at the end of the run that of a backend at rest. The exact one is in open loop: nobody reacts to the request.

    **Arguments:** one network; `time` seconds and `workload` requests of a run in it.

    **Source:** own derivation; `marginal_latency` has the same from reverse mode, and the closed loop.
    """
    slope = jax.vmap(lambda t, n: network.service_at(t).slope(n))(jnp.asarray(time), jnp.asarray(workload))
    slope = np.asarray(slope, float)
    price = costate(time, slope)
    forward, feedback, cost = (
        np.asarray(a, float) for a in (network.latency, network.feedback_latency, network.cost_latency)
    )
    used = np.asarray(network.mask) & (np.asarray(network.arrival_rate) > 0)[:, None]
    error = np.zeros(time.size)
    for i, j in np.argwhere(used):
        seen = cost[i, j] + 1 / np.interp(time - feedback[i, j], time, slope[:, j])
        exact = cost[i, j] + np.interp(time + forward[i, j], time, price[:, j])
        error += np.abs(seen / exact - 1)
    return float(error.max() / max(used.sum(), 1))


def costate(
    time: Float[np.ndarray, " time"], slope: Float[np.ndarray, "time backends"]
) -> Float[np.ndarray, "time backends"]:
    r"""$p$ with $\dot p = a\, p - 1$, backwards from $1 / a$: what a request that arrives costs, seconds; $a$ is piecewise constant."""
    price = np.empty_like(slope)
    price[-1] = 1 / slope[-1]
    for k in range(time.size - 2, -1, -1):
        a = (slope[k] + slope[k + 1]) / 2
        stays = np.exp(-a * (time[k + 1] - time[k]))
        price[k] = stays * price[k + 1] + (1 - stays) / a
    return price
