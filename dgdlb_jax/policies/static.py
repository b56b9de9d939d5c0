"""Balancers that look at nothing that changes."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from dgdlb_jax.numerics.results import InputError, is_concrete
from dgdlb_jax.numerics.types import Matrix
from dgdlb_jax.policies.base import AbstractInstantPolicy, Observation, State, least, parameter, share_equally


class Uniform(AbstractInstantPolicy):
    r"""The same share to every backend within reach: $x_{ij} = 1 / |B_i|$."""

    def route(self, t, observation: Observation, state: State):
        """Equal shares."""
        del t
        return share_equally(observation.mask, observation.workload.dtype), state


class ProportionalToCapacity(AbstractInstantPolicy):
    r"""Shares in proportion to nominal capacity: $x_{ij} \propto \bar\ell_j$ over the backends within reach."""

    def route(self, t, observation: Observation, state: State):
        """Weighted shares, as in weighted round robin."""
        del t
        return proportional(observation.nominal_capacity, observation.mask), state


class Nearest(AbstractInstantPolicy):
    r"""Everything to the backend with the least network latency: $\arg\min_j \tau^{cost}_{ij}$; ties shared equally."""

    def route(self, t, observation: Observation, state: State):
        """All to the nearest."""
        del t
        return least(observation.cost_latency, observation.mask), state


class FixedRouting(AbstractInstantPolicy):
    """A routing table of the user's own.

    **Arguments:**

    - `routing`: `(frontends, backends)`, shares; every row sums to 1.

    **Raises:** `InputError` when a share is negative or not finite, or a row does not sum to 1 within 1e-6.
    """

    routing: Float[Array, "*frontends backends"]

    def __init__(self, routing: Matrix):
        self.routing = parameter(routing)
        if is_concrete(self.routing):
            table = np.asarray(self.routing)
            if not np.all(np.isfinite(table) & (table >= 0)):
                raise InputError(
                    "FixedRouting.routing has a share that is negative or not finite: shares lie between 0 and 1."
                )
            sums = table.sum(-1)
            if not np.allclose(sums, 1, rtol=0, atol=1e-6):
                row = int(np.argmax(np.abs(sums - 1)))
                raise InputError(
                    f"FixedRouting.routing: row {row} sums to {sums.flat[row]:.6g}: the shares of a frontend sum to 1."
                )

    def route(self, t, observation: Observation, state: State):
        """The table's row."""
        del t, observation
        return self.routing, state


def proportional(weight: Float[Array, "backends *lanes"], mask) -> Float[Array, "backends *lanes"]:
    """Shares in proportion to a weight on the backends within reach; equal shares where all weights are zero."""
    weight = jnp.where(mask, weight, 0)
    total = jnp.sum(weight, axis=0)
    return jnp.where(total > 0, weight / jnp.where(total > 0, total, 1), share_equally(mask, weight.dtype))
