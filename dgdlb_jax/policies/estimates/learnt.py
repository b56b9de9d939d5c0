"""Marginal latencies from what was learnt of a curve: before, or from recent reports."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from dgdlb_jax.model.service import AbstractService
from dgdlb_jax.numerics.checks import positive
from dgdlb_jax.numerics.types import Numbers
from dgdlb_jax.policies.base import Observation, State, checked, per_backend
from dgdlb_jax.policies.estimates.base import AbstractEstimate, follow, seconds, with_reports

_LARGEST_MARGINAL = 100.0  # times the average latency: what a regression may at most make of reports that do not rise


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
        self.time_constant = None if time_constant is None else seconds("LearntCurve.time_constant", time_constant)

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
            lag = per_backend(self.time_constant, workload)
            level, state = follow(state, self._level(observation), observation.time_step[None], lag)
        found = (
            workload,
            level * self.curve.rate(workload),
            self.curve.marginal_latency(workload) / level,
            self.curve.average_latency(workload) / level,
        )
        return with_reports(observation, found), state

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
        self.time_constant = seconds("Regression.time_constant", time_constant)
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
        part = -jnp.expm1(-observation.time_step / self.time_constant)[None]
        change, change_of_rate = observation.workload - workload, observation.service_rate - rate
        workload, rate = workload + part * change, rate + part * change_of_rate
        variance = (1 - part) * (variance + part * change**2)
        covariance = (1 - part) * (covariance + part * change * change_of_rate)
        least = (per_backend(self.spread, workload) * workload) ** 2
        some = variance + least > 0
        ratio = 1 / observation.average_latency
        slope = jnp.where(some, (covariance + least * ratio) / jnp.where(some, variance + least, 1), ratio)
        slope = jnp.clip(slope, ratio / _LARGEST_MARGINAL, ratio)
        return eqx.tree_at(lambda o: o.marginal_latency, observation, 1 / slope), (workload, rate, variance, covariance)
