r"""The loop of `Softmin` at its own rest point, and the rate at which it begins to swing.

With $S_i = \partial s_i / \partial N$ of the target, $\dot x_i = r (s_i - x_i)$ and $\dot n_j = \sum_i \lambda_i x_{ij} - a_j n_j$, delays
as everywhere, have roots where

$$ \det\Bigl( I + \frac{r}{s + r} K(s) \Bigr) = 0, \qquad
   K(s) = -\mathrm{diag}\frac{1}{s + a_j} \sum_i \lambda_i D^{fwd}_i S_i D^{fb}_i, \quad D_i = \mathrm{diag}(e^{-s \tau_{ij}}) $$

The rest point does not depend on the rate, so K does not either. An eigenvalue $\kappa$ of $K(jw)$ makes a rate critical iff
$\kappa = -1 - jw / r$: where the real part of one is -1, with an imaginary part below 0, $r = -w / \mathrm{Im}\, \kappa$. Slow enough
it is stable; the least of these rates is the limit.

**Source:** own derivation; the generalised Nyquist criterion.
"""

from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
from jaxtyping import Complex, Float

from dgdlb_jax.model.batch import each_frontend, require_double, require_single
from dgdlb_jax.model.network import Network
from dgdlb_jax.numerics.results import InputError
from dgdlb_jax.policies.smooth import Softmin
from dgdlb_jax.stability.rest_point import RestPoint, rest_of_softmin

_TURN, _GROWTH = 0.1, 0.05  # of a delay's phase, and of a frequency, from one frequency to the next
_SLOWEST = 1e-4  # where to begin, over the least rate at which a backend forgets, or one over the longest delay
_EXACT = 1e-12  # of the frequency of a crossing


@dataclass(frozen=True)
class SoftminLoop:
    """The linearised loop in one network, in numpy, on the host.

    - `arrival_rate` `(frontends,)`, `slope` `(backends,)`, `latency`, `feedback_latency` `(frontends, backends)`: as in `HeldLoop`.
    - `target` $S$ `(frontends, backends, backends)`: change of the target per request seen.
    """

    arrival_rate: Float[np.ndarray, " frontends"]
    slope: Float[np.ndarray, " backends"]
    latency: Float[np.ndarray, "frontends backends"]
    feedback_latency: Float[np.ndarray, "frontends backends"]
    target: Float[np.ndarray, "frontends backends backends"]

    def eigenvalues(self, frequency: Float[np.ndarray, " points"]) -> Complex[np.ndarray, "points backends"]:
        """Of $K(jw)$."""
        s = 1j * frequency[:, None, None]
        forward = self.arrival_rate[:, None] * np.exp(-s * self.latency)
        loop = np.einsum("wij,ijk,wik->wjk", forward, self.target, np.exp(-s * self.feedback_latency))
        return np.linalg.eigvals(-loop / (s + self.slope[:, None]))

    def critical(self) -> tuple[float, float]:
        """The largest rate at which small deviations die out, 1/s, and the frequency of the swings beyond, rad/s; inf and 0 for none."""
        points = self._frequencies
        least, values = (np.inf, 0.0), self.eigenvalues(points)
        for k in range(1, points.size):
            values[k] = _in_order(values[k - 1], values[k])
            for m in np.flatnonzero((values[k - 1].real + 1) * (values[k].real + 1) < 0):
                least = min(least, self._crossing(points[k - 1], points[k], values[k - 1, m], values[k, m]))
        return least

    @property
    def _first(self) -> float:
        delay, slowest = self._delay, self.slope[self.slope > 0].min()
        return _SLOWEST * (min(slowest, 1 / delay) if delay > 0 else slowest)

    @property
    def _delay(self) -> float:
        return float(self.latency.max() + self.feedback_latency.max())

    @property
    def _frequencies(self) -> Float[np.ndarray, " points"]:
        """Up to where no eigenvalue reaches -1: a bound on the spectral radius is this number over the frequency."""
        last = float(np.einsum("i,ijk->jk", self.arrival_rate, np.abs(self.target)).sum(1).max())
        found = [self._first]
        while found[-1] < last:
            w = found[-1]
            found.append(w + 1 / (self._delay / _TURN + 1 / (_GROWTH * w)))
        return np.array(found)

    def _crossing(self, low: float, high: float, before: complex, after: complex) -> tuple[float, float]:
        """Rate and frequency where the real part of an eigenvalue passes -1, by bisection; inf where that makes no rate critical."""
        while high / low > 1 + _EXACT:
            middle = (low + high) / 2
            found = self.eigenvalues(np.array([middle]))[0]
            found = found[np.argmin(np.abs(found - (before + after) / 2))]
            if (found.real + 1) * (before.real + 1) > 0:
                low, before = middle, found
            else:
                high, after = middle, found
        return (float(-high / after.imag), float(high)) if after.imag < 0 else (np.inf, 0.0)


def softmin_loop(network: Network, policy: Softmin, rest: RestPoint | None = None) -> SoftminLoop:
    """The loop of `Softmin`, linearised where it rests.

    **Arguments:** a single `network`; `policy`, with one rate for all frontends; `rest`: its `rest_of_softmin`, found when left out.

    **Raises:** `InputError` for rates that differ, in single precision, and when no rest point was found (very low temperatures).
    """
    require_single(network, "softmin_loop")
    require_double(network, "softmin_loop")
    rule = each_frontend(network, policy, "Softmin")
    if bool((rule.rate != rule.rate.reshape(-1)[0]).any()):
        raise InputError(
            f"Softmin.rate is from {float(rule.rate.min()):g} to {float(rule.rate.max()):g} 1/s: its limit is known where all frontends "
            "have the same one."
        )
    rest = rest_of_softmin(network, policy) if rest is None else rest
    if not bool(rest.found):
        raise InputError("Softmin: no rest point was found, so that it has no linearisation: raise its temperature.")
    array = lambda values: np.asarray(values, float)
    return SoftminLoop(
        arrival_rate=array(network.arrival_rate),
        slope=array(rest.slope),
        latency=array(network.latency),
        feedback_latency=array(network.feedback_latency),
        target=array(jnp.einsum("ijk,ikl->ijl", rest.answer, rest.reading)),
    )


def _in_order(
    values: Complex[np.ndarray, " backends"], following: Complex[np.ndarray, " backends"]
) -> Complex[np.ndarray, " backends"]:
    """Eigenvalues at the next frequency in the order of those before."""
    from scipy.optimize import linear_sum_assignment  # late: it takes longer to import than this package

    return following[linear_sum_assignment(np.abs(values[:, None] - following[None]))[1]]
