"""The limits of balancers that read reports and hold their weights, in words: in the operator's own settings."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from dgdlb_jax.equilibrium.at_rest import latency_at_rest
from dgdlb_jax.equilibrium.feasibility import require_traffic
from dgdlb_jax.equilibrium.optimum import solve_optimum
from dgdlb_jax.model.network import Network
from dgdlb_jax.numerics.formatting import number, percent, ranging, seconds
from dgdlb_jax.policies.held import AbstractHeldPolicy
from dgdlb_jax.reports.stability_text import nullified
from dgdlb_jax.studies.held import LOAD, HeldStability, Limit, held_stability
from dgdlb_jax.studies.outcome import backend_names, frontend_names
from dgdlb_jax.studies.relay import Cycle, relay_cycle
from dgdlb_jax.studies.softmin import RATE

_SWING = 1e-3  # of a share, below which a simulation has come to rest
_FORMS = {LOAD: percent, RATE: lambda value: f"{number(value)} 1/s"}  # of settings that are no times


@dataclass(frozen=True)
class HeldReport:
    """What `dgdlb stability FLEET --policy NAME` says of a policy that holds its weights.

    - `label`: what people call the policy. `found`: its stability. `over`: mean latency at rest over that of the optimum, less 1; NaN
      without a rest point. `cycle`: what it does instead of resting; None where it rests, is overloaded, or would have to
      be run for too long.
    """

    label: str
    found: HeldStability
    over: float
    cycle: Cycle | None

    def text(self) -> str:
        """What a person reads."""
        return "\n".join([_title(self), *_at_rest(self), *(limit_words(each) for each in self.found.limits)])

    def document(self) -> dict[str, Any]:
        """What a script reads: null where there is no number."""
        found = self.found
        document = {
            "fleet": found.network.name,
            "policy": self.label,
            "stable": None if found.loop is None else found.loop.radius() < 1,
            "why_not": found.why_not or None,
            "over_optimum_at_rest": self.over,
            "largest_multiplier": math.nan if found.loop is None else found.loop.radius(),
            "settings": {each.setting: limit_document(each) for each in found.limits},
            "cycle": None if self.cycle is None else vars(self.cycle),
            "units": {"time": "s"},
        }
        return nullified(document)


def held_report(network: Network, policy: AbstractHeldPolicy, label: str) -> HeldReport:
    """Assess a policy that holds its weights, at the mean rates of a single network; its cycle by simulation where it never rests.

    **Raises:** `InputError` when there is no demand or it exceeds capacity, or for a policy whose frontends update at different periods.
    """
    require_traffic(network)
    network = network.with_arrival_rate(network.arrival_rate)
    optimum = solve_optimum(network)
    found = held_stability(network, policy)
    if not bool(found.rest.found):
        overloaded = np.asarray(found.rest.overloaded).any() and not policy.switches
        return HeldReport(label, found, math.nan, None if overloaded else relay_cycle(network, policy))
    over = float(latency_at_rest(network, found.rest.routing)) / float(optimum.mean_latency) - 1
    return HeldReport(label, found, over, None)


def _title(report: HeldReport) -> str:
    policy, found = report.found.policy, []
    for name in (policy.period_knob, policy.smoothing_knob):
        if name is not None:
            values = np.asarray(getattr(policy, name))
            found.append(f"{name} {ranging(float(values.min()), float(values.max()), seconds)}")
    return f"{report.found.network.name or 'network'}: {report.label}, {', '.join(found)}"


def _at_rest(report: HeldReport) -> list[str]:
    found, network = report.found, report.found.network
    if report.cycle is not None:
        cycle = report.cycle
        if cycle.high - cycle.low < _SWING and found.policy.switches:
            return [
                f"it {found.why_not}",
                "simulated: it stands still here, as backends report the same and share equally",
            ]
        if cycle.high - cycle.low < _SWING:
            return ["no rest point was found, but a simulation comes to rest: nothing is known of its limits"]
        arc = f"the traffic of {frontend_names(network)[cycle.frontend]} that goes to {backend_names(network)[cycle.backend]}"
        every = f"every {seconds(cycle.period)}" if math.isfinite(cycle.period) else "for longer than was simulated"
        swing = f"{percent(cycle.low)} to {percent(cycle.high)} and back {every}, {percent(cycle.mean)} on average"
        return [f"it {found.why_not}", f"simulated: the share of {arc} moves from {swing}"]
    if not bool(found.rest.found):
        return [f"it {found.why_not}, so that it never comes to rest"]
    lines = [f"at rest {percent(report.over) if report.over >= 5e-6 else '0 %'} over the optimum"]
    if found.why_not:
        return [*lines, f"it {found.why_not}"]
    assert found.loop is not None
    growth, swing = found.loop.radius(), found.loop.swing()
    if growth >= 1:
        lines.append(
            f"unstable: small deviations grow by {percent(growth - 1)} per update, swinging with a period of {seconds(swing)}"
        )
    else:
        lines.append("stable: small deviations from there die out")
    return lines


def limit_words(limit: Limit) -> str:
    """Where a rule is stable along one setting, and what is seen beyond."""
    form = _FORMS.get(limit.setting, seconds)
    begin = f"{limit.setting} (now {form(limit.now)}): "
    searched = ranging(*limit.searched, form)
    if not limit.ranges:
        return f"{begin}not stable anywhere from {searched}"
    if not limit.edges:
        return f"{begin}stable anywhere from {searched}"
    return f"{begin}stable {', and '.join(_range(limit, pair, form) for pair in limit.ranges)}; {_edges(limit, form)}"


def _range(limit: Limit, pair: tuple[float, float], form) -> str:
    low, high = (edge in limit.edges for edge in pair)
    if low and high:
        return f"from {form(pair[0])} to {form(pair[1])}"
    return f"above {form(pair[0])}" if low else f"below {form(pair[1])}"


def _edges(limit: Limit, form) -> str:
    parts = []
    for edge, period, simulated in zip(limit.edges, limit.periods, limit.simulated, strict=True):
        swing = f"swings with a period of {seconds(period)}" if math.isfinite(period) else "drifts away"
        seen = (
            f"simulated edge {ranging(*simulated, form)}"
            if math.isfinite(simulated[0])
            else "no edge found by simulation"
        )
        side = "below" if any(edge == low for low, _ in limit.ranges) else "above"
        parts.append(f"{side} {form(edge)} it {swing} ({seen})")
    return "; ".join(parts)


def limit_document(limit: Limit) -> dict[str, Any]:
    """The same as numbers."""
    edges = [
        {"at": edge, "swing_period": period, "simulated": list(simulated)}
        for edge, period, simulated in zip(limit.edges, limit.periods, limit.simulated, strict=True)
    ]
    return {
        "now": limit.now,
        "stable": limit.stable,
        "ranges": [list(pair) for pair in limit.ranges],
        "searched": list(limit.searched),
        "edges": edges,
    }
