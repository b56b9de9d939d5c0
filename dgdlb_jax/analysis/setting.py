"""What sufficient conditions look at: one network at its optimum, where it may move."""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from dgdlb_jax.analysis.loop import quarter_turn
from dgdlb_jax.analysis.optimum import Optimum
from dgdlb_jax.analysis.step_size import arcs_in_use, gains_at
from dgdlb_jax.model.network import Network
from dgdlb_jax.numerics.graph import connected

SAME = 1e-9  # relative difference of latencies that counts as none


class Setting(eqx.Module):
    r"""What the conditions look at, for one network at its optimum.

    - `arrival_rate` $\lambda$ `(frontends,)`, `slope` $a$, `gain` $c$ `(backends,)`, `latency` $\tau$ `(frontends, backends)`.
    - `support` `(frontends, backends)`: $S_i$ of the frontends with two active backends or more; `used`: those of all frontends.
    - `equal_feedback`: forward = feedback latency there. `trips`: 1 when the cost latency is the forward latency up to a constant
      per frontend, 2 when it is twice that, else 0.
    """

    arrival_rate: Float[Array, " frontends"]
    slope: Float[Array, " backends"]
    gain: Float[Array, " backends"]
    latency: Float[Array, "frontends backends"]
    support: Bool[Array, "frontends backends"]
    used: Bool[Array, "frontends backends"]
    equal_feedback: Bool[Array, ""]
    trips: Float[Array, ""]

    def __init__(self, network: Network, optimum: Optimum):
        gains = gains_at(network, optimum.workload)
        used = arcs_in_use(network, optimum)
        self.used, self.support = used, used & (used.sum(1) > 1)[:, None]
        self.arrival_rate, self.slope, self.gain = network.arrival_rate, gains.slope, gains.gain
        self.latency = jnp.where(used, network.latency, 0)
        scale = SAME * jnp.where(self.support, network.latency + network.cost_latency, 0).max()
        self.equal_feedback = self._agree(network.feedback_latency - network.latency, 0.0, scale)
        once, twice = (self._constant(network.cost_latency - trips * network.latency, scale) for trips in (1, 2))
        self.trips = jnp.where(self.equal_feedback & once, 1.0, jnp.where(self.equal_feedback & twice, 2.0, 0.0))

    def _agree(self, values, target, scale) -> Bool[Array, ""]:
        return jnp.where(self.support, jnp.abs(values - target) <= scale, True).all()

    def _constant(self, values, scale) -> Bool[Array, ""]:
        mean = jnp.where(self.support, values, 0).sum(1) / jnp.maximum(self.support.sum(1), 1)
        return self._agree(values, mean[:, None], scale)

    @property
    def inverse_slope(self) -> Float[Array, " backends"]:
        r"""$1/a_j$ as it enters the phases."""
        return 1 / (jnp.maximum(self.trips, 1) * self.slope)

    @property
    def multiplier(self) -> Float[Array, " frontends"]:
        r"""$\nu_i$ as it enters the phases: $\tau_{ij} + 1/a_j$ on the support."""
        return jnp.where(self.support, self.latency + self.inverse_slope, 0).max(1)

    @property
    def together(self) -> Bool[Array, "frontends backends"]:
        """Which frontends and backends hang together."""
        return (self.support[:, :, None] & connected(self.support)[None]).any(1)

    def lowest_frequency(self) -> Float[Array, " backends"]:
        r"""$w^*$ of theorem B, part by part: no root crosses below it, whatever the step sizes."""
        active = self.support.any(0)
        highest = jnp.where(self.together, self.multiplier[:, None], 0).max(0)
        own = quarter_turn(2 * jnp.maximum(highest - self.inverse_slope, 0), self.slope)
        reach = connected(self.support)
        return jnp.where(active, jnp.where(reach & active[None], own[None], jnp.inf).min(1), 1.0)

    def strength(self, direction: Float[Array, " frontends"]) -> Float[Array, "frontends backends"]:
        r"""$s_i = \lambda_i \eta_i$ on the support."""
        return jnp.where(self.support, (self.arrival_rate * direction)[:, None], 0)

    def modes(self, strength: Float[Array, "frontends backends"]) -> Float[Array, "backends backends"]:
        r"""$\sum_i s_i P_i$."""
        count = jnp.maximum(self.support.sum(1), 1)[:, None]
        return jnp.diag(strength.sum(0)) - (strength / count).T @ self.support.astype(strength.dtype)

    def radius(self, strength, weight: Float[Array, " backends"]) -> Float[Array, ""]:
        r"""The largest eigenvalue of $\mathrm{diag}(\text{weight}) \sum_i s_i P_i$."""
        root = jnp.sqrt(weight)
        return jnp.maximum(jnp.linalg.eigvalsh(root[:, None] * self.modes(strength) * root).max(), 0)

    def smallest(self, load: Float[Array, " backends"]) -> Float[Array, ""]:
        """One over the largest load of an active backend; inf without any."""
        return reciprocal(jnp.where(self.support.any(0), load, 0).max())


def reciprocal(value):
    """1 / value; inf at 0."""
    return jnp.where(value > 0, 1 / jnp.where(value > 0, value, 1), jnp.inf)
