"""A policy behind estimates."""

from collections.abc import Callable
from functools import reduce
from typing import Any, ClassVar

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from dgdlb_jax.policies.base import (
    AbstractFlowPolicy,
    AbstractInstantPolicy,
    AbstractPolicy,
    Observation,
    State,
    for_each_frontend,
)
from dgdlb_jax.policies.estimates.base import AbstractEstimate, aligned


def estimated(policy: AbstractPolicy, *estimates: AbstractEstimate) -> AbstractPolicy:
    """A policy that sees what estimates make of the news, the first one first; without any that change something it is the policy itself.

    `estimated(DGDLB(step), ExponentialAverage(2.0), LearntCurve(curve))` evaluates a curve at workloads that are averaged over 2 s. Its
    limits are those of the whole loop: `critical_step_size(network, estimated(DGDLB(1.0), MovingAverage(2.0)))`.

    **Arguments:** `policy`: any; its parameters and those of estimates have the axes of a policy's parameters.
    """
    estimates = tuple(each for each in estimates if not each.idle)
    if not estimates:
        return policy
    wrapper = EstimatedFlow if isinstance(policy, AbstractFlowPolicy) else EstimatedInstant
    return wrapper(policy, estimates)


class _Estimated(AbstractPolicy):
    """What both kinds have in common."""

    policy: eqx.AbstractVar[AbstractPolicy]
    estimates: eqx.AbstractVar[tuple[AbstractEstimate, ...]]

    @property
    def time_scale(self) -> Float[Array, "*parameters"]:
        """The shortest of the policy and its estimates."""
        scales = aligned(self.policy.time_scale, *(each.time_scale for each in self.estimates))
        return reduce(jnp.minimum, scales)

    @property
    def checks_health(self) -> bool:
        """As the policy itself."""
        return self.policy.checks_health

    @property
    def windows(self) -> tuple[Float[Array, "*parameters"], ...]:
        """Of its own estimates and of what it wraps."""
        own = (each.averages_over for each in self.estimates)
        return tuple(window for window in own if window is not None) + self.policy.windows

    @property
    def without_windows(self) -> AbstractPolicy:
        """The policy with the other estimates."""
        return estimated(self.policy.without_windows, *(each for each in self.estimates if each.averages_over is None))

    def init(self, observation: Observation) -> State:
        """The memory of every estimate, then that of the policy."""
        states = []
        for each in self.estimates:
            states.append(each.init(observation))
            observation = each.estimate(at_once(observation), states[-1])[0]
        return tuple(states), self._apply(lambda policy, seen: policy.init(seen), observation)

    def _apply(self, rule: Callable, observation: Observation, *others: Any) -> Any:
        """The rule of the policy, for as many frontends as there are."""
        if observation.arrival_rate.ndim == 0:
            return rule(self.policy, observation, *others)
        return for_each_frontend(self.policy, rule, observation, *others)

    def _look(
        self, observation: Observation, states: tuple[State, ...], at_instant: bool = False
    ) -> tuple[Observation, tuple[State, ...]]:
        after = []
        for each, state in zip(self.estimates, states, strict=True):
            observation, state = (each.at_instant if at_instant else each.estimate)(observation, state)
            after.append(state)
        return observation, tuple(after)


class EstimatedFlow(_Estimated, AbstractFlowPolicy):
    takes_lanes: ClassVar[bool] = True

    policy: AbstractPolicy
    estimates: tuple[AbstractEstimate, ...]

    def velocity(self, t, routing, observation: Observation, state: State):
        """Of the policy, with what it sees."""
        observation, states = self._look(observation, state[0])
        rule = lambda policy, seen, t, routing, own: policy.velocity(t, routing, seen, own)
        velocity, own = self._apply(rule, observation, t, routing, state[1])
        return velocity, (states, own)


class EstimatedInstant(_Estimated, AbstractInstantPolicy):
    takes_lanes: ClassVar[bool] = True

    @property
    def differentiable(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """As the policy itself."""
        return self.policy.differentiable

    policy: AbstractPolicy
    estimates: tuple[AbstractEstimate, ...]

    def route(self, t, observation: Observation, state: State):
        """Of the policy, with what it sees."""
        observation, states = self._look(observation, state[0], at_instant=True)
        rule = lambda policy, seen, t, own: policy.route(t, seen, own)
        routing, own = self._apply(rule, observation, t, state[1])
        return routing, (states, own)


def at_once(observation: Observation) -> Observation:
    """No time passes."""
    return eqx.tree_at(lambda o: o.time_step, observation, jnp.zeros_like(observation.time_step))
