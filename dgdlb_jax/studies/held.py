"""Limits of balancers that hold their weights, in the operator's own settings, and the same limits by simulation."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from dgdlb_jax.model.batch import require_single
from dgdlb_jax.model.network import Network, stack
from dgdlb_jax.numerics.patience import patience
from dgdlb_jax.numerics.results import InputError
from dgdlb_jax.policies.held import AbstractHeldPolicy
from dgdlb_jax.simulation.engine import simulate_batch
from dgdlb_jax.simulation.trajectory import SaveAt
from dgdlb_jax.stability.held import HeldLoop, held_loop, why_no_rest
from dgdlb_jax.stability.ranges import stable_ranges
from dgdlb_jax.stability.rest_point import RestPoint, rest_point
from dgdlb_jax.studies.stability import coarsest_step
from dgdlb_jax.studies.time_steps import usual_step

LOAD = "load"
"""The name of the setting that no operator has: demand over what all backends can serve."""
_SPAN = 100.0  # by which factor up and down a setting is looked at
_STEPS, _UPDATES = 100, 600  # of a simulation: time steps in a period, at least, and periods
_PATIENCE = 30.0  # seconds that the simulations of an edge may take
_BLOCKS = 12  # in which a swing is averaged
_KICK = 1e-6  # relative deviation at the start
TRIED = (0.9, 0.95, 0.98, 0.99, 1.01, 1.02, 1.05, 1.1)
"""Parts of a predicted edge at which a simulation asks whether deviations grow."""


@dataclass(frozen=True)
class Limit:
    """Where a policy is stable along one setting, the others as they are.

    - `setting`: its name. `now`: its value. `searched`: from where to where was looked.
    - `ranges`: in which it is stable, pairs of edges. `edges`: those of them that lie within what was searched.
    - `periods`: of the swings just beyond each edge, seconds; inf where they do not swing.
    - `simulated`: per edge the pair of values between which a simulation turns from decay to growth; NaN where it was not asked, would
      take too long, or does not turn within `TRIED`.
    """

    setting: str
    now: float
    searched: tuple[float, float]
    ranges: list[tuple[float, float]]
    edges: list[float]
    periods: list[float]
    simulated: list[tuple[float, float]]

    @property
    def stable(self) -> bool:
        """Whether it is at the value it has."""
        return any(low <= self.now <= high for low, high in self.ranges)


def with_setting(policy: AbstractHeldPolicy, name: str, value: float) -> AbstractHeldPolicy:
    """The same policy with another value of one of its numbers, for all frontends."""
    old = getattr(policy, name)
    return eqx.tree_at(lambda rule: getattr(rule, name), policy, jnp.full_like(old, value))


def case_at(
    network: Network, policy: AbstractHeldPolicy, setting: str, value: float
) -> tuple[Network, AbstractHeldPolicy]:
    """Network and policy with one setting changed: a number of the policy, or the load."""
    if setting == LOAD:
        return network.with_load(value), policy
    return network, with_setting(policy, setting, value)


def loop_at(network: Network, policy: AbstractHeldPolicy, loop: HeldLoop, setting: str) -> Callable[[float], HeldLoop]:
    """The loop as a function of one setting. Where it rests does not depend on how often it reads and how long it averages."""
    if setting == policy.period_knob:
        return loop.with_period
    if setting == policy.smoothing_knob:
        return loop.with_smoothing
    return lambda value: held_loop(*case_at(network, policy, setting, value))


def limit(
    network: Network, policy: AbstractHeldPolicy, loop: HeldLoop, setting: str, *, simulate: bool = True
) -> Limit:
    """The ranges of one setting in which small deviations die out, and what a simulation says of their edges.

    **Arguments:** a single `network`; `policy` and its `held_loop` there; `setting`: `policy.period_knob`, `policy.smoothing_knob` or
    `LOAD`.
    """
    at = loop_at(network, policy, loop, setting)
    now, low, high = _to_search(network, policy, loop, setting)
    ranges = stable_ranges(lambda value: _radius(at, value), low, high, points=24 if setting == LOAD else 48)
    edges = [edge for pair in ranges for edge in pair if not (math.isclose(edge, low) or math.isclose(edge, high))]
    beyond = [edge * (1 + 1e-6 * sign) for edge, sign in _outward(ranges, edges)]
    periods = [_swing(at, value) for value in beyond]
    found = [(math.nan, math.nan)] * len(edges)
    if simulate:
        found = [simulated_edge(network, policy, setting, edge) for edge in edges]
    return Limit(setting, now, (low, high), ranges, edges, periods, found)


def _to_search(
    network: Network, policy: AbstractHeldPolicy, loop: HeldLoop, setting: str
) -> tuple[float, float, float]:
    """The value now, and the range to look at: periods not so short that reports are many of them old."""
    if setting == LOAD:
        return float(network.load), 0.02, 0.99
    if setting == policy.smoothing_knob:
        now = float(loop.smoothing.max())
        return now, now / _SPAN, now * _SPAN
    oldest = float((loop.latency + loop.feedback_latency).max()) * 2
    return loop.period, min(max(loop.period / _SPAN, oldest / 8), loop.period / 2), max(loop.period * _SPAN, oldest)


def _outward(ranges: list[tuple[float, float]], edges: list[float]) -> list[tuple[float, int]]:
    return [(edge, -1 if any(edge == low for low, _ in ranges) else 1) for edge in edges]


def _radius(at: Callable[[float], HeldLoop], value: float) -> float:
    try:
        return at(value).radius()
    except InputError:  # no rest point there
        return math.nan


def _swing(at: Callable[[float], HeldLoop], value: float) -> float:
    try:
        return at(value).swing()
    except InputError:
        return math.inf


def simulated_edge(
    network: Network, policy: AbstractHeldPolicy, setting: str, edge: float, tried: Sequence[float] = TRIED
) -> tuple[float, float]:
    """Between which of the values tried a simulation turns from decay to growth, or back, nearest to the edge; NaN if it does not."""
    values = [part * edge for part in tried if setting != LOAD or part * edge < 1]
    networks, policies = together([case_at(network, policy, setting, value) for value in values])
    steps = steps_in_a_period(networks, policies)
    if _UPDATES * steps * usual_step(networks.latency.size) > patience(_PATIENCE):
        return math.nan, math.nan
    return nearest_turn(values, deviations_grow(networks, policies), edge)


def nearest_turn(values: Sequence[float], grows: np.ndarray, edge: float) -> tuple[float, float]:
    """Between which values, in ascending order, simulations turn from decay to growth, or back, nearest to an edge; NaN if they do not."""
    turns = np.flatnonzero(grows[1:] != grows[:-1])
    if not turns.size:
        return math.nan, math.nan
    middle = np.sqrt(np.array(values[1:]) * np.array(values[:-1]))[turns]
    nearest = turns[np.argmin(np.abs(np.log(middle / edge)))]
    return values[nearest], values[nearest + 1]


def together(cases: list[tuple[Network, AbstractHeldPolicy]]) -> tuple[Network, AbstractHeldPolicy]:
    """Many networks with a policy each, as a batch; numbers that all frontends share get an axis for them."""

    def join(*leaves):
        stacked = jnp.stack([jnp.asarray(leaf) for leaf in leaves])
        return stacked[:, None] if stacked.ndim == 1 else stacked

    return stack([network for network, _ in cases]), jax.tree.map(join, *[policy for _, policy in cases])


def steps_in_a_period(networks: Network, policy: AbstractHeldPolicy) -> int:
    """How many time steps a simulation of a batch makes in each period: a hundred, or what its fastest backend needs."""
    period = np.asarray(policy.period, float).reshape(-1, 1)[:, 0]
    return max(_STEPS, int(np.ceil((period / coarsest_step(networks)).max())))


def deviations_grow(
    networks: Network, policy: AbstractHeldPolicy, *, updates: int = _UPDATES, seed: int = 0
) -> np.ndarray:
    """Whether small deviations from rest grow, by simulation: `(batch,)`.

    The trend of the change of workloads from update to update, after the first quarter of a run, from a deviation of 1e-6. The engine
    spreads a jump of the routing over the time step before it, so latencies are half a step longer.

    **Arguments:** a batch of networks; `policy` with a period each, the same for all frontends of a network.
    """
    rest = rest_point(networks, policy)
    size = networks.latency.shape[0]
    period = np.broadcast_to(np.asarray(policy.period, float).reshape(-1, 1)[:, 0], (size,))
    kick = 1 + _KICK * np.random.default_rng(seed).standard_normal(rest.workload.shape)
    steps = steps_in_a_period(networks, policy)
    dt = period / steps
    later = networks.latency + dt[:, None, None] / 2
    runs = simulate_batch(
        eqx.tree_at(lambda each: each.latency, networks, later),
        _after_the_start(policy),
        duration=updates * period,
        dt=dt,
        initial=(rest.routing, rest.workload * kick),
        save=SaveAt(every=steps, fields=("workload",)),
        throw=False,
    )
    moved = np.diff(np.asarray(runs.workload), axis=1) / np.maximum(np.asarray(rest.workload)[:, None], 1e-300)
    blocks = moved[:, updates % _BLOCKS :].reshape(size, _BLOCKS, -1)[:, _BLOCKS // 4 :]
    swing = np.sqrt((blocks**2).mean(-1)) + 1e-300
    trend = np.polyfit(np.arange(swing.shape[1]), np.log(swing).T, 1)[0]
    return (trend > 0) | (swing[:, -1] > 1e2 * _KICK)  # what has grown into a cycle grows no more


def _after_the_start(policy: AbstractHeldPolicy) -> AbstractHeldPolicy:
    """The same rule as it is long after its start: without a blackout."""
    blackout = getattr(policy, "blackout_period", None)
    return policy if blackout is None else with_setting(policy, "blackout_period", 0.0)


@dataclass(frozen=True)
class HeldStability:
    """What is known of the stability of a held policy in a network.

    - `rest`: where it rests, or was looked for. `loop`: linearised there; None without a rest point, or where every split is one.
    - `why_not`: what it does instead. `limits`: one per setting, the load last.
    """

    network: Network
    policy: AbstractHeldPolicy
    rest: RestPoint
    loop: HeldLoop | None
    why_not: str
    limits: list[Limit]


def held_stability(network: Network, policy: AbstractHeldPolicy, *, simulate: bool = True) -> HeldStability:
    """Assess a held policy in a network at its mean rates.

    **Arguments:** a single `network`, the `policy`; `simulate`: whether to hold the edges against simulations.

    **Raises:** `InputError` for another policy, or periods that differ between frontends.
    """
    require_single(network, "held_stability")
    network = network.with_arrival_rate(network.arrival_rate)
    rest = rest_point(network, policy)
    if not bool(rest.found):
        return HeldStability(network, policy, rest, None, why_no_rest(network, policy, rest), [])
    loop = held_loop(network, policy, rest)
    if loop.neutral():
        why = "leaves every split at rest: its reports say nothing of how loaded a backend is"
        return HeldStability(network, policy, rest, loop, why, [])
    settings = [name for name in (policy.smoothing_knob, policy.period_knob, LOAD) if name is not None]
    limits = [limit(network, policy, loop, setting, simulate=simulate) for setting in settings]
    return HeldStability(network, policy, rest, loop, "", limits)
