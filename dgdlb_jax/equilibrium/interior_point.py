"""The interior-point methods behind `solve_optimum`: a fast one, and one that cannot fail for those it leaves.

Arrays have the lanes last, see `dgdlb_jax.equilibrium.flow_problem`.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from dgdlb_jax.equilibrium.flow_problem import (
    Backends,
    FlowProblem,
    Flows,
    Frontends,
    Lanes,
    Point,
    Verdict,
    divisor,
    judge,
    longest_rise,
    move_workload,
    newton_direction,
    reach,
    start,
)

_FAST_STEPS = 100  # nearly all networks take 8 to 18
# Near-ties, as where latencies are a thousandth of the time in service, can make bold steps go in circles. After so many,
# complementarity falls by less at a time, and flows and prices move by the same part of their step: where they do not, workloads
# no longer carry the flows, and what is unserved drives complementarity up again.
_BOLD_STEPS = 18
_SAFE_STEPS = 400
_TRUST = 1.0
_BOLD, _CAREFUL = 1e-4, 0.2  # the smallest part of the complementarity that a step may aim at
_CENTRALITY = 1e4  # flow times slack stays within this factor of its mean


def interior_point(problem: FlowProblem) -> tuple[Point, Bool[Array, " lanes"]]:
    """A point close to the optimum, and which lanes turned out infeasible.

    The safe method works on the dual side alone and cannot resolve small slacks, so the fast one has the last word: it starts from
    a point that is well centred and nearly there.
    """
    first = start(problem)

    def attempt(state):
        number, point, done, hopeless = state
        point, done, hopeless = _iterate(problem, _fast_step, _FAST_STEPS, point, done, hopeless)
        again = number == 0
        safe, _, hopeless = _iterate(problem, _safe_step, jnp.where(again, _SAFE_STEPS, 0), first, done, hopeless)
        flow = _barrier_flow(problem, safe.aim, problem.slack(safe.workload, safe.multiplier))
        safe = Point(flow, safe.workload, safe.multiplier, safe.aim)
        left = jax.tree.map(lambda fast, safe: jnp.where(done | ~again, fast, safe), point, safe)
        return number + 1, left, done | hopeless, hopeless

    # A loop of two rounds, so that the fast method is compiled once.
    nowhere = jnp.zeros(problem.rate.shape[-1], bool)
    unfinished = lambda state: (state[0] < 2) & ~state[2].all()
    _, point, _, hopeless = jax.lax.while_loop(unfinished, attempt, (jnp.int32(0), first, nowhere, nowhere))
    return point, hopeless


def _iterate(
    problem: FlowProblem,
    step: Callable,
    most: int | Int[Array, ""],
    point: Point,
    done: Bool[Array, " lanes"],
    hopeless: Bool[Array, " lanes"],
) -> tuple[Point, Bool[Array, " lanes"], Bool[Array, " lanes"]]:
    """Steps until every lane is done; a lane that is done stays as it is, so its answer does not depend on the others."""

    def unfinished(state):
        k, _, done, _ = state
        return (k < most) & ~done.all()

    def advance(state):
        k, point, done, hopeless = state
        new, close, seen = step(problem, point, k)
        hopeless = hopeless | (~done & seen.infeasible)
        done = done | close | seen.infeasible | ~jnp.isfinite(seen.objective)
        return k + 1, jax.tree.map(lambda now, before: jnp.where(done, before, now), new, point), done, hopeless

    return jax.lax.while_loop(unfinished, advance, (jnp.int32(0), point, done, hopeless))[1:]


def _fast_step(problem: FlowProblem, point: Point, k: Int[Array, ""]) -> tuple[Point, Bool[Array, " lanes"], Verdict]:
    """Predictor-corrector step number k; whether the point it started from is close enough, and the verdict on that point.

    **Source:** Mehrotra (1992) for the choice of centring; own derivation of the system and the nonlinear moves.
    """
    arcs, flow = problem.arcs, point.flow
    price, stiffness = problem.price(point.workload), problem.stiffness(point.workload)
    least = 0.5 * jnp.finfo(price.dtype).eps * (problem.cost + price[None])
    slack = jnp.maximum(problem.slack(point.workload, point.multiplier), jnp.where(arcs, least, 1))
    product = jnp.where(arcs, flow * slack, 0).sum((0, 1))
    seen = judge(problem, point, product)
    missing, unserved = problem.unmet(flow, point.workload)

    def direction(target: Flows | float) -> tuple[Flows, Flows, Backends, Frontends]:
        push = jnp.where(arcs, target / jnp.where(arcs, flow, 1) - slack, 0)
        change, rise, lift = newton_direction(flow / slack, 1 / stiffness, missing, unserved, push)
        return change, rise[None] - lift[:, None], rise, lift

    # Straight at the solution: how far one can go tells how much centring is due.
    change, opening, _, _ = direction(0.0)
    far = jnp.minimum(jnp.minimum(reach(arcs, flow, change), reach(arcs, slack, opening)), 1)
    after = jnp.where(arcs, (flow + far[None, None] * change) * (slack + far[None, None] * opening), 0).sum((0, 1))
    centring = jnp.clip((after / divisor(product)) ** 3, jnp.where(k < _BOLD_STEPS, _BOLD, _CAREFUL), 1)
    # Complementarity never aims back up: steps end above their aim, since prices are convex, and would drift away otherwise.
    aim = centring * jnp.minimum(product, point.aim)
    aim = jnp.maximum(aim, jnp.maximum((1 - far) * seen.residual, 0.05 * jnp.finfo(price.dtype).eps * seen.objective))

    change, opening, rise, lift = direction(problem.shared_out(aim) - far[None, None] * change * opening)
    keep = jnp.clip(product / divisor(seen.objective), 1e-3, 0.1)
    flow_step = jnp.minimum((1 - keep) * reach(arcs, flow, change), 1)
    price_step = jnp.minimum(jnp.minimum((1 - keep) * reach(arcs, slack, opening), 1), longest_rise(price, rise))
    together, bold = jnp.minimum(flow_step, price_step), k < _BOLD_STEPS
    flow_step, price_step = jnp.where(bold, flow_step, together), jnp.where(bold, price_step, together)
    ahead = jnp.where(arcs, slack + price_step[None, None] * opening, jnp.inf).min(0)
    workload = move_workload(problem, point.workload, price_step[None] * rise, _TRUST * ahead)
    moved = Point(flow + flow_step[None, None] * change, workload, point.multiplier + price_step[None] * lift, aim)
    return _recentre(problem, moved, slack), seen.close, seen


def _recentre(problem: FlowProblem, point: Point, before: Flows) -> Point:
    """Multipliers that leave slack on every arc, flows whose product with the slack is neither far above the mean nor far below
    the aim."""
    short = jnp.where(problem.arcs, 0.005 * before - problem.slack(point.workload, point.multiplier), 0).max(1)
    multiplier = point.multiplier - jnp.maximum(short, 0)
    slack = jnp.maximum(problem.slack(point.workload, multiplier), jnp.where(problem.arcs, 0.001 * before, 1))
    mean = problem.shared_out(jnp.where(problem.arcs, point.flow * slack, 0).sum((0, 1)))
    flow = jnp.clip(point.flow, problem.shared_out(point.aim) / (_CENTRALITY * slack), _CENTRALITY * mean / slack)
    return Point(jnp.where(problem.arcs, flow, 0), point.workload, multiplier, point.aim)


def _safe_step(problem: FlowProblem, point: Point, k: Int[Array, ""]) -> tuple[Point, Bool[Array, " lanes"], Verdict]:
    r"""A step of Newton's method with a line search on the concave dual with a logarithmic barrier.

    $$ \max_{\nu, p} \sum_i \lambda_i \nu_i - \sum_j \phi_j^*(p_j) + \mu \sum_{ij} \log(\text{cost}_{ij} + p_j - \nu_i) $$
    Its gradient is what is unmet by the flows $f = \mu / z$. A step is accepted when the gradient at its end does not point back
    along it: by concavity the objective has then risen, whatever the curves look like. Once that step was small, $\mu$ falls.
    """
    del k
    arcs, price = problem.arcs, problem.price(point.workload)
    slack = problem.slack(point.workload, point.multiplier)
    flow = _barrier_flow(problem, point.aim, slack)
    point = Point(flow, point.workload, point.multiplier, point.aim)
    seen = judge(problem, point, point.aim)

    missing, unserved = problem.unmet(flow, point.workload)
    conductance, ground = flow / slack, 1 / problem.stiffness(point.workload)
    _, rise, lift = newton_direction(conductance, ground, missing, unserved, jnp.zeros_like(flow))
    decrement = (missing * lift).sum(0) + (unserved * rise).sum(0)
    longest = jnp.minimum(0.95 * reach(arcs, slack, rise[None] - lift[:, None]), longest_rise(price, rise))

    def ahead(step: Lanes) -> tuple[Backends, Frontends]:
        there = jnp.where(arcs, slack + step[None, None] * (rise[None] - lift[:, None]), jnp.inf).min(0)
        workload = move_workload(problem, point.workload, step[None] * rise, 0.1 * there)
        return workload, point.multiplier + step[None] * lift

    def overshoots(step: Lanes) -> Bool[Array, " lanes"]:
        workload, multiplier = ahead(step)
        there = problem.slack(workload, multiplier)
        kept = (~arcs | (there > 0.01 * slack)).all((0, 1))
        missing, unserved = problem.unmet(_barrier_flow(problem, point.aim, jnp.maximum(there, 0.01 * slack)), workload)
        gradient = (missing * (multiplier - point.multiplier)).sum(0)
        gradient += (unserved * (problem.price(workload) - price)).sum(0)
        return ~(kept & (gradient >= -0.5 * step * decrement)) & (step > 1e-9)

    step = jax.lax.while_loop(
        lambda step: overshoots(step).any(),
        lambda step: jnp.where(overshoots(step), 0.5 * step, step),
        jnp.minimum(longest, 1),
    )
    workload, multiplier = ahead(step)
    tolerable = jnp.maximum(1e-5 * seen.objective, 1e3 * seen.goal)
    last = point.aim <= tolerable
    lower = ~last & (decrement <= 0.25 * point.aim / problem.count)
    finished = last & (decrement <= 1e-6 * point.aim / problem.count)
    return Point(flow, workload, multiplier, jnp.where(lower, 0.1, 1.0) * point.aim), finished, seen


def _barrier_flow(problem: FlowProblem, aim: Lanes, slack: Flows) -> Flows:
    return problem.shared_out(aim) / slack
