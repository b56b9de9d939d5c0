r"""The slow loop of `LatencyObservationScorer`: what it observes moves the curve by which it slides.

Own counts have no delay, so all predictions of a frontend are equal at once: $F_j + (T_j - F_j)\, o_j / I_j$ is the same everywhere.
Observations $(I_j, T_j)$ are averages over a window W of what was a latency d ago. Between equal backends a relative deviation of the count
obeys, with $T' o$ the change of the latency per relative change of the count,

$$ 1 + g\, e^{-sd}\, \frac{1 - e^{-sW}}{sW} = 0, \qquad g = \frac{T' o}{T - F} - 1, \qquad
   g < g_c = \frac{\theta}{\sin \theta},\ \theta = \frac{\pi W}{W + 2 d} $$

A straight curve has g = 0: its prediction is right at once, as with hyperbolic service. A curve that bends up is underestimated off the
typical load, and the correction comes a window late.

**Source:** own derivation.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float

from dgdlb_jax.model.batch import each_frontend, require_single
from dgdlb_jax.model.network import Network
from dgdlb_jax.policies.observed import LatencyObservationScorer
from dgdlb_jax.stability.rest_point import rest_of_latencies

_IN_USE = 1e-3  # of a frontend's traffic: smaller shares are those of arcs that it does not use


class SlowLoop(NamedTuple):
    """The slow loop of every arc as if its backend had equals, `(frontends, backends)`; NaN for arcs that are not in use.

    - `gain`: $g$, `limit`: $g_c$. `window`: $W$, `delay`: $d$, half the time between two publications included, seconds.
    """

    gain: Float[np.ndarray, "frontends backends"]
    limit: Float[np.ndarray, "frontends backends"]
    window: Float[np.ndarray, "frontends backends"]
    delay: Float[np.ndarray, "frontends backends"]

    @property
    def worst(self) -> tuple[int, int] | None:
        """The arc whose gain is nearest to its limit, or farthest beyond; None where no frontend has a choice."""
        ratio = self.gain / self.limit
        return None if np.isnan(ratio).all() else divmod(int(np.nanargmax(ratio)), ratio.shape[1])

    @property
    def swing(self) -> Float[np.ndarray, "frontends backends"]:
        """The period of the swings beyond the limit, seconds: $W + 2 d$."""
        return self.window + 2 * self.delay


def critical_gain(window: ArrayLike, delay: ArrayLike) -> Float[Array, "..."]:
    r"""$\theta / \sin \theta$ with $\theta = \pi W / (W + 2 d)$; inf without a delay."""
    angle = jnp.pi * jnp.asarray(window) / (jnp.asarray(window) + 2 * jnp.asarray(delay))
    return jnp.where(angle < jnp.pi, angle / jnp.sin(jnp.where(angle < jnp.pi, angle, 1.0)), jnp.inf)


def slow_loop(network: Network, policy: LatencyObservationScorer) -> SlowLoop:
    """The slow loop where all latencies as seen are equal, which is where the rule rests.

    Exact between equal backends at equal distance; elsewhere a guide, for which all callers of a backend count as moving alike.

    **Arguments:** a single `network`; `policy`, parameters as for `simulate`.
    """
    require_single(network, "slow_loop")
    rule = each_frontend(network, policy, type(policy).__name__)
    frontends = lambda values: jnp.broadcast_to(values.reshape(-1, 1), network.latency.shape)
    routing, workload = rest_of_latencies(network)
    service, flow = network.mean_service, routing * network.arrival_rate[:, None]
    used = (routing > _IN_USE) & ((routing > _IN_USE).sum(1, keepdims=True) > 1)
    inside = service.average_latency(workload)[None]
    wires = network.latency + network.feedback_latency
    latency = network.cost_latency + inside
    per_request = jax.jvp(service.average_latency, (workload,), (jnp.ones_like(workload),))[1]
    rise = (per_request * workload)[None]  # of the latency, per relative change of the workload
    count = 1 - rise / inside + rise / (wires + inside)  # relative change of own counts for that
    above = inside - jnp.broadcast_to(rule.floor_latency, latency.shape)
    gain = rise / count / jnp.where(above > 0, above, jnp.nan) - 1
    window = jnp.minimum(
        frontends(rule.max_observation_age), frontends(rule.max_requests) / jnp.where(flow > 0, flow, jnp.inf)
    )
    delay = latency + frontends(rule.interval_duration) / 2
    found = gain, critical_gain(window, delay), window, delay
    return SlowLoop(*(np.where(used, each, np.nan) for each in found))
