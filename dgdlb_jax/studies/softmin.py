"""Limits of `Softmin` in its own settings, rate and temperature, and the same limits by simulation."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import equinox as eqx
import jax.numpy as jnp
import numpy as np

from dgdlb_jax.equilibrium.at_rest import latency_at_rest
from dgdlb_jax.equilibrium.optimum import Optimum
from dgdlb_jax.model.batch import as_batch, require_single
from dgdlb_jax.model.network import Network, stack
from dgdlb_jax.numerics.results import InputError
from dgdlb_jax.policies.smooth import Softmin
from dgdlb_jax.stability.ranges import stable_ranges
from dgdlb_jax.stability.rest_point import rest_of_softmin
from dgdlb_jax.stability.softmin import softmin_loop
from dgdlb_jax.studies.held import TRIED, Limit, nearest_turn
from dgdlb_jax.studies.onset import deviations_grow, takes_too_long
from dgdlb_jax.studies.stability import coarsest_step

RATE, TEMPERATURE = "rate", "temperature"
_SPAN, _POINTS = 100.0, 24  # by which factor up and down a temperature is looked at, and how often
_LOOKS, _STEPS = 4, 50  # in a swing: at workloads, and time steps between two looks, at least


@dataclass(frozen=True)
class SoftminStability:
    """What is known of `Softmin` in a network.

    - `over`: mean latency at rest over that of the optimum, less 1. `limits`: of the rate, then of the temperature.
    """

    network: Network
    policy: Softmin
    over: float
    limits: list[Limit]

    @property
    def stable(self) -> bool:
        """Whether small deviations from rest die out."""
        return self.limits[0].stable


def softmin_stability(
    network: Network, policy: Softmin, optimum: Optimum, *, simulate: bool = True
) -> SoftminStability:
    """Assess `Softmin` in a network at its mean rates, where it rests.

    **Arguments:** a single `network`, its `optimum`; `policy`, with one rate and one temperature; `simulate`: whether to hold the edges
    against simulations.

    **Raises:** `InputError` for rates or temperatures that differ between frontends, and where no rest point is found.
    """
    require_single(network, "softmin_stability")
    network = network.with_arrival_rate(network.arrival_rate)
    rate, temperature = float(policy.rate.max()), float(policy.temperature.max())
    if float(policy.temperature.min()) < temperature:
        raise InputError(
            f"Softmin.temperature is from {float(policy.temperature.min()):g} to {temperature:g} s: give all frontends the same one."
        )
    limit, frequency = softmin_loop(network, policy).critical()
    over = float(latency_at_rest(network, rest_of_softmin(network, policy).routing)) / float(optimum.mean_latency) - 1

    critical = partial(critical_rate, network, policy)

    def limit_of(setting: str, now: float, searched: tuple[float, float], ranges, frequency: Callable[[float], float]):
        edges = [edge for pair in ranges for edge in pair if not any(math.isclose(edge, end) for end in searched)]
        periods = [_period(frequency(edge)) for edge in edges]
        found = [(math.nan, math.nan)] * len(edges)
        if simulate:
            found = [simulated_edge(network, policy, setting, *edge) for edge in zip(edges, periods, strict=True)]
        return Limit(setting, now, searched, ranges, edges, periods, found)

    slow, fast = rate / _SPAN, rate * _SPAN
    if math.isfinite(limit):
        slow, fast = min(slow, limit / 2), max(fast, 2 * limit)
    cold, hot = temperature / _SPAN, temperature * _SPAN
    ranges = stable_ranges(lambda value: rate / critical(value)[0], cold, hot, points=_POINTS)
    return SoftminStability(
        network,
        policy,
        over,
        [
            limit_of(RATE, rate, (slow, fast), [(slow, min(limit, fast))], lambda _: frequency),
            limit_of(TEMPERATURE, temperature, (cold, hot), ranges, lambda edge: critical(edge)[1]),
        ],
    )


def critical_rate(network: Network, policy: Softmin, temperature: float) -> tuple[float, float]:
    """`SoftminLoop.critical` at another temperature; NaN and 0 where it is so cold that no rest point is found."""
    try:
        return softmin_loop(network, _with(policy, TEMPERATURE, temperature)).critical()
    except InputError:
        return math.nan, 0.0


def simulated_edge(network: Network, policy: Softmin, setting: str, edge: float, period: float) -> tuple[float, float]:
    """Between which values around an edge simulations turn from decay to growth; NaN if they do not, or would take too long."""
    values = [part * edge for part in TRIED]
    rules = [_with(policy, setting, value) for value in values]
    rests = [rest_of_softmin(network, rule) for rule in rules]
    if not math.isfinite(period) or not all(bool(rest.found) for rest in rests):
        return math.nan, math.nan
    look = period / _LOOKS
    every = max(_STEPS, math.ceil(look / float(coarsest_step(as_batch(network))[0])))
    if takes_too_long(network, len(values), every):
        return math.nan, math.nan
    joined = lambda leaves: jnp.stack([jnp.asarray(leaf) for leaf in leaves])
    together = Softmin(
        *(joined([getattr(rule, name).max() for rule in rules])[:, None] for name in (TEMPERATURE, RATE))
    )
    grows = deviations_grow(
        stack([network.anonymous()] * len(values)), together, joined([rest.routing for rest in rests]),
        joined([rest.workload for rest in rests]), look / every, every,
    )  # fmt: skip
    return nearest_turn(values, np.asarray(grows), edge)


def _with(policy: Softmin, setting: str, value: float) -> Softmin:
    """The same rule with another rate or temperature."""
    old = getattr(policy, setting)
    return eqx.tree_at(lambda rule: getattr(rule, setting), policy, jnp.full_like(old, value))


def _period(frequency: float) -> float:
    return 2 * math.pi / frequency if frequency > 0 else math.inf
