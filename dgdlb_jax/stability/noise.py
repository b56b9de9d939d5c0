r"""What single requests that come at random do to a balancer near the optimum.

Requests arrive as a Poisson process and leave a backend one by one at the rate $\ell_j(N_j)$. At scale $n$ (rates and replicas times
$n$) small deviations of the workloads obey the linearised equations with white noise of intensity $2 n r_j$ at backend $j$, where $r_j$ is
what it serves: half of it comes with the arrivals, half with the departures. With $L$ of `stability.loop_transfer`,

$$ S_N(w) = H \, \mathrm{diag}(2 n r) \, H^*, \qquad H = (I + L(jw))^{-1} \mathrm{diag} \frac{1}{jw + a_j}, $$

and the routing follows the workloads that it sees. A routing that never changes has $\mathrm{Var} N_j = n r_j / a_j$.

**Source:** own derivation.
"""

from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.lax import stop_gradient
from jaxtyping import Array, ArrayLike, Bool, Complex, Float, Int

from dgdlb_jax.equilibrium.arguments import policy_and_optimum
from dgdlb_jax.equilibrium.operating_point import OperatingPoint
from dgdlb_jax.equilibrium.optimum import Optimum, require_served
from dgdlb_jax.model.batch import each_frontend, each_network, require_double
from dgdlb_jax.model.network import Network
from dgdlb_jax.numerics.checks import check_positive
from dgdlb_jax.numerics.lapack import lu_factor, singular_values, solve
from dgdlb_jax.numerics.patience import require_patience, within_patience
from dgdlb_jax.numerics.precision import as_complex, imaginary
from dgdlb_jax.numerics.results import Result, code, first_failure, is_concrete, raise_on_failure
from dgdlb_jax.policies.base import AbstractPolicy
from dgdlb_jax.policies.gradient import DGDLB
from dgdlb_jax.stability.critical import critical_step_size
from dgdlb_jax.stability.defaults import default_step_size
from dgdlb_jax.stability.linearise import Linearisation, check_smooth, linearise_one
from dgdlb_jax.stability.loop_transfer import Frequency, Laplace, LoopTransfer

# Frequencies, evenly in the logarithm; the more where the fewer do not resolve a resonance.
_POINTS = (512, 4096, 65_536)
_TRACED = 4096  # inside a transformation, where nobody can look whether they did
_PER_ENTRY = 2e-9  # seconds: of products of matrices, measured at 1 x 200, 32 x 32 and 64 x 64 on one core
_BLOCK = 64  # of them side by side
_TURN = (
    0.5  # radians by which the turn from one frequency to the next changes: a resonance that is passed adds half a turn
)
_SLOWER, _FASTER = 1e-5, 3e3  # than the slowest and fastest motion: where the integral over frequencies begins and ends
_NEUTRAL = 1e-9  # of the fastest routing mode: slower ones are rounding of those that do not move
_ACCURACY = 1e-3  # of a variance; coarser integrals are not handed out
TRUSTED = 4.0  # standard deviations that shares keep from 0, and idle arcs from use, where the linear theory holds


class Noise(eqx.Module):
    r"""What randomness costs a balancer that rests at the optimum, and how far its workloads and its routing wander. In a batch every
    array has a leading axis.

    - `workload_variance` `(backends,)`: requests^2, at the scale asked for.
    - `routing_variance` `(frontends, backends)`: of shares; 0 on arcs that do not move.
    - `static`: seconds by which the mean latency of the same routing, never changed, exceeds the fluid optimum:
      $\frac12 \sum_j c_j r_j / (n \Lambda)$.
    - `jitter`: seconds that the balancer adds by following the noise:
      $\frac12 \sum_j a_j c_j (\mathrm{Var} N_j - n r_j / a_j) / (n^2 \Lambda)$.
    - `distance`: standard deviations that the nearest share keeps from 0, or the nearest idle arc from being used; inf when nothing moves.
    - `limit`: by which factor the policy may be made faster before it oscillates by itself.
    - `result`: a `Result` code; `unstable` where it does so already, and the rest is NaN.
    """

    workload_variance: Float[Array, "*batch backends"]
    routing_variance: Float[Array, "*batch frontends backends"]
    static: Float[Array, "*batch"]
    jitter: Float[Array, "*batch"]
    distance: Float[Array, "*batch"]
    limit: Float[Array, "*batch"]
    result: Int[Array, "*batch"]

    @property
    def excess(self) -> Float[Array, "*batch"]:
        """Seconds by which the mean latency exceeds the fluid optimum."""
        return self.static + self.jitter

    @property
    def holds(self) -> Bool[Array, "*batch"]:
        """Whether the linear theory can be trusted: every share stays four standard deviations from 0, and idle arcs as far from use."""
        return self.distance >= TRUSTED


def noise(
    network: Network,
    policy: AbstractPolicy | Optimum | None = None,
    optimum: Optimum | AbstractPolicy | None = None,
    *,
    scale: float | ArrayLike = 1.0,
    throw: bool = True,
) -> Noise:
    r"""Variances of workloads and routing, and the cost of noise, for single requests that come at random; by linear theory.

    $$ \mathrm{Var} N_j = \int S_{N,jj}(w) \frac{dw}{2 \pi}, \qquad
       \text{excess} = \frac{1}{2 n^2 \Lambda} \sum_j a_j c_j \mathrm{Var} N_j $$

    Without latency jitter costs nothing at any step size; with it, $\text{jitter} \approx \text{jitter}_1 / (1 - \eta/\eta_c)$ with the
    first order in the step size of `suggest_step_size`.

    **Arguments:**

    - `network`: one network or a batch, at its mean rates.
    - `policy`: a smooth flow policy that rests at the optimum, such as `DGDLB`, `LogDGDLB`, `MirrorDescent`, also with estimates;
      `DGDLB(default_step_size(...))` by default.
    - `optimum`: of that network; solved when left out. It may follow the network directly.
    - `scale`: $n$: rates and replicas are multiplied by it.
    - `throw`: raise where the policy is unstable; otherwise NaN stands for it.

    **Returns:** a `Noise`, differentiable while the arcs in use do not change. Where `holds` is false the figures are only a guide: idle
    arcs within reach of the noise add to the cost, shares that are clipped at 0 take from it.

    **Raises:** `InputError` in single precision, for a policy that is unstable or jumps, or whose memory does not rest, a scale that is not
    positive, demand above capacity, or a network that would take above a quarter of an hour (200 x 200); `ConvergenceError` so close to the
    limit of stability that the integral over frequencies is not resolved.

    **Source:** own derivation; held against whole requests and closed forms in the tests.
    """
    require_double(network, "noise")
    check_positive("scale", scale)
    require_patience(
        f"noise of {network.frontends} frontends and {network.backends} backends takes the spectrum of all routings",
        _seconds(network, _POINTS[0]),
        "frontends that are alike, and backends that are, may be summed into one",
    )
    rule, best = policy_and_optimum("noise", network, policy, optimum)
    rule = DGDLB(default_step_size(network, best)) if rule is None else rule
    rule = each_frontend(network, rule, type(rule).__name__)
    require_served(network, best)
    check_smooth(network, rule, best)
    limit = critical_step_size(network, rule, best, throw=throw)
    factor = jnp.asarray(scale, limit.dtype)
    arguments = network, rule, best, limit, factor
    found = _resolved(*arguments) if is_concrete(arguments) else each_network(_WITH[_TRACED], *arguments)
    if throw:
        raise_on_failure(found.result, "noise")
    return found


def _resolved(network: Network, *arguments) -> Noise:
    """With as many frequencies as it takes, and as patience has: a resonance may need more than that."""
    found = each_network(_WITH[_POINTS[0]], network, *arguments)
    for points in _POINTS[1:]:
        unresolved = np.any(np.asarray(found.result) == Result.not_converged)
        if not unresolved or not within_patience(_seconds(network, points)):
            break
        found = each_network(_WITH[points], network, *arguments)
    return found


def _seconds(network: Network, points: int) -> float:
    """About, on one core: a factorisation and a product of matrices per frontend, at every frequency."""
    networks = 1 if network.batch is None else network.batch
    return _PER_ENTRY * networks * points * (network.frontends + 4) * network.backends**3


def _noise(
    network: Network,
    policy: AbstractPolicy,
    optimum: Optimum,
    limit: Float[Array, ""],
    scale: Float[Array, ""],
    *,
    points: int,
) -> Noise:
    linear = linearise_one(network, policy, optimum)
    point = linear.point
    rate = (point.arrival_rate[:, None] * optimum.routing).sum(0)
    still = jnp.where(rate > 0, rate / point.slope, 0)
    moved, routing, coarser, turn = _variances(linear, rate, points)
    error = jnp.abs(coarser - moved).max() / jnp.maximum((still + moved).max(), 1e-300)
    resolved = (error <= _ACCURACY) & (turn <= _TURN)
    stable = jnp.where(limit > 1, code(Result.successful), code(Result.unstable))
    result = first_failure(stable, jnp.where(resolved, code(Result.successful), code(Result.not_converged)))
    valid = lambda values: jnp.where(result == Result.successful, values, jnp.nan)
    workload = still + moved
    total = jnp.maximum(point.arrival_rate.sum(), 1e-300)
    return Noise(
        workload_variance=valid(scale * workload),
        routing_variance=valid(routing / scale),
        static=(point.gain * rate).sum() / (2 * total * scale),
        jitter=valid((point.slope * point.gain * moved).sum() / (2 * total * scale)),
        distance=valid(_distance(network, optimum, point, workload / scale, routing / scale)),
        limit=limit,
        result=result,
    )


_WITH = {points: partial(_noise, points=points) for points in _POINTS}


def _variances(
    linear: Linearisation, rate: Float[Array, " backends"], points: int
) -> tuple[Float[Array, " backends"], Float[Array, "frontends backends"], Float[Array, " backends"], Float[Array, ""]]:
    r"""At scale 1: $\mathrm{Var} N - r/a$, $\mathrm{Var} x$, the first again from half of the frequencies; and by how much the turn of
    $\det (I + L)$ from one frequency to the next changes at most (the turn itself is the sum of those of all modes).

    The integrand less that of a routing that never changes falls like $w^{-4}$; it has finite limits at 0. In $u = \log w$ the
    trapezoidal rule converges geometrically once the spacing is below the relative width of the sharpest resonance.
    """
    loop = LoopTransfer(linear)
    moving = linear.support.any()
    begin, end = _range(linear)
    logs = jnp.linspace(jnp.log(begin), jnp.log(end), points)

    def spectrum(log):
        w = jnp.exp(log)
        respond, follow, turned = _response(loop, imaginary(w))
        still = 2 * rate / (w**2 + linear.slope**2)
        power = (jnp.abs(respond) ** 2 * 2 * rate[None]).sum(1) - still
        shares = (jnp.abs(follow @ respond) ** 2 * 2 * rate[None, None]).sum(-1)
        return w * power, w * shares, turned

    power, shares, turned = jax.lax.map(spectrum, logs, batch_size=_BLOCK)
    spacing = (logs[1] - logs[0]) / jnp.pi
    below = lambda values: values[0] / jnp.pi  # the spectrum is flat between 0 and the first frequency
    whole = lambda values: spacing * (values.sum(0) - (values[0] + values[-1]) / 2) + below(values)
    every_other = 2 * spacing * (power[::2].sum(0) - power[0] / 2) + below(power)
    step = turned[1:] * turned[:-1].conj()
    turn = jnp.abs(jnp.angle(step[1:] * step[:-1].conj())).max()
    return tuple(jnp.where(moving, values, 0) for values in (whole(power), whole(shares), every_other, turn))  # pyright: ignore[reportReturnType]


def _response(
    loop: LoopTransfer, s: Laplace
) -> tuple[Complex[Array, "backends backends"], Complex[Array, "frontends backends backends"], Complex[Array, ""]]:
    r"""$H(s)$: workloads per noise; routing per workload; and the direction of $\det (I + L)$ in the complex plane."""
    linear = loop.linear
    follow = loop.moves(s)
    if linear.self_response is not None:
        alone = jnp.eye(follow.shape[1], dtype=follow.dtype)[None]
        follow = jax.vmap(solve)(alone - linear.self_response_at(s) / s, follow)
    own = s + as_complex(linear.slope)
    matrix = jnp.diag(own) - loop.arrivals(s, follow)
    factors, pivots = lu_factor(stop_gradient(matrix))
    turns = jnp.angle(jnp.diagonal(factors)) - jnp.angle(own)
    swapped = pivots != jnp.arange(pivots.size, dtype=pivots.dtype)
    direction = jnp.prod(jnp.exp(imaginary(turns)) * jnp.where(swapped, -1, 1))
    return solve(matrix, jnp.eye(own.size, dtype=own.dtype), (factors, pivots)), follow, direction


def _range(linear: Linearisation) -> tuple[Frequency, Frequency]:
    """Where the integral over frequencies begins and ends: what is slower is flat, what is faster has died out."""
    lin: Linearisation = stop_gradient(linear)
    still = as_complex(jnp.zeros((), lin.slope.dtype))
    flow = lin.arrival_rate[:, None, None] * lin.response_at(still).real
    # Modes of routing at small and at large step sizes; a norm is enough for the fast end, and for the slow end a mode counts that is
    # not zero by structure.
    slow = singular_values((flow / lin.slope[None, :, None]).sum(0))
    slow = jnp.where(slow > _NEUTRAL * slow.max(), slow, jnp.inf).min()
    used = lin.point.used.any(0)
    slopes = jnp.where(used, lin.slope, jnp.inf).min(), jnp.where(used, lin.slope, 0).max()
    fast = jnp.maximum(slopes[1], jnp.sqrt((lin.arrival_rate[:, None, None] * lin.largest_response).sum((0, 2)).max()))
    begin, end = _SLOWER * jnp.minimum(slopes[0], slow), _FASTER * fast
    sound = jnp.isfinite(begin) & (begin > 0) & (end > begin)
    return jnp.where(sound, begin, 1.0), jnp.where(sound, end, 2.0)


def _distance(
    network: Network,
    optimum: Optimum,
    point: OperatingPoint,
    workload: Float[Array, " backends"],
    routing: Float[Array, "frontends backends"],
) -> Float[Array, ""]:
    r"""Standard deviations to the nearest change of the arcs in use; `workload` is $\mathrm{Var} N / n^2$, as $c$ counts it."""
    spread = jnp.sqrt(jnp.where(routing > 0, routing, 1))
    shares = jnp.where(point.support & (routing > 0), optimum.routing / spread, jnp.inf).min()
    marginal = point.gain**2 * workload
    idle = network.mask & ~point.used & point.support.any(1)[:, None]
    slack = 1 / point.slope[None] + network.cost_latency - optimum.multiplier[:, None]
    own = jnp.where(point.support, marginal, 0).sum(1) / jnp.maximum(point.support.sum(1, dtype=marginal.dtype), 1)
    wander = jnp.sqrt(marginal[None] + own[:, None])
    return jnp.minimum(shares, jnp.where(idle, slack / jnp.where(wander > 0, wander, 1), jnp.inf).min())
