"""How wrong is the approximate gradient that DGD-LB steers by: the marginal latency as frontends see it, and the two exact ones."""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from dgdlb_jax.model.batch import require_single
from dgdlb_jax.model.network import Network
from dgdlb_jax.numerics import device
from dgdlb_jax.numerics.delay import ReverseMode
from dgdlb_jax.numerics.patience import require_patience
from dgdlb_jax.numerics.programs import compiled
from dgdlb_jax.numerics.promotion import standard_promotion
from dgdlb_jax.numerics.results import (
    ConvergenceError,
    InputError,
    Result,
    first_failure,
    is_concrete,
    raise_on_failure,
    require_values,
)
from dgdlb_jax.numerics.simplex import project_tangent_cone
from dgdlb_jax.numerics.types import Matrices, Matrix
from dgdlb_jax.policies.base import AbstractFlowPolicy, AbstractPolicy, Observation, State
from dgdlb_jax.simulation.engine import simulate
from dgdlb_jax.simulation.plan import plan
from dgdlb_jax.simulation.trajectory import SaveAt, SimulationState, Trajectory
from dgdlb_jax.stability.defaults import suggest_duration

_TAIL = 0.02  # a reaction of which the last half of the run still brought more than this has not died out
_SECONDS_PER_ARC_AND_STEP = 6e-8  # of one value and gradient on one core: 5 to 8e-8 from 20 to 4096 arcs
_STILL = 1e-9  # a projected gradient smaller than this part of the gradient is rounding


class MarginalLatency(eqx.Module):
    r"""What one more request costs, sent at a time on an arc; seconds. inf on arcs that do not exist.

    - `time` `(time,)`: when it is sent, seconds.
    - `approximate` `(time, frontends, backends)`: what DGD-LB takes it for, $1/\ell_j'(N_j(t - \tau^{fb}_{ij})) + \tau^{cost}_{ij}$.
    - `open_loop`: what it costs when nobody reacts: routing as it was.
    - `closed_loop`: what it costs when all frontends react to it by their rule; NaN when the reaction does not die out.
    - `routing` `(time, frontends, backends)`: at these times.
    - `tail`: the part of the largest closed-loop value that the last half of `run_on` still brought. Most of it comes from the requests
      sent last; the error that is left is smaller, if the reaction dies out.
    - `result`: a code; `not_settled` where the reaction did not die out.
    """

    time: Float[Array, " time"]
    approximate: Float[Array, "time frontends backends"]
    open_loop: Float[Array, "time frontends backends"]
    closed_loop: Float[Array, "time frontends backends"]
    routing: Float[Array, "time frontends backends"]
    tail: Float[Array, ""]
    result: Int[Array, ""]
    mask: Bool[Array, "frontends backends"]

    def relative_error(
        self, exact: Float[Array, "time frontends backends"] | None = None
    ) -> Float[Array, "time frontends backends"]:
        """Approximate over exact, minus 1; inf on arcs that do not exist. `exact` is `open_loop` by default, or `closed_loop`."""
        exact = jnp.where(self.mask, self.open_loop if exact is None else exact, 1)
        return self.approximate / exact - 1

    def angle(self, exact: Float[Array, "time frontends backends"] | None = None) -> Float[Array, "time frontends"]:
        """Degrees between the steps that each frontend takes and should take; NaN where one of them is zero."""
        taken, wanted = self._step(self.approximate), self._step(self.open_loop if exact is None else exact)
        long = jnp.linalg.norm(taken, axis=-1) * jnp.linalg.norm(wanted, axis=-1)
        cosine = jnp.sum(taken * wanted, axis=-1) / jnp.where(long > 0, long, jnp.nan)
        return jnp.degrees(jnp.arccos(jnp.clip(cosine, -1, 1)))

    def uphill(self, exact: Float[Array, "time frontends backends"] | None = None) -> Float[Array, " frontends"]:
        r"""Share of time in which a frontend's step raises the latency: $\langle g^{exact}, \Pi_T(-g^{approx}) \rangle > 0$."""
        exact = jnp.where(self.mask, self.open_loop if exact is None else exact, 0)
        step = self._step(self.approximate)
        slope = jnp.sum(exact * step, axis=-1)
        noise = _STILL * jnp.linalg.norm(exact, axis=-1) * jnp.linalg.norm(step, axis=-1)
        raises = (slope > noise).astype(slope.dtype)
        return jnp.where(jnp.isfinite(slope), raises, jnp.nan).mean(0)

    def _step(self, gradient: Float[Array, "time frontends backends"]) -> Float[Array, "time frontends backends"]:
        r"""$\Pi_T(-g)$, zero where it is rounding."""
        gradient = jnp.where(self.mask, gradient, 0)
        last = lambda values: jnp.moveaxis(values, -1, 0)
        mask = jnp.broadcast_to(self.mask, gradient.shape)
        step = jnp.moveaxis(project_tangent_cone(last(-gradient), last(self.routing), last(mask)), 0, -1)
        still = jnp.linalg.norm(step, axis=-1) <= _STILL * jnp.linalg.norm(gradient, axis=-1)
        return jnp.where(still[..., None], 0, step)


@standard_promotion
def marginal_latency(
    network: Network,
    policy: AbstractPolicy,
    *,
    duration: float,
    dt: float,
    every: int = 1,
    run_on: float | None = None,
    initial: tuple[Matrices, Matrix] | SimulationState | None = None,
    max_latency: float | None = None,
    adjoint: ReverseMode | None = None,
    throw: bool = True,
) -> MarginalLatency:
    r"""The marginal latency of a request in a run: as DGD-LB sees it, exact with everybody else's routing frozen, exact with reactions.

    An injected request changes the total cost $\int \sum_j N_j + \sum_{ij} f_{ij} \tau^{cost}_{ij}\, dt$ until the end of time by
    $$ \tau^{cost}_{ij} + p_j(t + \tau_{ij}), \qquad \dot p_j = \ell_j'(N_j)\, p_j - 1 $$
    in open loop, and by that plus the cost of all reactions to it in closed loop. Both are read off the reverse mode of one run: the
    cotangents of flow that is zero.

    **Arguments:**

    - `network`, `policy`: a single network, and a flow policy such as `DGDLB`.
    - `duration`, `dt`, `initial`: of the run, as for `simulate`. `every`: values are kept for every so many steps.
    - `run_on`: seconds to go on after `duration`, until reactions have died out; `suggest_duration` by default. What is left at
      the end is charged with the marginal latency there.
    - `max_latency`, `adjoint`: size of the delay buffer, and what reverse mode remembers, as for `simulate`.
    - `throw`: raise when the run fails. A reaction that does not die out raises nothing: look at `result` and `tail`.

    **Returns:** a `MarginalLatency`.

    **Raises:** `InputError` for a policy that jumps, for a default `run_on` that takes above a quarter of an hour, and whatever
    `simulate` refuses.

    **Source:** own derivation (first variation of the cost); the approximate gradient is that of arXiv:2504.10693.
    """
    if not isinstance(policy, AbstractFlowPolicy):
        raise InputError(
            f"{type(policy).__name__} jumps from one routing to another, so marginal_latency has nothing to differentiate: use its "
            "smooth relative, Softmin, or another flow policy such as DGDLB."
        )
    require_single(network, "marginal_latency")
    if run_on is None:
        require_values("marginal_latency without run_on", network, policy)
        run_on = _run_on(network, policy, duration)
        _require_affordable(network, (duration + run_on) / dt, run_on)
    settings = {
        "dt": dt,
        "max_latency": _roomy_latency(network, dt) if max_latency is None and is_concrete(network) else max_latency,
        "throw": False,
        "adjoint": adjoint,
    }
    check = simulate(
        network,
        policy,
        duration=duration,
        dt=dt,
        initial=initial,
        max_latency=max_latency,
        throw=throw,
        save=SaveAt(every=1, fields=("workload",), resumable=False),
    )
    workload, first = jnp.asarray(check.workload), jnp.rint(check.time[0] / dt).astype(int)
    rate = 1 / _price(network, check.time[0], workload[0])
    if isinstance(initial, SimulationState):
        past = initial.past_workload
        workload, first = jnp.concatenate([past, workload]), first - len(past)
    run = _Run(duration, run_on / 2, every, tuple(settings.items()))
    cotangents, time, routing, result = _differentiate(network.anonymous(), policy, initial, run)
    closed, half, opened = (_per_request(network, bar, dt, rate) for bar in cotangents)
    seen = _seen(network, time, workload, first, dt)
    tail = jnp.max(jnp.abs(closed - half)) / jnp.max(jnp.abs(closed))
    lively = jnp.where(tail <= _TAIL, int(Result.successful), int(Result.not_settled)).astype(jnp.int32)
    masked = lambda values: jnp.where(network.mask, values, jnp.inf)
    result = first_failure(result, lively)
    if throw:
        raise_on_failure(jnp.where(result == int(Result.not_settled), 0, result), "marginal_latency")
    return MarginalLatency(
        time=time,
        approximate=masked(seen),
        open_loop=masked(opened),
        closed_loop=masked(jnp.where(lively == 0, closed, jnp.nan)),
        routing=routing,
        tail=tail,
        result=result,
        mask=network.mask,
    )


class _Gated(AbstractFlowPolicy):
    """A policy that runs as it would, and whose derivative counts `gate` times: 0 freezes its routing, whatever changes."""

    policy: AbstractFlowPolicy
    gate: Float[Array, "*lanes"]

    def init(self, observation: Observation) -> State:
        """The policy's own memory."""
        return self._gated(self.policy.init(observation))

    def velocity(self, t, routing, observation: Observation, state: State):
        """The policy's own velocity."""
        return self._gated(self.policy.velocity(t, routing, observation, state))

    def _gated(self, values):
        def gated(leaf):
            fixed = jax.lax.stop_gradient(leaf)
            return fixed + self.gate * (leaf - fixed)

        return jax.tree.map(lambda leaf: gated(leaf) if eqx.is_inexact_array(leaf) else leaf, values)


class _Run(eqx.Module):
    """The settings of a run that goes on twice for `on` seconds, compiled in."""

    duration: float = eqx.field(static=True)
    on: float = eqx.field(static=True)
    every: int = eqx.field(static=True)
    settings: tuple = eqx.field(static=True)


@compiled
def _differentiate(network: Network, policy: AbstractFlowPolicy, initial, run: _Run):
    """Cotangents of extra flow: closed loop (until the end, and until the middle of running on), open loop; and the run they belong to."""
    settings = dict(run.settings)
    save = SaveAt(every=run.every, fields=("routing",))

    def costs(extra, gate):
        """The cost until the middle of running on, and until its end; what is left there has the price it has at rest."""
        gated = _Gated(policy, gate)
        first = simulate(
            network, gated, duration=run.duration, initial=initial, save=save, extra_flow=extra, **settings
        )

        def go_on(state, _):
            more = simulate(network, gated, duration=run.on, initial=state, save=SaveAt.statistics(), **settings)
            left = jax.lax.stop_gradient(_price(network, more.final.time, more.final.workload)) * more.final.workload
            return more.final, (_cost(more), left.sum(), more.result)

        _, (cost, left, results) = jax.lax.scan(go_on, first.final, None, length=2)
        result = first_failure(first.result, *results)
        return _cost(first) + jnp.cumsum(cost) + left, (first.time, first.routing, result)

    def gradient(gate, cotangent):
        with device.kept_together(3):  # the run, and the two that go on
            _, back, about = jax.vjp(lambda extra: costs(extra, gate), nothing, has_aux=True)
        return back(cotangent)[0], about

    made = plan(network, duration=run.duration, dt=settings["dt"], save=save, max_latency=settings["max_latency"])
    nothing = jnp.zeros((made.instants, *network.latency.shape), network.latency.dtype)
    # Closed loop until the end, and until the middle; open loop. One after the other, so that they share what is compiled.
    asked = jnp.array([1.0, 1.0, 0.0], nothing.dtype), jnp.array([[0, 1.0], [1, 0], [0, 1]], nothing.dtype)
    found, about = jax.lax.map(lambda each: gradient(*each), asked)
    return found, *(leaf[0] for leaf in about)


def _cost(run: Trajectory) -> Array:
    assert run.statistics is not None
    return run.statistics.cost


def _per_request(network: Network, bar: Array, dt: float, rate: Array) -> Array:
    r"""From the cotangent of extra flow at an instant to that of a request.

    The flow makes a hat of the width of a step, which holds `dt` requests. Of that at the start the cost integral sees the later half. A
    backend whose latency is the part $\phi < 1$ of a step receives a part of it, and its inflow jumps there: so do the predicted workload
    and the node of the trapezoid, which cancels in any other hat. With $\dot p = a p - 1$ and $a = \ell_j'$ at the start, the steps count
    $\frac12 [1 + \phi + a\, dt\, \phi (1 - \phi)]\, p - \frac{dt}4 (1 - \phi)(1 + 2\phi)$, up to second order in `dt`.
    """
    part, charge = jnp.minimum(network.latency / dt, 1)[None], network.cost_latency[None]
    first = jnp.arange(bar.shape[0])[:, None, None] == 0
    received = jnp.where(first, (1 + part + rate[None, None] * dt * part * (1 - part)) / 2, 1)
    missed = jnp.where(first, dt / 4 * (1 - part) * (1 + 2 * part), 0)
    charged = jnp.where(first, 0.5, 1) * charge
    return (bar / dt - charged + missed) / received + charge


def _seen(network: Network, time: Array, workload: Array, first: Array, dt: float) -> Array:
    """The approximate gradient at given times, from the workload at every step from the first one on; constant before it."""
    then = jnp.maximum(time[:, None, None] - network.feedback_latency[None], 0)
    place = jnp.clip(then / dt - first.astype(then.dtype), 0, workload.shape[0] - 1)
    before = jnp.minimum(place.astype(int), workload.shape[0] - 2)
    backend = jnp.arange(network.backends)
    fraction = place - before.astype(place.dtype)
    seen = (1 - fraction) * workload[before, backend] + fraction * workload[before + 1, backend]
    each_frontend = jax.vmap(jax.vmap(lambda t, workload: _price(network, t, workload)))
    return each_frontend(then, seen) + network.cost_latency[None]


def _price(network: Network, t: Array, workload: Array) -> Array:
    r"""$1/\ell_j'(N_j)$ at a time (or one per backend), seconds."""
    return network.service_at(t).marginal_latency(workload)


def _roomy_latency(networks: Network, dt: float) -> float:
    """A `max_latency` that many networks share, and with it compiled code: the largest latency, rounded up to 16 steps."""
    latest = float(np.maximum(networks.latency, networks.feedback_latency).max())
    return 16 * dt * max(1, math.ceil(latest / (16 * dt)))


def _run_on(network: Network, policy: AbstractFlowPolicy, duration: float) -> float:
    try:
        return float(suggest_duration(network, getattr(policy, "step_size", None)))
    except (InputError, ConvergenceError):  # there is no optimum to come to rest at
        return duration


def _require_affordable(network: Network, steps: float, run_on: float) -> None:
    """Nobody waits without a word for what they did not ask for: the default `run_on` of a fleet that settles slowly."""
    seconds = 3 * steps * network.mask.size * _SECONDS_PER_ARC_AND_STEP
    require_patience(
        f"marginal_latency without run_on: reactions die out within about {run_on:g} s here, three gradients over {steps:,.0f} steps",
        seconds,
        "pass run_on=, in seconds; what is left when it ends stands in the result's `tail`",
    )
