r"""Step sizes that are proven to be stable, condition by condition: `sufficient_step_size(network, condition=dgd.conditions.X)`.

Notation: sums run over the frontends with two active backends or more, $S_i$ are the active backends of frontend i at the optimum,
$k_i = |S_i|$, $P_i = I - 11^T/k_i$ on them; $a_j = \ell_j'$, $c_j = -\ell_j''/\ell_j'^2$ there; $s_i = \lambda_i \eta_i$; $\nu_i$ the
multiplier. At a frequency $w$ at which roots cross the imaginary axis when all step sizes are multiplied by some $\epsilon \le 1$,
with $D_i = \mathrm{diag}(e^{-jw\tau_{ij}})$, the workloads obey

$$ \sum_i s_i D_i P_i D_i C u = -\kappa\, \mathrm{diag}(jw(jw + a_j)) u, \qquad \kappa = 1/\epsilon \ge 1. \tag{1} $$

For small step sizes all roots but the neutral ones at 0 lie on the left, none comes in from infinity and none passes 0. So the
optimum is locally stable if (1) has no solution. Every proof shows that.

- *forward = feedback latency* is all that `theorem_a`, `theorem_a_largest` and `distributed_a` need; `latency_per_frontend` needs
  in addition that all arcs of a frontend are equally long.
- *at an optimum whose cost latency is the forward latency, up to a constant per frontend*, $\tau_{ij} + 1/a_j$ is the same on $S_i$;
  call it $\nu_i$. Then $D_i = e^{-s \nu_i} \mathrm{diag}(e^{s/a_j})$ on $S_i$, and delays and projections commute. The other
  conditions rest on that. `theorem_b`, `theorem_b_diagonal` and `two_parameters` have a form for a cost of twice the forward
  latency as well, which is used when it applies: $\nu_i$ and $1/a_j$ are halved in the phases.

Without these ties the conditions are false, not only unproven (there are counterexamples), and `sufficient_step_size` refuses.

**Source:** own derivations.
"""

import warnings
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from dgdlb_jax.equilibrium.operating_point import OperatingPoint
from dgdlb_jax.numerics.graph import connected
from dgdlb_jax.stability.defaults import slowest_decay_rate_of
from dgdlb_jax.stability.loop_transfer import quarter_turn

Condition = Callable[[OperatingPoint, Float[Array, " frontends"]], Float[Array, ""]]
"""From an operating point and a direction to the factor by which the direction may be multiplied; or a `Rule`."""
Rule = Callable[[OperatingPoint], Float[Array, " frontends"]]

NEEDS: dict[Callable, str] = {}
RULES: set[Callable] = set()


def _needs(what: str):
    def note(function):
        NEEDS[function] = what
        return function

    return note


def _rule(function):
    RULES.add(function)
    return function


@_needs("feedback")
def theorem_a_largest(point: OperatingPoint, direction: Float[Array, " frontends"]) -> Float[Array, ""]:
    r"""$c_j \sum_i s_i (\bar\tau_i + \tau_{ij}^2/\bar\tau_i) < a_j$ for every backend, $\bar\tau_i = \max_k \tau_{ik}$.

    Theorem A with the largest latency; weaker than `theorem_a`. Needs forward = feedback latency only.
    """
    largest = point.latency.max(1, where=point.support, initial=0)[:, None]
    return _theorem_a(point, direction, jnp.broadcast_to(largest, point.latency.shape)[:, 0])


@_needs("feedback")
def theorem_a(point: OperatingPoint, direction: Float[Array, " frontends"]) -> Float[Array, ""]:
    r"""$c_j \sum_i s_i (b_i + \tau_{ij}^2/b_i) < a_j$ for every backend, with the best $b_i > 0$.

    *Proof.* With $v = Cu$ the imaginary part of $v^* (1)$ is
    $\sum_i s_i v^* (S_i P_i C_i + C_i P_i S_i) v = \kappa w \sum_j a_j |v_j|^2 / c_j$ with $S_i, C_i$ the sines and cosines of
    $w \tau_{ij}$. The left side is at most $\sum_i s_i\, 2 |S_i v| |C_i v| \le w \sum_i s_i \sum_j (b_i + \tau_{ij}^2 / b_i) |v_j|^2$:
    less than the right one. Needs forward = feedback latency only; holds at any equilibrium.
    """
    gain, tau = point.gain / point.slope, point.latency
    strength = point.strength(direction)

    def load(b):
        return gain * (strength * (b + _over(tau**2, b))).sum(0)

    def improve(state, _):
        # The best b for given weights of the backends; then more weight for backends that carry too much.
        weights, best = state
        weight = strength * weights[None] * gain[None]
        b = jnp.sqrt(_over((weight * tau**2).sum(1), weight.sum(1)))[:, None]
        now = load(b)
        worst = now.max()
        weights = weights * jnp.exp(_over(now, worst) - 1)
        return (weights / weights.sum(), jnp.maximum(best, _reciprocal(worst))), None

    start = jnp.where(point.support.any(0), 1.0, 0.0)
    first = theorem_a_largest(point, direction)
    (_, best), _ = jax.lax.scan(improve, (start / jnp.maximum(start.sum(), 1), first), length=200)
    return best


def _theorem_a(
    point: OperatingPoint, direction: Float[Array, " frontends"], b: Float[Array, " frontends"]
) -> Float[Array, ""]:
    strength = point.strength(direction)
    both = b[:, None] + _over(point.latency**2, b[:, None])
    return _smallest(point, point.gain / point.slope * (strength * both).sum(0))


@_needs("per frontend")
def latency_per_frontend(point: OperatingPoint, direction: Float[Array, " frontends"]) -> Float[Array, ""]:
    r"""$\rho(A^{-1} C \sum_i 2 s_i \tau_i P_i) < 1$ when all arcs of a frontend are equally long.

    *Proof.* Then $S_i P_i C_i + C_i P_i S_i = \sin(2 w \tau_i) P_i \le 2 w \tau_i P_i$ in the proof of `theorem_a`.
    """
    tau = point.latency.max(1, where=point.support, initial=0)[:, None]
    return _reciprocal(point.radius(2 * tau * point.strength(direction), point.gain / point.slope))


@_needs("optimum or round trip")
def theorem_b(point: OperatingPoint, direction: Float[Array, " frontends"]) -> Float[Array, ""]:
    r"""$\rho(\mathrm{diag}(|h_j|) \sum_i s_i P_i) < 1$, $|h_j| = c_j / (w^* \sqrt{w^{*2} + a_j^2})$: exact for equal latencies.

    $w^* = \min_j w_j$ with $2 w_j (\max_i \nu_i - 1/a_j) + \arctan(w_j / a_j) = \pi/2$, part by part of the support.

    *Proof.* (1) reads $\sum_i s_i e^{-2jw\nu_i} P_i u = -\kappa\, \mathrm{diag}(1/h_j) u$, $1/h_j = jw(jw + a_j) e^{-2jw/a_j}/c_j$.
    Multiply by $u^* e^{j\phi}$ with $\phi = \pi/2 + 2w \max_i \nu_i$: the real part of the left side is not positive, that of the right
    one is positive for $w < w^*$. For $w \ge w^*$, $|h_j|$ falls and phases cannot make the sum larger than with all phases equal.
    """
    return _reciprocal(point.radius(point.strength(direction), _size(point, _lowest_frequency(point))))


@_needs("optimum or round trip")
def theorem_b_diagonal(point: OperatingPoint, direction: Float[Array, " frontends"]) -> Float[Array, ""]:
    r"""$c_j \sum_i s_i < w^* \sqrt{w^{*2} + a_j^2}$ for every backend; from `theorem_b` since $P_i \le I$."""
    return _smallest(point, _size(point, _lowest_frequency(point)) * point.strength(direction).sum(0))


@_needs("optimum")
def theorem_c(point: OperatingPoint, direction: Float[Array, " frontends"]) -> Float[Array, ""]:
    r"""$c_j [\sum_i s_i \tau_{ij} + \sqrt{\sum_i s_i \cdot \sum_i s_i \tau_{ij}^2}] \le a_j$ for every backend: own round trips only.

    *Proof.* Multiply $jw x_i = -\epsilon \eta_i P_i (e^{-jw\tau_{ij}} c_j N_j)_j$ by
    $(1 + jw\nu_i) \lambda_i x_i^* / (\epsilon \eta_i jw)$, sum over i, take the real part. With
    $w_{ij} = \sqrt{\lambda_i/\eta_i} e^{-jw\tau_{ij}} x_{ij}$, $p_i = \sqrt{s_i}$, $S_j = \sum_k p_k w_{kj}$ and
    $\nu_i = 1/a_j + \tau_{ij}$,
    $\frac1\epsilon \sum |w_{ij}|^2 = \sum_j \frac{c_j}{a_j} \mathrm{Re} \sum_i \tau_{ij} \rho_{ij} p_i w_{ij}^* S_j$ with
    $\rho = 2 e^{-jx} \sin(x)/x - e^{-2jx}/(1 + jw/a)$, $x = w\tau_{ij}$, and $|\rho| < 2$. Then
    $|\sum_i \tau_{ij} \rho_{ij} p_i w_{ij}^* S_j| < 2 (\sum_i \tau_{ij} p_i |w_{ij}|)(\sum_k p_k |w_{kj}|)
    \le (\sum_i s_i \tau_{ij} + \sqrt{\sum s_i \sum s_i \tau_{ij}^2}) \sum_i |w_{ij}|^2$.
    """
    strength, tau = point.strength(direction), point.latency
    square = jnp.sqrt(strength.sum(0) * (strength * tau**2).sum(0))
    return _smallest(point, point.gain / point.slope * ((strength * tau).sum(0) + square))


@_needs("optimum")
def theorem_c_largest(point: OperatingPoint, direction: Float[Array, " frontends"]) -> Float[Array, ""]:
    r"""$2 c_j \max_i \tau_{ij} \sum_i s_i \le a_j$ for every backend; weaker than `theorem_c`."""
    largest = point.latency.max(0, where=point.support, initial=0)
    return _smallest(point, 2 * largest * point.gain / point.slope * point.strength(direction).sum(0))


@_needs("optimum")
def theorem_c_spectral(point: OperatingPoint, direction: Float[Array, " frontends"]) -> Float[Array, ""]:
    r"""$4 \rho(D \sum_i s_i P_i) \le 1$, $D_j = (c_j/a_j)^2 \sum_i s_i \tau_{ij}^2$.

    *Proof.* In the proof of `theorem_c` use the inequality of Cauchy and Schwarz over the backends, and
    $\sum_j D_j |S_j|^2 \le \rho(D \sum_i s_i P_i) \sum |w_{ij}|^2$, since $(x_{ij})_j$ has mean 0 for every i.
    """
    strength = point.strength(direction)
    weight = (point.gain / point.slope) ** 2 * (strength * point.latency**2).sum(0)
    return _reciprocal(2 * jnp.sqrt(point.radius(strength, weight)))


@_needs("optimum or round trip")
def two_parameters(point: OperatingPoint, direction: Float[Array, " frontends"]) -> Float[Array, ""]:
    r"""The best of a grid of certificates between the low-frequency and the small-gain argument; the strongest for many networks.

    For some $\nu_0$ and $w_1 > 0$, with $b_j = \nu_0 - 1/a_j$, $2 w_1 |b_j| \le \pi$, $2 w_1 (\nu_0 - \nu_i) \le \pi$ and
    $\rho_j = \min(a_j, a_j \cos 2 w_1 b_j - w_1 \sin 2 w_1 b_j) > 0$:
    $\sum_i 2 s_i (\nu_i - \nu_0)_+ P_i < \mathrm{diag}(\rho_j / c_j)$ and $\rho(\mathrm{diag}(|h_j(w_1)|) \sum_i s_i P_i) < 1$.

    *Proof.* As for `theorem_b` with $\phi = \pi/2 + 2w\nu_0$ for $w \le w_1$: the real part of the right side is at least
    $w \sum_j \rho_j |u_j|^2 / c_j$, since $a \cos 2wb - w \sin 2wb$ has its minimum at an end of $[0, w_1]$; small gain for $w \ge w_1$.
    `theorem_b` is its limit for $\nu_0 = \max_i \nu_i$, $w_1 \to w^*$.
    """
    strength, nu, inverse = point.strength(direction), point.multiplier, point.inverse_slope
    moving, active = point.support.any(1), point.support.any(0)
    own = jnp.where(point.same_part, nu[:, None], 0).max(0)  # the largest multiplier of the part
    highest = jnp.where(point.same_part, own[None], 0).max(1)
    lowest_frequency = _lowest_frequency(point)

    def certificate(candidate):
        back, forward = candidate
        # The same shift of nu_0 below the largest multiplier, and the same multiple of w*, in all parts.
        spread = jnp.where(moving, highest - nu, 0).max()
        shift = back * jnp.maximum(spread, jnp.where(active, own - inverse, 0).max())
        w = forward * lowest_frequency
        b = own - shift - inverse
        turned = point.slope * jnp.cos(2 * w * b) - w * jnp.sin(2 * w * b)
        rho = jnp.minimum(point.slope, turned)
        w_front = jnp.where(point.same_part, w[None], 0).max(1)
        below = highest - shift - nu
        valid = jnp.where(active, (2 * w * jnp.abs(b) <= jnp.pi) & (rho > 0), True).all()
        valid &= jnp.where(moving, 2 * w_front * below <= jnp.pi, True).all()
        late = jnp.maximum(-below, 0)[:, None]
        weight = jnp.where(active, point.gain / jnp.where(rho > 0, rho, 1), 0)
        both = jax.vmap(point.radius)(jnp.stack([2 * late * strength, strength]), jnp.stack([weight, _size(point, w)]))
        return jnp.where(valid, _reciprocal(both.max()), 0)

    back = np.concatenate([[0.0], np.geomspace(0.02, 1, 9)])
    forward = np.concatenate([[1.0], 1 + np.geomspace(0.05, 60, 15)])
    grid = jnp.asarray(np.stack(np.meshgrid(back, forward), -1).reshape(-1, 2), strength.dtype)
    best = jax.vmap(certificate)(grid).max()
    return jnp.maximum(best, theorem_b(point, direction))


@_rule
@_needs("optimum")
def distributed(point: OperatingPoint) -> Float[Array, " frontends"]:
    r"""$\eta_i = \min_{j \in S_i} \frac{a_j}{c_j \Lambda_j [\tau_{ij} + \tau_{ij}^2/(2 T_j) + T_j/2]}$.

    What a frontend can work out by itself.
    Every backend publishes two numbers: $a_j / (c_j \Lambda_j)$, with $\Lambda_j$ the rate of the frontends that use it, and $T_j$,
    the rms latency of its requests ($T_j^2 = \sum_i \lambda_i \tau_{ij}^2 / \Lambda_j$; any positive number would do).

    *Proof.* From `theorem_c` by $\sqrt{xy} \le x T_j/2 + y/(2 T_j)$. It is a vector as a whole: the larger, entry by entry, of this
    and of another condition's vector is not proven.
    """
    tau, on = point.latency, point.used
    strength = point.strength(jnp.ones_like(point.arrival_rate))
    rms = jnp.sqrt(_over((strength * tau**2).sum(0), strength.sum(0)))[None]
    bracket = tau + _over(tau**2, 2 * rms) + rms / 2
    return jnp.where(on, _reciprocal((point.gain / point.slope)[None] * _rate(point) * bracket), jnp.inf).min(1)


@_rule
@_needs("feedback")
def distributed_a(point: OperatingPoint) -> Float[Array, " frontends"]:
    r"""$\eta_i = \frac{1}{2 \max_k \tau_{ik}} \min_{j \in S_i} \frac{a_j}{c_j \Lambda_j}$: from `theorem_a_largest`.

    Backends publish $a_j / (c_j \Lambda_j)$. Needs forward = feedback latency only.
    """
    on = point.used
    allowed = jnp.where(on, _reciprocal((point.gain / point.slope)[None] * _rate(point)), jnp.inf).min(1)
    return allowed * _reciprocal(2 * point.latency.max(1, where=on, initial=0))


@_rule
@_needs("optimum")
def best_proven(point: OperatingPoint) -> Float[Array, " frontends"]:
    r"""The proven vector with which the slowest mode of routing settles fastest.

    Candidates: the two distributed rules and equal step sizes, each made as large as the best of all conditions allows.
    """
    directions = jnp.stack([distributed(point), distributed_a(point), jnp.ones_like(point.arrival_rate)])
    every = (theorem_a, theorem_b, theorem_c, theorem_c_spectral, two_parameters)

    def largest(direction):
        finite = jnp.where(jnp.isfinite(direction), direction, 1.0)
        one = lambda number: jax.lax.switch(number, [partial(condition, point) for condition in every], finite)
        vector = finite * jax.lax.map(one, jnp.arange(len(every))).max()
        rate = slowest_decay_rate_of(point, vector)
        return vector, jnp.where(jnp.isfinite(vector).all(), rate, jnp.inf)

    # Compiled once for all of them.
    vectors, rates = jax.lax.map(largest, directions)
    return vectors[jnp.argmax(rates)]


def _rate(point: OperatingPoint) -> Float[Array, "frontends backends"]:
    r"""$\Lambda_j$, plus the frontend's own rate where it has no choice but wants a number all the same."""
    rate = point.arrival_rate[:, None]
    alone = point.used & ~point.support
    return jnp.where(point.support, rate, 0).sum(0)[None] + jnp.where(alone, rate, 0)


def _size(point: OperatingPoint, w: Float[Array, " backends"]) -> Float[Array, " backends"]:
    r"""$|h_j(w)|$; 0 for idle backends."""
    size = point.gain / (w * jnp.sqrt(w**2 + point.slope**2))
    return jnp.where(point.support.any(0), size, 0)


def _over(numerator: Float[Array, "*#shape"], denominator: Float[Array, "*#shape"]) -> Float[Array, "*#shape"]:
    """The quotient, 0 where the denominator is 0."""
    return jnp.where(denominator > 0, numerator / jnp.where(denominator > 0, denominator, 1), 0)


def _lowest_frequency(point: OperatingPoint) -> Float[Array, " backends"]:
    r"""$w^*$ of theorem B, part by part: no root crosses below it, whatever the step sizes."""
    active = point.support.any(0)
    highest = jnp.where(point.same_part, point.multiplier[:, None], 0).max(0)
    # Near saturation a latency is the difference of much larger numbers: rounding may only lower the frequency.
    highest = highest * (1 + 4 * jnp.finfo(highest.dtype).eps)
    own = quarter_turn(2 * jnp.maximum(highest - point.inverse_slope, 0), point.slope)
    reach = connected(point.support)
    return jnp.where(active, jnp.where(reach & active[None], own[None], jnp.inf).min(1), 1.0)


def _smallest(point: OperatingPoint, load: Float[Array, " backends"]) -> Float[Array, ""]:
    """One over the largest load of an active backend; inf without any."""
    return _reciprocal(jnp.where(point.support.any(0), load, 0).max())


def _reciprocal(value: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """1 / value; inf at 0."""
    return jnp.where(value > 0, 1 / jnp.where(value > 0, value, 1), jnp.inf)


def __getattr__(name: str):
    if name == "Setting":
        warnings.warn("conditions.Setting is now called OperatingPoint.", DeprecationWarning, stacklevel=2)
        return OperatingPoint
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
