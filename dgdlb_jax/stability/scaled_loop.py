r"""The loop of a balancer in a network whose replicas an autoscaler moves.

As `loop_transfer`, with $H_j(s)$ of `stability.autoscaling` in place of $1 / (s + a_j)$ wherever an autoscaler is free to move: frontends
see requests per replica, and these answer to arrivals with $H_j$. There is no pull towards any split: $H_j(0) = 0$, since in the end
replicas take up all traffic at the price of the target. Where prices differ traffic drifts, slowly, to the cheapest until a limit of
replicas stops it; the limit of stability is about the faster swings.

**Source:** own derivation.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Complex, Float

from dgdlb_jax.equilibrium.optimum import Optimum
from dgdlb_jax.model.network import Network
from dgdlb_jax.numerics.precision import imaginary
from dgdlb_jax.policies.autoscalers.base import AbstractAutoscaler
from dgdlb_jax.policies.base import AbstractPolicy
from dgdlb_jax.stability.autoscaling import ReplicaLoop, frozen, on_target, replica_loop
from dgdlb_jax.stability.linearise import Linearisation, linearise_one
from dgdlb_jax.stability.loop_transfer import Frequency, Laplace, LoopTransfer

_POINTS = 3000  # of the envelope of gains
_LEAST = 1e-5  # of the rate at which anything here moves: no crossing below
_RESONANCE = 1.1  # how much higher a peak may be than the points of its envelope


class ScaledLoop(eqx.Module):
    """The loop transfer function of one network with an autoscaler, as `LoopTransfer`: over backends, of what frontends see."""

    linear: Linearisation
    replicas: ReplicaLoop

    @property
    def delay(self) -> Float[Array, ""]:
        """The longest way round a loop, start-up and holds included, seconds."""
        active = self.linear.support.any(0)
        longest = jnp.where(active, self.replicas.startup, 0).max()
        return LoopTransfer(self.linear).delay + longest + 2 * self.replicas.interval

    @property
    def closed(self) -> Bool[Array, ""]:
        """Whether there is anything that moves."""
        return self.linear.support.any()

    @property
    def first(self) -> Frequency:
        """Where to begin, with a wide margin."""
        slowest = jnp.where(self.linear.support.any(0), self.replicas.slope, jnp.inf).min()
        return _LEAST / (self.delay + 1 / slowest)

    @property
    def last(self) -> Frequency:
        """There is no last frequency."""
        return jnp.full_like(self.delay, jnp.inf)

    @property
    def memory(self) -> int:
        """Bytes that the matrix takes at one frequency while it is put together."""
        return LoopTransfer(self.linear).memory

    def stride(self, frequency: Frequency) -> Frequency:
        """How far to the next frequency."""
        return 1 / (self.delay / 0.2 + 1 / (0.1 * frequency))

    def matrix(self, frequency: Frequency) -> Complex[Array, "n n"]:
        """$L(jw)$."""
        return self.at(imaginary(frequency))

    def at(self, s: Laplace) -> Complex[Array, "n n"]:
        """$L(s)$."""
        loop = LoopTransfer(self.linear)
        return -self.replicas.plant(s)[:, None] * loop.arrivals(s, loop.moves(s))

    def bound(self, frequency: Frequency) -> Float[Array, ""]:
        """A bound on the spectral radius of $L(jw)$ that falls with the frequency: the largest of all that follow."""
        lowest = self.first
        points = jnp.exp(jnp.linspace(jnp.log(lowest), jnp.log(1e3 * self._fastest), _POINTS))
        norms = jax.lax.map(self._norm, points, batch_size=256)
        above = _RESONANCE * jax.lax.cummax(norms, reverse=True)
        # Beyond the last point H is 1 / s but for what has long died out.
        known = above[jnp.maximum(jnp.searchsorted(points, frequency, side="right") - 1, 0)]
        return jnp.where(frequency >= points[-1], above[-1] * (points[-1] / frequency) ** 2, known)

    @property
    def _fastest(self) -> Float[Array, ""]:
        return self.replicas.slope.max() * (1 + self.replicas.excess.max()) + 1 / self.delay

    def _norm(self, frequency: Frequency) -> Float[Array, ""]:
        """The largest sum of a row, scaled alike in rows and columns."""
        lin = self.linear
        size = jnp.abs(self.replicas.plant(imaginary(frequency)))
        whole = (lin.arrival_rate[:, None, None] * lin.largest_response).sum(0)
        scale = jnp.sqrt(jnp.maximum(size, 1e-300) / jnp.where(lin.gain > 0, lin.gain, 1))
        return (size[:, None] * whole * scale[None] / scale[:, None]).sum(1).max() / frequency

    def workload(self, s: Laplace, mode: Complex[Array, " n"]) -> Complex[Array, " backends"]:
        """What frontends see of a mode."""
        return mode

    def routing(self, s: Laplace, mode: Complex[Array, " n"]) -> Complex[Array, "frontends backends"]:
        """The routing of a mode, for the policy as linearised."""
        return jnp.einsum("ijk,k->ij", LoopTransfer(self.linear).moves(s), mode)


def scaled_loop(
    network: Network, policy: AbstractPolicy, optimum: Optimum, autoscaler: AbstractAutoscaler
) -> ScaledLoop:
    """The loop of a policy in one nameless network whose replicas have adapted to the flows of an optimum."""
    adapted, rest, free = on_target(network, autoscaler, optimum)
    linear = linearise_one(adapted, policy, rest)
    return ScaledLoop(linear, frozen(replica_loop(network, autoscaler), ~free, linear.slope))
