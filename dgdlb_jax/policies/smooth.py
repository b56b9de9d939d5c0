"""Smooth relatives of balancers that jump: they can be linearised and differentiated like DGD-LB."""

from typing import ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from dgdlb_jax.numerics.checks import not_negative, positive
from dgdlb_jax.numerics.types import Numbers
from dgdlb_jax.policies.base import AbstractFlowPolicy, Observation, State, checked, checked_step_size, per_backend
from dgdlb_jax.policies.static import proportional


class MirrorDescent(AbstractFlowPolicy):
    r"""Mirror descent with the entropy (exponentiated gradient) on the approximate gradient of DGD-LB.

    $$ \dot x_{ij} = -\eta_i \max(x_{ij}, \epsilon)\,\bigl(g_{ij} - \textstyle\sum_k x_{ik} g_{ik}\bigr),\qquad
       g_{ij}(t) = \frac{1}{\ell_j'(N_j(t - \tau^{fb}_{ij}))} + \tau^{cost}_{ij} $$

    With $\epsilon = 0$ this is the replicator equation, $x \propto x_0 e^{-\eta \int g}$: shares never leave zero again, and every vertex
    is at rest. The floor $\epsilon$ lets an arc without traffic come back; the rest points then are those of DGD-LB, the optimum (on the
    support $g$ is equal, elsewhere not smaller).

    **Arguments:**

    - `step_size`: $\eta$, a scalar or `(frontends,)`, in 1/s^2. The gain is at most half that of DGD-LB with the same $\eta$, since
      $\mathrm{diag}(x) - x x^T \preceq \frac12 P$; so twice a step size that is safe for DGD-LB.
    - `floor`: $\epsilon$, share below which an arc moves as if it had that much.

    **Raises:** `InputError` for a step size or a floor that is negative or not finite.

    **Source:** Beck and Teboulle (2003), "Mirror descent and nonlinear projected subgradient methods"; the floor is this project's own.
    """

    takes_lanes: ClassVar[bool] = True

    step_size: Float[Array, "*frontends"]
    floor: Float[Array, "*frontends"]

    def __init__(self, step_size: Numbers, floor: Numbers = 1e-3):
        self.step_size = checked_step_size("MirrorDescent", step_size)
        self.floor = checked("MirrorDescent.floor", floor, not_negative, "finite and not negative")

    def velocity(self, t, routing, observation: Observation, state: State):
        """Every share in proportion to itself."""
        del t
        gradient = observation.marginal_latency + observation.cost_latency
        mean = jnp.sum(jnp.where(observation.mask, routing * gradient, 0), axis=0)
        step, floor = per_backend(self.step_size, routing), per_backend(self.floor, routing)
        return -step * jnp.maximum(routing, floor) * (gradient - mean[None]), state


class Softmin(AbstractFlowPolicy):
    r"""Softmin of the marginal latency, approached at a rate: the smooth relative of all rules that send everything to the least.

    $$ \dot x_i = r\,(s_i - x_i),\qquad s_{ij} \propto e^{-g_{ij} / T},\qquad
       g_{ij}(t) = \frac{1}{\ell_j'(N_j(t - \tau^{fb}_{ij}))} + \tau^{cost}_{ij} $$

    It is a flow and not a jump, so that it has a linearisation, roots, and gradients. For $r \to \infty$ it becomes the instant softmin,
    for $T \to 0$ as well `LeastMarginalLatency`. At rest $g_{ij} + T \log x_{ij}$ is equal on all arcs: near the optimum for a small
    temperature, uniform for a large one. Small temperatures make it as restless as the jump, a small rate calms it.

    **Arguments:**

    - `temperature`: $T > 0$, seconds, a scalar or `(frontends,)`: differences in latency much below it do not matter.
    - `rate`: $r > 0$, 1/s, a scalar or `(frontends,)`.

    **Raises:** `InputError` for a temperature or a rate that is not positive and finite.

    **Source:** logit choice, McFadden (1974), as dynamics Fudenberg and Levine (1998); in this form own.
    """

    takes_lanes: ClassVar[bool] = True

    temperature: Float[Array, "*frontends"]
    rate: Float[Array, "*frontends"]

    def __init__(self, temperature: Numbers, rate: Numbers):
        self.temperature = checked("Softmin.temperature", temperature, positive, "positive and finite, seconds")
        self.rate = checked("Softmin.rate", rate, positive, "positive and finite (1/s)")

    @property
    def time_scale(self) -> Float[Array, "*parameters"]:
        """The time in which the routing follows its target."""
        return 1 / self.rate

    def velocity(self, t, routing, observation: Observation, state: State):
        """Towards the softmin."""
        del t
        return per_backend(self.rate, routing) * (self.target(observation) - routing), state

    def target(self, observation: Observation) -> Float[Array, "backends *lanes"]:
        """The softmin of what is seen."""
        return softmin(observation.marginal_latency + observation.cost_latency, observation.mask, self.temperature)


def softmin(
    score: Float[Array, "backends *lanes"], mask: Bool[Array, "backends *lanes"], temperature: Float[Array, "*#lanes"]
) -> Float[Array, "backends *lanes"]:
    r"""Shares in proportion to $e^{-\text{score} / T}$ over the backends within reach."""
    above = score - jnp.min(jnp.where(mask, score, jnp.inf), axis=0)[None]
    return proportional(jnp.exp(-jnp.where(mask, above, 0) / per_backend(temperature, score)), mask)
