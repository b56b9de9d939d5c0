"""Weighted round robin by the client, on weights that follow from what backends report (ORCA)."""

import warnings
from typing import ClassVar, Literal

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from dgdlb_jax.numerics.checks import not_negative, positive
from dgdlb_jax.numerics.types import Matrix, Numbers
from dgdlb_jax.policies.base import Observation, checked, somewhere
from dgdlb_jax.policies.held import (
    AbstractHeldPolicy,
    Arcs,
    Report,
    checked_offset,
    checked_report,
    hosts,
    one_of,
    utilization,
)
from dgdlb_jax.policies.static import proportional

Variant = Literal["grpc", "envoy"]


class OrcaWeights(AbstractHeldPolicy):
    r"""gRPC's `weighted_round_robin`, and Envoy's client-side one: a host's weight is its throughput over its utilisation.

    $$ w_j = \frac{\ell_j / h_j}{u_j}, \qquad x_j \propto h_j w_j $$
    with $h_j$ hosts in backend $j$, renewed every `weight_update_period`. A weight is usable while throughput and utilisation are above
    0; a host without a usable one gets the mean of the others (gRPC), or their median (Envoy).

    What it does depends on what hosts report. A throughput over capacity gives constant weights, the capacities: no loop, nothing
    that could swing. Requests over slots (a KV cache) give the reciprocal of the latency, a loop with gain $\rho / (1 - \rho)$ where
    service is hyperbolic. A report that stands at 1 leaves every split at rest.

    **Arguments:** numbers are scalars or `(frontends,)`, if nothing else is said.

    - `weight_update_period`: seconds, 1 as in both; `blackout_period`: seconds from the start in which all hosts are equal, 10 as in both.
    - `weight_update_offset`: seconds until the first update, for frontends out of step; 0 by default: after a period, in step.
    - `variant`: `"grpc"`, or `"envoy"`. With fewer than two usable weights gRPC treats all hosts alike. Envoy truncates weights to whole
      requests/s, at least 1: coarse below some tens of requests/s a host, which is where large language models are.
    - `report`, `host_capacity`, `max_concurrency`: as for `EnvoyLoadAwareLocality`.

    **Raises:** `InputError` for a value that is not allowed, or slots that are missing.

    **Source:** grpc/proposal A58; envoyproxy/envoy, `client_side_weighted_round_robin` and `orca_weight_manager.cc`. Nothing fails in
    the fluid, so there is no penalty for errors. Reports are always fresh, so weights do not expire.
    """

    takes_lanes: ClassVar[bool] = True

    weight_update_period: Float[Array, "*frontends"]
    weight_update_offset: Float[Array, "*frontends"]
    blackout_period: Float[Array, "*frontends"]
    host_capacity: Float[Array, "*frontends_backends"]
    max_concurrency: Float[Array, "*frontends_backends"] | None
    kind: Report = eqx.field(static=True)
    variant: Variant = eqx.field(static=True)

    def __init__(
        self,
        weight_update_period: Numbers = 1.0,
        blackout_period: Numbers = 10.0,
        *,
        weight_update_offset: Numbers = 0.0,
        variant: str = "grpc",
        report: str = "throughput",
        host_capacity: Matrix = 1.0,
        max_concurrency: Matrix | None = None,
        integers: bool | None = None,
    ):
        if integers is not None:
            variant = "envoy" if integers else variant
            warnings.warn(
                f'OrcaWeights(integers={integers}) is deprecated: give variant="{variant}".',
                DeprecationWarning,
                stacklevel=2,
            )
        self.weight_update_period = checked(
            "OrcaWeights.weight_update_period", weight_update_period, positive, "positive and finite, seconds"
        )
        self.weight_update_offset = checked_offset("OrcaWeights", weight_update_offset, self.weight_update_period)
        self.blackout_period = checked(
            "OrcaWeights.blackout_period", blackout_period, not_negative, "finite and not negative, seconds"
        )
        self.kind, self.host_capacity, self.max_concurrency = checked_report(
            "OrcaWeights", report, host_capacity, max_concurrency
        )
        self.variant = one_of("OrcaWeights.variant", variant, Variant)

    @property
    def offset(self) -> Float[Array, "*frontends"]:
        """`weight_update_offset`."""
        return self.weight_update_offset

    @property
    def period(self) -> Float[Array, "*frontends"]:
        """`weight_update_period`."""
        return self.weight_update_period

    @property
    def smoothing(self) -> Float[Array, "*frontends"]:
        """None."""
        return jnp.zeros_like(self.weight_update_period)

    def report(self, observation: Observation) -> Arcs:
        """The weight of one host of each backend; 0 where there is none yet."""
        count = hosts(observation, self.host_capacity)
        used = utilization(self.kind, observation, self.host_capacity, self.max_concurrency)
        usable = (count > 0) & (observation.service_rate > 0) & (used > 0)
        rate = observation.service_rate / jnp.where(count > 0, count, 1)
        weight = jnp.where(usable, rate / jnp.where(usable, used, 1), 0)
        return jnp.where(usable, jnp.maximum(jnp.floor(weight), 1), 0) if self.variant == "envoy" else weight

    def shares(self, t, report: Arcs, observation: Observation) -> Arcs:
        """In proportion to hosts times weights; equal for all hosts until the blackout is over."""
        count = jnp.where(observation.mask, hosts(observation, self.host_capacity), 0)
        over = t >= self.blackout_period - observation.time_step / 2
        usable = observation.mask & (report > 0) & over[None]
        known = jnp.where(usable, count, 0)
        if self.variant == "envoy":
            enough, default = known.sum(0) > 0, jnp.floor(_median(report, known))
        else:
            total = known.sum(0)
            enough, default = total >= 2, (known * report).sum(0) / jnp.where(total > 0, total, 1)
        return proportional(count * jnp.where(enough, jnp.where(usable, report, default), 1), observation.mask)


def _median(values: Arcs, weight: Arcs) -> Float[Array, "*lanes"]:
    """The median of as many values as their weights say: the mean of both where two lie in the middle; 0 without weight."""
    below, upto = (
        (jnp.where(order, weight[None], 0)).sum(1)
        for order in (values[None] < values[:, None], values[None] <= values[:, None])
    )
    half = weight.sum(0)[None] / 2
    middle: Bool[Array, "backends *lanes"] = (weight > 0) & (below <= half) & (half <= upto)
    low = jnp.min(jnp.where(middle, values, jnp.inf), axis=0)
    high = jnp.max(jnp.where(middle, values, -jnp.inf), axis=0)
    return jnp.where(somewhere(middle), (low + high) / 2, 0)
