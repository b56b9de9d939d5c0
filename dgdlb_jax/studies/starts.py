"""Where the runs of a comparison, a sweep or a report begin."""

from functools import partial

import jax
from jaxtyping import Array, ArrayLike, Float

from dgdlb_jax.model.batch import over_networks
from dgdlb_jax.model.network import Network
from dgdlb_jax.numerics.programs import compiled
from dgdlb_jax.numerics.results import InputError
from dgdlb_jax.numerics.text import did_you_mean
from dgdlb_jax.policies.base import least, share_equally
from dgdlb_jax.policies.static import proportional
from dgdlb_jax.simulation.start import workload_carrying

STARTS = ("proportional", "nearest", "uniform")
"""The routings a comparison can start from."""


def start_state(network: Network, start: str | tuple[ArrayLike, ArrayLike]) -> tuple[ArrayLike, ArrayLike]:
    """Where runs start: a routing `(frontends, backends)` and the workload `(backends,)` that carries it at time 0.

    Where a backend cannot carry what the routing sends it, its workload starts at 0.

    **Arguments:** `network`: one network or a batch; `start`: one of `STARTS`, or `(routing, workload)`, which is returned as it is.
    """
    if not isinstance(start, str):
        return start
    if start not in STARTS:
        raise InputError(f"start={start!r}: choose from {', '.join(STARTS)}{did_you_mean(start, STARTS, '.')}")
    return _start(network.anonymous(), start)


def start_routing(network: Network, start: str) -> Float[Array, "frontends backends"]:
    """The routing of one of `STARTS`."""
    return _start(network.anonymous(), start)[0]


@compiled
def _start(network: Network, start: str) -> tuple[Array, Array]:
    return over_networks(partial(_of_one, start), network)


def _of_one(start: str, network: Network) -> tuple[Float[Array, "frontends backends"], Float[Array, " backends"]]:
    rule = {
        "proportional": lambda mask, _: proportional(network.nominal_capacity, mask),
        "nearest": lambda mask, latency: least(latency, mask),
        "uniform": lambda mask, latency: share_equally(mask, latency.dtype),
    }[start]
    routing = jax.vmap(rule)(network.mask, network.cost_latency)
    return routing, workload_carrying(network, routing)
