"""Measured service curves: mixtures of saturating exponentials."""

import functools
import operator
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from dgdlb_jax.model.service.base import AbstractService, Numbers, below, check, floating, measurement
from dgdlb_jax.numerics.checks import not_negative, positive
from dgdlb_jax.numerics.results import InputError

# Newton's method below gains at least one component of the mixture every other step; nothing seen needed more than 12.
_MOST_STEPS = 60

FEW = 8
"""Components that are summed one after the other; a fitted curve has 6, seldom more."""


class Tabulated(AbstractService):
    r"""A measured curve as a nonnegative mixture: increasing, concave and smooth by construction.

    $$ \ell(N) = \sum_k w_k (1 - e^{-N / s_k}), \quad w_k \ge 0 $$

    **Arguments:**

    - `weights`: $w$, `(components, backends)` in requests/s.
    - `scales`: $s$, `(components, backends)` in requests.
    - `capacity`: `(backends,)`, the highest measured throughput in requests/s, at most the supremum, which is the default.
    - `measured`: `(backends,)`, the largest measured workload in requests; inf by default.

    **Raises:** `InputError` on values of the wrong sign or not finite, on shapes that differ, on weights that are all 0, on a
    capacity above the supremum.
    See `fit_service` for how to get here from a table. **Source:** own derivation.
    """

    weights: Float[Array, "..."]
    scales: Float[Array, "..."]
    capacity: Float[Array, "..."]
    measured: Float[Array, "..."]

    def __init__(
        self,
        weights: Numbers,
        scales: Numbers,
        capacity: Numbers | None = None,
        measured: Numbers | None = None,
    ):
        self.weights = floating("Tabulated", "weights", weights)
        self.scales = floating("Tabulated", "scales", scales).astype(self.weights.dtype)
        if self.weights.ndim < 2 or self.weights.shape != self.scales.shape:
            raise InputError(
                f"Tabulated: weights {self.weights.shape} and scales {self.scales.shape} need one shape, "
                "components x backends."
            )
        check("Tabulated", "weights", self.weights, not_negative, "finite and not negative")
        check("Tabulated", "scales", self.scales, positive, "positive and finite")
        check("Tabulated", "sum of weights", self.supremum, positive, "positive")
        self.capacity = measurement("Tabulated", "capacity", capacity, self.supremum, self.supremum)
        self.measured = measurement("Tabulated", "measured", measured, jnp.full_like(self.supremum, jnp.inf))

    def rate(self, workload: Float[Array, "..."]) -> Float[Array, "..."]:
        return _rate(self.weights, self.scales, workload)

    def slope(self, workload: Float[Array, "..."]) -> Float[Array, "..."]:
        return _moment(self.weights, self.scales, workload, 1)

    def curvature(self, workload: Float[Array, "..."]) -> Float[Array, "..."]:
        return -_moment(self.weights, self.scales, workload, 2)

    def inverse(self, rate: Float[Array, "..."]) -> Float[Array, "..."]:
        return below(rate, self.supremum, lambda r: _inverse(self.weights, self.scales, r))

    @property
    def initial_slope(self) -> Float[Array, "..."]:
        return _sum(lambda w, s: w / s, self.weights, self.scales)

    @property
    def supremum(self) -> Float[Array, "..."]:
        return self.weights.sum(axis=0)

    @property
    def nominal_capacity(self) -> Float[Array, "..."]:
        """The highest measured throughput, as far as the curve reaches it (see `fit_service`)."""
        return self.capacity

    @property
    def measured_workload(self) -> Float[Array, "..."]:
        return self.measured

    @property
    def components(self) -> int:
        """How many exponentials are mixed, those of weight 0 included."""
        return self.weights.shape[0]

    def with_components(self, components: int) -> "Tabulated":
        """The same curve with further components of weight 0, so that curves of different tables fit together."""
        extra = ((0, components - self.components),) + ((0, 0),) * (self.weights.ndim - 1)
        padded = jnp.pad(self.weights, extra), jnp.pad(self.scales, extra, constant_values=1)
        return jax.tree.unflatten(jax.tree.structure(self), [*padded, self.capacity, self.measured])


def _sum(
    term: Callable[..., Float[Array, "..."]], weights: Float[Array, "..."], scales: Float[Array, "..."]
) -> Float[Array, "..."]:
    """The sum of `term(weight, scale)` over components: one after the other where they are few, so that no array over components and
    arcs is summed (see `numerics.native`); all at once where they are many, which takes less time to compile."""
    if len(weights) > FEW:
        return jax.vmap(term)(weights, scales).sum(axis=0)
    return functools.reduce(operator.add, map(term, weights, scales))


def _rate(
    weights: Float[Array, "..."], scales: Float[Array, "..."], workload: Float[Array, "..."]
) -> Float[Array, "..."]:
    return _sum(lambda w, s: w * -jnp.expm1(-workload / s), weights, scales)


def _moment(
    weights: Float[Array, "..."], scales: Float[Array, "..."], workload: Float[Array, "..."], order: int
) -> Float[Array, "..."]:
    r"""$\sum_k w_k s_k^{-order} e^{-N / s_k}$."""
    return _sum(lambda w, s: w / s**order * jnp.exp(-workload / s), weights, scales)


@jax.custom_jvp
def _inverse(
    weights: Float[Array, "..."], scales: Float[Array, "..."], rate: Float[Array, "..."]
) -> Float[Array, "..."]:
    r"""The workload of a rate below the supremum $\ell_\infty$, by Newton's method on a logarithmic scale.

    $g(N) = \log(\ell_\infty - \ell(N))$ is decreasing and convex, so the iterates rise monotonically to the root of
    $g(N) = \log(\ell_\infty - r)$ from below, and for a single exponential the first step is exact.
    """
    supremum = jnp.broadcast_to(weights.sum(axis=0), rate.shape)
    left = supremum - rate
    resolution = 4 * jnp.finfo(rate.dtype).eps

    def step(workload):
        missing = rate - _rate(weights, scales, workload)
        tail = _moment(weights, scales, workload, 0)
        # For small rates the difference of logarithms cancels, for large ones `missing` does.
        low = rate < supremum / 2
        distance = jnp.where(low, jnp.log1p(jnp.where(low, missing, 0) / left), jnp.log(tail / left))
        return workload + distance * tail / _moment(weights, scales, workload, 1)

    def unfinished(state):
        workload, change, steps = state
        return (steps < _MOST_STEPS) & jnp.any(jnp.abs(change) > resolution * workload)

    def advance(state):
        workload, _, steps = state
        new = step(workload)
        return new, new - workload, steps + 1

    first = step(jnp.zeros_like(rate))
    return jax.lax.while_loop(unfinished, advance, (first, first, 1))[0]


@_inverse.defjvp
def _inverse_jvp(primals, tangents):
    """The implicit function theorem: $dN = (dr - d\\ell) / \\ell'(N)$, with $d\\ell$ the change of the curve at fixed $N$."""
    weights, scales, rate = primals
    workload = _inverse(weights, scales, rate)
    _, change = jax.jvp(lambda w, s: _rate(w, s, workload), (weights, scales), tangents[:2])
    return workload, (tangents[2] - change) / _moment(weights, scales, workload, 1)
