"""The dynamics near an equilibrium: Jacobians of the vector field itself, delays kept apart."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from dgdlb_jax.equilibrium.arguments import policy_and_optimum
from dgdlb_jax.equilibrium.operating_point import OperatingPoint
from dgdlb_jax.equilibrium.optimum import Optimum
from dgdlb_jax.model.batch import as_batch, each_frontend, each_network
from dgdlb_jax.model.demand import Constant
from dgdlb_jax.model.network import Network
from dgdlb_jax.numerics import device
from dgdlb_jax.numerics.dependence import depends_on
from dgdlb_jax.numerics.graph import connected, count_parts
from dgdlb_jax.numerics.results import InputError
from dgdlb_jax.numerics.simplex import zero_mean
from dgdlb_jax.policies.base import AbstractFlowPolicy, AbstractPolicy
from dgdlb_jax.policies.gradient import DGDLB
from dgdlb_jax.simulation.dynamics import Field
from dgdlb_jax.simulation.own import reads_outstanding

_COPIES = 4  # of the response, which is the largest array: it, its projection, and what the projection holds meanwhile
_NEAR_TIE = 1e-3  # relative change of a workload that brings an idle arc into use


class Linearisation(eqx.Module):
    r"""Small deviations of routing and workload from an equilibrium. In a batch every array has a leading axis.

    $$ \dot n_j = \sum_i \lambda_i \xi_{ij}(t - \tau^{fwd}_{ij}) - a_j n_j, \qquad
       \dot \xi_i = P_i \Big[ \sum_k V_{i \cdot k} n_k(t - \tau^{fb}_{ik}) + W_i \xi_i \Big] $$

    on the support: arcs with traffic, of frontends that have two of them. $P_i$ takes the mean off.

    - `point`: the equilibrium; its $\lambda$, $a$, $c$, latencies and support can be read from here as well.
    - `response` $P V$ `(frontends, backends, backends)`: change of the projected velocity per request seen, 1/(s request).
    - `self_response` $P W P$ `(frontends, backends, backends)`: per change of its own routing, 1/s. None when
      the policy does not depend on its own routing.
    - `neutral`: how many directions move routing without changing any backend's flow (the cyclomatic number of the support).
    - `near_tie` `(frontends, backends)`: idle arcs that a change of a workload by less than 0.1 % brings into use; there
      the equations above hold in a tiny neighbourhood only.
    - `linear_region`: the smallest such change, as a part of the workload. Within it the equations hold; inf when no arc is idle.
    """

    point: OperatingPoint
    response: Float[Array, "*batch frontends backends backends"]
    self_response: Float[Array, "*batch frontends backends backends"] | None
    neutral: Int[Array, "*batch"]
    near_tie: Bool[Array, "*batch frontends backends"]
    linear_region: Float[Array, "*batch"]

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
    - `policy`: a smooth flow policy without memory; `DGDLB(1.0)` by default. Parameters as for `simulate`.
    - `optimum`: of that network; solved when left out. Another equilibrium in the shape of an `Optimum` does as well.

    **Returns:** a `Linearisation`.

    **Raises:** `InputError` for a policy that jumps or has memory.

    **Source:** own derivation.
    """
    rule, best = policy_and_optimum("linearise", network, policy, optimum)
    rule = DGDLB(1.0) if rule is None else rule
    check_smooth(rule)
    rule = each_frontend(network, rule, type(rule).__name__)
    return each_network(linearise_one, network, rule, best)


def check_smooth(policy: AbstractPolicy) -> None:
    """Raise `InputError` for a policy that has no linearisation."""
    if not isinstance(policy, AbstractFlowPolicy):
        raise InputError(
            f"{type(policy).__name__} jumps, so it has no linearisation: use a policy that moves its routing, such as "
            "DGDLB, or a smooth relative such as a softmin of the latencies written as AbstractFlowPolicy."
        )


def linearise_one(network: Network, policy: AbstractPolicy, optimum: Optimum) -> Linearisation:
    """`linearise` for one nameless network; can be mapped and differentiated."""
    numbers = _COPIES * network.frontends * network.backends**2
    what = f"The linearisation of {network.frontends} x {network.backends} frontends and backends"
    device.check_fits(network.latency.dtype.itemsize * numbers, what, "use smaller networks")
    field = field_at_rest(network, policy)
    x, n = optimum.routing.T, optimum.workload
    t = jnp.zeros(network.frontends, n.dtype)
    seen = jnp.broadcast_to(n[:, None], x.shape)
    if reads_outstanding(as_batch(network), as_batch(policy, shared_scalars=True)):
        raise InputError(
            f"{type(policy).__name__} looks at the requests that it has under way, so its loop has a second delayed count, which this "
            "linearisation does not know: simulate it."
        )
    nothing = jnp.zeros_like(x)
    state = field.init(field.observe(t, seen, nothing, t))
    if jax.tree.leaves(state):
        raise InputError(
            f"{type(policy).__name__} has memory, so it is not a smooth flow: linearise DGDLB with the same step size; "
            "critical_step_size knows sampled policies."
        )

    def observation(change):
        return field.observe(t, seen + change[:, None], nothing, t)

    def velocity(change, moved):
        # Frontends see nothing of each other, so one change per backend, the same for all of them, gives all Jacobians at once.
        return field.velocity(t, x + moved[:, None], observation(change), state)[0]

    point, still = OperatingPoint(network, optimum), jnp.zeros_like(n)
    response = _project(jax.jacfwd(velocity)(still, still), point.support)
    self_response = None
    if depends_on(lambda moved: velocity(still, moved), still):
        jacobian = _project(jax.jacfwd(velocity, argnums=1)(still, still), point.support)
        self_response = jnp.where(point.support[:, None], jacobian, 0)
    region = _idle_arcs(network, optimum, point)
    return Linearisation(
        point=point,
        response=response,
        self_response=self_response,
        neutral=_cycles(point.support),
        near_tie=region < _NEAR_TIE,
        linear_region=region.min(),
    )


def field_at_rest(network: Network, policy: AbstractPolicy) -> Field:
    """The vector field of one network at rest: demand and capacity at their means."""
    still = network.with_arrival_rate(network.arrival_rate)
    if network.capacity is not None:
        still = eqx.tree_at(lambda n: n.capacity, still, Constant(network.capacity.mean_rate))
    return Field(as_batch(still), as_batch(policy, shared_scalars=True))


def _project(jacobian: Float[Array, "backends frontends backends"], support) -> Float[Array, "..."]:
    """`(frontends, backends, backends)`, the mean over the support taken off the rows."""
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
    slack = 1 / point.slope + network.cost_latency - optimum.multiplier[:, None]
    per_part = point.gain * n  # change of the marginal latency per part of the workload
    others = jnp.max(jnp.where(point.used, per_part, 0), axis=1)
    idle = network.mask & ~point.used & (network.arrival_rate > 0)[:, None]
    stiffest = jnp.maximum(per_part[None], others[:, None])
    width = jnp.maximum(slack, 0) / jnp.where(stiffest > 0, stiffest, 1)
    return jnp.where(idle & (stiffest > 0), width, jnp.inf)
