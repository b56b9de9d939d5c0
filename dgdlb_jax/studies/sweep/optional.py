"""Analyses that only some sweeps ask for, and that cost more than the optimum."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from dgdlb_jax.equilibrium.optimum import Optimum
from dgdlb_jax.model.network import Network
from dgdlb_jax.policies.base import AbstractFlowPolicy, AbstractPolicy
from dgdlb_jax.stability import critical, linearise, roots, sufficient


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
