"""How large a step size, how small a time step, how long a run: defaults from the optimum."""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float, Int

from dgdlb_jax.equilibrium.arguments import known_optimum, step_and_optimum
from dgdlb_jax.equilibrium.operating_point import OperatingPoint, slope_and_gain
from dgdlb_jax.equilibrium.optimum import Optimum
from dgdlb_jax.model.batch import each_backend, each_network, of_batch, per_frontend
from dgdlb_jax.model.network import Network
from dgdlb_jax.numerics.promotion import standard_promotion
from dgdlb_jax.numerics.results import is_concrete
from dgdlb_jax.numerics.rounding import round_down, round_up
from dgdlb_jax.policies.autoscalers.base import AbstractAutoscaler
from dgdlb_jax.policies.base import AbstractPolicy
from dgdlb_jax.simulation.start import default_start
from dgdlb_jax.stability.autoscaling import frozen, on_target, replica_loop

StepSize = ArrayLike | AbstractPolicy
"""1/s^2: a scalar, one number per frontend (in a batch `(batch, frontends)` or `(batch, 1)` too), or a policy with a `step_size`."""

_SAFETY = 0.25  # of what theorem C with the largest latency allows
_PARTS = (0.0, 0.25, 0.5, 1.0)  # of the longest way there and back, at which limits beside an autoscaler are looked at
_MATTERS = 1e-3  # of all traffic: what a backend has to receive for its chatter to be worth resolving
_TIE = 1e-6  # of a marginal latency, which an optimum knows to about 1e-9: no rounding decides which of two equals is the second
_FAR_ABOVE = 10.0  # times the least marginal latency
_DEAD = 1e-3  # of what the best backend of a frontend takes from it; a thousandth is also what a verdict looks at


@standard_promotion
def default_step_size(
    network: Network,
    optimum: Optimum | None = None,
    *,
    update_interval: ArrayLike = 0.0,
    averaging: ArrayLike = 0.0,
    autoscaler: AbstractAutoscaler | None = None,
) -> Float[Array, "*batch frontends"]:
    r"""A step size for DGD-LB that converges from usual starts as well, well below the limit of local stability.

    $$ \eta_i = \frac14 \min_{j \in S^+_i} \frac{a_j}{2 c_j \Lambda^+_j \max_{k \in S^+_i} \tau_{ik}} $$
    $S^+_i$ is the support at the optimum and, for a frontend with two arcs, its two cheapest by marginal latency (with those that
    tie); $\Lambda^+_j$ is the rate of the frontends with $j \in S^+_i$; $\tau$ is the mean of forward and feedback latency. Dead
    backends are left out: those whose marginal latency is ten times that of the cheapest, which no swing near the optimum brings
    into use, and those that can take less than a thousandth of what the frontend's best backend can take from it.

    **Arguments:**

    - `network`: one network or a batch.
    - `optimum`: of that network; solved when left out.
    - `update_interval`: seconds between two updates of a frontend. Latencies count as at least that long, and at least as a
      thousandth of the fastest service time: without any delay every step size is stable.
    - `averaging`: seconds by which a frontend's estimates make its news older, a scalar or `(frontends,)`: counted as feedback latency.
      It is the `delay` of an estimate, half of a window or a time constant.
    - `autoscaler`: what moves replicas meanwhile. Everything then refers to the replicas that it asks for at the flows of the optimum,
      and the step size is at most a quarter of $\min_{j \in S^+_i} K_j / (c_j \Lambda^+_j)$, with $K_j$ the critical gain of backends
      like $j$ beside it (`stability.autoscaling`), at the worst of several latencies up to the largest.

    **Returns:** `(frontends,)` in 1/s^2, with a leading axis for a batch; 0 for a frontend with one arc or nothing to send.

    **Source:** the condition of theorem C of this project (own derivation), made robust by measurements far from the optimum.
    """
    optimum = known_optimum("default_step_size", network, optimum)
    interval = jnp.asarray(update_interval, network.latency.dtype)
    older = per_frontend(network, averaging, "averaging")
    if autoscaler is not None:
        rule = each_backend(network, autoscaler, type(autoscaler).__name__)
        return each_network(_beside_an_autoscaler, network, optimum, interval, older, rule)
    return each_network(_default_step_size, network, optimum, interval, older).step_size


def default_step_size_set_by(
    network: Network, optimum: Optimum
) -> tuple[Int[Array, "*batch frontends"], Int[Array, "*batch frontends"]]:
    """Which backend's response, and which backend's latency, decide the `default_step_size` of a frontend.

    **Returns:** indices of backends: where the minimum over $S^+_i$ is taken, and the maximum, in the equation of `default_step_size`.
    """
    interval = jnp.zeros((), network.latency.dtype)
    fresh = per_frontend(network, 0.0, "averaging")
    found = each_network(_default_step_size, network, optimum, interval, fresh)
    return found.by_response, found.by_latency


def slowest_decay_rate(
    network: Network, step_size: StepSize | Optimum, optimum: Optimum | StepSize | None = None
) -> Float[Array, "*batch"]:
    r"""How slowly a small disturbance of the optimum dies out under DGD-LB with a small step size, 1/s.

    The smaller of the slowest service, $\min_j a_j$, and of the slowest routing mode: the smallest eigenvalue of
    $A^{-1} \sum_i \lambda_i \eta_i P_i C$ on the support that is not zero by structure, $P_i = I - 11^T/k_i$.

    **Arguments:** `step_size` in 1/s^2, a scalar or one number per frontend (in a batch also `(batch, frontends)`), or a policy
    that has one.

    **Returns:** a scalar, `(batch,)` for a batch; inf when nothing is in use.

    **Source:** own derivation (the limit of small step sizes of the linearised dynamics).
    """
    step, best = step_and_optimum("slowest_decay_rate", network, step_size, optimum)
    return each_network(_slowest_decay_rate, network, per_frontend(network, step, "step_size"), best)


def drain_time(
    network: Network,
    step_size: StepSize | Optimum,
    optimum: Optimum | StepSize | None = None,
    *,
    negligible: float = 1e-3,
) -> Float[Array, "*batch"]:
    r"""How long DGD-LB takes to empty the arcs that carry nothing at the optimum, seconds.

    $$ \max_{ij} \frac{2}{\eta_i z_{ij}}, \qquad z_{ij} = 1/\ell_j'(N_j) + \tau^{cost}_{ij} - \nu_i > 0 $$
    Close to the optimum the share of such an arc falls at a constant speed of at least $\eta_i z_{ij} / 2$: not a decay, and often what
    takes longest, since differences in latency are small beside the time in service.

    **Arguments:**

    - `step_size`: in 1/s^2, a scalar or one number per frontend (in a batch also `(batch, frontends)`), or a policy that has one.
    - `negligible`: arcs that would raise the mean latency by less than this fraction if they carried all of their frontend's
      traffic do not count.

    **Returns:** a scalar, `(batch,)` for a batch; 0 when every arc counts for nothing.

    **Source:** own derivation.
    """
    step, best = step_and_optimum("drain_time", network, step_size, optimum)
    return each_network(
        _drain_time,
        network,
        per_frontend(network, step, "step_size"),
        best,
        jnp.asarray(negligible, network.latency.dtype),
    )


@standard_promotion
def suggest_dt(
    network: Network,
    step_size: StepSize | Optimum | None = None,
    optimum: Optimum | StepSize | None = None,
    *,
    workload: ArrayLike | None = None,
    jumps: bool = False,
) -> float | Float[Array, "*batch"]:
    r"""A time step that resolves the fastest service and the loop of DGD-LB, or the chatter of a rule that jumps.

    $$ \min\Big( \frac{0.1}{\max_j \ell_j'(0)}, \frac{0.05}{w} \Big), \qquad
       w \sqrt{w^2 + a_j^2} = c_j \sum_i \lambda_i \eta_i $$
    with the largest $w$ of any backend, at the start or at the optimum; the sum is over frontends that have a choice and may use
    the backend. The scheme is of second order for latencies shorter than a step, so a latency does not bound the step. For a rule
    that jumps the second term is
    $$ \max\Big( \frac{\max \tau}{20}, 0.004 \min_j \frac{N_j}{\Lambda_j} \Big) $$
    with workloads and arrivals at the optimum: finer chatter is not worth resolving.

    **Arguments:**

    - `step_size` in 1/s^2, or a policy that has one; `default_step_size` when left out.
    - `workload`: at the start, `(backends,)` requests, in a batch `(batch, backends)`; that of routing in proportion to nominal
      capacity when left out.
    - `jumps`: whether the rule jumps, as least latency does; the step size then plays no part.

    **Returns:** seconds: for a single network a float, rounded down to 1, 2 or 5 times a power of ten; `(batch,)` for a batch.

    **Source:** own measurements: at 0.05 / w the limit of stability moves by 0.7 % at most, whatever the latency.
    """
    step, best = step_and_optimum("suggest_dt", network, step_size, optimum)
    if jumps:
        dt = each_network(_dt_of_jumps, network, best)
    else:
        step = default_step_size(network, best) if step is None else step
        start = _default_workload(network) if workload is None else jnp.asarray(workload, network.latency.dtype)
        dt = each_network(_dt_of_loop, network, per_frontend(network, step, "step_size"), best, start)
    return _rounded(round_down, dt)


@standard_promotion
def suggest_duration(
    network: Network, step_size: StepSize | Optimum | None = None, optimum: Optimum | StepSize | None = None
) -> float | Float[Array, "*batch"]:
    """A duration after which DGD-LB has settled: twenty times the slowest decay time and the `drain_time` of arcs that matter by
    1 %, and at least 50 of the largest latency.

    Ten decay times are enough close to the optimum; from usual starts the built-in fleets took up to twice as long.

    **Arguments:** `step_size` in 1/s^2, or a policy that has one; `default_step_size` when left out.

    **Returns:** seconds: for a single network a float, rounded up to 1, 2 or 5 times a power of ten; `(batch,)` for a batch.
    """
    step, best = step_and_optimum("suggest_duration", network, step_size, optimum)
    step = default_step_size(network, best) if step is None else step
    duration = each_network(_suggest_duration, network, per_frontend(network, step, "step_size"), best)
    return _rounded(round_up, duration)


class _DefaultStepSize(NamedTuple):
    """One program for what a default step size is and what decides it: indices of backends, per frontend."""

    step_size: Float[Array, "*batch frontends"]
    by_response: Int[Array, "*batch frontends"]
    by_latency: Int[Array, "*batch frontends"]


def _default_step_size(
    network: Network, optimum: Optimum, interval: Float[Array, ""], averaging: Float[Array, " frontends"]
) -> _DefaultStepSize:
    response, delay = _response_and_delay(network, optimum, interval, averaging)
    step = _SAFETY * response.min(1) / delay.max(1)
    moving = (network.mask.sum(1) > 1) & (network.arrival_rate > 0) & jnp.isfinite(step)
    return _DefaultStepSize(jnp.where(moving, step, 0), response.argmin(1), delay.argmax(1))


def _beside_an_autoscaler(
    network: Network,
    optimum: Optimum,
    interval: Float[Array, ""],
    averaging: Float[Array, " frontends"],
    autoscaler: AbstractAutoscaler,
) -> Float[Array, " frontends"]:
    adapted, rest, free = on_target(network, autoscaler, optimum)
    loop = frozen(replica_loop(network, autoscaler), ~free, adapted.mean_service.slope(rest.workload))
    point = OperatingPoint(adapted, rest)
    choices = _choices(adapted, point)
    shared = jnp.where(choices, network.arrival_rate[:, None], 0).sum(0)
    longest = jnp.where(choices, network.latency + network.feedback_latency, 0).max() + averaging.max() + 2 * interval
    critical = jnp.stack([loop.critical_gain(part * longest) for part in _PARTS]).min(0)
    beside = jnp.where(choices & free[None], _ratio(critical, point.gain * shared)[None], jnp.inf).min(1)
    alone = _default_step_size(adapted, rest, interval, averaging).step_size
    return jnp.minimum(alone, _SAFETY * beside)


def _response_and_delay(
    network: Network, optimum: Optimum, interval: Float[Array, ""], averaging: Float[Array, " frontends"]
) -> tuple[Float[Array, "frontends backends"], Float[Array, "frontends backends"]]:
    r"""$a_j / (2 c_j \Lambda^+_j)$, inf off $S^+$, and $\tau_{ij}$, 0 off it."""
    point = OperatingPoint(network, optimum)
    choices = _choices(network, point)
    shared = jnp.where(choices, network.arrival_rate[:, None], 0).sum(0)
    fastest = 1e-3 * _ratio(1.0, _steepest_slope(network))
    way = 0.5 * (network.latency + network.feedback_latency + averaging[:, None])
    delay = jnp.maximum(way, jnp.maximum(interval, fastest))
    response = jnp.where(choices, _ratio(point.slope, 2 * point.gain * shared), jnp.inf)
    return response, jnp.where(choices, delay, 0)


def _slowest_decay_rate(network: Network, step_size: Float[Array, " frontends"], optimum: Optimum) -> Float[Array, ""]:
    return slowest_decay_rate_of(OperatingPoint(network, optimum), step_size)


def slowest_decay_rate_of(point: OperatingPoint, step_size: Float[Array, " frontends"]) -> Float[Array, ""]:
    """`slowest_decay_rate` at an operating point."""
    active = point.used.any(0)
    slowest_service = jnp.where(active, point.slope, jnp.inf).min()
    rates = point.rates(point.strength(step_size), jnp.where(active, point.gain / point.slope, 0))
    structural = rates <= 1e3 * rates.size * jnp.finfo(rates.dtype).eps * rates.max()
    return jnp.minimum(slowest_service, jnp.where(structural, jnp.inf, rates).min())


def _dt_of_loop(
    network: Network, step_size: Float[Array, " frontends"], optimum: Optimum, start: Float[Array, " backends"]
) -> Float[Array, ""]:
    choices = _choices(network, OperatingPoint(network, optimum))
    strength = jnp.where(choices.sum(1) > 1, network.arrival_rate * step_size, 0)
    strength = jnp.where(choices, strength[:, None], 0).sum(0)

    def frequency(workload: Float[Array, " backends"]) -> Float[Array, ""]:
        slope, gain = slope_and_gain(network, workload)
        return jnp.where(strength > 0, _crossing(slope, gain * strength), 0).max()

    steepest = jnp.maximum(frequency(start), frequency(optimum.workload))
    return jnp.minimum(_dt_of_service(network), _ratio(0.05, steepest))


def _dt_of_jumps(network: Network, optimum: Optimum) -> Float[Array, ""]:
    inflow = network.arrival_rate @ optimum.routing
    in_use = inflow > _MATTERS * inflow.sum()
    service_time = jnp.where(in_use, optimum.workload / jnp.where(in_use, inflow, 1), jnp.inf).min()
    chatter = jnp.maximum(_largest_latency(network) / 20, jnp.where(jnp.isfinite(service_time), 4e-3 * service_time, 0))
    return jnp.minimum(_dt_of_service(network), jnp.where(chatter > 0, chatter, jnp.inf))


def _dt_of_service(network: Network) -> Float[Array, ""]:
    return _ratio(0.1, _steepest_slope(network))


def _suggest_duration(network: Network, step_size: Float[Array, " frontends"], optimum: Optimum) -> Float[Array, ""]:
    slowest = _slowest_decay_rate(network, step_size, optimum)
    slowest = jnp.where(jnp.isfinite(slowest), slowest, _steepest_slope(network))
    drained = _drain_time(network, step_size, optimum, jnp.asarray(1e-2, slowest.dtype))
    return jnp.maximum(20 / slowest + drained, 50 * _largest_latency(network))


def _drain_time(
    network: Network, step_size: Float[Array, " frontends"], optimum: Optimum, negligible: Float[Array, ""]
) -> Float[Array, ""]:
    point = OperatingPoint(network, optimum)
    slack = 1 / point.slope[None] + network.cost_latency - optimum.multiplier[:, None]
    cost = optimum.mean_latency * network.arrival_rate.sum()
    counts = network.mask & ~point.used & (network.arrival_rate[:, None] * slack > negligible * cost)
    speed = step_size[:, None] * slack / 2
    strength = network.arrival_rate * step_size
    partner = ((point.used.sum(1) > 1) & (strength > 0))[None] & ~jnp.eye(network.frontends, dtype=bool)
    wait = jnp.where(partner, strength[:, None] / jnp.where(partner, strength[None], 1), 0).max(1)
    return jnp.where(counts & (speed > 0), _ratio(1.0, speed) * (1 + wait[:, None]), 0).max()


def _crossing(slope: Float[Array, " backends"], loop: Float[Array, " backends"]) -> Float[Array, " backends"]:
    r"""The positive root of $w \sqrt{w^2 + a^2} = K$, without cancellation for small $K$."""
    return loop * jnp.sqrt(2 / (slope**2 + jnp.sqrt(slope**4 + 4 * loop**2)))


def _steepest_slope(network: Network) -> Float[Array, ""]:
    r"""$\max_j \ell_j'(0)$ at the largest capacity of all times, 1/s, of backends that a frontend can reach."""
    return jnp.where(network.backend_mask, network.fastest_service.initial_slope, 0).max()


def _choices(network: Network, point: OperatingPoint) -> Bool[Array, "frontends backends"]:
    """$S^+$: the support, and the two cheapest arcs of a frontend that has two, dead backends apart."""
    factor = 1.0 if network.capacity is None else network.capacity.mean_rate
    most = jnp.where(jnp.asarray(factor) > 0, factor * network.service.supremum, 0)[None]
    taken = jnp.where(network.mask, jnp.minimum(most, network.arrival_rate[:, None]), 0)
    alive = network.mask & (taken >= _DEAD * taken.max(1, keepdims=True)) & (most > 0)
    seen = jnp.where(alive, 1 / point.slope[None] + network.cost_latency, jnp.inf)
    least, second = jnp.sort(seen, axis=1)[:, [0, min(1, network.backends - 1)]].T[..., None]
    cheapest = (seen <= (1 + _TIE) * second) & (seen <= _FAR_ABOVE * least)
    return alive & (cheapest | point.used)


def _largest_latency(network: Network) -> Float[Array, ""]:
    return jnp.maximum(network.latency, network.feedback_latency).max()


def _default_workload(network: Network) -> Float[Array, "*batch backends"]:
    return of_batch(default_start, network)[1]


def _rounded(rounding: Callable[[float], float], seconds: Float[Array, "*batch"]) -> float | Float[Array, "*batch"]:
    """Of a single network a round number, of a batch or under tracing the numbers as they are."""
    return rounding(float(seconds)) if seconds.ndim == 0 and is_concrete(seconds) else seconds


def _ratio(numerator: ArrayLike, denominator: ArrayLike) -> Float[Array, "..."]:
    """The quotient, inf where the denominator is 0."""
    positive = jnp.asarray(denominator) > 0
    return jnp.where(positive, numerator / jnp.where(positive, denominator, 1), jnp.inf)
