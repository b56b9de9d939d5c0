"""Balancers that look at nothing that changes."""

from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from dgdlb_jax.model.batch import over_networks
from dgdlb_jax.model.network import Network
from dgdlb_jax.numerics.checks import check_entries, in_range, not_negative
from dgdlb_jax.numerics.results import InputError, is_concrete
from dgdlb_jax.numerics.types import Matrix
from dgdlb_jax.policies.base import AbstractInstantPolicy, Observation, State, least, parameter, share_equally


class Uniform(AbstractInstantPolicy):
    r"""The same share to every backend within reach: $x_{ij} = 1 / |B_i|$."""

    differentiable: ClassVar[bool] = True
    takes_lanes: ClassVar[bool] = True

    def route(self, t, observation: Observation, state: State):
        """Equal shares."""
        del t
        return share_equally(observation.mask, observation.workload.dtype), state


class ProportionalToCapacity(AbstractInstantPolicy):
    r"""Shares in proportion to nominal capacity: $x_{ij} \propto \bar\ell_j$ over the backends within reach."""

    differentiable: ClassVar[bool] = True
    takes_lanes: ClassVar[bool] = True

    def route(self, t, observation: Observation, state: State):
        """Weighted shares, as in weighted round robin."""
        del t
        return proportional(observation.nominal_capacity, observation.mask), state


class Nearest(AbstractInstantPolicy):
    r"""Everything to the backend with the least network latency: $\arg\min_j \tau^{cost}_{ij}$; ties shared equally."""

    takes_lanes: ClassVar[bool] = True

    def route(self, t, observation: Observation, state: State):
        """All to the nearest."""
        del t
        return least(observation.cost_latency, observation.mask), state


class FixedRouting(AbstractInstantPolicy):
    """A routing table: the user's own, `spillover(network)`, or the optimum as an oracle, `FixedRouting(optimum.routing)`.

    **Arguments:**

    - `routing`: `(frontends, backends)`, shares; every row sums to 1 (or is 0 throughout, for a padded frontend).

    **Raises:** `InputError` when a share is negative or not finite, or a row does not sum to 1 within 1e-6.
    """

    differentiable: ClassVar[bool] = True
    takes_lanes: ClassVar[bool] = True

    routing: Float[Array, "*frontends backends"]

    def __init__(self, routing: Matrix):
        self.routing = parameter(routing)
        check_entries(
            self.routing,
            not_negative,
            lambda at, value: (
                f"FixedRouting.routing has a share that is negative or not finite ({list(at)} is {value:g}): shares lie between 0 and 1."
            ),
        )
        if is_concrete(self.routing):
            table = np.asarray(self.routing)
            sums = table.sum(-1)
            sums = np.where((table == 0).all(-1), 1.0, sums)
            if not np.allclose(sums, 1, rtol=0, atol=1e-6):
                row = int(np.argmax(np.abs(sums - 1)))
                raise InputError(
                    f"FixedRouting.routing: row {row} sums to {sums.flat[row]:.6g}: the shares of a frontend sum to 1."
                )

    def route(self, t, observation: Observation, state: State):
        """The table's row."""
        del t, observation
        return self.routing, state


def spillover(network: Network, cap: float = 0.8) -> FixedRouting:
    r"""Spillover: every frontend fills the nearest backend up to a utilisation cap, what is left goes to the next, and so on.

    In round $k$ all frontends offer what they have left to their $k$-th nearest backend (equal latencies count as one rank and share
    equally); a backend whose room $c\,\bar\ell_j$ does not suffice takes the same part of every offer. What fits nowhere goes in
    proportion to nominal capacity.

    **Arguments:** `network`, one or a batch; `cap`: $c$, the part of nominal capacity that is filled.

    **Returns:** a `FixedRouting`, computed once from mean rates and capacities: a frontend alone could not know them.

    **Raises:** `InputError` for a cap that is not positive and finite.

    **Source:** "waterfall by region" of Google Cloud's load balancers ("direct traffic to the nearest region with endpoints and
    capacity before spilling over to other regions", documentation of service load balancing policies). There a control plane follows
    reported utilisation; the fluid version computes where that would end and loses the way there.
    """
    if not in_range(cap, 0, above=True):
        raise InputError(f"spillover(cap={cap}): the cap is a part of nominal capacity, 0.8 for 80 %.")
    capacity = jnp.where(network.backend_mask, network.mean_service.nominal_capacity, 0)
    fill = lambda one, capacity: _spill(one.arrival_rate, one.cost_latency, one.mask, capacity, cap)
    return FixedRouting(over_networks(fill, network, capacity))


@jax.jit
def _spill(rate, latency, mask, capacity, cap) -> Float[Array, "frontends backends"]:
    far = jnp.where(mask, latency, jnp.inf)
    rank = jnp.sum(mask[:, None, :] & (far[:, None, :] < far[:, :, None]), axis=2)
    rate = jnp.where(
        rate > 0, rate, 1e-12 * rate.max() + jnp.finfo(rate.dtype).tiny
    )  # who sends nothing still has a routing

    def turn(k, state):
        left, room, flow = state
        here = mask & (rank == k)
        offer = left[:, None] * jax.vmap(share_equally, in_axes=(0, None))(here, rate.dtype)
        asked = offer.sum(0)
        accepted = offer * jnp.minimum(1, room / jnp.where(asked > 0, asked, 1))[None]
        return left - accepted.sum(1), jnp.maximum(room - accepted.sum(0), 0), flow + accepted

    start = rate, cap * capacity, jnp.zeros_like(latency)
    left, _, flow = jax.lax.fori_loop(0, latency.shape[1], turn, start)
    rest = jax.vmap(proportional, in_axes=(None, 0))(capacity, mask)
    flow = flow + jnp.where(left > 1e-6 * rate, left, 0)[:, None] * rest  # less is rounding
    return jax.vmap(proportional)(flow, mask)


def proportional(weight: Float[Array, "backends *lanes"], mask) -> Float[Array, "backends *lanes"]:
    """Shares in proportion to a weight on the backends within reach; equal shares where all weights are zero."""
    weight = jnp.where(mask, weight, 0)
    total = jnp.sum(weight, axis=0)
    return jnp.where(total > 0, weight / jnp.where(total > 0, total, 1)[None], share_equally(mask, weight.dtype))
