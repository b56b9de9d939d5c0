"""How fast a policy may be before the network latencies make it oscillate: exact limits of local stability."""

import dataclasses
from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.lax import stop_gradient
from jaxtyping import Array, ArrayLike, Bool, Complex, Float, Int

from dgdlb_jax.equilibrium.arguments import policy_and_optimum
from dgdlb_jax.equilibrium.optimum import Optimum, require_served
from dgdlb_jax.model.batch import (
    each_backend,
    each_frontend,
    each_network,
    per_frontend,
    require_double,
    require_single,
)
from dgdlb_jax.model.network import Network
from dgdlb_jax.numerics.device import on_host
from dgdlb_jax.numerics.lapack import eigvals, slogdet, solve
from dgdlb_jax.numerics.nyquist import BLOCK, eigenvalue_near, largest_crossing, slope_of
from dgdlb_jax.numerics.precision import as_complex, imaginary
from dgdlb_jax.numerics.programs import compiled
from dgdlb_jax.numerics.promotion import standard_promotion
from dgdlb_jax.numerics.results import InputError, Result, code, first_failure, raise_on_failure, require_values
from dgdlb_jax.numerics.winding import turn
from dgdlb_jax.policies.autoscalers.base import AbstractAutoscaler
from dgdlb_jax.policies.base import AbstractPolicy
from dgdlb_jax.policies.gradient import DGDLB
from dgdlb_jax.policies.safe import LogDGDLB, ReciprocalDGDLB
from dgdlb_jax.policies.sampled import SampledDGDLB
from dgdlb_jax.stability.linearise import check_smooth, linearise_one
from dgdlb_jax.stability.loop_transfer import Frequency, LoopTransfer, side_by_side
from dgdlb_jax.stability.sampled import SampledLoop
from dgdlb_jax.stability.scaled_loop import ScaledLoop, scaled_loop
from dgdlb_jax.stability.scraped import averaged, is_scraped, scraped_loops

_GRADIENT_RULES = (DGDLB, LogDGDLB, ReciprocalDGDLB)
"""Rules that know backends by their marginal latencies alone, which requests per replica decide, and do not look at their own routing."""

Loop = LoopTransfer | SampledLoop | ScaledLoop
Points = Float[np.ndarray, " points"]


class CriticalMode(eqx.Module):
    r"""The oscillation that a policy falls into when it is made too fast. In a batch every array has a leading axis.

    - `step_size`: the factor that makes the policy critical (for plain DGD-LB the critical step size, 1/s^2); inf when there is none.
    - `frequency`, `period`: of the oscillation, rad/s and seconds; 0 and inf when there is none.
    - `workload` `(backends,)`: complex amplitudes, the largest is 1: who swings how much, and their phases who before whom.
    - `routing` `(frontends, backends)`: complex amplitudes of the routing that go with it, 1/request.
    - `result`: a `Result` code.
    """

    step_size: Float[Array, "*batch"]
    frequency: Float[Array, "*batch"]
    workload: Complex[Array, "*batch backends"]
    routing: Complex[Array, "*batch frontends backends"]
    result: Int[Array, "*batch"]

    @property
    @compiled  # one program, instead of one for every operation
    def period(self) -> Float[Array, "*batch"]:
        """Seconds."""
        swings = self.frequency > 0
        return jnp.where(swings, 2 * jnp.pi / jnp.where(swings, self.frequency, 1), jnp.inf)


@standard_promotion
def critical_step_size(
    network: Network,
    policy: AbstractPolicy | Optimum | None = None,
    optimum: Optimum | AbstractPolicy | None = None,
    *,
    direction: ArrayLike | None = None,
    autoscaler: AbstractAutoscaler | None = None,
    throw: bool = True,
) -> Float[Array, "*batch"]:
    r"""The exact limit of local stability: the step size at which DGD-LB begins to oscillate about the optimum.

    $$ \eta_c = \min \{ 1 / |\mu| : \mu \text{ a negative real eigenvalue of } L(jw),\ w > 0 \} $$

    with $L$ the loop at step size 1 (see `stability.loop_transfer`). Below it small deviations die out, just above they grow.

    **Arguments:**

    - `network`: one network or a batch.
    - `policy`: a smooth flow policy, `SampledDGDLB` (all frontends update at the same instants), or a smooth one behind
      `estimates.Scraped` (see `stability.scraped`; outside `jit` and `grad`); the result then is the factor by which its velocity (for
      DGDLB: its step sizes) may be multiplied. Default: `DGDLB(1.0)`, and the result is the critical uniform step size.
    - `optimum`: of that network; solved when left out. It may follow the network directly: `critical_step_size(network, optimum)`.
    - `direction`: `(frontends,)`, step sizes in proportion to which frontends are made faster.
    - `autoscaler`: what moves replicas meanwhile. The limit then is that of swings about the flows of the optimum, with as many replicas as
      its target asks for there (see `stability.scaled_loop`); of autoscalers that are stable by themselves.
    - `throw`: raise when the search gave up (seen only where slopes are many decades apart), or the optimum given is none because
      demand exceeds capacity. Otherwise NaN stands for it.

    **Returns:** a scalar (1/s^2 for the default policy), `(batch,)` for a batch; inf when no frontend has two active backends, or
    no latency delays the loop; 0 for a policy that is unstable however slow.

    Differentiable, forward and reverse, in latencies, rates, service parameters and the policy's parameters, while the arcs in use do
    not change. Where several modes are critical at once it has a kink; the derivative is that of one of them.
    Batches run in chunks of bounded memory. Eigenvalues are found by the host's processor: beside an accelerator the whole search runs
    there; under `jit` or `grad` only they do, which waits for it often, and not on a TPU.

    **Raises:** `InputError` in single precision, for a policy that jumps, or when demand exceeds capacity.

    **Source:** own derivation; the generalised Nyquist criterion.
    """
    rule, best = policy_and_optimum("critical_step_size", network, policy, optimum)
    if rule is not None and is_scraped(rule):
        if autoscaler is not None:
            raise InputError(
                "Reports that are read every so often, beside an autoscaler: the limit of each is known alone. Leave one out, or simulate."
            )
        return _behind_scrapes(network, rule, best, direction, throw)
    return critical_mode(network, rule, best, direction=direction, autoscaler=autoscaler, throw=throw).step_size


def _behind_scrapes(
    network: Network, policy: AbstractPolicy, optimum: Optimum, direction: ArrayLike | None, throw: bool
) -> Float[Array, "*batch"]:
    """`critical_step_size` behind scraped reports: of the map over one period, or where there is none of their average."""
    require_double(network, "The critical step size")
    factors = per_frontend(network, 1.0 if direction is None else direction, "direction")
    rule = each_frontend(network, policy, type(policy).__name__)
    loops = scraped_loops(network, rule, optimum, factors)
    if throw:
        require_served(network, optimum)
    limits = np.array([np.nan if loop.period is None else loop.limit() for loop in loops])
    if np.isnan(limits).any():
        mean = critical_mode(*averaged(network, rule), optimum, direction=factors, throw=throw).step_size
        limits = np.where(np.isnan(limits), np.atleast_1d(np.asarray(mean)), limits)
    limits = np.where(np.atleast_1d(np.asarray(optimum.result)) == Result.infeasible, np.nan, limits)
    return jnp.asarray(limits.reshape(network.latency.shape[:-2]))


@standard_promotion
def critical_mode(
    network: Network,
    policy: AbstractPolicy | Optimum | None = None,
    optimum: Optimum | AbstractPolicy | None = None,
    *,
    direction: ArrayLike | None = None,
    autoscaler: AbstractAutoscaler | None = None,
    throw: bool = True,
) -> CriticalMode:
    """`critical_step_size` with the oscillation that sets in there: its frequency, and who swings against whom.

    **Arguments:** as for `critical_step_size`. **Returns:** a `CriticalMode`, differentiable as well (modes up to a complex factor).
    """
    require_double(network, "The critical step size")
    rule, best = policy_and_optimum("critical_step_size", network, policy, optimum)
    rule = DGDLB(1.0) if rule is None else rule
    factors = per_frontend(network, 1.0 if direction is None else direction, "direction")
    rule = each_frontend(network, rule, type(rule).__name__)
    if autoscaler is not None:
        check_gradient_rule(rule)
        autoscaler = each_backend(network, autoscaler, type(autoscaler).__name__)
    if not isinstance(rule, SampledDGDLB):
        check_smooth(network, rule, best)
    search = partial(each_network, _critical_mode, effort=_effort)
    mode = on_host(search, network, rule, best, factors, autoscaler)
    if throw:
        require_served(network, best)
        raise_on_failure(mode.result, "critical_step_size")
    return mode


def critical_mode_of(loop: Loop) -> CriticalMode:
    """The critical mode of one loop; the derivative is that of the implicit function at the crossing."""
    fixed: Loop = stop_gradient(loop)
    some = fixed.closed & (fixed.delay > 0)
    first = jnp.where(some, fixed.first, 1.0)

    def matrix(w: Frequency) -> Complex[Array, "n n"]:
        return jnp.where(some, fixed.matrix(w), 0)

    def bound(w: Frequency) -> Float[Array, ""]:
        return jnp.where(some, fixed.bound(w), 0)

    last = jnp.where(some, fixed.last, first)
    together = side_by_side(fixed.memory, fixed.linear.support.shape, BLOCK)
    crossing = largest_crossing(matrix, bound, fixed.stride, first, last, together)
    found = crossing.size > 0
    at = jnp.where(found, crossing.frequency, 1.0)
    limit, drift = limit_near(loop, at, crossing.right, crossing.left, found)
    limit = jnp.where(found, limit, jnp.inf)
    s = imaginary(at)
    shape = fixed.workload(s, crossing.right)
    largest = shape[jnp.argmax(jnp.abs(shape))]
    unit = jnp.where(found, crossing.right / jnp.where(largest == 0, 1, largest), 0)
    failed = jnp.where(crossing.result == Result.successful, 1.0, jnp.nan)
    drifts = _drifts_away(LoopTransfer(fixed.linear))
    return CriticalMode(
        step_size=jnp.where(drifts, 0.0, limit) * failed,
        frequency=jnp.where(found, at + drift, 0.0),
        workload=fixed.workload(s, unit),
        routing=fixed.routing(s, unit) * as_complex(jnp.where(found, limit, 0)),
        result=first_failure(
            crossing.result, jnp.where(jnp.isnan(limit), code(Result.not_finite), code(Result.successful))
        ),
    )


def limit_near(
    loop: Loop,
    at: Frequency,
    right: Complex[Array, " n"],
    left: Complex[Array, " n"],
    found: ArrayLike = True,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """The limit 1 / |mu| at a crossing that is known, and how far its frequency moves: exact to first order in the loop.

    **Arguments:** `at`: the frequency of the crossing, rad/s; `right`, `left`: eigenvectors there whose product is 1; `found`: whether
    there is a crossing at all (else 1 and 0).
    """
    # The eigenvalue moves with the matrix; the frequency follows so that it stays real.
    moved = eigenvalue_near(loop.matrix(at), right, left)
    along = left.conj() @ slope_of(stop_gradient(loop).matrix, at) @ right
    drift = -moved.imag / jnp.where(along.imag == 0, 1, along.imag)
    return 1 / jnp.where(found, -(moved.real + along.real * drift), 1), jnp.where(found, drift, 0)


def check_gradient_rule(policy: AbstractPolicy) -> None:
    """Raise `InputError` for a policy whose loop with an autoscaler is not known: it may look at more than requests per replica."""
    if not isinstance(policy, _GRADIENT_RULES):
        raise InputError(
            f"{type(policy).__name__} beside an autoscaler has no linearisation here: take DGDLB or one of its variants, or simulate it."
        )


def _critical_mode(
    network: Network,
    policy: AbstractPolicy,
    optimum: Optimum,
    factors: Float[Array, " frontends"],
    autoscaler: AbstractAutoscaler | None,
) -> CriticalMode:
    mode = critical_mode_of(_loop(network, policy, optimum, factors, autoscaler))
    none = optimum.result == Result.infeasible  # no optimum, so nothing about it
    limit, result = jnp.where(none, jnp.nan, mode.step_size), jnp.where(none, optimum.result, mode.result)
    return eqx.tree_at(lambda m: (m.step_size, m.result), mode, (limit, result))


def _effort(
    network: Network,
    policy: AbstractPolicy,
    optimum: Optimum,
    factors: Float[Array, " frontends"],
    autoscaler: AbstractAutoscaler | None,
) -> Float[Array, ""]:
    """How far the walk along the frequencies may go: a guess, to put equals side by side."""
    loop = _loop(network, policy, optimum, factors, None if isinstance(policy, SampledDGDLB) else autoscaler)
    return jnp.where(loop.closed, loop.delay * loop.first * loop.bound(loop.first), 0)


def _loop(
    network: Network,
    policy: AbstractPolicy,
    optimum: Optimum,
    factors: Float[Array, " frontends"],
    autoscaler: AbstractAutoscaler | None = None,
) -> Loop:
    if autoscaler is not None:
        loop = scaled_loop(network, policy, optimum, autoscaler)
        return dataclasses.replace(loop, linear=loop.linear.scaled(factors))
    if isinstance(policy, SampledDGDLB):
        return SampledLoop(
            linearise_one(network, DGDLB(policy.step_size), optimum).scaled(factors), policy.interval.max()
        )
    return LoopTransfer(linearise_one(network, policy, optimum).scaled(factors))


def _drifts_away(loop: LoopTransfer) -> Bool[Array, ""]:
    """Whether even the slowest version is unstable: an eigenvalue of $s L(s)$ at 0 with negative real part."""
    lin = loop.linear
    tiny = 1e-6 / (1 / jnp.where(lin.support.any(0), lin.slope, jnp.inf).min() + loop.delay + 1e-300)
    tiny = as_complex(tiny)
    slow = eigvals(tiny * loop.at(tiny))
    return (slow.real.min() < -1e-4 * jnp.abs(slow).max()) & loop.closed


@standard_promotion
def count_unstable_roots(
    network: Network,
    policy: AbstractPolicy | Optimum,
    optimum: Optimum | AbstractPolicy | None = None,
    *,
    factor: float = 1.0,
    autoscaler: AbstractAutoscaler | None = None,
) -> int:
    r"""How many characteristic roots of the linearised dynamics lie in the right half plane, counted and not computed.

    The argument of $\det(I + L(jw))$ is followed along the imaginary axis, refined until no turn can be missed. Independent of
    `critical_step_size` and of `characteristic_roots`: no eigenvalue is followed.

    **Arguments:** a single network, outside `jit`; `factor` multiplies the policy's velocity; `autoscaler`: as for `critical_step_size`.

    **Returns:** the count; 0 below the critical step size, 2 just above it.

    **Raises:** `ConvergenceError` when a root lies too close to the axis to be counted.

    **Source:** own derivation; the argument principle.
    """
    require_single(network, "count_unstable_roots")
    require_values("count_unstable_roots", network, policy, optimum)
    require_double(network, "count_unstable_roots")
    rule, best = policy_and_optimum("count_unstable_roots", network, policy, optimum)
    rule = DGDLB(1.0) if rule is None else rule
    require_served(network, best)
    rule = each_frontend(network, rule, type(rule).__name__)
    check_smooth(network, rule, best)
    if autoscaler is not None:
        check_gradient_rule(rule)
        autoscaler = each_backend(network, autoscaler, type(autoscaler).__name__)
    loop = each_network(_loop, network, rule, best, jnp.full(network.frontends, factor), autoscaler)
    if not bool(loop.closed):
        return 0
    first = float(_where_phases_begin(loop))
    last = first
    while float(_bound(loop, jnp.asarray(last))) >= 1:
        last *= 2
    last = max(last, 2 * first)

    def phase(points: Points) -> tuple[Points, Points]:
        size = 64 * -(-points.size // 64)  # few shapes, few compilations
        value, slope = _phase_of(loop, jnp.asarray(np.pad(points, (0, size - points.size), mode="edge")))
        return np.asarray(value)[: points.size], np.asarray(slope)[: points.size]

    def principal(w: float) -> float:
        values = np.linalg.eigvals(np.asarray(_matrix(loop, jnp.asarray(w))))
        return float(np.angle(1 + values).sum())

    # Below `first` and above `last` no eigenvalue of I + L crosses the negative real axis, so principal values are continuous there.
    return round(-(principal(first) - principal(last) + turn(phase, first, last)) / np.pi)


@compiled
def _matrix(loop: Loop, w: Frequency) -> Complex[Array, "n n"]:
    return loop.matrix(w)


@compiled
def _bound(loop: Loop, w: Frequency) -> Frequency:
    return loop.bound(w)


@compiled
def _where_phases_begin(loop: Loop) -> Frequency:
    return jnp.where(
        loop.delay > 0, loop.first, 1e-3 * jnp.where(loop.linear.support.any(0), loop.linear.slope, jnp.inf).min()
    )


@compiled
def _phase_of(loop: Loop, points: Float[Array, " points"]) -> tuple[Float[Array, " points"], Float[Array, " points"]]:
    def logarithm(w):
        matrix = loop.matrix(w)
        whole = jnp.eye(matrix.shape[0], dtype=matrix.dtype) + matrix
        slope = jnp.trace(solve(whole, slope_of(loop.matrix, w)))
        return jnp.angle(slogdet(whole)[0]), slope.imag

    return jax.lax.map(logarithm, points, batch_size=side_by_side(loop.memory, loop.linear.support.shape, 64))
