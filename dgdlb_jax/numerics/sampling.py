r"""Poisson and binomial numbers by inversion of one uniform number, for arrays of different means, inside compiled loops.

A number is $X = \#\{t \ge 1 : P(X \ge t) > u\}$. The tails are summed from the far end, where they are smallest, so nothing cancels. Above
a mean of 10 the quantile comes from its expansion about that of the normal distribution (Cornish and Fisher), whose total variation from
the exact law is about 1e-4 there and falls from then on. `jax.random` takes 10 to 100 times as long in a loop, and a number of random
words that depends on what it draws.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.scipy.special import ndtri
from jaxtyping import Array, Float

Numbers = Float[Array, "..."]

LARGE = 10.0
"""The mean above which the quantile is expanded."""
_LEVELS = ((0.03, 5), (0.2, 7), (0.7, 11), (4.0, 22), (LARGE, 36))
"""Up to which mean how many tails are summed: what lies beyond them is rarer than 2^-33, the least uniform number."""


def poisson(u: Numbers, mean: Numbers) -> Numbers:
    r"""Poisson numbers: $P(X = t) = e^{-m} m^t / t!$, from uniform numbers."""
    mean = mean.astype(u.dtype)

    def expanded():
        m = jnp.maximum(mean, LARGE)
        return _expanded(u, m, m, m, m, m)

    return _quantile(u, mean, jnp.exp(-mean), lambda t: mean / t, expanded, jnp.inf)


def binomial(u: Numbers, n: Numbers, leave: Numbers, stay: Numbers) -> Numbers:
    """Binomial numbers: how many of `n` leave, each with probability `leave`; `stay` is 1 - leave, exact where it is small."""
    n, leave, stay = (values.astype(u.dtype) for values in (n, leave, stay))
    p, q = jnp.minimum(leave, stay), jnp.maximum(leave, stay)
    odds, mean = p / q, n * p

    def expanded():
        m = jnp.maximum(mean, LARGE)
        variance, skew = m * q, q - p
        return _expanded(
            u, m, variance, variance * skew, variance * (1 - 6 * p * q), variance * skew * (1 - 12 * p * q)
        )

    ratio = lambda t: jnp.maximum(n - (t - 1), 0) * (odds / t)
    drawn = _quantile(u, mean, jnp.exp(n * jnp.log1p(-p)), ratio, expanded, n)
    return jnp.where(leave <= stay, drawn, n - drawn)


def _expanded(u: Numbers, mean: Numbers, second: Numbers, third: Numbers, fourth: Numbers, fifth: Numbers) -> Numbers:
    """The number whose law has these cumulants, as a quantile of the normal law to the third order.

    A whole number is a continuous one that is rounded, whose even cumulants are smaller by what rounding adds (Sheppard).

    **Source:** Abramowitz and Stegun, 26.2.49.
    """
    w, variance = -ndtri(u), second - 1 / 12
    deviation = jnp.sqrt(variance)
    a, b, c = third / (variance * deviation), (fourth + 1 / 120) / variance**2, fifth / (variance**2 * deviation)
    h2, h3, h4 = w**2 - 1, w**3 - 3 * w, w**4 - 6 * w**2 + 3
    first = a * h2 / 6
    next_one = b * h3 / 24 - a**2 * (2 * h3 + w) / 36
    last = c * h4 / 120 - a * b * (h4 + h2) / 24 + a**3 * (12 * h4 + 19 * h2) / 324
    return jnp.floor(mean + deviation * (w + first + next_one + last) + 0.5)


def _quantile(
    u: Numbers, mean: Numbers, none: Numbers, ratio: Callable[[int], Numbers], expanded: Callable[[], Numbers], most
) -> Numbers:
    """From P(X = 0) = `none` and P(X = t) = `ratio(t)` P(X = t - 1): as many terms as the largest mean of all needs.

    A number depends on its own mean only: terms beyond its own level are left out.
    """

    def inverted(level: int) -> Callable[[], Numbers]:
        def count():
            p, probabilities, begin = none, [], 1
            for number, (_, terms) in enumerate(_LEVELS[: level + 1]):
                if number:
                    p = jnp.where(mean > _LEVELS[number - 1][0], p, 0)
                for t in range(begin, terms + 1):
                    p = p * ratio(t)
                    probabilities.append(p)
                begin = terms + 1
            tail = found = jnp.zeros_like(none)
            for p in reversed(probabilities):
                tail = tail + p
                found = found + (u < tail).astype(found.dtype)
            return found

        return count

    def either():
        return jnp.where(mean <= LARGE, inverted(len(_LEVELS) - 1)(), jnp.clip(expanded(), 0, most))

    levels = [inverted(number) for number in range(len(_LEVELS))]
    largest = jnp.max(mean)
    needed = sum((largest > bound).astype(jnp.int32) for bound, _ in _LEVELS)
    return jax.lax.switch(needed, [*levels, either])
