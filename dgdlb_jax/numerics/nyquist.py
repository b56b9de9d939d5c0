r"""Where the eigenvalues of a matrix function $M(w)$ meet the negative real axis, $w > 0$.

With $M(w) = L(jw)$ the loop of a linear system, the largest negative real eigenvalue $-\kappa$ over all frequencies says that the loop
may be amplified by $1/\kappa$ before it oscillates by itself (generalised Nyquist criterion).

The axis of frequencies is walked in strides over which no phase turns by more than a fraction of a radian. Eigenvalues are never
matched from one frequency to the next, which fails when they come close: every eigenvalue that will meet the negative real axis
within a stride, by its derivative, is a start for Newton's method, and whatever Newton's method finds is a crossing. The walk ends
where a bound on the spectral radius falls below the largest crossing found and no start is left that could lead to a larger one.
"""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Complex, Float, Int

from dgdlb_jax.numerics.lapack import eig, eigvals, lu_factor, lu_solve, lu_solve_adjoint, solve
from dgdlb_jax.numerics.precision import as_complex
from dgdlb_jax.numerics.results import Result, code

Frequency = Float[Array, ""]
MatrixOf = Callable[[Frequency], Complex[Array, "n n"]]

BLOCK = 8  # frequencies at which eigenvalues are computed between two decisions
_STARTS = 32  # candidates kept; those of the largest promise
_REACH = (
    0.75  # strides within which an eigenvalue has to meet the axis to be a start: every crossing has one on either side
)
_MARGIN = 1.05  # how much larger than predicted a crossing could be
_SECTOR, _WIDE_MARGIN = 0.35, 1.4  # radians, and margin, where eigenvalues come so close that derivatives say nothing
_NEWTON = 6
_BLOCKS = 20_000
_LARGEST_FALL = 1e-9  # of the bound since the first frequency: below it the search ends


class Crossing(eqx.Module):
    r"""The largest crossing of the negative real axis.

    - `size`: $\kappa$, the eigenvalue is $-\kappa$; 0 when there is none.
    - `frequency`: $w$ there; NaN when there is none.
    - `right`, `left`: eigenvectors, `M right = -size right`, `left^H M = -size left^H`.
    - `result`: a `Result` code.
    """

    size: Float[Array, ""]
    frequency: Frequency
    right: Complex[Array, " n"]
    left: Complex[Array, " n"]
    result: Int[Array, ""]


class _Starts(eqx.Module):
    """Eigenvalues with their vectors from which Newton's method may set out, and how large a crossing they promise (0: none)."""

    frequency: Float[Array, " starts"]
    value: Complex[Array, " starts"]
    promise: Float[Array, " starts"]
    right: Complex[Array, "starts n"]


class _Walk(eqx.Module):
    frequency: Frequency
    bound: Float[Array, ""]  # there
    starts: _Starts
    best: Float[Array, ""]
    best_frequency: Frequency
    blocks: Int[Array, ""]


def largest_crossing(
    matrix: MatrixOf,
    bound: Callable[[Frequency], Float[Array, ""]],
    stride: Callable[[Frequency], Frequency],
    first: Frequency,
    last: Frequency,
    together: int = BLOCK,
) -> Crossing:
    r"""The largest $\kappa$ with $-\kappa$ an eigenvalue of $M(w)$ for some $w$ between `first` and `last`.

    **Arguments:**

    - `matrix`: $w \mapsto M(w)$, smooth.
    - `bound`: a bound on the spectral radius of $M(w)$ that decreases in $w$.
    - `stride`: how far to the next frequency, so that phases turn by 0.2 rad at most.
    - `first`, `last`: no crossing lies below `first`; `last` may be inf. A negative real eigenvalue at `last` itself counts.
    - `together`: how many matrices may exist at the same time.

    **Returns:** a `Crossing`. Nothing here is meant to be differentiated: see `eigenvalue_near`.
    """
    if jnp.shape(first) != ():
        raise ValueError("one walk has one first frequency: use vmap")
    highest = bound(first)

    def walks_on(walk: _Walk):
        return (walk.frequency < last) & (walk.bound > jnp.maximum(walk.best, _LARGEST_FALL * highest))

    def unfinished(walk: _Walk):
        return (walks_on(walk) | jnp.any(walk.starts.promise > walk.best)) & (walk.blocks < _BLOCKS)

    def look_further(walk: _Walk):
        ahead = jax.lax.cond(walks_on(walk), next_block, lambda walk: walk, walk)
        ahead = _try_best(matrix, stride, ahead, last)
        return eqx.tree_at(lambda w: (w.bound, w.blocks), ahead, (bound(ahead.frequency), walk.blocks + 1))

    def next_block(walk: _Walk):
        at = [walk.frequency]
        for _ in range(BLOCK):
            at.append(jnp.minimum(at[-1] + stride(at[-1]), last))
        here = jnp.stack(at[:-1])
        found = jax.lax.map(lambda w: _candidates(matrix, stride, w), here, batch_size=min(together, BLOCK))
        open_end = (here < last)[:, None]  # the last frequency itself has been looked at already
        found = eqx.tree_at(lambda s: s.promise, found, jnp.where(open_end, found.promise, 0))
        starts = _keep_best(walk.starts, jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), found))
        return _Walk(at[-1], walk.bound, starts, walk.best, walk.best_frequency, walk.blocks)

    real, cplx = first.dtype, as_complex(first).dtype
    size = jax.eval_shape(matrix, first).shape[0]
    nothing = _Starts(
        jnp.zeros(_STARTS, real), jnp.zeros(_STARTS, cplx), jnp.zeros(_STARTS, real), jnp.zeros((_STARTS, size), cplx)
    )
    zero = jnp.zeros((), first.dtype)
    walk = _Walk(first, highest, nothing, zero, jnp.full((), jnp.nan, first.dtype), jnp.zeros((), jnp.int32))
    end = jnp.where(jnp.isfinite(last), last, first)
    at_end = eigvals(matrix(end))
    real = (jnp.abs(at_end.imag) < 1e-9 * jnp.abs(at_end)) & (at_end.real < 0) & jnp.isfinite(last)
    largest = jnp.max(jnp.where(real, -at_end.real, 0), initial=0)
    walk = eqx.tree_at(
        lambda w: (w.best, w.best_frequency), walk, (largest, jnp.where(largest > 0, end, walk.best_frequency))
    )
    walk = jax.lax.while_loop(unfinished, look_further, walk)
    at = jnp.where(walk.best > 0, walk.best_frequency, first)
    right, left = eigenvectors(matrix(at), as_complex(jnp.where(walk.best > 0, -walk.best, 1.0)))
    result = jnp.where(walk.blocks < _BLOCKS, code(Result.successful), code(Result.not_converged))
    return Crossing(walk.best, walk.best_frequency, right, left, result)


def eigenvectors(
    matrix: Complex[Array, "n n"], eigenvalue: Complex[Array, ""]
) -> tuple[Complex[Array, " n"], Complex[Array, " n"]]:
    """Right and left eigenvectors that belong to the eigenvalue nearest to the one given, `left^H right = 1`.

    Of several equal eigenvalues one vector of their space, and the left one that goes with it.
    """
    values, vectors = eig(matrix)
    k = jnp.argmin(jnp.abs(values - eigenvalue))
    right = vectors[:, k]
    left = solve(_almost_singular(matrix, values[k]).conj().T, right)
    return right, left / (right @ left.conj()).conj()


def _follow(matrix, eigenvalue, right, left):
    """`eigenvectors` by a step of inverse iteration from those of a matrix nearby, or any: a thirtieth of the work of all eigenvectors."""
    factors = lu_factor(_almost_singular(matrix, eigenvalue))
    right = lu_solve(factors, right)
    left = lu_solve_adjoint(factors, left)
    right = right / as_complex(jnp.linalg.norm(right))
    return right, left / (right @ left.conj()).conj()


def _almost_singular(matrix, eigenvalue):
    r"""$M - \lambda I$, just so far from singular that it can be solved with."""
    scale = jnp.maximum(jnp.max(jnp.abs(matrix)), jnp.finfo(matrix.dtype).tiny)
    return matrix - (eigenvalue + as_complex(1e-11 * scale)) * jnp.eye(matrix.shape[0], dtype=matrix.dtype)


def eigenvalue_near(
    matrix: Complex[Array, "n n"], right: Complex[Array, " n"], left: Complex[Array, " n"]
) -> Complex[Array, ""]:
    """An eigenvalue of a matrix near the one that the eigenvectors belong to, exact to first order: for derivatives."""
    return left.conj() @ matrix @ right


def slope_of(matrix: MatrixOf, at: Frequency) -> Complex[Array, "n n"]:
    """$dM/dw$."""
    return jax.jvp(matrix, (at,), (jnp.ones_like(at),))[1]


def _candidates(matrix: MatrixOf, stride_at: Callable[[Frequency], Frequency], w: Frequency) -> _Starts:
    """All eigenvalues at one frequency, with what they promise. The matrix and the stride may be solutions of linear systems."""
    here, along = jax.jvp(matrix, (w,), (jnp.ones_like(w),))
    values, vectors = eig(here)
    stride = stride_at(w)
    slopes = jnp.diagonal(solve(vectors, along @ vectors))
    move = -values.imag / jnp.where(slopes.imag == 0, jnp.inf, slopes.imag)
    predicted = -(values.real + slopes.real * move)
    near = (jnp.abs(move) <= _REACH * stride) & (predicted > 0)
    # The derivative of an eigenvalue is as ill-conditioned as its vector: near a double one it tells nothing.
    wild = ~(jnp.abs(slopes) * stride <= jnp.abs(values))
    around = (values.real < 0) & (jnp.abs(values.imag) < jnp.tan(_SECTOR) * jnp.abs(values.real))
    promise = jnp.where(near & ~wild, _MARGIN * jnp.minimum(predicted, 2 * jnp.abs(values)), 0)
    promise = jnp.where(wild & around, _WIDE_MARGIN * jnp.abs(values), promise)
    return _Starts(jnp.full(values.shape, w), values, promise, vectors.T)


def _keep_best(old: _Starts, new: _Starts) -> _Starts:
    both = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), old, new)
    _, best = jax.lax.top_k(both.promise, _STARTS)
    return jax.tree.map(lambda leaf: leaf[best], both)


def _try_best(matrix: MatrixOf, stride, walk: _Walk, last: Frequency) -> _Walk:
    """Newton's method from the most promising start, which leaves the list together with its copies."""
    starts = walk.starts
    k = jnp.argmax(starts.promise)
    w, value = starts.frequency[k], starts.value[k]
    longest = stride(w)

    def improve(state, _):
        w, value, _, right, left = state
        here, along = jax.jvp(matrix, (w,), (jnp.ones_like(w),))
        right, left = _follow(here, value, right, left)
        value = eigenvalue_near(here, right, left)
        slope = left.conj() @ along @ right
        move = -value.imag / jnp.where(slope.imag == 0, 1, slope.imag)
        move = jnp.clip(move, -longest, longest)
        return (jnp.minimum(w + move, last), value + slope * as_complex(move), jnp.abs(move), right, left), None

    known = (
        w,
        value,
        longest,
        starts.right[k],
        starts.right[k],
    )  # one step makes a left eigenvector of nearly any vector
    (w, value, move, *_), _ = jax.lax.scan(improve, known, length=_NEWTON)
    good = (value.real < 0) & (move <= 1e-9 * w) & jnp.isfinite(w) & (w > 0) & (starts.promise[k] > 0)
    better = good & (-value.real > walk.best)
    best = jnp.where(better, -value.real, walk.best)
    copies = (starts.frequency == starts.frequency[k]) & (
        jnp.abs(starts.value - starts.value[k]) <= 1e-9 * jnp.abs(starts.value[k])
    )
    promise = jnp.where(copies | (starts.promise <= best), 0, starts.promise)
    left = eqx.tree_at(lambda s: s.promise, starts, promise)
    return _Walk(walk.frequency, walk.bound, left, best, jnp.where(better, w, walk.best_frequency), walk.blocks)
