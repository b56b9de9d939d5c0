"""The dynamics near an equilibrium: Jacobians of the vector field itself, delays kept apart."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Complex, Float, Int

from dgdlb_jax.equilibrium.arguments import policy_and_optimum
from dgdlb_jax.equilibrium.operating_point import OperatingPoint
from dgdlb_jax.equilibrium.optimum import Optimum
from dgdlb_jax.model.batch import as_batch, each_frontend, each_network
from dgdlb_jax.model.demand import Constant
from dgdlb_jax.model.network import Network
from dgdlb_jax.numerics import device
from dgdlb_jax.numerics.dependence import depends_on
from dgdlb_jax.numerics.graph import connected, count_parts
from dgdlb_jax.numerics.precision import as_complex
from dgdlb_jax.numerics.promotion import standard_promotion
from dgdlb_jax.numerics.results import InputError, is_concrete
from dgdlb_jax.numerics.simplex import zero_mean
from dgdlb_jax.policies.base import AbstractFlowPolicy, AbstractPolicy, State
from dgdlb_jax.policies.estimates import Scraped
from dgdlb_jax.policies.estimates.policy import EstimatedFlow
from dgdlb_jax.policies.gradient import DGDLB
from dgdlb_jax.simulation.dynamics import Field
from dgdlb_jax.simulation.own import reads_outstanding
from dgdlb_jax.stability.memory import Filter, Velocity, even_average, filter_of, needed_memory, responses

_COPIES = 4  # of the response, which is the largest array: it, its projection, and what the projection holds meanwhile
_NEAR_TIE = 1e-3  # relative change of a workload that brings an idle arc into use


class Linearisation(eqx.Module):
    r"""Small deviations of routing and workload from an equilibrium. In a batch every array has a leading axis.

    $$ \dot n_j = \sum_i \lambda_i \xi_{ij}(t - \tau^{fwd}_{ij}) - a_j n_j, \qquad
       \dot \xi_i = P_i \Big[ \sum_k V_{i \cdot k} n_k(t - \tau^{fb}_{ik}) + W_i \xi_i \Big] $$

    on the support: arcs with traffic, of frontends that have two of them. $P_i$ takes the mean off. With memory or averages,
    `response_at` and `self_response_at` stand in place of $P V$ and $P W P$.

    - `point`: the equilibrium; its $\lambda$, $a$, $c$, latencies and support can be read from here as well.
    - `response` $P V$ `(frontends, backends, backends)`: change of the projected velocity per request seen, 1/(s request).
    - `self_response` $P W P$ `(frontends, backends, backends)`: per change of its own routing, 1/s. None when
      the policy does not depend on its own routing.
    - `filter`: what the policy's memory adds to both (see `stability.memory`); None without memory.
    - `windows`: `(frontends, backends)` each, seconds over which news is averaged evenly before it is used.
    - `neutral`: how many directions move routing without changing any backend's flow (the cyclomatic number of the support).
    - `near_tie` `(frontends, backends)`: idle arcs that a change of a workload by less than 0.1 % brings into use; there
      the equations above hold in a tiny neighbourhood only.
    - `linear_region`: the smallest such change, as a part of the workload. Within it the equations hold; inf when no arc is idle.
    """

    point: OperatingPoint
    response: Float[Array, "*batch frontends backends backends"]
    self_response: Float[Array, "*batch frontends backends backends"] | None
    filter: Filter | None
    windows: tuple[Float[Array, "*batch frontends backends"], ...]
    neutral: Int[Array, "*batch"]
    near_tie: Bool[Array, "*batch frontends backends"]
    linear_region: Float[Array, "*batch"]

    def scaled(self, factors: Float[Array, " frontends"]) -> "Linearisation":
        """Of one network: that of the policy whose frontend i is `factors[i]` times as fast."""
        own = None if self.self_response is None else self.self_response * factors[:, None, None]
        memory = None if self.filter is None else self.filter.scaled(factors)
        return dataclasses.replace(
            self, response=self.response * factors[:, None, None], self_response=own, filter=memory
        )

    def response_at(self, s: Complex[Array, ""]) -> Complex[Array, "frontends backends backends"]:
        """Of one network: the projected velocity per request seen, memory and averages included, `(frontends, backends, backends)`."""
        whole = as_complex(self.response)
        whole = whole if self.filter is None else whole + self.filter.response(s)
        for window in self.windows:
            whole = whole * even_average(s, window)[:, None, :]
        return whole

    def self_response_at(self, s: Complex[Array, ""]) -> Complex[Array, "frontends backends backends"]:
        """Per share of its own, memory included, where the policy depends on its own routing."""
        assert self.self_response is not None
        whole = as_complex(self.self_response)
        if self.filter is None or self.filter.own is None:
            return whole
        return whole + self.filter.self_response(s)

    @property
    def largest_response(self) -> Float[Array, "frontends backends backends"]:
        """Of one network: bounds of `response_at` at any frequency."""
        return jnp.abs(self.response) if self.filter is None else self.filter.largest

    @property
    def largest_self_response(self) -> Float[Array, "frontends backends backends"]:
        """Of one network: bounds of `self_response_at` at any frequency."""
        assert self.self_response is not None
        if self.filter is None or self.filter.largest_own is None:
            return jnp.abs(self.self_response)
        return self.filter.largest_own

    @property
    def arrival_rate(self) -> Float[Array, "*batch frontends"]:
        """Requests/s."""
        return self.point.arrival_rate

    @property
    def slope(self) -> Float[Array, "*batch backends"]:
        """1/s: how the service rate of a backend rises with its workload."""
        return self.point.slope

    @property
    def gain(self) -> Float[Array, "*batch backends"]:
        """Seconds per request: how the marginal latency of a backend rises with its workload."""
        return self.point.gain

    @property
    def latency(self) -> Float[Array, "*batch frontends backends"]:
        """Of requests, seconds."""
        return self.point.latency

    @property
    def feedback_latency(self) -> Float[Array, "*batch frontends backends"]:
        """Of news, seconds."""
        return self.point.feedback_latency

    @property
    def cost_latency(self) -> Float[Array, "*batch frontends backends"]:
        """Charged to a request, seconds."""
        return self.point.cost_latency

    @property
    def support(self) -> Bool[Array, "*batch frontends backends"]:
        """The arcs that move. Frontends with one active backend have none."""
        return self.point.support


@standard_promotion
def linearise(
    network: Network,
    policy: AbstractPolicy | Optimum | None = None,
    optimum: Optimum | AbstractPolicy | None = None,
) -> Linearisation:
    """Linearise a policy at the optimum of a network, at constant mean rates.

    The Jacobians are those of the vector field that the simulator steps (forward-mode autodiff of raw velocity and workload
    dynamics), projected on the support.

    **Arguments:**

    - `network`: one network or a batch.
    - `policy`: a smooth flow policy, `DGDLB(1.0)` by default; memory that moves smoothly included. Parameters as for `simulate`.
    - `optimum`: of that network; solved when left out. Another equilibrium in the shape of an `Optimum` does as well.

    **Returns:** a `Linearisation`.

    **Raises:** `InputError` for a policy that jumps, or whose memory does not rest where nothing changes.

    **Source:** own derivation.
    """
    rule, best = policy_and_optimum("linearise", network, policy, optimum)
    rule = DGDLB(1.0) if rule is None else rule
    rule = each_frontend(network, rule, type(rule).__name__)
    check_smooth(network, rule, best)
    return each_network(linearise_one, network, rule, best)


def check_smooth(network: Network, policy: AbstractPolicy, optimum: Optimum) -> None:
    """Raise `InputError` for a policy that has no linearisation: it jumps, or its memory does not rest (as far as values are known)."""
    if not isinstance(policy, AbstractFlowPolicy):
        raise InputError(
            f"{type(policy).__name__} jumps, so it has no linearisation: use a policy that moves its routing, such as "
            "DGDLB, or a smooth relative such as a softmin of the latencies written as AbstractFlowPolicy."
        )
    if isinstance(policy, EstimatedFlow) and any(isinstance(each, Scraped) for each in policy.estimates):
        raise InputError(
            "Reports that are read every so often jump, so a policy behind Scraped has no linearisation that is constant in time: "
            "critical_step_size(network, policy) has its limit."
        )
    if not is_concrete(network, policy, optimum) or not _remembers(network, policy):
        return
    if not np.all(each_network(_rests, network, policy, optimum)):
        raise InputError(
            f"The memory of {type(policy).__name__} drifts or jumps where nothing changes, so it is not a smooth flow: linearise "
            "DGDLB with the same step size; critical_step_size knows sampled policies."
        )


def linearise_one(network: Network, policy: AbstractPolicy, optimum: Optimum) -> Linearisation:
    """`linearise` for one nameless network; can be mapped and differentiated."""
    numbers = _COPIES * network.frontends * network.backends**2
    what = f"The linearisation of {network.frontends} x {network.backends} frontends and backends"
    device.check_fits(network.latency.dtype.itemsize * numbers, what, "use smaller networks")
    if reads_outstanding(as_batch(network), as_batch(policy, shared_scalars=True)):
        raise InputError(
            f"{type(policy).__name__} looks at the requests that it has under way, so its loop has a second delayed count, which this "
            "linearisation does not know: simulate it."
        )
    point, still = OperatingPoint(network, optimum), jnp.zeros_like(optimum.workload)
    velocity, state = _near_rest(network, policy, optimum)
    project = lambda jacobian: _project(jacobian, point.support)
    on = point.support[:, None]
    if kept := needed_memory(velocity, state, still):
        found = responses(velocity, state, kept, still)
        # What does not rest has no linearisation: NaN under tracing, a sentence where there are values (`check_smooth`).
        response = jnp.where(found.rests, project(found.seen), jnp.nan)
        self_response = None if found.own is None else jnp.where(on, project(found.own), 0)
        own_filter = filter_of(found, project, response, self_response)
    else:
        at_once = lambda change, moved: velocity(change, moved, state, jnp.zeros_like(still[0]))[0]
        response, self_response, own_filter = project(jax.jacfwd(at_once)(still, still)), None, None
        if depends_on(lambda moved: at_once(still, moved), still):
            self_response = jnp.where(on, project(jax.jacfwd(at_once, argnums=1)(still, still)), 0)
    region = _idle_arcs(network, optimum, point)
    return Linearisation(
        point=point,
        response=response,
        self_response=self_response,
        filter=own_filter,
        windows=tuple(per_arc(window, network.latency) for window in policy.windows),
        neutral=_cycles(point.support),
        near_tie=region < _NEAR_TIE,
        linear_region=region.min(),
    )


def _near_rest(network: Network, policy: AbstractPolicy, optimum: Optimum) -> tuple[Velocity, State]:
    """The raw velocity and the new memory, `(change, moved, state, step)`, and the memory at rest; windows apart."""
    field = field_at_rest(network, policy.without_windows)
    x, n = optimum.routing.T, optimum.workload
    t, nothing = jnp.zeros(network.frontends, n.dtype), jnp.zeros_like(x)
    seen = jnp.broadcast_to(n[:, None], x.shape)

    def velocity(change, moved, state, step):
        # Frontends see nothing of each other, so one change per backend, the same for all of them, gives all Jacobians at once.
        observation = field.observe(t, seen + change[:, None], nothing, t + step)
        return field.velocity(t, x + moved[:, None], observation, state)

    return velocity, field.init(field.observe(t, seen, nothing, t))


def _rests(network: Network, policy: AbstractPolicy, optimum: Optimum) -> Bool[Array, ""]:
    """Whether the memory of a policy rests at the optimum, as far as it matters."""
    still = jnp.zeros_like(optimum.workload)
    velocity, state = _near_rest(network, policy, optimum)
    kept = needed_memory(velocity, state, still)
    return responses(velocity, state, kept, still).rests if kept else jnp.ones((), bool)


def _remembers(network: Network, policy: AbstractPolicy) -> bool:
    """Whether a policy has memory."""

    def memory(network: Network, policy: AbstractPolicy) -> State:
        field = Field(network, policy.without_windows)
        arcs = jnp.zeros((network.backends, network.frontends * network.latency.shape[0]), network.latency.dtype)
        return field.init(field.observe(arcs[0], arcs, arcs, arcs[0]))

    alone = network.batch is None
    batch = as_batch((network.anonymous(), policy), shared_scalars=True) if alone else (network.anonymous(), policy)
    return bool(jax.tree.leaves(eqx.filter_eval_shape(memory, *batch)))


def per_arc(
    window: Float[Array, "..."], like: Float[Array, "frontends backends"]
) -> Float[Array, "frontends backends"]:
    """A parameter of frontends or arcs, or a scalar, for every arc."""
    return jnp.broadcast_to(
        window.reshape(*window.shape, *(1,) * (2 - window.ndim)) if window.ndim else window, like.shape
    )


def field_at_rest(network: Network, policy: AbstractPolicy) -> Field:
    """The vector field of one network at rest: demand and capacity at their means."""
    still = network.with_arrival_rate(network.arrival_rate)
    if network.capacity is not None:
        still = eqx.tree_at(lambda n: n.capacity, still, Constant(network.capacity.mean_rate))
    return Field(as_batch(still), as_batch(policy, shared_scalars=True))


def _project(
    jacobian: Float[Array, "backends frontends columns"], support: Bool[Array, "frontends backends"]
) -> Float[Array, "frontends backends columns"]:
    """Frontends first, the mean over the support taken off the rows."""
    on = jnp.broadcast_to(support.T[:, :, None], jacobian.shape)
    return jnp.swapaxes(zero_mean(jnp.where(on, jacobian, 0), on), 0, 1)


def _cycles(support: Bool[Array, "frontends backends"]) -> Int[Array, ""]:
    """Cyclomatic number of the support: arcs - nodes + parts."""
    nodes = support.any(0).sum() + support.any(1).sum()
    return support.sum() - nodes + count_parts(connected(support))


def _idle_arcs(network: Network, optimum: Optimum, point: OperatingPoint) -> Float[Array, "frontends backends"]:
    """By which part a workload has to change until an idle arc comes into use; inf for arcs in use and those that are not there.

    Either the arc's own backend empties, or one that the frontend uses fills.
    """
    n = optimum.workload
    slack = 1 / point.slope[None] + network.cost_latency - optimum.multiplier[:, None]
    per_part = point.gain * n  # change of the marginal latency per part of the workload
    others = jnp.max(jnp.where(point.used, per_part, 0), axis=1)
    idle = network.mask & ~point.used & (network.arrival_rate > 0)[:, None]
    stiffest = jnp.maximum(per_part[None], others[:, None])
    width = jnp.maximum(slack, 0) / jnp.where(stiffest > 0, stiffest, 1)
    return jnp.where(idle & (stiffest > 0), width, jnp.inf)
