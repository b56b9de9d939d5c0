"""Euclidean projections onto the simplex and onto its tangent cone, with masks.

Both work along the leading axis and are elementwise over all others: a column is one vector. That is the layout in which the
simulator keeps its arcs (backends first, lanes last), and in which every sum is a sum of contiguous rows.

Both projections subtract one multiplier per column and cut: find `nu` with `sum_j max(y_j - nu, 0) = 1`. The left side is convex,
decreasing and piecewise linear in `nu`, so Newton's method started at any support set S, `nu_S = (sum_S y - 1) / |S|`, gives a lower
bound at once and then rises to the solution in finitely many steps, each of them a change of the support. Started from the support
of the previous time step it needs one or two.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float

from dgdlb_jax.numerics import device

_PAIRS = 256  # entries up to which an accelerator compares all pairs
_STEPS_BEFORE_CHECK = (
    2  # Newton steps taken without asking; the loop behind them ends at once in nearly every time step
)


def project_simplex(
    values: Float[ArrayLike, "entries *columns"],
    mask: Bool[ArrayLike, "entries *columns"] | None = None,
    guess: Bool[ArrayLike, "entries *columns"] | None = None,
) -> Float[Array, "entries *columns"]:
    r"""Nearest point of the simplex, column by column.

    $$ \arg\min_x \lVert x - y \rVert^2 \quad\text{s.t.}\quad x \ge 0,\ \sum_j x_j = 1,\ x_j = 0 \text{ where masked} $$

    **Arguments:**

    - `values`: $y$, `(entries, ...)`; entries may be huge.
    - `mask`: which entries exist; all by default. A column without entries gives zeros.
    - `guess`: a guess of the support, to start from; any guess gives the same point, up to rounding.

    **Returns:** $x$ of the same shape. Its derivative takes the mean off on the support, $dx_S = dy_S - \overline{dy_S}$.

    **Source:** Held, Wolfe, Crowder (1974), "Validation of subgradient optimization", for the Newton iteration.
    """
    values = jnp.asarray(values)
    mask = jnp.ones(values.shape, bool) if mask is None else jnp.asarray(mask)
    return _project_simplex(values, mask, mask if guess is None else jnp.asarray(guess))


@jax.custom_jvp
def _project_simplex(values, mask, guess):
    # Relative to the largest entry, so that huge entries cancel without loss.
    largest = jnp.max(jnp.where(mask, values, -jnp.inf), axis=0)
    shifted = jnp.where(mask, values - jnp.where(jnp.isfinite(largest), largest, 0)[None], -jnp.inf)
    if device.on_cpu() or values.shape[0] > _PAIRS:
        multiplier = _newton(partial(_simplex_multiplier, shifted), guess, lambda nu: shifted > nu[None])
    else:
        multiplier = _simplex_multiplier(shifted, _support(shifted, mask))
    return jnp.where(mask, jnp.maximum(shifted - multiplier[None], 0), 0)


def _support(shifted, mask):
    """Where the nearest point is not zero: entries whose distances to all larger ones sum to less than 1.

    Pairs of entries, but no loop: on an accelerator a loop that asks whether it is done waits for the host in every time step.
    """
    known = jnp.where(mask, shifted, 0)
    above = jnp.where(mask[None], jnp.maximum(known[None] - known[:, None], 0), 0)
    return mask & (jnp.sum(above, axis=1) < 1)


def _simplex_multiplier(shifted, on):
    """Of an empty support -1, which is right for the largest entry alone."""
    return (jnp.sum(jnp.where(on, shifted, 0), axis=0) - 1) / jnp.maximum(_count(on, shifted.dtype), 1)


@_project_simplex.defjvp
def _project_simplex_jvp(primals, tangents):
    point = _project_simplex(*primals)
    return point, zero_mean(tangents[0], point > 0)


@jax.custom_jvp
def hold_on_simplex(
    values: Float[Array, "entries *columns"],
    point: Float[Array, "entries *columns"],
    support: Bool[Array, "entries *columns"],
) -> Float[Array, "entries *columns"]:
    """The projection of `values` onto the simplex where it is known already: `point`, with the derivative of `project_simplex`.

    That needs only the `support` of the point: a caller that has no use for the point itself may give zeros.
    """
    del values, support
    return point


@hold_on_simplex.defjvp
def _hold_on_simplex_jvp(primals, tangents):
    _, point, support = primals
    return point, zero_mean(tangents[0], support)


def project_tangent_cone(
    velocity: Float[ArrayLike, "entries *columns"],
    point: Float[ArrayLike, "entries *columns"],
    mask: Bool[ArrayLike, "entries *columns"] | None = None,
) -> Float[Array, "entries *columns"]:
    r"""Nearest direction in which a point of the simplex may move, column by column.

    $$ \arg\min_d \lVert d - v \rVert^2 \quad\text{s.t.}\quad
       \sum_j d_j = 0,\ d_j \ge 0 \text{ where } x_j = 0,\ d_j = 0 \text{ where masked} $$

    **Arguments:**

    - `velocity`: $v$, `(entries, ...)`.
    - `point`: $x$, a point of the simplex of the same shape.
    - `mask`: which entries exist; all by default. A column without entries gives zeros.

    **Returns:** $d$ of the same shape; its derivative takes the mean off on the entries that move freely.

    **Source:** own derivation; the limit of `(project_simplex(x + h v) - x) / h` for `h -> 0`.
    """
    velocity, inside = jnp.asarray(velocity), jnp.asarray(point) > 0
    return _project_tangent_cone(
        velocity, inside, jnp.ones(velocity.shape, bool) if mask is None else jnp.asarray(mask)
    )


@jax.custom_jvp
def _project_tangent_cone(velocity, inside, mask):
    return _move(velocity, inside, mask)[0]


def _move(velocity, inside, mask):
    inside = inside & mask
    usable = jnp.where(mask, velocity, -jnp.inf)
    largest = jnp.where(inside.any(axis=0), 0, jnp.max(usable, axis=0))

    def multiplier(on):
        return jnp.sum(jnp.where(on, velocity, 0), axis=0) / jnp.maximum(_count(on, velocity.dtype), 1)

    on = jnp.where(inside.any(axis=0), inside, usable == largest[None])
    nu = _newton(multiplier, on, lambda nu: inside | (usable > nu[None]))
    moving = inside | (usable > nu[None])
    return jnp.where(moving, velocity - nu[None], 0), moving


@_project_tangent_cone.defjvp
def _project_tangent_cone_jvp(primals, tangents):
    direction, moving = _move(*primals)
    return direction, zero_mean(tangents[0], moving)


def zero_mean(
    values: Float[Array, "entries *columns"], on: Bool[Array, "entries *columns"]
) -> Float[Array, "entries *columns"]:
    """The values where `on`, less their mean there; zero elsewhere. The projector P on a support."""
    mean = jnp.sum(jnp.where(on, values, 0), axis=0) / jnp.maximum(_count(on, values.dtype), 1)
    return jnp.where(on, values - mean[None], 0)


def _count(on, dtype):
    # Selected, not converted: XLA would go by way of integers.
    return jnp.sum(jnp.where(on, jnp.ones((), dtype), 0), axis=0)


def _newton(multiplier, on, support):
    """Newton's iteration over supports: ends when no support changes any more, a fixed point in exact and in rounded arithmetic."""
    nu = previous = multiplier(on)
    for _ in range(_STEPS_BEFORE_CHECK):
        nu, previous = multiplier(support(nu)), nu
    return jax.lax.while_loop(
        lambda pair: jnp.any(pair[0] > pair[1]), lambda pair: (multiplier(support(pair[0])), pair[0]), (nu, previous)
    )[0]
