"""DGD-LB as software runs it: frontends update their weights every so often, and hold them in between."""

from typing import ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Float

from dgdlb_jax.numerics.checks import positive
from dgdlb_jax.numerics.types import Matrix
from dgdlb_jax.policies.base import AbstractFlowPolicy, Observation, State, checked, checked_step_size


class SampledDGDLB(AbstractFlowPolicy):
    r"""DGD-LB in which frontends update their weights every `interval` seconds and hold them in between.

    $$ x_i \leftarrow \mathrm{Proj}\bigl(x_i - T \eta_i g_i(t_k)\bigr) \text{ at } t_k = 0, T, 2T, \ldots $$

    with $g$ the approximate gradient of `DGDLB` from the newest feedback at $t_k$. All frontends update at the same instants. On average
    the routing moves as fast as that of `DGDLB` with the same step size; `critical_step_size` knows the corrected limit.

    **Arguments:**

    - `step_size`: $\eta$, a scalar or `(frontends,)`, in 1/s^2.
    - `interval`: $T$, seconds, a scalar; rounded to whole time steps of the simulation, on average. At most the time step: every step.

    **Raises:** `InputError` for a step size that is negative or not finite, or an interval that is not positive and finite.

    **Source:** own derivation from `DGDLB`.
    """

    takes_lanes: ClassVar[bool] = True

    step_size: Float[Array, "*frontends"]
    interval: Float[Array, "*frontends"]

    def __init__(self, step_size: Matrix, interval: Matrix):
        self.step_size = checked_step_size("SampledDGDLB", step_size)
        self.interval = checked(
            "SampledDGDLB.interval",
            interval,
            positive,
            "positive and finite, seconds",
        )

    @property
    def time_scale(self) -> Float[Array, "*parameters"]:
        """Seconds between two updates."""
        return self.interval

    def init(self, observation: Observation) -> State:
        """Seconds since the last update."""
        return jnp.zeros_like(observation.arrival_rate)

    def velocity(self, t, routing, observation: Observation, state: State):
        """The whole update within one time step, nothing between updates."""
        del t, routing
        step = observation.time_step
        waited = state + step
        due = waited >= self.interval - step / 2
        pace = jnp.where(step > 0, jnp.maximum(self.interval, step) / jnp.where(step > 0, step, 1), 0)
        gradient = observation.marginal_latency + observation.cost_latency
        velocity = jnp.where(due, -(self.step_size * pace)[None] * gradient, 0)
        return velocity, jnp.where(due, jnp.maximum(waited - jnp.maximum(self.interval, step), -step), waited)
