r"""What a frontend makes of the news before its policy sees it.

A policy of this package reads the marginal latency $1 / \ell_j'$ in its observation; nobody measures that. An *estimate* turns one
observation into another: it smooths reports over time, or replaces them by what a curve or a regression says. `estimated(policy, ...)`
is the policy that sees the outcome: in fluid runs, with requests one by one, and in the linear analysis, where averaging counts as
latency.

To add one, derive from `AbstractEstimate` and write `estimate`; one with memory has `init` as well. It is written for one frontend, with
axis 0 the backends, and what follows passes through. Memory that moves smoothly is linearised by differentiation.
"""

from abc import abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from dgdlb_jax.model.service import AbstractService
from dgdlb_jax.numerics.checks import positive
from dgdlb_jax.numerics.results import InputError
from dgdlb_jax.numerics.types import Numbers
from dgdlb_jax.policies.base import (
    AbstractFlowPolicy,
    AbstractInstantPolicy,
    AbstractPolicy,
    Observation,
    State,
    checked,
    for_each_frontend,
)

_REPORTS = ("workload", "service_rate", "marginal_latency", "average_latency")
_LARGEST_MARGINAL = 100.0  # times the average latency: what a regression may at most make of reports that do not rise


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

    def init(self, observation: Observation) -> State:
        """The memory at the start, when the news has always been so; none by default."""
        del observation
        return ()

    @abstractmethod
    def estimate(self, observation: Observation, state: State) -> tuple[Observation, State]:
        """What the policy sees instead, and the new memory."""


class ExponentialAverage(AbstractEstimate):
    r"""Reports smoothed by a first-order lag: $T \dot y = u - y$, for every number that a backend reports.

    With a lag in place of the raw report, one symmetric group is critical at
    $2 w \tau + \arctan(w/a) + \arctan(wT) = \pi/2$, $K_c = w \sqrt{w^2 + a^2} \sqrt{1 + w^2 T^2}$; to count T as feedback latency is safe.

    **Arguments:** `time_constant`: T, seconds, a scalar, `(frontends,)` or `(frontends, backends)`.

    **Raises:** `InputError` for a time that is not positive and finite.

    **Source:** own derivation.
    """

    time_constant: Float[Array, "*frontends"]

    def __init__(self, time_constant: Numbers):
        self.time_constant = _seconds("ExponentialAverage.time_constant", time_constant)

    @property
    def time_scale(self) -> Float[Array, "*parameters"]:
        """The time constant."""
        return self.time_constant

    @property
    def delay(self) -> Float[Array, "*parameters"]:
        """The time constant."""
        return self.time_constant

    def init(self, observation: Observation) -> State:
        """The reports themselves."""
        return _reports(observation)

    def estimate(self, observation: Observation, state: State) -> tuple[Observation, State]:
        """The average now."""
        seen, after = _follow(state, _reports(observation), observation.time_step, self.time_constant)
        return _with(observation, seen), after


class MovingAverage(AbstractEstimate):
    r"""Reports averaged over the last W seconds: $y(t) = \frac1W \int_{t-W}^t u$.

    One symmetric group is critical at $2 w \tau + \arctan(w/a) + wW/2 = \pi/2$,
    $K_c = w \sqrt{w^2 + a^2} \, \frac{wW/2}{\sin(wW/2)}$; to count W/2 as feedback latency is safe.

    **Arguments:**

    - `window`: W, seconds, a scalar or `(frontends,)`.
    - `bins`: in how many parts of the window a frontend keeps the past; a time step longer than a part makes parts of its length.

    **Raises:** `InputError` for a window that is not positive and finite, or fewer than one bin.

    **Source:** own derivation.
    """

    window: Float[Array, "*frontends"]
    bins: int = eqx.field(static=True)

    def __init__(self, window: Numbers, bins: int = 16):
        self.window = _seconds("MovingAverage.window", window)
        if bins < 1:
            raise InputError(f"MovingAverage.bins is {bins}, but must be at least 1.")
        self.bins = bins

    @property
    def time_scale(self) -> Float[Array, "*parameters"]:
        """The window."""
        return self.window

    @property
    def delay(self) -> Float[Array, "*parameters"]:
        """Half the window."""
        return self.window / 2

    @property
    def averages_over(self) -> Float[Array, "*parameters"]:
        """The window."""
        return self.window

    def init(self, observation: Observation) -> State:
        """The age of the bin that is being filled, 0; what it has collected; and the means of those that are full, the newest first."""
        reports = _reports(observation)
        full = jax.tree.map(lambda u: jnp.broadcast_to(u, (self.bins, *u.shape)), reports)
        return jnp.zeros_like(observation.time_step), jax.tree.map(jnp.zeros_like, reports), full

    def estimate(self, observation: Observation, state: State) -> tuple[Observation, State]:
        """The average now: the mean of those half a step before and after, as memory is kept half a step ahead (see `_follow`)."""
        step, (age, filling, full) = observation.time_step, state
        length = jnp.maximum(self.window / self.bins, step)
        reached = age + step
        closes = reached >= length
        rest = jnp.where(closes, reached - length, reached)
        reports = _reports(observation)
        whole = jax.tree.map(lambda p, u: (p + (length - age) * u) / length, filling, reports)
        after = (
            rest,
            jax.tree.map(lambda p, u: jnp.where(closes, rest * u, p + step * u), filling, reports),
            jax.tree.map(lambda b, w: jnp.where(closes, jnp.concatenate([w[None], b[:-1]]), b), full, whole),
        )
        mean = lambda state: self._mean(length, *state)
        return _with(observation, jax.tree.map(lambda y, z: (y + z) / 2, mean(state), mean(after))), after

    def _mean(self, length, age, filling, full):
        """Over the last W seconds; of the bin that reaches beyond, its part."""
        window = self.window
        newest = jnp.where(age > window, window / jnp.where(age > 0, age, 1), 1)
        begin = [age + place * length for place in range(self.bins)]
        parts = [jnp.clip(window - at, 0, length) for at in begin]
        return jax.tree.map(
            lambda p, bins: (newest * p + sum(part * bin for part, bin in zip(parts, bins, strict=True))) / window,
            filling,
            tuple(full),
        )


class LearntCurve(AbstractEstimate):
    r"""Latencies from a curve $\hat\ell_j$ that was learnt before, at the workload that is reported.

    $$ \hat\ell_j \to \kappa_{ij} \hat\ell_j, \qquad T \dot\kappa = \ell_j / \hat\ell_j(N_j) - \kappa $$
    With `time_constant` the level $\kappa$ follows the rate that is reported, slowly: a machine that is slower than the one measured.

    **Arguments:**

    - `curve`: a service curve, with the backends of the network (in a batch also `(batch, backends)`).
    - `time_constant`: T, seconds, a scalar or `(frontends,)`; None, the default, keeps the curve as it is.

    **Raises:** `InputError` for a time that is not positive and finite.

    **Source:** own derivation.
    """

    curve: AbstractService
    time_constant: Float[Array, "*frontends"] | None

    def __init__(self, curve: AbstractService, time_constant: Numbers | None = None):
        batched = curve.nominal_capacity.ndim > 1
        self.curve = jax.tree.map(lambda leaf: jnp.expand_dims(leaf, 1 if batched else 0), curve)
        self.time_constant = None if time_constant is None else _seconds("LearntCurve.time_constant", time_constant)

    @property
    def time_scale(self) -> Float[Array, "*parameters"]:
        """The time constant."""
        return jnp.asarray(jnp.inf) if self.time_constant is None else self.time_constant

    def init(self, observation: Observation) -> State:
        """The level that makes the curve agree with the report, where it is learnt."""
        return () if self.time_constant is None else self._level(observation)

    def estimate(self, observation: Observation, state: State) -> tuple[Observation, State]:
        """The curve at that workload."""
        workload, level = observation.workload, 1.0
        if self.time_constant is not None:
            level, state = _follow(state, self._level(observation), observation.time_step, self.time_constant)
        found = (
            workload,
            level * self.curve.rate(workload),
            self.curve.marginal_latency(workload) / level,
            self.curve.average_latency(workload) / level,
        )
        return _with(observation, found), state

    def _level(self, observation: Observation) -> Float[Array, "backends *lanes"]:
        """Of the average latencies, which have limits at 0."""
        return self.curve.average_latency(observation.workload) / observation.average_latency


class Regression(AbstractEstimate):
    r"""The slope $\ell_j'$ by linear regression of rates on workloads, with weights $e^{-\text{age} / T}$.

    $$ \hat\ell' = \frac{\mathrm{cov}(N, \ell) + \rho\, \bar\ell / \bar N}{\mathrm{var} N + \rho}, \qquad
       \rho = (\text{spread} \cdot \bar N)^2 $$
    Where workloads have moved less than `spread`, their ratio takes the place of the slope: at rest a frontend then sees the average
    latency instead of the marginal one, and rests where selfish routing does. What it knows of the slope is on average T old: a delay,
    and one that no step size was chosen for.

    **Arguments:**

    - `time_constant`: T, seconds, a scalar or `(frontends,)`.
    - `spread`: part of the mean workload, a scalar or `(frontends,)`.

    **Raises:** `InputError` for a time or a spread that is not positive and finite.

    **Source:** own; the recursion for weighted variances after West (1979).
    """

    time_constant: Float[Array, "*frontends"]
    spread: Float[Array, "*frontends"]

    def __init__(self, time_constant: Numbers, spread: Numbers = 0.01):
        self.time_constant = _seconds("Regression.time_constant", time_constant)
        self.spread = checked("Regression.spread", spread, positive, "positive and finite")

    @property
    def time_scale(self) -> Float[Array, "*parameters"]:
        """The time constant."""
        return self.time_constant

    def init(self, observation: Observation) -> State:
        """Means of workload and rate; variance of the workload, and covariance."""
        none = jnp.zeros_like(observation.workload)
        return observation.workload, observation.service_rate, none, none

    def estimate(self, observation: Observation, state: State) -> tuple[Observation, State]:
        """Workload and rate as reported; the marginal latency, between once and a hundred times the average one."""
        workload, rate, variance, covariance = state
        part = -jnp.expm1(-observation.time_step / self.time_constant)
        change, change_of_rate = observation.workload - workload, observation.service_rate - rate
        workload, rate = workload + part * change, rate + part * change_of_rate
        variance = (1 - part) * (variance + part * change**2)
        covariance = (1 - part) * (covariance + part * change * change_of_rate)
        least = (self.spread * workload) ** 2
        some = variance + least > 0
        ratio = 1 / observation.average_latency
        slope = jnp.where(some, (covariance + least * ratio) / jnp.where(some, variance + least, 1), ratio)
        slope = jnp.clip(slope, ratio / _LARGEST_MARGINAL, ratio)
        return eqx.tree_at(lambda o: o.marginal_latency, observation, 1 / slope), (workload, rate, variance, covariance)


def estimated(policy: AbstractPolicy, *estimates: AbstractEstimate) -> AbstractPolicy:
    """A policy that sees what estimates make of the news, the first one first; without estimates it is the policy itself.

    `estimated(DGDLB(step), ExponentialAverage(2.0), LearntCurve(curve))` evaluates a curve at workloads that are averaged over 2 s. Its
    limits are those of the whole loop: `critical_step_size(network, estimated(DGDLB(1.0), MovingAverage(2.0)))`.

    **Arguments:** `policy`: any; its parameters and those of estimates have the axes of a policy's parameters.
    """
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
        scales = [self.policy.time_scale, *(each.time_scale for each in self.estimates)]
        return jnp.stack([jnp.min(scale) for scale in scales]).min()

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
            observation = each.estimate(_at_once(observation), states[-1])[0]
        return tuple(states), self._apply(lambda policy, seen: policy.init(seen), observation)

    def _apply(self, rule: Callable, observation: Observation, *others: Any) -> Any:
        """The rule of the policy, for as many frontends as there are."""
        if observation.arrival_rate.ndim == 0:
            return rule(self.policy, observation, *others)
        return for_each_frontend(self.policy, rule, observation, *others)

    def _look(self, observation: Observation, states: tuple[State, ...]) -> tuple[Observation, tuple[State, ...]]:
        after = []
        for each, state in zip(self.estimates, states, strict=True):
            observation, state = each.estimate(observation, state)
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
        observation, states = self._look(observation, state[0])
        rule = lambda policy, seen, t, own: policy.route(t, seen, own)
        routing, own = self._apply(rule, observation, t, state[1])
        return routing, (states, own)


def _follow(state: State, target: State, step, time_constant) -> tuple[State, State]:
    r"""What follows a target by $T \dot y = u - y$: its value now, and the new memory.

    Memory is y half a step ahead, so that a target counts for the step around it: second order.
    """
    part = step / time_constant
    toward = lambda share: jax.tree.map(lambda y, u: y - share * (u - y), state, target)
    return toward(jnp.expm1(-part / 2)), toward(jnp.expm1(-part))


def _reports(observation: Observation) -> tuple[Float[Array, "backends *lanes"], ...]:
    return tuple(getattr(observation, name) for name in _REPORTS)


def _with(observation: Observation, reports: tuple[Float[Array, "backends *lanes"], ...]) -> Observation:
    return eqx.tree_at(lambda o: [getattr(o, name) for name in _REPORTS], observation, list(reports))


def _at_once(observation: Observation) -> Observation:
    """No time passes."""
    return eqx.tree_at(lambda o: o.time_step, observation, jnp.zeros_like(observation.time_step))


def _seconds(name: str, value: Numbers) -> Float[Array, "..."]:
    return checked(name, value, positive, "positive and finite, seconds")
