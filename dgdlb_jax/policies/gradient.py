"""Balancers that follow the gradient of the latency."""

from typing import ClassVar

import numpy as np
from jaxtyping import Array, Float

from dgdlb_jax.numerics.results import InputError, is_concrete
from dgdlb_jax.numerics.types import Matrix
from dgdlb_jax.policies.base import AbstractFlowPolicy, Observation, State, parameter


class DGDLB(AbstractFlowPolicy):
    r"""Distributed gradient descent load balancing.

    $$ \dot x_i = \mathrm{Proj}_{T(x_i)}\bigl(-\eta_i g_i(t)\bigr),\qquad
       g_{ij}(t) = \frac{1}{\ell_j'(N_j(t - \tau^{fb}_{ij}))} + \tau^{cost}_{ij} $$

    **Arguments:**

    - `step_size`: $\eta$, a scalar or `(frontends,)`, in 1/s^2. One number per arc would move the equilibrium away from the
      optimum, so it is not offered. `default_step_size(network)` proposes one.

    **Raises:** `InputError` for a step size that is negative or not finite.

    **Source:** Balseiro, Mirrokni, Wydrowski (2025), arXiv:2504.10693, as reconstructed from its abstract.
    """

    takes_lanes: ClassVar[bool] = True

    step_size: Float[Array, "*frontends"]

    def __init__(self, step_size: Matrix):
        self.step_size = parameter(step_size)
        if is_concrete(self.step_size):
            values = np.asarray(self.step_size)
            bad = values[~(np.isfinite(values) & (values >= 0))]
            if bad.size:
                raise InputError(
                    f"DGDLB.step_size contains {bad.flat[0]}: a step size is finite and not negative (1/s^2), "
                    "default_step_size(network) proposes one."
                )

    def velocity(self, t, routing, observation: Observation, state: State):
        """Against the approximate gradient, the same speed for all arcs."""
        del t, routing
        return -self.step_size * (observation.marginal_latency + observation.cost_latency), state
