"""Studies of stability: how tight the sufficient step sizes are, and what happens far from the optimum."""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from dgdlb_jax.equilibrium.optimum import Optimum, solve_optimum
from dgdlb_jax.model import topologies
from dgdlb_jax.model.batch import as_batch, of_batch, over_networks
from dgdlb_jax.model.network import Network
from dgdlb_jax.numerics.results import Result
from dgdlb_jax.policies.base import AbstractPolicy
from dgdlb_jax.policies.gradient import DGDLB
from dgdlb_jax.policies.safe import CappedDGDLB, CurvatureDGDLB, LogDGDLB, ReciprocalDGDLB
from dgdlb_jax.simulation.engine import simulate_batch
from dgdlb_jax.simulation.start import default_start
from dgdlb_jax.simulation.trajectory import SaveAt
from dgdlb_jax.stability import conditions
from dgdlb_jax.stability.critical import critical_mode
from dgdlb_jax.stability.defaults import default_step_size
from dgdlb_jax.stability.linearise import linearise
from dgdlb_jax.stability.sufficient import sufficient_step_size
from dgdlb_jax.studies.assess import assess

_SETTLE, _GROW = 200, 400  # periods until only the critical mode is left, and for it to grow or decay
_KICK, _SMALLEST_KICK = 1e-5, 1e-10  # relative size of a small perturbation
_ROUNDING = 1e-13  # relative size below which a swing is the rounding of the simulation
LATENCIES = ("equal", "per frontend", "three decades", "geographic")
"""The latency families of the step-size study."""


def study_networks(latencies: str, count: int, *, seed: int = 0, frontends: int = 4, backends: int = 4) -> Network:
    """Random networks of one latency family, at loads between 0.3 and 0.95, with mixed curves.

    `equal`: one latency for all arcs; `per frontend`: one per frontend; `three decades`: log-uniform per arc; `geographic`: cities.
    """
    family = {
        "equal": "equal_latencies",
        "per frontend": "complete",
        "three decades": "heterogeneous_latencies",
        "geographic": "geographic",
    }[latencies]
    for_networks, for_load = jax.random.split(jax.random.key(seed))
    draw = topologies.FAMILIES[family]
    curve = topologies.CURVES["hyperbolic" if latencies == "geographic" else "exponential"]
    networks = draw(for_networks, frontends=frontends, backends=backends, count=count, service=curve)
    if latencies == "per frontend":
        tau = jnp.broadcast_to(networks.latency[..., :1], networks.latency.shape)
        networks = Network(networks.demand, tau, networks.service)
    return networks.with_load(jax.random.uniform(for_load, (count,), minval=0.3, maxval=0.95))


@dataclass(frozen=True)
class Tightness:
    """Step sizes of many networks, 1/s^2 `(networks,)`, for equal step sizes of all frontends.

    - `exact`: `critical_step_size`. `observed`: the limit found by simulation; NaN where it was not looked for.
    - `sufficient`: name of a condition -> what it proves. `distributed`: for rules with a step size of its own for each frontend,
      name -> the fraction of the exact limit in their own direction; `default` is `default_step_size`, which guarantees nothing.
    """

    exact: Float[np.ndarray, " networks"]
    observed: Float[np.ndarray, " networks"]
    sufficient: dict[str, Float[np.ndarray, " networks"]]
    distributed: dict[str, Float[np.ndarray, " networks"]]


SCALAR_CONDITIONS = (
    conditions.theorem_a,
    conditions.theorem_b,
    conditions.theorem_c,
    conditions.theorem_c_spectral,
)
RULES = (conditions.distributed, conditions.distributed_a)


def tightness(networks: Network, *, observe: int = 0) -> Tightness:
    """Sufficient and exact step sizes of a batch of networks, and the limits observed in simulation for the first `observe` of them.

    Networks without a certified optimum are left out; a single network is a batch of one.
    """
    networks = as_batch(networks) if networks.batch is None else networks
    optimum = solve_optimum(networks, throw=False)
    solved = np.flatnonzero(np.asarray(optimum.result) == Result.successful)
    networks, optimum = jax.tree.map(lambda leaf: leaf[solved], (networks, optimum))
    mode = critical_mode(networks, DGDLB(jnp.ones_like(networks.arrival_rate)), optimum)
    found = {
        condition.__name__: np.asarray(sufficient_step_size(networks, optimum, condition=condition)[:, 0])
        for condition in SCALAR_CONDITIONS
    }
    steps = {rule.__name__: sufficient_step_size(networks, optimum, condition=rule) for rule in RULES}
    rules = {}
    for name, step in (steps | {"default": default_step_size(networks, optimum)}).items():
        finite = jnp.where(jnp.isfinite(step), step, 0)
        rules[name] = 1 / np.asarray(critical_mode(networks, DGDLB(finite), optimum).step_size)
    exact = np.asarray(mode.step_size)
    observed = np.full_like(exact, np.nan)
    if observe:
        some, best = jax.tree.map(lambda leaf: leaf[:observe], (networks, optimum))
        observed[:observe] = observe_limit(some, best, exact[:observe], np.asarray(mode.period)[:observe])
    return Tightness(exact, observed, found, rules)


def coarsest_step(networks: Network) -> Float[np.ndarray, " batch"]:
    """The longest time step that the fastest backend of each network allows in these studies, seconds."""
    return 0.4 / _fastest(networks)


def _fastest(networks: Network) -> Float[np.ndarray, " batch"]:
    """The largest service slope of each network at any time, 1/s."""
    slope = over_networks(lambda network: network.fastest_service.initial_slope, networks)
    return np.asarray(slope).max(-1)


def observe_limit(
    networks: Network,
    optimum: Optimum,
    guess: Float[np.ndarray, " batch"],
    period: Float[np.ndarray, " batch"],
    *,
    rounds: int = 6,
    steps_per_period: int = 100,
    seed: int = 0,
) -> Float[np.ndarray, " batch"]:
    """The step size at which a small perturbation of the optimum stops dying out, by simulation.

    Bisection between 0.81 and 1.25 times a guess; a step size counts as unstable when the swing of the workloads, over three periods, is
    larger late in a run than early. Everything in one batch; networks without a limit give NaN.

    **Arguments:** `guess` in 1/s^2 and `period` in seconds `(batch,)`, used for the brackets and for the length of runs only.
    """
    limited = np.flatnonzero(np.isfinite(guess) & np.isfinite(period))
    observed = np.full(len(guess), np.nan)
    if not limited.size:
        return observed
    networks, optimum = jax.tree.map(lambda leaf: leaf[limited], (networks, optimum))
    guess, period = guess[limited], period[limited]
    dt = np.minimum(period / steps_per_period, coarsest_step(networks))
    rng = np.random.default_rng(seed)
    # The perturbation has to stay within the region in which the support does not change.
    region = np.asarray(linearise(networks, optimum=optimum).linear_region)
    kick = np.clip(1e-2 * region, _SMALLEST_KICK, _KICK)[:, None]
    start = optimum.routing, optimum.workload * jnp.asarray(1 + kick * rng.standard_normal(optimum.workload.shape))
    longest = np.asarray(jnp.maximum(networks.latency, networks.feedback_latency).max((-1, -2)))
    settle = np.maximum(_SETTLE * period, 6 * longest)

    def swing(step, begin):
        runs = simulate_batch(
            networks, DGDLB(jnp.asarray(step)[:, None] + jnp.zeros(networks.frontends)), duration=begin + 3 * period, dt=dt,
            initial=start, save=SaveAt.statistics(after=begin, resumable=False), throw=False,
        )  # fmt: skip
        found = runs.statistics
        assert found is not None
        return np.asarray(
            ((found.highest_workload - found.lowest_workload) / optimum.workload.max(-1, keepdims=True)).max(-1)
        )

    low, high = 0.81 * guess, 1.25 * guess
    for _ in range(rounds):
        middle = np.sqrt(low * high)
        late, early = swing(middle, settle + _GROW * period), swing(middle, settle)
        # What has died out wanders with the rounding; what has grown into a cycle grows no more.
        grows = ((late > early) & (late > _ROUNDING)) | (late > 1e2 * kick[:, 0])
        low, high = np.where(grows, low, middle), np.where(grows, middle, high)
    observed[limited] = np.sqrt(low * high)
    return observed


@dataclass(frozen=True)
class FarStarts:
    """Where rules end up from far starts.

    - `names`: of the rules; `starts`: of the starts; `fractions`: step sizes as parts of the critical one.
    - `failed` `(rules, fractions, starts, networks)`: neither settled within 1 % of the optimum nor is on its way (`Assessment`).
    - `excess` `(rules, fractions, starts, networks)`: of the mean latency in the last fifth of the run, over the optimum.
    - `settled_after` `(rules, fractions, starts, networks)`: seconds until the workloads stay within 5 % of the optimum; NaN if never.
    """

    names: tuple[str, ...]
    starts: tuple[str, ...]
    fractions: tuple[float, ...]
    failed: np.ndarray
    excess: np.ndarray
    settled_after: np.ndarray


STARTS = ("proportional, empty", "uniform, empty", "one backend, nearly empty", "random, up to 3 x overfull")


def far_starts(networks: Network, *, seed: int = 0) -> list[tuple[Array, Array]]:
    """Four starts per network (see `STARTS`): routing and workload."""
    rng = np.random.default_rng(seed)
    mask = np.asarray(networks.mask)
    optimum = np.asarray(solve_optimum(networks).workload)
    share, _ = of_batch(default_start, networks)
    uniform = mask / np.maximum(mask.sum(-1, keepdims=True), 1)
    score = np.where(mask, rng.random(mask.shape), -1)
    vertex = (score == score.max(-1, keepdims=True)) & mask
    weight = np.where(mask, rng.exponential(size=mask.shape), 0)
    slope = over_networks(lambda network: network.service.initial_slope, networks)
    scale = np.asarray(networks.nominal_capacity) / np.asarray(slope)  # workloads: a factor on both would cancel
    scale = np.where(np.isfinite(scale), scale, 1.0)
    empty = np.zeros_like(optimum)
    starts = [
        (share, empty),
        (uniform, empty),
        (vertex.astype(float), 0.1 * scale * rng.random(optimum.shape)),
        (weight / np.maximum(weight.sum(-1, keepdims=True), 1e-300), 3 * (optimum + scale) * rng.random(optimum.shape)),
    ]
    return [(jnp.asarray(x, float), jnp.asarray(n, float)) for x, n in starts]


Rules = dict[str, Callable[[Array, Network, Optimum], AbstractPolicy]]


def rules_of_equal_gain() -> Rules:
    """Name -> rule from step sizes `(batch, frontends)`: DGD-LB and its relatives, all with the same gain at the optimum."""

    def curvature(step, networks, optimum):
        slope = over_networks(lambda network, n: network.mean_service.slope(n), networks, optimum.workload)
        return CurvatureDGDLB(step, (optimum.routing / slope[:, None]).sum(-1))

    def capped(step, networks, optimum):
        del optimum
        return CappedDGDLB(step, 0.1 / jnp.maximum(networks.latency.max(-1), 1e-9))

    return {
        "DGD-LB": lambda step, networks, optimum: DGDLB(step),
        "log": lambda step, networks, optimum: LogDGDLB(step),
        "reciprocal": lambda step, networks, optimum: ReciprocalDGDLB(step),
        "curvature": curvature,
        "capped speed": capped,
    }


def from_far(
    networks: Network,
    *,
    fractions: tuple[float, ...] = (0.1, 0.3, 0.6),
    rules: Rules | None = None,
    starts: list[tuple[Array, Array]] | None = None,
    periods: float = 400.0,
    seed: int = 0,
) -> FarStarts:
    """Run rules from far starts at fractions of the critical step size, all of equal gain at the optimum.

    A run takes 400 periods of the critical oscillation over the fraction's tenth, at least, so that slow ones have the time.
    """
    optimum = solve_optimum(networks)
    mode = critical_mode(networks, optimum=optimum)
    keep = np.flatnonzero(np.isfinite(np.asarray(mode.step_size)))
    networks, optimum, mode = jax.tree.map(lambda leaf: leaf[keep], (networks, optimum, mode))
    rules = rules_of_equal_gain() if rules is None else rules
    starts = far_starts(networks, seed=seed) if starts is None else starts
    period = np.asarray(mode.period)
    dt = np.minimum(period / 100, 0.2 / _fastest(networks))
    shape = (len(rules), len(fractions), len(starts), keep.size)
    failed, excess, after = np.zeros(shape, bool), np.zeros(shape), np.full(shape, np.nan)
    for f, fraction in enumerate(fractions):
        step = fraction * mode.step_size[:, None] * jnp.ones(networks.frontends)
        duration = periods * period * max(0.1 / fraction, 0.25)
        for r, make in enumerate(rules.values()):
            policy = make(step, networks, optimum)
            for s, start in enumerate(starts):
                found = assess(networks, policy, optimum=optimum, start=start, dt=dt, duration=duration)
                failed[r, f, s] = ~found.arrived() & ~found.undecided
                excess[r, f, s] = found.excess
                aim = np.asarray(optimum.workload)[:, None]
                distance = np.abs(np.asarray(found.run.workload) - aim).sum(-1) / aim.sum(-1)
                after[r, f, s] = _last_outside(np.asarray(found.run.time), distance, 0.05)
    return FarStarts(tuple(rules), STARTS[: len(starts)], tuple(fractions), failed, excess, after)


def _last_outside(time: np.ndarray, distance: np.ndarray, limit: float) -> np.ndarray:
    """When a distance is above a limit for the last time; NaN if it is at the end."""
    outside = distance > limit
    last = np.where(outside, time, 0).max(1)
    return np.where(outside[:, -1], np.nan, last)
