"""Where a network rests, and how its backends answer small changes there: what every local analysis starts from."""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from dgdlb_jax.equilibrium.optimum import Optimum
from dgdlb_jax.model.network import Network
from dgdlb_jax.numerics.graph import connected
from dgdlb_jax.numerics.lapack import eigvalsh

SAME = 1e-9  # relative difference of latencies that counts as none
_SHARE_IN_USE = 1e-9  # smaller shares of a frontend's traffic are rounding


class OperatingPoint(eqx.Module):
    r"""One network at an equilibrium. Where it is made by `vmap`, every array has a leading axis.

    - `arrival_rate` $\lambda$ `(frontends,)`: requests/s.
    - `slope` $a = \ell'$ `(backends,)`: 1/s. `gain` $c = -\ell''/\ell'^2$ `(backends,)`: seconds per request, how the marginal
      latency rises with the workload; 0 where nothing is served.
    - `latency` $\tau$, `feedback_latency`, `cost_latency` `(frontends, backends)`: seconds.
    - `used` `(frontends, backends)`: arcs with traffic. `support` $S_i$: those of frontends that have two of them or more, between
      which traffic can move.

    **Arguments:** `network`: one network; of a demand or a capacity that changes in time, the mean counts. `optimum`: of that network,
    or another equilibrium in its shape.
    """

    arrival_rate: Float[Array, "*batch frontends"]
    slope: Float[Array, "*batch backends"]
    gain: Float[Array, "*batch backends"]
    latency: Float[Array, "*batch frontends backends"]
    feedback_latency: Float[Array, "*batch frontends backends"]
    cost_latency: Float[Array, "*batch frontends backends"]
    used: Bool[Array, "*batch frontends backends"]
    support: Bool[Array, "*batch frontends backends"]

    def __init__(self, network: Network, optimum: Optimum):
        self.arrival_rate = network.arrival_rate
        self.slope, self.gain = slope_and_gain(network, optimum.workload)
        self.latency, self.feedback_latency = network.latency, network.feedback_latency
        self.cost_latency = network.cost_latency
        self.used = network.mask & (optimum.routing > _SHARE_IN_USE) & (network.arrival_rate > 0)[:, None]
        self.support = self.used & (self.used.sum(1) > 1)[:, None]

    @property
    def equal_feedback(self) -> Bool[Array, ""]:
        """Whether forward and feedback latency are the same on the support."""
        return self._agree(self.feedback_latency - self.latency, 0.0)

    @property
    def trips(self) -> Float[Array, ""]:
        """1 when feedback and cost latency are the forward latency, the cost up to a constant per frontend; 2 when the cost is twice
        that; else 0."""
        once, twice = (self._constant(self.cost_latency - trips * self.latency) for trips in (1, 2))
        return jnp.where(self.equal_feedback & once, 1.0, jnp.where(self.equal_feedback & twice, 2.0, 0.0))

    def _agree(self, values, target) -> Bool[Array, ""]:
        tolerance = SAME * jnp.where(self.support, self.latency + self.cost_latency, 0).max()
        return jnp.where(self.support, jnp.abs(values - target) <= tolerance, True).all()

    def _constant(self, values) -> Bool[Array, ""]:
        count = jnp.maximum(self.support.sum(1, dtype=values.dtype), 1)
        mean = jnp.where(self.support, values, 0).sum(1) / count
        return self._agree(values, mean[:, None])

    @property
    def inverse_slope(self) -> Float[Array, " backends"]:
        r"""$1/a_j$ as it enters the phases."""
        return 1 / (jnp.maximum(self.trips, 1) * self.slope)

    @property
    def multiplier(self) -> Float[Array, " frontends"]:
        r"""$\nu_i$ as it enters the phases: $\tau_{ij} + 1/a_j$ on the support."""
        return jnp.where(self.support, self.latency + self.inverse_slope[None], 0).max(1)

    @property
    def same_part(self) -> Bool[Array, "frontends backends"]:
        """Which frontends and backends belong to one connected part of the support."""
        return (self.support[:, :, None] & connected(self.support)[None]).any(1)

    def strength(self, step_size: Float[Array, " frontends"]) -> Float[Array, "frontends backends"]:
        r"""$s_i = \lambda_i \eta_i$ on the support."""
        return jnp.where(self.support, (self.arrival_rate * step_size)[:, None], 0)

    def modes(self, strength: Float[Array, "frontends backends"]) -> Float[Array, "backends backends"]:
        r"""$\sum_i s_i P_i$, $P_i = I - 11^T/k_i$ on the support."""
        count = jnp.maximum(self.support.sum(1, dtype=strength.dtype), 1)[:, None]
        return jnp.diag(strength.sum(0)) - (strength / count).T @ self.support.astype(strength.dtype)

    def rates(self, strength, weight: Float[Array, " backends"]) -> Float[Array, " backends"]:
        r"""The eigenvalues of $\mathrm{diag}(\text{weight}) \sum_i s_i P_i$ in ascending order."""
        root = jnp.sqrt(weight)
        return eigvalsh(root[:, None] * self.modes(strength) * root[None])

    def radius(self, strength, weight: Float[Array, " backends"]) -> Float[Array, ""]:
        r"""The largest of `rates`."""
        return jnp.maximum(self.rates(strength, weight).max(), 0)


def slope_and_gain(
    network: Network, workload: Float[Array, " backends"]
) -> tuple[Float[Array, " backends"], Float[Array, " backends"]]:
    r"""$a = \ell'$ (1/s) and $c = -\ell''/\ell'^2$ (seconds per request) of one network at a workload, at its mean capacity."""
    slope, curvature = network.mean_service.slope(workload), network.mean_service.curvature(workload)
    served = slope > 0
    divisor = jnp.where(served, slope, 1)
    return slope, jnp.where(served, -curvature / divisor / divisor, 0)
