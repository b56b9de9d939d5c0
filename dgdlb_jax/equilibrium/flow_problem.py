r"""The static optimum as a problem over flows, and what its solvers share.

Everything here has the layout *lanes last*: `(frontends, backends, lanes)` for arcs, `(frontends, lanes)`, `(backends, lanes)`,
`(lanes,)`. The lanes are independent networks, solved side by side.

With flows $f$, multipliers $\nu$, slacks $z$ and prices $p_j = 1 / \ell_j'(N_j)$, the optimum is where
$$ \text{cost}_{ij} + p_j - \nu_i = z_{ij}, \quad f_{ij} z_{ij} = 0, \quad \sum_j f_{ij} = \lambda_i, \quad \sum_i f_{ij} = \ell_j(N_j). $$
Solvers keep $N$ and $\nu$ and let $p$ and $z$ follow: the dual side is then always feasible, and no supremum needs a barrier.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from dgdlb_jax.model.service import AbstractService
from dgdlb_jax.numerics.laplacian import solve_bipartite

Flows = Float[Array, "frontends backends lanes"]
Open = Bool[Array, "frontends backends lanes"]
Frontends = Float[Array, "frontends lanes"]
Backends = Float[Array, "backends lanes"]
Lanes = Float[Array, " lanes"]

_PRICE_RISE = 2.0  # no step raises a price beyond three times its value, as far as the linearisation tells
_PRICE_STEPS = 60
# Of a rounding of a frontend's rate: an arc to a backend that serves less is closed, since its price would overflow.
_SMALLEST_SHARE = 1e-2
# A frontend below tiny^0.7 (1e-215, in float32 1e-26) of all traffic counts as one without, since its flows would underflow.
_SMALLEST_RATE = 0.7


class FlowProblem(eqx.Module):
    """Networks side by side, reduced to what the static optimum depends on.

    - `rate`: of each frontend, requests/s.
    - `cost`: network time charged on each arc, seconds.
    - `allowed`: the mask.
    - `service`: the curves.
    - `factor`: on the service rate, or None.
    - `arcs`: which arcs may carry traffic: allowed, from a frontend that has some, to a backend that serves some of it.
    """

    rate: Frontends
    cost: Flows
    allowed: Open
    service: AbstractService
    factor: Backends | None
    arcs: Open

    @classmethod
    def of(
        cls, rate: Frontends, cost: Flows, allowed: Open, service: AbstractService, factor: Backends | None
    ) -> "FlowProblem":
        """The problem of networks that are already in lanes, all numbers in one precision."""
        dtype = jnp.result_type(rate, cost)
        rate, cost, service, factor = jax.tree.map(
            lambda leaf: leaf.astype(dtype) if eqx.is_inexact_array(leaf) else leaf, (rate, cost, service, factor)
        )
        most = service.supremum if factor is None else jnp.where(factor > 0, factor * service.supremum, 0)
        rate = jnp.where(rate > jnp.finfo(dtype).tiny ** _SMALLEST_RATE * rate.sum(0)[None], rate, 0)
        arcs = allowed & (rate > 0)[:, None] & (most[None] > _SMALLEST_SHARE * jnp.finfo(dtype).eps * rate[:, None])
        return cls(rate, cost, allowed, service, factor, arcs)

    @property
    def reached(self) -> Bool[Array, "backends lanes"]:
        """Backends that some traffic can reach."""
        return self.arcs.any(0)

    @property
    def sending(self) -> Bool[Array, "frontends lanes"]:
        """Frontends that have traffic and somewhere to send it."""
        return self.arcs.any(1)

    @property
    def count(self) -> Lanes:
        """How many arcs may carry traffic; 1 where none."""
        return jnp.maximum(self.arcs.sum((0, 1)), 1).astype(self.rate.dtype)

    def shared_out(self, complementarity: Lanes) -> Flows:
        r"""A sum of flow times slack, shared out over the arcs in proportion to their frontends' rates.

        The central path is then the one where share times slack is the same on all arcs, so the routing of a frontend is as accurate
        however little it sends.
        """
        weight = self.rate * self.arcs.sum(1).astype(self.rate.dtype)
        share = self.rate / divisor(weight.sum(0))[None]
        return jnp.where(self.arcs, complementarity[None, None] * share[:, None], 0)

    @property
    def supremum(self) -> Backends:
        """What each backend can serve at most, requests/s; 0 where nothing arrives."""
        return jnp.where(self.reached, self._scale(self.service.supremum), 0)

    @property
    def capacity(self) -> Backends:
        """The supremum where it is finite, else the nominal capacity; 0 where nothing arrives."""
        nominal = jnp.where(self.reached, self._scale(self.service.nominal_capacity), 0)
        return jnp.where(jnp.isinf(self.supremum), nominal, self.supremum)

    def service_rate(self, workload: Backends) -> Backends:
        """Requests/s; 0 where nothing arrives."""
        return jnp.where(self.reached, self._scale(self.service.rate(workload)), 0)

    def price(self, workload: Backends) -> Backends:
        r"""Marginal latency $p = 1/\ell'$, seconds."""
        return self._unscale(self.service.marginal_latency(workload))

    def stiffness(self, workload: Backends) -> Backends:
        r"""How the price rises with the rate, $\phi'' = dp/dr = -\ell''/\ell'^3$, seconds squared per request; positive."""
        price = self.price(workload)
        floor = jnp.finfo(price.dtype).eps ** 2 * price / divisor(self.rate.sum(0))[None]
        # One factor after the other, since a price to the third power may overflow.
        return jnp.maximum(-self._scale(self.service.curvature(workload)) * price * price * price, floor)

    def inverse(self, rate: Backends) -> Backends:
        """The workload that is served at `rate`; inf where there is none, 0 where nothing arrives."""
        return jnp.where(self.reached, self.service.inverse(self._unscale(rate)), 0)

    def slack(self, workload: Backends, multiplier: Frontends) -> Flows:
        """Marginal latency of each arc above the frontend's multiplier; 1 on arcs that are closed."""
        return jnp.where(self.arcs, self.cost + self.price(workload)[None] - multiplier[:, None], 1)

    def unmet(self, flow: Flows, workload: Backends) -> tuple[Frontends, Backends]:
        r"""What is missing from each frontend's flows, $\lambda_i - \sum_j f_{ij}$, and what is not served, $\sum_i f_{ij} - \ell_j$."""
        missing = jnp.where(self.sending, self.rate - flow.sum(1), 0)
        return missing, flow.sum(0) - self.service_rate(workload)

    def _scale(self, value: Backends) -> Backends:
        return value if self.factor is None else self.factor * value

    def _unscale(self, value: Backends) -> Backends:
        return value if self.factor is None else value / jnp.maximum(self.factor, 1e-12)


class Point(eqx.Module):
    """Where a solver stands: flow on arcs, workload of backends, multiplier of frontends, complementarity last aimed at."""

    flow: Flows
    workload: Backends
    multiplier: Frontends
    aim: Lanes


def start(problem: FlowProblem) -> Point:
    """Traffic spread in proportion to capacity, evened out over a sparse mask by a few sweeps, and workloads that carry it."""
    capacity = problem.capacity
    load = (problem.rate.sum(0) / divisor(capacity.sum(0)))[None]

    def spread(attraction):
        weight = jnp.where(problem.arcs, attraction, 0)
        return problem.rate[:, None] * weight / divisor(weight.sum(1))[:, None]

    def sweep(_, attraction):
        relative = spread(attraction).sum(0) / divisor(capacity * load)
        return attraction / jnp.maximum(relative, 0.1)

    flow = spread(jax.lax.fori_loop(0, 8, sweep, capacity))
    most = problem.supremum * (1 - 0.5 * jnp.clip(1 - load, 1e-4, 1))
    workload = problem.inverse(jnp.minimum(flow.sum(0), most))
    seen = problem.cost + problem.price(workload)[None]
    mean = (flow * seen).sum(1) / divisor(problem.rate)
    multiplier = jnp.where(problem.sending, row_min(problem.arcs, seen) - 0.2 * mean, 0)
    aim = jnp.where(problem.arcs, flow * problem.slack(workload, multiplier), 0).sum((0, 1))
    return Point(flow, workload, multiplier, aim)


class Verdict(eqx.Module):
    """How good a point is: `close` enough to the optimum to stop, its prices prove that demand is `infeasible`, by how much flows
    do not add up (`residual`), `objective`, and the complementarity at which to stop (`goal`); the last three in requests."""

    close: Bool[Array, " lanes"]
    infeasible: Bool[Array, " lanes"]
    residual: Lanes
    objective: Lanes
    goal: Lanes


def judge(problem: FlowProblem, point: Point, complementarity: Lanes) -> Verdict:
    r"""The verdict on a point whose flows times slacks add up to `complementarity`.

    Demand exceeds capacity when $\sum_i \lambda_i \min_j p_j > \sum_j p_j \sup \ell_j$ for any prices (Farkas).
    """
    eps = jnp.finfo(problem.rate.dtype).eps
    price = problem.price(point.workload)
    missing, unserved = problem.unmet(point.flow, point.workload)
    residual = (price * jnp.abs(unserved)).sum(0) + jnp.abs(point.multiplier * missing).sum(0)
    objective = point.workload.sum(0) + (point.flow * problem.cost).sum((0, 1))
    rounding = eps * (price * problem.service_rate(point.workload)).sum(0)
    goal = jnp.maximum(1e-11, 30 * eps) * objective + 50 * rounding
    close = (complementarity <= goal) & (residual <= jnp.maximum(1e-8, 1e3 * eps) * objective + 100 * rounding)
    asked = (problem.rate * row_min(problem.arcs, jnp.broadcast_to(price[None], problem.arcs.shape))).sum(0)
    offered = jnp.where(problem.reached, price * problem.supremum, 0).sum(0)
    stranded = ((problem.rate > 0) & ~problem.sending).any(0)
    return Verdict(close, stranded | (asked > offered * (1 + 8 * eps)), residual, objective, goal)


def newton_direction(
    conductance: Flows, ground: Backends, missing: Frontends, unserved: Backends, push: Flows
) -> tuple[Flows, Backends, Frontends]:
    r"""Newton's direction: changes of flow, price and multiplier.

    Linearised, arcs are resistors, multipliers and prices are potentials, and one over the stiffness conducts to the ground:
    $df_{ij} = D_{ij} (d\nu_i - dp_j + push_{ij})$, $\sum_j df_{ij} = missing_i$, $dp_j = \phi''_j (unserved_j + \sum_i df_{ij})$.
    """
    pushed = conductance * push
    lift, rise = solve_bipartite(conductance, ground, missing - pushed.sum(1), unserved + pushed.sum(0))
    return conductance * (lift[:, None] - rise[None] + push), rise, lift


def longest_rise(price: Backends, rise: Backends) -> Lanes:
    """The largest multiple of `rise` that the linearisation of prices can be trusted with."""
    return (_PRICE_RISE * price / jnp.maximum(rise, jnp.finfo(price.dtype).tiny)).min(0)


def move_workload(problem: FlowProblem, workload: Backends, rise: Backends, tolerance: Backends) -> Backends:
    r"""The workload after its price should have risen by `rise`, up to `tolerance`.

    First a step that suits the rate: upwards along the tangent of $\ell$, which undershoots a rate near the supremum, downwards
    with its curvature as well (Halley's method), which is exact for a hyperbolic curve and does not overshoot an idle backend.
    Where the price then is off by more than the tolerance, Newton's method for the price, with bisection.
    """
    price, stiffness = problem.price(workload), problem.stiffness(workload)
    change = rise * price / stiffness  # dN = dr / ell'
    bend = 0.5 * stiffness / price**2 * jnp.maximum(-change, 0)  # -ell'' / (2 ell') |dN|
    lowest = 0.01 * workload + jnp.finfo(workload.dtype).eps ** 2 * workload.sum(0)[None]
    target = jnp.maximum(price + rise, problem.price(lowest))

    def error(workload):
        return jnp.where(problem.reached, problem.price(workload) - target, 0)

    def wrong(state):
        k, workload, _, _ = state
        return (k < _PRICE_STEPS) & (jnp.abs(error(workload)) > tolerance).any()

    def correct(state):
        k, workload, low, high = state
        off = error(workload)
        low, high = jnp.where(off < 0, workload, low), jnp.where(off > 0, workload, high)
        newton = workload - off * problem.price(workload) / problem.stiffness(workload)
        between = jnp.where(jnp.isinf(high), 4 * workload, 0.5 * (low + high))
        inside = (newton > low) & (newton < jnp.minimum(high, 8 * workload))
        better = jnp.where(inside, newton, between)
        return k + 1, jnp.where(jnp.abs(off) > tolerance, better, workload), low, high

    first = jnp.maximum(workload + change / (1 + bend), lowest)
    state = (0, first, lowest, jnp.full_like(first, jnp.inf))
    return jnp.where(problem.reached, jax.lax.while_loop(wrong, correct, state)[1], 0)


def reach(arcs: Open, value: Flows, change: Flows) -> Lanes:
    """How many times the change can be added before some value falls to zero."""
    falling = arcs & (change < 0)
    return jnp.where(falling, value / jnp.where(falling, -change, 1), jnp.inf).min((0, 1))


def row_min(arcs: Open, values: Flows) -> Frontends:
    """The smallest value on each frontend's arcs; 0 without arcs."""
    return jnp.where(arcs.any(1), jnp.where(arcs, values, jnp.inf).min(1), 0)


def divisor(value: Float[Array, "..."]) -> Float[Array, "..."]:
    """The value, or 1 where it is 0."""
    return jnp.where(value > 0, value, 1)
