r"""The loop of DGD-LB that is sampled and held, on the unit circle $z = e^{jwT}$.

All frontends update their weights at $t = 0, T, 2T, \ldots$ and hold them in between. A workload that is seen after $D$ seconds on
the way there and back, $D = qT - r$ with $0 \le r < T$, answers held weights with

$$ G(z) = z^{-q} \Big[ \frac{1 - e^{-ar}}{a} + \frac{e^{-ar} (1 - e^{-aT})}{a}\, \frac{z^{-1}}{1 - e^{-aT} z^{-1}} \Big] $$

and the loop over arcs is $L(z) = \frac{T}{1 - z^{-1}} P\, \mathrm{diag}(\eta c)\, G \Lambda$; critical where an eigenvalue is $-1$.
For $T \to 0$ it becomes the continuous loop, with an error of second order: weights that are held lag $T/2$ behind on average, and an
update that anticipates a whole interval leads by as much.

**Source:** own derivation (the modified z-transform).
"""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool, Complex, Float, Inexact

from dgdlb_jax.numerics.precision import as_complex, imaginary
from dgdlb_jax.stability.linearise import Linearisation
from dgdlb_jax.stability.loop_transfer import Frequency, Laplace, LoopTransfer


class SampledLoop(eqx.Module):
    """The loop transfer function of a sampled policy, as `LoopTransfer`. The unknowns are the weights of arcs, `(frontends * backends)`."""

    linear: Linearisation
    interval: Float[Array, ""]

    @property
    def delay(self) -> Float[Array, ""]:
        """The longest way round a loop, seconds."""
        return LoopTransfer(self.linear).delay + self.interval

    @property
    def closed(self) -> Bool[Array, ""]:
        """Whether there is anything that moves."""
        return self.linear.support.any()

    @property
    def first(self) -> Frequency:
        """Where to begin, with a wide margin."""
        slowest = jnp.where(self.linear.support.any(0), self.linear.slope, jnp.inf).min()
        return 1e-3 / (self.delay + 1 / slowest)

    @property
    def last(self) -> Frequency:
        """Half the frequency of updates."""
        return jnp.pi / self.interval

    def stride(self, frequency: Frequency) -> Frequency:
        """How far to the next frequency."""
        return 1 / (self.delay / 0.2 + 1 / (0.1 * frequency))

    @property
    def memory(self) -> int:
        """Bytes that the matrix takes at one frequency while it is put together."""
        return 16 * 2 * self.linear.support.size**2

    def matrix(self, frequency: Frequency) -> Complex[Array, "n n"]:
        """$L(e^{jwT})$."""
        z = jnp.exp(imaginary(frequency * self.interval))
        return self._over_arcs(self._answers(z)) * (as_complex(self.interval) / (1 - 1 / z))

    def bound(self, frequency: Frequency) -> Float[Array, ""]:
        """A bound on the spectral radius that falls with the frequency."""
        angle = frequency * self.interval
        sizes = self._sizes(angle)
        size = jnp.abs(self._over_arcs(sizes, absolute=True)).sum(0).max()
        return size * self.interval / (2 * jnp.sin(jnp.minimum(angle, jnp.pi) / 2))

    def workload(self, s: Laplace, mode: Complex[Array, " n"]) -> Complex[Array, " backends"]:
        """The workload of a mode at the instants of updates."""
        z = jnp.exp(s * as_complex(self.interval))
        answers = self._answers_after(z, self.linear.latency)
        routing = mode.reshape(self.linear.support.shape)
        return (as_complex(self.linear.arrival_rate)[:, None] * answers * routing).sum(0)

    def routing(self, s: Laplace, mode: Complex[Array, " n"]) -> Complex[Array, "frontends backends"]:
        """The weights of a mode."""
        del s
        return mode.reshape(self.linear.support.shape)

    def _answers(self, z: Laplace) -> Complex[Array, "frontends frontends backends"]:
        """$G$ of what frontend i sees of the flow that frontend m sends to backend k: `(i, m, k)`."""
        lin = self.linear
        return self._answers_after(z, lin.feedback_latency[:, None] + lin.latency[None])

    def _answers_after(
        self, z: Laplace, delay: Float[Array, "*senders frontends backends"]
    ) -> Complex[Array, "*senders frontends backends"]:
        interval = self.interval
        a = jnp.expand_dims(self.linear.slope, range(delay.ndim - 1))
        whole = jnp.ceil(delay / interval - 1e-9)
        rest = jnp.maximum(whole * interval - delay, 0)
        decay = jnp.exp(-a * interval)
        before, after = (1 - jnp.exp(-a * rest)) / a, jnp.exp(-a * rest) * (1 - decay) / a
        return z ** as_complex(-whole) * (as_complex(before) + as_complex(after) / (z - as_complex(decay)))

    def _sizes(self, angle: Float[Array, ""]) -> Float[Array, "frontends frontends backends"]:
        """A bound on $|G|$ that falls with the frequency."""
        lin, interval, a = self.linear, self.interval, self.linear.slope[None, None]
        delay = lin.feedback_latency[:, None] + lin.latency[None]
        rest = jnp.maximum(jnp.ceil(delay / interval - 1e-9) * interval - delay, 0)
        decay = jnp.exp(-a * interval)
        distance = jnp.sqrt((1 - decay) ** 2 + 4 * decay * jnp.sin(angle / 2) ** 2)
        return (1 - jnp.exp(-a * rest)) / a + jnp.exp(-a * rest) * (1 - decay) / a / distance

    def _over_arcs(
        self, answers: Inexact[Array, "frontends frontends backends"], absolute: bool = False
    ) -> Inexact[Array, "arcs arcs"]:
        """`(arcs, arcs)`: routing of arc ij per weight of arc mk."""
        lin = self.linear
        response = (jnp.abs(lin.response) if absolute else -lin.response).astype(answers.dtype)
        rate = jnp.where(lin.support, lin.arrival_rate[:, None], 0).astype(answers.dtype)
        through = response[:, :, None, :] * answers[:, None] * rate[None, None]
        size = lin.support.size
        return through.reshape(size, size)
