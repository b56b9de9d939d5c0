"""Envoy's load-aware choice between localities: weights by headroom, with a preference for the local one."""

from typing import ClassVar, Literal

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from dgdlb_jax.numerics.checks import positive
from dgdlb_jax.numerics.types import Matrix, Numbers
from dgdlb_jax.policies.base import Observation, at_most, checked, somewhere
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

Local = Literal["nearest", "none"]


class EnvoyLoadAwareLocality(AbstractHeldPolicy):
    r"""Envoy's `load_aware_locality`: shares in proportion to hosts times headroom, all of it local while that is not much busier.

    Every `weight_update_period` from averaged utilisations $\hat u$, with $h_j$ hosts in backend $j$:
    $$ w_j = h_j \max(0, 1 - \hat u_j), \qquad
       x_{local} = 1 \ \text{ if } w_{local} > 0 \text{ and } \hat u_{local} \le
       \frac{\sum_{remote} h \hat u}{\sum_{remote} h} + \text{threshold} $$
    Remote shares below `remote_probe_fraction` in sum are raised to it in proportion to hosts; where no headroom is left, $w = h$.

    Without a local locality this is stable as long as every utilisation (of kind throughput) is below 1/2. The local preference has no
    hysteresis: where one locality can not stay alone and no spilling split is at rest, the rule is a relay, and never settles.
    It sees neither latencies (but for what is nearest) nor the shape of a service curve.

    **Arguments:** numbers are scalars or `(frontends,)`, if nothing else is said.

    - `weight_update_period`, `smoothing_time_constant`: seconds, 1 and 5 as in Envoy.
    - `weight_update_offset`: seconds until the first update, for frontends out of step; 0 by default: after a period, in step.
    - `utilization_variance_threshold`: 0.1 as in Envoy, between 0 and 1. `remote_probe_fraction`: 0.03 as in Envoy, from 0 to below 1.
    - `local`: which backend is a frontend's local locality: the `"nearest"` (several equally near ones are one locality), or `"none"`.
    - `report`: what hosts call utilisation: `"throughput"` over capacity, `"concurrency"` (requests over slots: a KV cache), or
      `"saturated"`, always 1.
    - `host_capacity`: what one host serves, requests/s, a scalar or `(frontends, backends)`. A backend has as many hosts as that goes
      into its nominal capacity; 1 by default, which means equal hosts everywhere.
    - `max_concurrency`: requests that one host holds at most, of the same shape; for `"concurrency"`.

    **Raises:** `InputError` for a value that is not allowed, or slots that are missing.

    **Source:** envoyproxy/envoy, `load_aware_locality.rst` and `load_aware_locality_lb.cc` as of 2026-11 (documented from v1.40). Where
    they differ this is the source: the text would send all traffic to a local locality without headroom. Reports are always fresh here,
    so that weights never expire (`weight_expiration_period`), and they are counted over all hosts of a locality at once.
    """

    takes_lanes: ClassVar[bool] = True
    smoothing_knob: ClassVar[str | None] = "smoothing_time_constant"

    weight_update_period: Float[Array, "*frontends"]
    weight_update_offset: Float[Array, "*frontends"]
    smoothing_time_constant: Float[Array, "*frontends"]
    utilization_variance_threshold: Float[Array, "*frontends"]
    remote_probe_fraction: Float[Array, "*frontends"]
    host_capacity: Float[Array, "*frontends_backends"]
    max_concurrency: Float[Array, "*frontends_backends"] | None
    local: Local = eqx.field(static=True)
    kind: Report = eqx.field(static=True)

    def __init__(
        self,
        weight_update_period: Numbers = 1.0,
        smoothing_time_constant: Numbers = 5.0,
        utilization_variance_threshold: Numbers = 0.1,
        remote_probe_fraction: Numbers = 0.03,
        *,
        weight_update_offset: Numbers = 0.0,
        local: str = "nearest",
        report: str = "throughput",
        host_capacity: Matrix = 1.0,
        max_concurrency: Matrix | None = None,
    ):
        name = "EnvoyLoadAwareLocality"
        seconds = "positive and finite, seconds"
        self.weight_update_period = checked(f"{name}.weight_update_period", weight_update_period, positive, seconds)
        self.weight_update_offset = checked_offset(name, weight_update_offset, self.weight_update_period)
        self.smoothing_time_constant = checked(
            f"{name}.smoothing_time_constant", smoothing_time_constant, positive, seconds
        )
        self.utilization_variance_threshold = checked(
            f"{name}.utilization_variance_threshold",
            utilization_variance_threshold,
            lambda v: (v >= 0) & (v <= 1),
            "between 0 and 1 (0.1 in Envoy)",
        )
        self.remote_probe_fraction = checked(
            f"{name}.remote_probe_fraction",
            remote_probe_fraction,
            lambda v: (v >= 0) & (v < 1),
            "at least 0 and below 1 (0.03 in Envoy)",
        )
        self.local = one_of(f"{name}.local", local, Local)
        self.kind, self.host_capacity, self.max_concurrency = checked_report(
            name, report, host_capacity, max_concurrency
        )

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
        """`smoothing_time_constant`."""
        return self.smoothing_time_constant

    def report(self, observation: Observation) -> Arcs:
        """The utilisation of each backend."""
        return utilization(self.kind, observation, self.host_capacity, self.max_concurrency)

    def shares(self, t, report: Arcs, observation: Observation) -> Arcs:
        """Headroom; all local while that is not much busier than the others; and what keeps an eye on the others."""
        del t
        mask, count = observation.mask, jnp.where(observation.mask, hosts(observation, self.host_capacity), 0)
        spread = count * jnp.maximum(1 - report, 0)
        shares = proportional(jnp.where(somewhere(spread > 0), spread, count), mask)
        if self.local == "none":
            return shares
        cost = jnp.where(mask, observation.cost_latency, jnp.inf)
        near = mask & at_most(cost, jnp.min(cost, axis=0)[None])
        here, away = jnp.where(near, count, 0), jnp.where(near, 0, count)
        busy, elsewhere = _mean(report, here), _mean(report, away)
        stays = (jnp.where(near, spread, 0).sum(0) > 0) & at_most(busy, elsewhere + self.utilization_variance_threshold)
        shares = jnp.where(stays, proportional(jnp.where(near, spread, 0), near), shares)
        return _probed(shares, near, away, self.remote_probe_fraction)


def _mean(values: Arcs, weight: Arcs) -> Float[Array, "*lanes"]:
    """The weighted mean over the backends; 0 without weight."""
    total = weight.sum(0)
    return (weight * values).sum(0) / jnp.where(total > 0, total, 1)


def _probed(shares: Arcs, near: Array, away: Arcs, fraction: Float[Array, "*#lanes"]) -> Arcs:
    """Shares of which at least a fraction is remote, as far as there are remote hosts: taken from what is local, in proportion."""
    local, total = jnp.where(near, shares, 0).sum(0), away.sum(0)
    missing = jnp.clip(fraction - (1 - local), 0, local)
    missing = jnp.where((total > 0) & (shares.sum(0) > 0), missing, 0)
    kept = 1 - missing / jnp.where(local > 0, local, 1)
    return jnp.where(near, shares * kept[None], shares + missing[None] * away / jnp.where(total > 0, total, 1)[None])
