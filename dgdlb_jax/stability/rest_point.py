"""Where a policy comes to rest that need not rest at the optimum, and how one that holds its weights answers small changes there."""

from collections.abc import Callable
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from dgdlb_jax.model.batch import each_frontend, each_network
from dgdlb_jax.model.network import Network
from dgdlb_jax.model.service import AbstractService
from dgdlb_jax.numerics.lapack import solve
from dgdlb_jax.numerics.results import InputError
from dgdlb_jax.policies.base import AbstractPolicy, Observation, for_each_frontend
from dgdlb_jax.policies.held import AbstractHeldPolicy
from dgdlb_jax.policies.latency import latency_as_seen
from dgdlb_jax.policies.smooth import Softmin, softmin
from dgdlb_jax.policies.static import proportional
from dgdlb_jax.stability.linearise import field_at_rest

Backends = Float[Array, " backends"]
Arcs = Float[Array, "backends frontends"]
Jacobian = Float[Array, "backends frontends backends"]

_STEPS = 400
_LONGEST = 1e9  # implicit step
_COLD = 1e-3  # temperature, of the fastest service
_EXACT = 1e-11  # residual over all arrivals that counts as none


class RestPoint(eqx.Module):
    r"""Where the flows that a rule sends by its reports are those that backends serve. In a batch every array has a leading axis.

    $$ \sum_i \lambda_i R_{ij}(u_i(N)) = \ell_j(N_j) $$

    - `routing` `(frontends, backends)`, `workload` `(backends,)`: at rest; where none was found, the last ones tried.
    - `found`: whether it is one. A rule that jumps may have none: it is a relay, and swings for ever.
    - `overloaded` `(backends,)`: which backends are sent more than they can ever serve there.
    - `slope` $a = \ell'$ `(backends,)`, 1/s.
    - `reading` $\partial u_{ij} / \partial N_k$ `(frontends, backends, backends)`: of what frontend i reads of j, per request at k.
    - `answer` $\partial x_{ij} / \partial u_{ik}$ `(frontends, backends, backends)`: of frontend i's shares, per unit of its report of k.
    """

    routing: Float[Array, "*batch frontends backends"]
    workload: Float[Array, "*batch backends"]
    found: Bool[Array, "*batch"]
    overloaded: Bool[Array, "*batch backends"]
    slope: Float[Array, "*batch backends"]
    reading: Float[Array, "*batch frontends backends backends"]
    answer: Float[Array, "*batch frontends backends backends"]


def rest_point(network: Network, policy: AbstractPolicy) -> RestPoint:
    """Find where a policy that holds its weights comes to rest, at constant mean rates and long after the start.

    Flows follow what the rule would make of them, without delays and holds, by implicit steps that grow as they come to rest; derivatives
    are those of the very rule and of the very report, by forward-mode autodiff.

    **Arguments:** one `network` or a batch; `policy`: an `AbstractHeldPolicy`, parameters as for `simulate`.

    **Returns:** a `RestPoint`. Where a rule jumps, it may have several; this is the one nearest to routing by capacity, in time.

    **Raises:** `InputError` for another policy.

    **Source:** own; pseudo-transient continuation, Kelley and Keyes (1998).
    """
    check_held(policy)
    rule = each_frontend(network, policy, type(policy).__name__)
    return each_network(_rest_point, network, rule)


def check_held(policy: AbstractPolicy) -> None:
    """Raise `InputError` for a policy that reads no reports."""
    if not isinstance(policy, AbstractHeldPolicy):
        raise InputError(
            f"{type(policy).__name__} holds no weights between reports: rest points and multipliers are those of an AbstractHeldPolicy, "
            "such as EnvoyLoadAwareLocality or OrcaWeights; critical_step_size knows policies that move with a velocity."
        )


def _rest_point(network: Network, policy: AbstractHeldPolicy) -> RestPoint:
    sight, rule = _sights(network, policy)
    late = jnp.full(network.frontends, jnp.inf, network.latency.dtype)

    def read(workload: Backends) -> Arcs:
        return for_each_frontend(rule, lambda rule, seen: rule.report(seen), sight(workload))

    def decide(report: Arcs, workload: Backends) -> Arcs:
        return for_each_frontend(rule, lambda rule, *seen: rule.shares(*seen), late, report, sight(workload))

    rest = _settled(network, lambda workload: decide(read(workload), workload))
    if policy.switches:  # where reports tie it stands on the edge
        rest = rest._replace(worst=jnp.where(((rest.routing > 0) & (rest.routing < 1)).any(), jnp.inf, rest.worst))
    report, still = read(rest.workload), jnp.zeros_like(rest.workload)
    return _answered(
        network,
        rest,
        jax.jacfwd(lambda change: read(rest.workload + change))(still),
        jax.jacfwd(lambda change: decide(report + change[:, None], rest.workload))(still),
    )


def rest_of_softmin(network: Network, policy: Softmin) -> RestPoint:
    """Where `Softmin` comes to rest, whatever its rate: what it reads are marginal latencies, what it answers its target.

    **Arguments:** one `network` or a batch; `policy`, parameters as for `simulate`. **Returns:** a `RestPoint`.

    **Source:** own, as `rest_point`.
    """
    return each_network(_rest_of_softmin, network, each_frontend(network, policy, "Softmin"))


def _rest_of_softmin(network: Network, policy: Softmin) -> RestPoint:
    sight, rule = _sights(network, policy)

    def target(price: Arcs, workload: Backends) -> Arcs:
        seen = eqx.tree_at(lambda o: o.marginal_latency, sight(workload), price)
        return for_each_frontend(rule, lambda rule, seen: rule.target(seen), seen)

    read = lambda workload: sight(workload).marginal_latency
    rest = _settled(network, lambda workload: target(read(workload), workload))
    price, still = read(rest.workload), jnp.zeros_like(rest.workload)
    return _answered(
        network,
        rest,
        jax.jacfwd(lambda change: read(rest.workload + change))(still),
        jax.jacfwd(lambda change: target(price + change[:, None], rest.workload))(still),
    )


def rest_of_latencies(network: Network) -> tuple[Float[Array, "frontends backends"], Float[Array, " backends"]]:
    """Routing and workload of a single network where the latencies that each frontend sees are equal on all arcs in use (Wardrop).

    Found as the rest point of a softmin so cold that they differ by some thousandths.
    """

    return each_network(_rest_of_latencies, network)


def _rest_of_latencies(network: Network) -> tuple[Float[Array, "frontends backends"], Backends]:
    sight, _ = _sights(network, Softmin(1.0, 1.0))
    fastest = jnp.min(jnp.where(network.backend_mask, 1 / network.mean_service.initial_slope, jnp.inf))

    def route(workload: Backends) -> Arcs:
        seen = sight(workload)
        return softmin(latency_as_seen(seen), seen.mask, _COLD * fastest)

    rest = _settled(network, route)
    return rest.routing.T, rest.workload


class _Rest(NamedTuple):
    """Routing `(backends, frontends)`, workload, and the largest difference left between flows and what is served, requests/s."""

    routing: Arcs
    workload: Backends
    worst: Float[Array, ""]


def _sights(network: Network, policy: AbstractPolicy) -> tuple[Callable[[Backends], Observation], AbstractPolicy]:
    """What frontends see of workloads at rest, and the policy as it is laid out for that."""
    field = field_at_rest(network, policy)
    start, nothing = jnp.zeros(network.frontends, network.latency.dtype), jnp.zeros_like(network.latency.T)

    def sight(workload: Backends) -> Observation:
        return field.observe(start, jnp.broadcast_to(workload[:, None], nothing.shape), nothing, start)

    return sight, field.policy


def _settled(network: Network, route: Callable[[Backends], Arcs]) -> _Rest:
    """Where a routing by workloads is served, from routing by capacity on."""
    service, there, rates = network.mean_service, network.backend_mask, network.arrival_rate
    capacity = jnp.where(there, service.nominal_capacity, 0)
    share = jax.vmap(proportional, in_axes=(None, 0))(capacity, network.mask)
    gained = lambda workload: jnp.where(there, route(workload) @ rates, 0)
    flow, worst = _at_rest(gained, service, jnp.minimum(rates @ share, 0.9 * capacity))
    workload = service.inverse(flow)
    return _Rest(route(workload), workload, worst)


def _answered(network: Network, rest: _Rest, reading: Jacobian, answer: Jacobian) -> RestPoint:
    """A rest point with the Jacobians of what is read and of what is answered."""
    service = network.mean_service
    arrives = rest.routing @ network.arrival_rate
    return RestPoint(
        routing=rest.routing.T,
        workload=rest.workload,
        found=rest.worst <= _EXACT * jnp.sum(network.arrival_rate),
        overloaded=network.backend_mask & (arrives >= service.supremum),
        slope=service.slope(rest.workload),
        reading=jnp.swapaxes(reading, 0, 1),
        answer=jnp.swapaxes(answer, 0, 1),
    )


def _at_rest(
    gained: Callable[[Backends], Backends], service: AbstractService, start: Backends
) -> tuple[Backends, Float[Array, ""]]:
    """Flows that are answered by themselves, requests/s, and the largest difference left: implicit Euler on it, in steps that grow.

    In flows, since they are what is shared: their sum is right after one step, and where backends are nearly full, workloads are not
    remotely linear in anything.
    """
    size = lambda values: jnp.max(jnp.abs(values))
    off = lambda flow: gained(service.inverse(flow)) - flow
    scale = size(gained(service.inverse(start)))

    def unfinished(state):
        _, difference, _, k = state
        return (k < _STEPS) & (size(difference) > 1e-3 * _EXACT * scale)  # as exact as it can be, once found

    def advance(state):
        flow, difference, h, k = state
        workload = service.inverse(flow)
        slope = service.slope(workload)
        each = jax.jacfwd(gained)(workload) / jnp.where(slope > 0, slope, jnp.inf)[None]
        jacobian = jnp.where(jnp.isfinite(each), each, 0) - jnp.eye(flow.size)
        change = solve(jnp.eye(flow.size) / h - jacobian, difference)
        # Neither empty nor full at once.
        moved = jnp.clip(flow + change, flow / 4, flow + 0.75 * (service.supremum - flow))
        after = off(moved)
        ratio = size(difference) / jnp.maximum(size(after), jnp.finfo(start.dtype).tiny)
        longer = jnp.where(ratio >= 1, jnp.clip(ratio, 1.2, 1.5), jnp.clip(ratio, 0.1, 0.5))
        return moved, after, jnp.minimum(h * longer, _LONGEST), k + 1

    flow, difference, _, _ = jax.lax.while_loop(unfinished, advance, (start, off(start), jnp.ones((), start.dtype), 0))
    return flow, size(difference)
