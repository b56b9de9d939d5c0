"""Analyses that only some sweeps ask for, and that cost more than the optimum."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from dgdlb_jax.analysis.optimum import Optimum
from dgdlb_jax.model.network import Network
from dgdlb_jax.numerics.results import InputError


def critical_step_size(networks: Network, optimum: Optimum) -> Float[Array, " cases"]:
    """The exact critical step size of every network, 1/s^2."""
    return jnp.asarray(_function("critical_step_size")(networks, optimum=optimum, throw=False))


def sufficient_step_size(networks: Network, optimum: Optimum) -> Float[Array, "cases frontends"]:
    """The sufficient step sizes of every network, 1/s^2."""
    return jnp.asarray(_function("sufficient_step_size")(networks))


def gradient_error(runs: Any) -> Float[np.ndarray, " cases"]:
    raise InputError("The measure gradient_error is not available in this version: remove it.")


def _function(name: str) -> Any:
    import dgdlb_jax

    try:
        return getattr(dgdlb_jax, name)
    except AttributeError as error:
        raise InputError(
            f"{name} is not available in this version: use step_size or step_size_over_default."
        ) from error
