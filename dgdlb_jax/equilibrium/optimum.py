"""The centralized optimum: where traffic should go, with a certificate."""

import math
from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.lax import stop_gradient
from jaxtyping import Array, Bool, Float, Int, PyTree

from dgdlb_jax.equilibrium.feasibility import explain_infeasible
from dgdlb_jax.equilibrium.flow_problem import (
    FlowProblem,
    Flows,
    Frontends,
    Lanes,
    Open,
    Point,
    divisor,
    newton_direction,
    row_min,
)
from dgdlb_jax.equilibrium.interior_point import interior_point
from dgdlb_jax.model.batch import of_batch
from dgdlb_jax.model.network import Network
from dgdlb_jax.numerics import device
from dgdlb_jax.numerics.programs import compiled
from dgdlb_jax.numerics.promotion import standard_promotion
from dgdlb_jax.numerics.results import Result, is_concrete, raise_on_failure
from dgdlb_jax.numerics.threads import in_threads, parts_for
from dgdlb_jax.numerics.tiles import map_tiles

# The relative duality gap that counts as solved, in float64; other precisions get what their rounding allows.
GAP = 1e-9

# Arcs per tile on a CPU: the ten or so arrays over arcs that a step touches then fit the cache of a core.
_ARCS_IN_CACHE = 6400
_COPIES = 30  # numbers per arc that solving takes at least

_ROUNDINGS = 100  # of the rates, by which a gap may be off
_POLISHING = 3  # Newton steps on the support; each takes the error from the proximal term down by about sqrt(eps)


class Optimum(eqx.Module):
    r"""Where traffic should go. In a batch every array has one leading axis.

    - `routing`: $x$, `(frontends, backends)`, the share of a frontend's traffic on each arc. A frontend without traffic points to its
      cheapest arc, a padded one nowhere. Need not be the only optimal one when latencies tie.
    - `workload`: $N$, `(backends,)` requests; unique.
    - `multiplier`: $\nu$, `(frontends,)` seconds: the marginal latency $1/\ell_j'(N_j) + \text{cost}_{ij}$ on all arcs in use, and a
      lower bound on the others; unique.
    - `mean_latency`: seconds per request, network included; 0 without traffic.
    - `network_share`: the part of `mean_latency` that is spent in the network, between 0 and 1.
    - `gap`: certified relative duality gap: `mean_latency` is at most this fraction above the smallest possible.
    - `result`: a code, see `dgdlb_jax.numerics.results.Result`.
    """

    routing: Float[Array, "*batch frontends backends"]
    workload: Float[Array, "*batch backends"]
    multiplier: Float[Array, "*batch frontends"]
    mean_latency: Float[Array, "*batch"]
    network_share: Float[Array, "*batch"]
    gap: Float[Array, "*batch"]
    result: Int[Array, "*batch"]


@standard_promotion
def solve_optimum(network: Network, *, throw: bool = True, threads: int | None = None) -> Optimum:
    r"""The routing with the smallest mean latency at constant mean rates.

    $$ \min_{x, N} \sum_j N_j + \sum_{ij} \lambda_i x_{ij} \, \text{cost}_{ij} \quad\text{s.t.}\quad
       \sum_i \lambda_i x_{ij} = \ell_j(N_j), \ x_i \in \text{simplex} $$

    **Arguments:**

    - `network`: one network or a batch; `jax.vmap` works as well. A capacity that changes in time counts with its mean.
    - `throw`: raise when there is no optimum. Under `jit` and `vmap` nothing is raised: look at `.result`.
    - `threads`: how many parts of a batch are solved at the same time on a CPU, at most; as in `simulate_batch`.

    **Returns:** an `Optimum`. In float64 its gap is at most 1e-9, or `result` says `not_converged`; in float32, and within a
    hundred-thousandth of saturation, it is what rounding leaves. A frontend is routed as exactly as the others however little it sends.

    Differentiable in rates, cost latencies and service parameters, forward and reverse, while the set of arcs in use does not change.
    Where the routing is not unique, `workload`, `multiplier` and `mean_latency` still have the right derivatives.

    **Raises:** `InputError` when demand exceeds capacity, with the frontends and backends that are short and by how much.

    **Source:** the problem is that of arXiv:2504.10693; method and certificate are own derivations.
    """
    optimum = of_batch(partial(_solve_networks, threads=threads), network)
    if throw and is_concrete(optimum):
        explain_infeasible(network, optimum.result)
        raise_on_failure(optimum.result, "solve_optimum")
    return optimum


def _solve_networks(batch: Network, threads: int | None) -> Optimum:
    factor = None if batch.capacity is None else batch.capacity.mean_rate
    networks = batch.arrival_rate, batch.cost_latency, batch.mask, batch.service, factor
    lanes, devices = _tiling(networks)
    size = networks[1].shape[0]
    parts = parts_for(size, networks, threads) if devices == 1 else 1
    lanes = min(lanes, math.ceil(size / parts))
    numbers = _COPIES * lanes * parts * math.prod(networks[1].shape[1:])
    device.check_fits(networks[1].dtype.itemsize * numbers, "The optimum of so large a network", "use smaller networks")
    return in_threads(lambda part: _solve_batch(part, lanes, devices), networks, parts)


def require_served(network: Network, optimum: Optimum) -> None:
    """Raise `InputError` for a single network with values that has no optimum, because it asks for more than can be served."""
    if network.batch is None and is_concrete(network, optimum) and int(optimum.result) == Result.infeasible:
        explain_infeasible(network, optimum.result)
        raise_on_failure(optimum.result, "solve_optimum")


def _tiling(networks: PyTree) -> tuple[int, int]:
    """How many networks are solved side by side, and on how many devices."""
    batch, frontends, backends = networks[1].shape
    lanes = min(batch, max(1, _ARCS_IN_CACHE // (frontends * backends))) if device.on_cpu() else batch
    devices = jax.local_device_count() if is_concrete(networks) else 1
    return lanes, max(1, min(devices, batch // lanes))


@compiled
def _solve_batch(networks: PyTree, lanes: int, devices: int) -> Optimum:
    """Networks with the batch axis first, solved in tiles that stay in the cache."""
    return map_tiles(lambda tile, _: _solve_tile(tile), networks, (), lanes=lanes, devices=devices)


def _solve_tile(networks) -> Optimum:
    """The solver works with the lanes last, callers have the batch axis first."""
    problem = FlowProblem.of(*jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 0, -1), networks))
    return Optimum(**jax.tree.map(lambda leaf: jnp.moveaxis(leaf, -1, 0), _solve(problem)))


def _solve(problem: FlowProblem) -> dict[str, Array]:
    """The fields of an `Optimum`, lanes last."""
    fixed = stop_gradient(problem)
    rough, hopeless = interior_point(fixed)
    used = _support(fixed, rough)
    exact = _polish(problem, used, _on_support(fixed, used, rough))
    # Rarely (two optimal supports next to each other) the polished point is worse. Its derivative still is the best there is.
    gap, rough_gap = _gap(fixed, stop_gradient(exact)), _gap(fixed, rough)
    worse = ~(gap <= rough_gap)
    best = jax.tree.map(lambda r, e: jnp.where(worse, r + (e - stop_gradient(e)), e), rough, exact)
    return _report(problem, best, jnp.where(worse, rough_gap, gap), hopeless)


def _support(problem: FlowProblem, point: Point) -> Open:
    """Arcs in use: those whose share of the traffic is larger than their relative slack (one of the two is nearly 0)."""
    share = point.flow / divisor(problem.rate)[:, None]
    seen = problem.cost + problem.price(point.workload)[None]
    slack = 1 - point.multiplier[:, None] / seen
    return problem.arcs & (share > slack)


def _on_support(problem: FlowProblem, used: Open, point: Point) -> Point:
    flow = jnp.where(used, point.flow, 0)
    flow = flow * (problem.rate / divisor(flow.sum(1)))[:, None]
    return Point(flow, jnp.where(used.any(0), point.workload, 0), point.multiplier, point.aim)


def _polish(problem: FlowProblem, used: Open, point: Point) -> Point:
    r"""Newton's method for the equations on the support, started from a point that is nearly there.

    A proximal term $\frac{\delta \nu_i}{2 \lambda_i} (f_{ij} - f^k_{ij})^2$ makes the solution unique when routing is not. The start is
    a constant to autodiff and the steps are not, so their derivative is that of the implicit function theorem.
    """
    delta = float(jnp.finfo(point.flow.dtype).eps) ** 0.5
    conductance = jnp.where(used, (stop_gradient(problem.rate / divisor(delta * point.multiplier)))[:, None], 0)
    sending, reached = used.any(1), used.any(0)

    def step(point, _):
        flow, workload, multiplier = point.flow, point.workload, point.multiplier
        price, stiffness = problem.price(workload), problem.stiffness(workload)
        missing = jnp.where(sending, problem.rate - flow.sum(1), 0)
        unserved = jnp.where(reached, flow.sum(0) - problem.service_rate(workload), 0)
        push = jnp.where(used, multiplier[:, None] - problem.cost - price[None], 0)
        change, rise, lift = newton_direction(conductance, 1 / stiffness, missing, unserved, push)
        workload = jnp.where(reached, jnp.maximum(workload + rise * price / stiffness, 0), 0)
        return Point(jnp.where(used, flow + change, 0), workload, multiplier + lift, point.aim), None

    return jax.lax.scan(step, point, None, length=_POLISHING)[0]


def _gap(problem: FlowProblem, point: Point) -> Lanes:
    r"""Certified relative duality gap; inf when the flows exceed what backends can serve.

    The flows, made exact row by row, cost $P = \sum_j \ell_j^{-1}(r_j) + \sum f \,\text{cost}$; the prices of the point's workloads $N$
    bound every routing from below by $D = \sum_i \lambda_i \min_j g_{ij} - \sum_j (p_j \ell_j(N_j) - N_j)$, $g = \text{cost} + p$.
    $$ P - D = \sum_{ij} f_{ij} (g_{ij} - \min_k g_{ik}) + \sum_j \big( \ell_j^{-1}(r_j) - N_j - p_j (r_j - \ell_j(N_j)) \big) $$
    Near the supremum this is far less sensitive to rounding than the same bound with $N_j = \ell_j^{-1}(r_j)$.
    """
    flow = jnp.where(problem.arcs, jnp.maximum(point.flow, 0), 0)
    flow = flow * (problem.rate / divisor(flow.sum(1)))[:, None]
    inflow = flow.sum(0)
    workload, price = problem.inverse(inflow), problem.price(point.workload)
    seen = problem.cost + price[None]
    slack = seen - row_min(problem.arcs, seen)[:, None]
    served = jnp.where(problem.reached, problem.service_rate(point.workload), 0)
    bregman = workload - point.workload - price * (inflow - served)
    gap = (flow * slack).sum((0, 1)) + jnp.maximum(bregman, 0).sum(0)
    cost = workload.sum(0) + (flow * problem.cost).sum((0, 1))
    return jnp.where(jnp.isfinite(cost), gap / divisor(cost), jnp.inf)


def _report(problem: FlowProblem, point: Point, gap: Lanes, hopeless: Bool[Array, " lanes"]) -> dict[str, Array]:
    flow = jnp.maximum(point.flow, 0)
    network, total = (flow * problem.cost).sum((0, 1)), problem.rate.sum(0)
    cost = point.workload.sum(0) + network
    served = (problem.price(point.workload) * problem.service_rate(point.workload)).sum(0)
    routing, multiplier = _complete(problem, flow, point)
    eps = float(jnp.finfo(gap.dtype).eps)
    # A rate is known to a rounding, which near a supremum, where the price is high, is much workload.
    tolerance = jnp.maximum(max(GAP, 1e4 * eps), _ROUNDINGS * eps * served / divisor(cost))
    result = jnp.where(gap <= tolerance, int(Result.successful), int(Result.not_converged))
    result = jnp.where(jnp.isfinite(cost), result, int(Result.not_finite))
    result = jnp.where(hopeless, int(Result.infeasible), result).astype(jnp.int32)
    return dict(
        routing=routing,
        workload=point.workload,
        multiplier=multiplier,
        mean_latency=cost / divisor(total),
        network_share=network / divisor(cost),
        gap=gap,
        result=result,
    )


def _complete(problem: FlowProblem, flow: Flows, point: Point) -> tuple[Flows, Frontends]:
    """Routing and multipliers, those of frontends without traffic included: they point to their cheapest arc."""
    sending = problem.sending
    routing = flow / divisor(flow.sum(1))[:, None]
    seen = problem.cost + problem.price(point.workload)[None]
    cheapest = row_min(problem.allowed, seen)
    best = problem.allowed & (
        jnp.arange(seen.shape[1])[None, :, None] == jnp.where(problem.allowed, seen, jnp.inf).argmin(1)[:, None]
    )
    routing = jnp.where(sending[:, None], routing, best.astype(routing.dtype))
    return routing, jnp.where(sending, point.multiplier, cheapest)
