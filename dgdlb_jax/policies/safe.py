"""Relatives of DGD-LB with the same equilibria and the same gain near them, that are meant to go astray less often from far away.

Near the optimum all of them are DGD-LB with the same step size: there the marginal latencies of the arcs in use are equal, and whatever
multiplies or bends them has no effect to first order. Far away they move more slowly.
"""

from typing import ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Float

from dgdlb_jax.numerics.checks import not_negative
from dgdlb_jax.numerics.simplex import zero_mean
from dgdlb_jax.numerics.types import Matrix
from dgdlb_jax.policies.base import AbstractFlowPolicy, Observation, State, checked, checked_step_size, per_backend


class LogDGDLB(AbstractFlowPolicy):
    r"""DGD-LB on the logarithm of the marginal latency.

    $$ v_{ij} = -\eta_i\, g_i^{\min} \log g_{ij}, \qquad g_i^{\min} = \min_j g_{ij} $$

    **Arguments:** `step_size`: $\eta$, a scalar or `(frontends,)`, in 1/s^2, as for `DGDLB`.

    **Source:** own derivation.
    """

    takes_lanes: ClassVar[bool] = True

    step_size: Float[Array, "*frontends"]

    def __init__(self, step_size: Matrix):
        self.step_size = checked_step_size("LogDGDLB", step_size)

    def velocity(self, t, routing, observation: Observation, state: State):
        """Against the logarithm; differences of backends far from the best one count less."""
        del t, routing
        seen, best = _seen(observation)
        return -(self.step_size * best)[None] * jnp.log(seen / best[None]), state


class ReciprocalDGDLB(AbstractFlowPolicy):
    r"""DGD-LB on $-1/g$: the speed is bounded, however bad a backend looks.

    $$ v_{ij} = -\eta_i\, g_i^{\min} \Big( 1 - \frac{g_i^{\min}}{g_{ij}} \Big) $$

    **Arguments:** `step_size`: $\eta$, a scalar or `(frontends,)`, in 1/s^2, as for `DGDLB`.

    **Source:** own derivation.
    """

    takes_lanes: ClassVar[bool] = True

    step_size: Float[Array, "*frontends"]

    def __init__(self, step_size: Matrix):
        self.step_size = checked_step_size("ReciprocalDGDLB", step_size)

    def velocity(self, t, routing, observation: Observation, state: State):
        """Against the reciprocal."""
        del t, routing
        seen, best = _seen(observation)
        return -(self.step_size * best)[None] * (1 - best[None] / seen), state


class CurvatureDGDLB(AbstractFlowPolicy):
    r"""DGD-LB with a step size that follows the curvature a frontend sees: one number per frontend and instant.

    $$ v_{ij} = -\eta_i \Big( \frac{m_i^{ref}}{\bar m_i} \Big)^2 g_{ij}, \qquad \bar m_i = \sum_j x_{ij} / \ell_j'(N_j) $$

    The stable step size falls like $a/c$, which is proportional to $\ell'^2$ for exponential and to $\ell'^{3/2}$ for hyperbolic curves.
    A negative result: from far starts it failed more often than `DGDLB` (benchmarks/README.md), since a frontend that slows down
    leaves overloaded backends too late.

    **Arguments:**

    - `step_size`: $\eta$, a scalar or `(frontends,)`, in 1/s^2: that of `DGDLB` where $\bar m_i$ is the reference.
    - `reference`: $m^{ref}$, a scalar or `(frontends,)`, seconds.

    **Source:** own derivation.
    """

    takes_lanes: ClassVar[bool] = True

    step_size: Float[Array, "*frontends"]
    reference: Float[Array, "*frontends"]

    def __init__(self, step_size: Matrix, reference: Matrix):
        self.step_size = checked_step_size("CurvatureDGDLB", step_size)
        self.reference = _not_negative("CurvatureDGDLB.reference", reference)

    def velocity(self, t, routing, observation: Observation, state: State):
        """As DGD-LB, more slowly where queues are long."""
        del t
        mean = jnp.sum(jnp.where(observation.mask, routing * observation.marginal_latency, 0), axis=0)
        pace = jnp.where(mean > 0, self.reference / jnp.where(mean > 0, mean, 1), 0) ** 2
        return -(self.step_size * pace)[None] * (observation.marginal_latency + observation.cost_latency), state


class CappedDGDLB(AbstractFlowPolicy):
    r"""DGD-LB whose routing moves at most at a given speed.

    $$ v_i = -\eta_i g_i \min\Big( 1, \frac{\text{speed}_i}{\lVert \eta_i P g_i \rVert} \Big) $$

    **Arguments:**

    - `step_size`: $\eta$, a scalar or `(frontends,)`, in 1/s^2.
    - `speed`: the largest Euclidean length of the velocity, a scalar or `(frontends,)`, 1/s.

    **Source:** own derivation.
    """

    takes_lanes: ClassVar[bool] = True

    step_size: Float[Array, "*frontends"]
    speed: Float[Array, "*frontends"]

    def __init__(self, step_size: Matrix, speed: Matrix):
        self.step_size = checked_step_size("CappedDGDLB", step_size)
        self.speed = _not_negative("CappedDGDLB.speed", speed)

    def velocity(self, t, routing, observation: Observation, state: State):
        """As DGD-LB, shortened to the largest speed on the arcs that carry traffic or are the best."""
        del t
        seen, best = _seen(observation)
        velocity = -per_backend(self.step_size, seen) * seen
        moving = observation.mask & ((routing > 0) | (seen <= best[None]))
        square = jnp.sum(zero_mean(velocity, moving) ** 2, axis=0)
        fast = square > self.speed**2
        length = jnp.sqrt(jnp.where(fast, square, 1))
        return velocity * jnp.where(fast, self.speed / length, 1)[None], state


def _seen(observation: Observation):
    """The marginal latency with the network, and the least of it."""
    seen = observation.marginal_latency + observation.cost_latency
    return seen, jnp.min(jnp.where(observation.mask, seen, jnp.inf), axis=0)


def _not_negative(name: str, value: Matrix) -> Float[Array, "..."]:
    return checked(name, value, not_negative, "finite and not negative")
