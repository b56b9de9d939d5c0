"""What an estimate is: a rule of one frontend, from one observation to another."""

from abc import abstractmethod

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from dgdlb_jax.numerics.checks import positive
from dgdlb_jax.numerics.types import Numbers
from dgdlb_jax.policies.base import Observation, State, checked

_REPORTS = ("workload", "service_rate", "marginal_latency", "average_latency")


class AbstractEstimate(eqx.Module):
    """From one observation to another. Parameters are scalars, or arrays whose leading axis is the frontends."""

    @property
    def time_scale(self) -> Float[Array, "*parameters"]:
        """The shortest time constant, seconds, which a time step has to resolve; inf by default."""
        return jnp.asarray(jnp.inf)

    @property
    def delay(self) -> Float[Array, "*parameters"]:
        """Seconds of feedback latency as which it may safely be counted (`default_step_size(network, averaging=...)`); 0 by default."""
        return jnp.asarray(0.0)

    @property
    def averages_over(self) -> Float[Array, "*parameters"] | None:
        """Seconds over which reports are averaged evenly, if that is all that it does (see `AbstractPolicy.windows`); else None."""
        return None

    @property
    def idle(self) -> bool:
        """Whether it is known to change nothing, so that `estimated` may leave it out; False by default."""
        return False

    def init(self, observation: Observation) -> State:
        """The memory at the start, when the news has always been so; none by default."""
        del observation
        return ()

    @abstractmethod
    def estimate(self, observation: Observation, state: State) -> tuple[Observation, State]:
        """What the policy sees instead, and the new memory."""

    def at_instant(self, observation: Observation, state: State) -> tuple[Observation, State]:
        """`estimate` for a rule that jumps: what it sees at this instant. Only an estimate that jumps itself tells it from the mean over
        the step around it, which moves a routing with second order."""
        return self.estimate(observation, state)


def follow(state: State, target: State, step, time_constant) -> tuple[State, State]:
    r"""What follows a target by $T \dot y = u - y$: its value now, and the new memory.

    Memory is y half a step ahead, so that a target counts for the step around it: second order. Both times go with the memory's axes.
    """
    part = step / time_constant
    toward = lambda share: jax.tree.map(lambda y, u: y - share * (u - y), state, target)
    return toward(jnp.expm1(-part / 2)), toward(jnp.expm1(-part))


def aligned(*parameters: Float[Array, "..."]) -> list[Float[Array, "..."]]:
    """Parameters as a policy holds them, frontends first, with axes added behind so that they go together; scalars stay."""
    rank = max(value.ndim for value in parameters)
    return [value.reshape(*value.shape, *(1,) * (rank - value.ndim)) if value.ndim else value for value in parameters]


def reports(observation: Observation) -> tuple[Float[Array, "backends *lanes"], ...]:
    return tuple(getattr(observation, name) for name in _REPORTS)


def with_reports(observation: Observation, reports: tuple[Float[Array, "backends *lanes"], ...]) -> Observation:
    return eqx.tree_at(lambda o: [getattr(o, name) for name in _REPORTS], observation, list(reports))


def seconds(name: str, value: Numbers) -> Float[Array, "..."]:
    return checked(name, value, positive, "positive and finite, seconds")
