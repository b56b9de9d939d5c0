"""Characteristic roots: how fast small deviations die out, and how they swing meanwhile."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Complex, Float, Inexact, Int

from dgdlb_jax.equilibrium.arguments import policy_and_optimum
from dgdlb_jax.equilibrium.optimum import Optimum, require_served
from dgdlb_jax.model.batch import of_batch, require_double
from dgdlb_jax.model.network import Network
from dgdlb_jax.numerics.collocation import generator
from dgdlb_jax.numerics.device import check_fits, on_host
from dgdlb_jax.numerics.lapack import lu_factor, lu_solve, singular_values
from dgdlb_jax.numerics.precision import as_complex, imaginary
from dgdlb_jax.numerics.programs import compiled
from dgdlb_jax.numerics.promotion import standard_promotion
from dgdlb_jax.numerics.results import InputError, require_values
from dgdlb_jax.policies.base import AbstractPolicy
from dgdlb_jax.stability.linearise import Linearisation, linearise
from dgdlb_jax.stability.loop_transfer import Laplace, LoopTransfer, side_by_side

_COUNT = 24
_LEAST_DEGREE, _LARGEST_MATRIX = 14, 1500
_EIGENVALUES = 3  # copies of a matrix that its eigenvalues take
_NEWTON = 6
_OWN = 1e-7  # relative to a root: so near lie those of memory outside all loops, which collocation finds at once
_INVERSE = 3  # inverse iterations in a step of Newton's method
_POINTS = 8  # of Gauss's rule in a window
_NEUTRAL = 1e-7  # relative to the fastest rate: roots that small are the neutral ones


class Spectrum(eqx.Module):
    r"""The rightmost characteristic roots of the dynamics near an equilibrium. In a batch every array has a leading axis.

    - `roots` `(roots,)`: 1/s, the largest real part first, complex ones in pairs; -inf where there are no more. The neutral
      roots at 0 are left out.
    - `residual` `(roots,)`: relative smallest singular value of the characteristic matrix at each root; about 1e-15 for a root.
    - `neutral`: how many roots are 0: directions that move routing without changing the flow of any backend.
    - `abscissa`: the largest real part: small deviations vary as `exp(abscissa * t)`; negative when stable, -inf without dynamics.
    """

    roots: Complex[Array, "*batch roots"]
    residual: Float[Array, "*batch roots"]
    neutral: Int[Array, "*batch"]
    abscissa: Float[Array, "*batch"]

    # Properties are compiled: one program each, instead of one for every operation in it.

    @property
    @compiled
    def dominant(self) -> Complex[Array, "*batch"]:
        """The rightmost root, with positive imaginary part if it is one of a pair."""
        first = self.roots[..., 0]
        swings = jnp.abs(first.imag) > 1e-9 * jnp.abs(first.real)  # less is rounding
        return jax.lax.complex(first.real, jnp.where(swings, jnp.abs(first.imag), 0))

    @property
    @compiled
    def damping(self) -> Float[Array, "*batch"]:
        r"""Damping ratio of the rightmost root, $-\mathrm{Re}\, s / |s|$: 1 when it does not swing or there is none, 0 at the limit."""
        none = jnp.isneginf(self.dominant.real)
        root = jnp.where(none, -1.0 + 0j, self.dominant)
        return -root.real / jnp.abs(root)

    @property
    @compiled
    def period(self) -> Float[Array, "*batch"]:
        """Seconds of one swing of the rightmost root; inf when it does not swing."""
        swing = self.dominant.imag
        return jnp.where(swing > 0, 2 * jnp.pi / jnp.where(swing > 0, swing, 1), jnp.inf)

    @property
    @compiled
    def settling_time(self) -> Float[Array, "*batch"]:
        """Seconds in which a small deviation falls to 1 %; inf when it does not."""
        return jnp.where(self.abscissa < 0, jnp.log(100.0) / -jnp.minimum(self.abscissa, -1e-300), jnp.inf)


@standard_promotion
def characteristic_roots(
    network: Network,
    policy: AbstractPolicy | Optimum | None = None,
    optimum: Optimum | AbstractPolicy | None = None,
    *,
    count: int = _COUNT,
    degree: int | None = None,
) -> Spectrum:
    r"""The rightmost roots of the dynamics linearised at the optimum, every latency kept as it is.

    $$ \det\Big( \mathrm{diag}(s (s + a_j)) + \sum_i \lambda_i \eta_i D^{fwd}_i P_i D^{fb}_i C \Big) = 0 $$

    (for DGD-LB). Collocation on Chebyshev points finds all of them roughly, Newton's method on the characteristic matrix makes each exact.

    **Arguments:**

    - `network`: one network or a batch, with values (not under `jit`).
    - `policy`: a smooth flow policy; parameters as for `simulate`.
    - `optimum`: of that network; solved when left out.
    - `count`: how many roots to keep. `degree`: of the collocation polynomial; chosen from latencies and gains by default. Where
      latencies are very different the matrix is kept at 1500 rows, and `count_unstable_roots` tells whether a root escaped.

    With n backends in use and m arcs in use beyond one per frontend, it takes half a minute for n + m = 400 on one core, and grows with the
    third power; beyond 1500 it is refused.

    **Returns:** a `Spectrum`.

    **Raises:** `InputError` in single precision, under `jit`, for a policy that jumps or whose memory does not rest, for a network too
    large, and for a single network whose demand exceeds its capacity.

    **Source:** own derivation; collocation after Breda, Maset, Vermiglio (2005).
    """
    require_double(network, "characteristic_roots")
    require_values("characteristic_roots", network, policy, optimum)
    policy, optimum = policy_and_optimum("characteristic_roots", network, policy, optimum)
    require_served(network, optimum)
    linear = linearise(network, policy, optimum)
    return of_batch(lambda _, linear: _spectra(linear, count, degree), network, linear)


def count_equations(linear: Linearisation) -> int:
    """How many variables a single network has near its equilibrium: backends in use, arcs in use beyond one per frontend, and memory."""
    support = np.asarray(linear.support)
    memory = 0 if linear.filter is None else linear.filter.rate.shape[-1]
    return int(np.asarray(linear.point.used).any(0).sum() + support.sum() + (memory - 1) * support.any(1).sum())


def _spectra(linear: Linearisation, count: int, degree: int | None) -> Spectrum:
    used = np.asarray(linear.point.used.any(-2))
    reach = np.asarray(_fastest(linear))
    host = jax.tree.map(np.asarray, linear)
    starts = np.full((used.shape[0], count), -np.inf + 0j)
    for n in range(used.shape[0]):
        found = _rough_roots(jax.tree.map(lambda leaf, n=n: leaf[n], host), used[n], reach[n], degree)
        found = found[np.argsort(-np.real(found), kind="stable")][:count]
        starts[n, : found.size] = found
    return on_host(_polish, linear, jax.device_put(starts))


def _rough_roots(
    linear: Linearisation, used: Bool[np.ndarray, " backends"], reach: float, degree: int | None
) -> Inexact[np.ndarray, " found"]:
    """Collocation for one network: workloads in use, and the routing of each frontend in a basis of its zero-sum directions."""
    point = linear.point
    moving = np.flatnonzero(point.support.any(1))
    backends = np.flatnonzero(used)
    place = {j: k for k, j in enumerate(backends)}
    bases = [_zero_sum(np.asarray(point.support[i])) for i in moving]
    memory = 0 if linear.filter is None else linear.filter.rate.shape[-1]
    size = backends.size + sum(basis.shape[1] + memory for basis in bases)
    if size == 0:
        return np.zeros(0, complex)
    news, weights = _news(linear)
    delays = np.unique([point.latency[moving][:, backends], *news[:, moving][:, :, backends]])
    rows = max(_LARGEST_MATRIX, 5 * size)
    needed = 8 * (delays.size * size**2 + _EIGENVALUES * rows**2)
    check_fits(needed, f"The collocation of {size} equations with {delays.size} delays", "use count_unstable_roots")
    if size > _LARGEST_MATRIX:
        raise InputError(
            f"The characteristic roots of {size:,} equations would take hours: count_unstable_roots counts those that matter, and "
            "critical_step_size finds where there begin to be some."
        )
    still = np.zeros((size, size))
    still[range(backends.size), range(backends.size)] = -point.slope[backends]
    terms, at = {0.0: still}, backends.size
    for i, basis in zip(moving, bases, strict=True):
        own = slice(at, at + basis.shape[1])
        at += basis.shape[1]
        kept = slice(at, at + memory)
        at += memory
        if linear.self_response is not None:
            still[own, own] = basis.T @ linear.self_response[i] @ basis
        if linear.filter is not None:
            still[own, kept] = basis.T @ linear.filter.output[i]
            still[kept, kept] = linear.filter.rate[i]
            if linear.filter.own is not None:
                still[kept, own] = linear.filter.own[i] @ basis
        for j in backends:
            sent, seen = np.zeros((2, size, size))
            sent[place[j], own] = point.arrival_rate[i] * basis[j]
            seen[own, place[j]] = basis.T @ linear.response[i, :, j]
            if linear.filter is not None:
                seen[kept, place[j]] = linear.filter.seen[i, :, j]
            heard = ((weight * seen, delay) for weight, delay in zip(weights, news[:, i, j], strict=True))
            for term, delay in ((sent, point.latency[i, j]), *heard):
                if term.any():
                    terms[float(delay)] = terms.get(float(delay), 0) + term
    chosen = degree or max(_LEAST_DEGREE, 12 + int(np.ceil(0.7 * reach * max(terms))))
    chosen = max(min(chosen, _LARGEST_MATRIX // size - 1), 4)
    found = np.linalg.eigvals(generator(np.stack(list(terms.values())), np.array(list(terms)), chosen))
    scale = max(point.slope[backends].max(), reach)
    return found[np.abs(found) > _NEUTRAL * scale]


def _news(
    linear: Linearisation,
) -> tuple[Float[np.ndarray, "points frontends backends"], Float[np.ndarray, " points"]]:
    """How old news is when it is used, `(points, frontends, backends)`, and the weight of each point: averages by Gauss's rule."""
    places, weights = np.polynomial.legendre.leggauss(_POINTS)
    news, weight = np.asarray(linear.point.feedback_latency)[None], np.ones(1)
    for window in linear.windows:
        part = ((1 + places) / 2)[:, None, None, None] * window
        news = (news[None] + part).reshape(-1, *window.shape)
        weight = np.outer(weights / 2, weight).ravel()
    return news, weight


def _zero_sum(support: Bool[np.ndarray, " backends"]) -> Float[np.ndarray, "backends directions"]:
    """An orthonormal basis `(backends, k - 1)` of the vectors on the support that sum to 0."""
    on = support / np.sqrt(support.sum())
    vectors = np.linalg.svd(np.diag(support.astype(float)) - np.outer(on, on))[0]
    return vectors[:, : support.sum() - 1]


@compiled
def _fastest(linear: Linearisation) -> Float[Array, " batch"]:
    """A frequency above which no root crosses the imaginary axis, roughly; 0 without a loop."""

    def one(lin):
        loop = LoopTransfer(lin)
        start = jnp.where(loop.closed & (loop.delay > 0), loop.first, 1.0)
        last = jax.lax.while_loop(lambda w: loop.bound(w) > 1, lambda w: 1.3 * w, start)
        return jnp.where(loop.closed, last, 0)

    return jax.vmap(one)(linear)


@compiled
def _polish(linear: Linearisation, starts: Complex[Array, "batch roots"]) -> Spectrum:
    """Successive linear problems for the characteristic matrix (Newton's method); a start that runs away is dropped."""

    def characteristic(loop: LoopTransfer, s: Laplace) -> Complex[Array, "n n"]:
        matrix = loop.at(s)
        whole = jnp.eye(matrix.shape[0], dtype=matrix.dtype) + matrix
        # Without the pole of L at 0, and without that at -a where the unknowns are workloads.
        if loop.linear.self_response is None:
            return (s * (s + as_complex(loop.linear.slope)))[:, None] * whole
        return s * whole

    def one(loop: LoopTransfer, start: Laplace) -> tuple[Laplace, Float[Array, ""]]:
        # Backends outside all loops.
        trivial = jnp.min(jnp.abs(start + as_complex(loop.linear.slope))) <= 1e-9 * jnp.abs(start)
        if loop.linear.filter is not None:  # memory that no loop goes through: differences that a projection takes off
            trivial |= loop.linear.filter.distance(start) <= _OWN * jnp.abs(start)

        def improve(state, _):
            s, vector = state
            value, slope = jax.jvp(lambda at: characteristic(loop, at), (s,), (jnp.ones_like(s),))
            # The nearest root of the linear problem (value - step * slope) u = 0: quadratic, for several equal roots too.
            step, vector = _smallest(value, slope, vector)
            return (jnp.where(jnp.isfinite(step), s - step, s), vector), None

        anything = jnp.exp(imaginary(jnp.arange(loop.size, dtype=loop.linear.slope.dtype) ** 2))
        (s, _), _ = jax.lax.scan(improve, (start, anything), length=_NEWTON)
        away = jnp.abs(s - start) > 0.1 * jnp.abs(start)
        s = jnp.where(trivial, start, jnp.where(away, -jnp.inf, s))
        none = jnp.isneginf(s.real)
        value = characteristic(loop, jnp.where(none, 1.0, s))
        scale = jnp.linalg.norm(value, axis=1, keepdims=True)
        singular = singular_values(value / as_complex(jnp.where(scale > 0, scale, 1)))[-1]
        return s, jnp.where(trivial | none, 0.0, singular)

    def network(pair):
        loop, own = LoopTransfer(pair[0]), pair[1]
        together = side_by_side(loop.memory, loop.linear.support.shape, own.size)
        return jax.lax.map(lambda start: one(loop, start), own, batch_size=together)

    roots, residual = jax.lax.map(network, (linear, starts))
    order = jnp.argsort(-roots.real, axis=1)
    roots, residual = (jnp.take_along_axis(values, order, axis=1) for values in (roots, residual))
    return Spectrum(roots, residual, linear.neutral, roots[:, 0].real)


def _smallest(
    value: Complex[Array, "n n"], slope: Complex[Array, "n n"], vector: Complex[Array, " n"]
) -> tuple[Laplace, Complex[Array, " n"]]:
    """The smallest `step` with (value - step * slope) u = 0, and u, by inverse iteration from a vector; that vector where it fails."""
    factors = lu_factor(value)
    before = ahead = vector
    for _ in range(_INVERSE):
        before = ahead / as_complex(jnp.linalg.norm(ahead))
        ahead = lu_solve(factors, slope @ before)
    size = as_complex(jnp.linalg.norm(ahead))
    ahead = ahead / size
    return before @ ahead.conj() / size, jnp.where(jnp.isfinite(ahead).all(), ahead, vector)
