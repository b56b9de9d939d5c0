"""The balancers by name: what a command line or a sweep can ask for, with parameters chosen for the network at hand."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from dgdlb_jax.equilibrium.optimum import Optimum
from dgdlb_jax.model.batch import over_networks
from dgdlb_jax.model.network import Network
from dgdlb_jax.model.service import replicas
from dgdlb_jax.numerics.registry import View
from dgdlb_jax.numerics.results import InputError
from dgdlb_jax.numerics.text import did_you_mean, repeated
from dgdlb_jax.policies.base import AbstractPolicy
from dgdlb_jax.policies.estimates import Scraped, estimated
from dgdlb_jax.policies.observed import LatencyObservationScorer
from dgdlb_jax.policies.registry import POLICIES, Entry
from dgdlb_jax.policies.safe import CappedDGDLB, CurvatureDGDLB
from dgdlb_jax.policies.sampled import SampledDGDLB
from dgdlb_jax.policies.smooth import Softmin
from dgdlb_jax.policies.static import FixedRouting, Nearest, ProportionalToCapacity, Uniform, spillover
from dgdlb_jax.stability.defaults import default_step_size

DGD, ORACLE = POLICIES["dgd-lb"].label, POLICIES["oracle"].label
"""Names of DGD-LB and of the optimum as a routing table in tables and pictures."""
CURRENT = "current routing"
"""Name of the user's own routing table there."""

StepSize = Float[Array, "*batch"]
Make = Callable[[Network, Optimum, StepSize], AbstractPolicy]


class Balancer(NamedTuple):
    """A name for people, and how to make the policy for a network (or a batch), its optimum, and a step size in 1/s^2."""

    label: str
    make: Make


def calm_softmin(network: Network) -> Softmin:
    r"""`Softmin` in units of the network: $r = 1 / u$ and $T = 3 u$, with $u$ the longest latency plus the fastest service time.

    A frontend that adapts within about the time its news takes. The factor 3 is near the best on random geographic networks with
    latencies of 0.1, 1 and 10 service times: at half of it the rule swings, at twice it is too uniform (measured).
    """

    def unit(one: Network) -> Float[Array, ""]:
        slope = jnp.where(one.backend_mask, one.mean_service.initial_slope, 0).max()
        return jnp.maximum(one.latency, one.feedback_latency).max() + 1 / slope

    time = over_networks(unit, network)
    time = time[:, None] if time.ndim else time
    return Softmin(3 * time, 1 / time)


def sampled_every_second(network: Network, optimum: Optimum, step_size: StepSize) -> SampledDGDLB:
    """DGD-LB whose frontends update once a second, with a step size that is cautious enough for that."""
    cautious = default_step_size(network, optimum, update_interval=1.0)
    return SampledDGDLB(jnp.minimum(step_size, cautious), 1.0)


def follow_curvature(network: Network, optimum: Optimum, step_size: StepSize) -> CurvatureDGDLB:
    """DGD-LB that slows down where queues are longer than at the optimum, with the step size of plain DGD-LB there."""
    price = over_networks(lambda one, n: one.mean_service.marginal_latency(n), network, optimum.workload)
    return CurvatureDGDLB(step_size, (optimum.routing * price[..., None, :]).sum(-1))


def cap_speed(network: Network, optimum: Optimum, step_size: StepSize) -> CappedDGDLB:
    """DGD-LB that moves at most a tenth of its traffic in the time that its longest arc takes."""
    del optimum
    longest = jnp.maximum(network.latency, network.feedback_latency).max(-1)
    return CappedDGDLB(step_size, 0.1 / jnp.maximum(longest, 1e-9))


_FULL = 0.9  # of nominal capacity: where a server counts as having all its slots in use


def by_hosts(policy: Callable[..., AbstractPolicy], network: Network, **options: Any) -> AbstractPolicy:
    """A rule that counts hosts and their slots, in units of the network: a replica is one host, with as many slots as keep it nine
    tenths busy, or as it was measured with."""
    capacity, slots = over_networks(_per_host, network)
    return policy(host_capacity=capacity, max_concurrency=slots, **options)


def _per_host(network: Network) -> tuple[Float[Array, "frontends backends"], Float[Array, "frontends backends"]]:
    """What one host of each backend serves, and how many requests it holds; 1 where nothing is served."""
    service, there = network.mean_service, network.backend_mask
    capacity, count = service.nominal_capacity, replicas(service)
    measured = service.measured_workload
    slots = jnp.where(jnp.isfinite(measured), measured, service.inverse(_FULL * capacity))
    usable = there & (capacity > 0) & jnp.isfinite(slots) & (slots > 0)
    spread = lambda each: jnp.broadcast_to(jnp.where(usable, each / count, 1), network.latency.shape)
    return spread(capacity), spread(slots)


def of_empty_backends(policy: Callable[..., AbstractPolicy], network: Network) -> AbstractPolicy:
    r"""A rule that knows how long a request takes in a backend that is otherwise empty: $1 / \ell_j'(0)$."""

    def alone(one: Network) -> Float[Array, "frontends backends"]:
        slope = one.mean_service.initial_slope
        there = one.backend_mask & (slope > 0)
        return jnp.broadcast_to(jnp.where(there, 1 / jnp.where(there, slope, 1), 0), one.latency.shape)

    return policy(floor_latency=over_networks(alone, network))


_RECIPES: dict[str, Callable[[Any, Network, Optimum, StepSize], AbstractPolicy]] = {
    "no parameters": lambda policy, network, optimum, step: policy(),
    "step size": lambda policy, network, optimum, step: policy(step),
    "twice the step size": lambda policy, network, optimum, step: policy(2 * step),
    "step size and round trip": lambda policy, network, optimum, step: policy(
        step, network.latency + network.feedback_latency
    ),
    "every second": lambda policy, network, optimum, step: sampled_every_second(network, optimum, step),
    "curvature": lambda policy, network, optimum, step: follow_curvature(network, optimum, step),
    "capped speed": lambda policy, network, optimum, step: cap_speed(network, optimum, step),
    "softmin": lambda policy, network, optimum, step: calm_softmin(network),
    "hosts": lambda policy, network, optimum, step: by_hosts(policy, network),
    "slots": lambda policy, network, optimum, step: by_hosts(policy, network, report="concurrency"),
    "empty backends": lambda policy, network, optimum, step: of_empty_backends(policy, network),
    "spillover": lambda policy, network, optimum, step: spillover(network),
    "optimum": lambda policy, network, optimum, step: policy(optimum.routing),
}
"""Policies for a network, by the names in `registry.RECIPES`: from the class, the network, its optimum and a step size in 1/s^2."""


def _balancer(entry: Entry) -> Balancer:
    recipe = entry.recipe
    return Balancer(entry.label, partial(_RECIPES[recipe], entry.load()) if isinstance(recipe, str) else recipe)


BALANCERS: Mapping[str, Balancer] = View(POLICIES, _balancer)
"""Every balancer by its key on the command line."""
DEFAULT = tuple(key for key, entry in POLICIES.items() if entry.usual)
"""What a comparison runs when nothing else is asked for: DGD-LB, its rivals in use today, and three static routings."""


def balancers(
    network: Network, optimum: Optimum, step_size: StepSize, keys: Sequence[str] | None = None
) -> dict[str, AbstractPolicy]:
    """Name -> policy for some keys of `BALANCERS` (`DEFAULT` by default), the gradient rules with this step size (1/s^2).

    **Raises:** `InputError` for an unknown key, with the nearest known one.
    """
    chosen = list(DEFAULT if keys is None else keys)
    check_keys(chosen)
    return {BALANCERS[key].label: BALANCERS[key].make(network, optimum, step_size) for key in chosen}


def behind(policy: AbstractPolicy, news: Scraped | None) -> AbstractPolicy:
    """A policy that gets its reports so; one that looks at none, or measures its answers itself, stays as it is."""
    blind = isinstance(policy, FixedRouting | LatencyObservationScorer | Nearest | ProportionalToCapacity | Uniform)
    return policy if news is None or blind else estimated(policy, news)


def check_keys(keys: Sequence[str]) -> None:
    """Raise `InputError` for an unknown key of `BALANCERS`, with the nearest known one, or for one that is given twice."""
    if (twice := repeated(keys)) is not None:
        raise InputError(f"The balancer {twice!r} is asked for twice: leave one out.")
    for key in keys:
        if key not in BALANCERS:
            hint = did_you_mean(key, BALANCERS, ".")
            raise InputError(f"No balancer is called {key!r}: choose from {', '.join(BALANCERS)}{hint}")
