"""Balancers that follow the gradient of the latency."""

from typing import ClassVar

from jaxtyping import Array, Float

from dgdlb_jax.numerics.types import Matrix
from dgdlb_jax.policies.base import AbstractFlowPolicy, Observation, State, checked_step_size, per_backend


class DGDLB(AbstractFlowPolicy):
    r"""Distributed gradient descent load balancing.

    $$ \dot x_i = \mathrm{Proj}_{T(x_i)}\bigl(-\eta_i g_i(t)\bigr),\qquad
       g_{ij}(t) = \frac{1}{\ell_j'(N_j(t - \tau^{fb}_{ij}))} + \tau^{cost}_{ij} $$

    **Arguments:**

    - `step_size`: $\eta$, a scalar or `(frontends,)`, in 1/s^2. One number per arc would move the equilibrium away from the
      optimum, so it is not offered. `default_step_size(network)` proposes one.

    **Raises:** `InputError` for a step size that is negative or not finite, with its index.

    **Source:** Balseiro, Mirrokni, Wydrowski (2025), arXiv:2504.10693, as reconstructed from its abstract.
    """

    takes_lanes: ClassVar[bool] = True

    step_size: Float[Array, "*frontends"]

    def __init__(self, step_size: Matrix):
        self.step_size = checked_step_size("DGDLB", step_size)

    def velocity(self, t, routing, observation: Observation, state: State):
        """Against the approximate gradient, the same speed for all arcs."""
        del t
        return -per_backend(self.step_size, routing) * (observation.marginal_latency + observation.cost_latency), state
