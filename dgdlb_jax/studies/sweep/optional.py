"""Analyses that only some sweeps ask for, and that cost more than the optimum."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from dgdlb_jax.equilibrium.optimum import Optimum
from dgdlb_jax.model.batch import each_frontend
from dgdlb_jax.model.network import Network
from dgdlb_jax.numerics.results import InputError
from dgdlb_jax.policies.base import AbstractFlowPolicy, AbstractPolicy
from dgdlb_jax.policies.held import AbstractHeldPolicy
from dgdlb_jax.stability import critical, linearise, roots, sufficient
from dgdlb_jax.stability.held import held_loop
from dgdlb_jax.stability.rest_point import RestPoint, rest_point


def critical_step_size(networks: Network, optimum: Optimum) -> Float[Array, " cases"]:
    """The exact critical step size of every network, 1/s^2."""
    return jnp.asarray(critical.critical_step_size(networks, optimum=optimum, throw=False))


def sufficient_step_size(networks: Network, optimum: Optimum) -> Float[Array, "cases frontends"]:
    """The sufficient step sizes of every network, 1/s^2."""
    return jnp.asarray(sufficient.sufficient_step_size(networks, optimum))


def critical_factor(networks: Network, policy: AbstractPolicy, optimum: Optimum) -> Float[Array, " cases"]:
    """The factor by which a policy may be made faster until it is critical; NaN for a policy that has no linearisation."""
    if not isinstance(policy, AbstractFlowPolicy):
        return jnp.full(optimum.mean_latency.shape, jnp.nan)
    return jnp.asarray(critical.critical_step_size(networks, policy, optimum, throw=False))


def abscissa(networks: Network, policy: AbstractPolicy, optimum: Optimum) -> Float[Array, " cases"]:
    """The real part of the rightmost characteristic root, 1/s; NaN for a policy that has no linearisation."""
    if not isinstance(policy, AbstractFlowPolicy):
        return jnp.full(optimum.mean_latency.shape, jnp.nan)
    return jnp.asarray(roots.characteristic_roots(networks, policy, optimum).abscissa)


def linear_region(networks: Network, optimum: Optimum) -> Float[Array, " cases"]:
    """The smallest relative change of a workload that brings an idle arc into use; inf when no arc is idle."""
    return jnp.asarray(linearise.linearise(networks, optimum=optimum).linear_region)


def multiplier(networks: Network, policy: AbstractPolicy) -> Float[np.ndarray, " cases"]:
    """The largest modulus of a multiplier of one update of a policy that holds its weights: deviations die out below 1.

    inf where the rule has no equilibrium (it is a relay, or overloads a backend); NaN for other policies, and where reports are too many
    periods old to be followed.
    """
    size = networks.latency.shape[0]
    if not isinstance(policy, AbstractHeldPolicy):
        return np.full(size, np.nan)
    rest = rest_point(networks, policy)
    rule = each_frontend(networks, policy, type(policy).__name__)
    host = jax.tree.map(np.asarray, (networks, rule, rest))

    def of_case(k: int) -> tuple[Network, AbstractHeldPolicy, RestPoint]:
        own = lambda leaf: jnp.asarray(leaf[k if leaf.shape[0] == size else 0] if leaf.ndim else leaf)
        return jax.tree.map(own, host)

    return np.array([_radius(*of_case(k)) if found else np.inf for k, found in enumerate(host[-1].found)])


def _radius(network: Network, policy: AbstractHeldPolicy, rest: RestPoint) -> float:
    try:
        return held_loop(network, policy, rest).radius()
    except InputError:
        return float("nan")
