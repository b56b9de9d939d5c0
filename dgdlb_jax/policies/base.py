"""What a policy is: the rule of **one frontend**, from what it can see to where it routes.

A policy is written with vectors over the backends of one frontend and nothing else in sight; that is what distributed means. The
simulator maps it over frontends and networks. Its parameters are scalars, or arrays whose leading axis is the frontends (one number
or one vector per frontend); inside the rule that axis is gone.

To add one, derive from `AbstractFlowPolicy` (routing moves with a velocity; can be linearised and differentiated) or from
`AbstractInstantPolicy` (routing jumps to where the rule says), and write one method.
"""

from abc import abstractmethod
from typing import Any, ClassVar

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PyTree

from dgdlb_jax.numerics.types import Matrix

State = PyTree[Any]


class Observation(eqx.Module):
    """What one frontend sees at one instant; news of a backend is as old as the feedback latency of its arc.

    - `workload`: $N_j(t - \\tau^{fb}_{ij})$, `(backends,)`, requests.
    - `service_rate`: $\\ell_j$ there, requests/s.
    - `marginal_latency`: $1 / \\ell_j'$ there, seconds: what one more request would add to the time in the system.
    - `cost_latency`: network time charged to a request, seconds.
    - `outstanding`: the frontend's own requests under way, its flow times the latency as seen.
    - `nominal_capacity`: of each backend, requests/s.
    - `mask`: which backends it may use. Entries of the others have no meaning, but are finite.
    - `arrival_rate`: of this frontend now, requests/s, a scalar.
    - `time_step`: seconds since the last call, a scalar; for rules with memory.

    The simulator holds many frontends in one such object, behind a second axis (`lanes`) that no rule ever sees.
    """

    workload: Float[Array, "backends *lanes"]
    service_rate: Float[Array, "backends *lanes"]
    marginal_latency: Float[Array, "backends *lanes"]
    cost_latency: Float[Array, "backends *lanes"]
    outstanding: Float[Array, "backends *lanes"]
    nominal_capacity: Float[Array, "backends *lanes"]
    mask: Bool[Array, "backends *lanes"]
    arrival_rate: Float[Array, "*lanes"]
    time_step: Float[Array, "*lanes"]


class AbstractPolicy(eqx.Module):
    """A routing rule. Derive from `AbstractFlowPolicy` or `AbstractInstantPolicy`.

    `differentiable`: whether a run has a gradient, which a rule that jumps has not.
    """

    differentiable: ClassVar[bool] = True

    def init(self, observation: Observation) -> State:
        """The policy's memory at the start; none by default."""
        del observation
        return ()


class AbstractFlowPolicy(AbstractPolicy):
    """A rule that says in which direction the routing moves."""

    @abstractmethod
    def velocity(
        self, t: Float[Array, ""], routing: Float[Array, "backends *lanes"], observation: Observation, state: State
    ) -> tuple[Float[Array, "backends *lanes"], State]:
        """The raw velocity of the routing (1/s) and the new memory. The simulator projects it; the rule need not."""


class AbstractInstantPolicy(AbstractPolicy):
    """A rule that says where the routing is. It jumps, so it has no linearisation and no gradient.

    A rule that is smooth all the same says `differentiable: ClassVar[bool] = True`.
    """

    differentiable: ClassVar[bool] = False

    @abstractmethod
    def route(
        self, t: Float[Array, ""], observation: Observation, state: State
    ) -> tuple[Float[Array, "backends *lanes"], State]:
        """The routing, a point of the simplex, and the new memory."""


def parameter(value: Matrix) -> Float[Array, "..."]:
    """A policy's parameter as a floating-point array."""
    array = jnp.asarray(value)
    return array if jnp.issubdtype(array.dtype, jnp.floating) else array.astype(float)


def share_equally(best: Bool[Array, "backends *lanes"], dtype) -> Float[Array, "backends *lanes"]:
    """All traffic in equal parts to the backends marked as best; none if there are none."""
    chosen = best.astype(dtype)
    return chosen / jnp.maximum(jnp.sum(chosen, axis=0), 1)


def least(
    score: Float[Array, "backends *lanes"], mask: Bool[Array, "backends *lanes"]
) -> Float[Array, "backends *lanes"]:
    """All traffic to the backends with the least score, ties shared equally."""
    allowed = jnp.where(mask, score, jnp.inf)
    return share_equally(mask & (allowed <= jnp.min(allowed, axis=0)), score.dtype)
