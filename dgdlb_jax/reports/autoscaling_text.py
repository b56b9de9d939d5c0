"""What autoscalers do and where they begin to swing, in words."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dgdlb_jax.equilibrium.optimum import solve_optimum
from dgdlb_jax.fleets.autoscalers import settings
from dgdlb_jax.model.network import Network
from dgdlb_jax.numerics.formatting import enumerated, number, percent, ranging, seconds
from dgdlb_jax.policies.autoscalers.base import AbstractAutoscaler
from dgdlb_jax.reports.stability_text import nullified
from dgdlb_jax.reports.text_table import GrowingTable
from dgdlb_jax.studies.autoscaling import (
    AutoscalerStability,
    AutoscalingStudy,
    ReplicaLimit,
    ScaledOutcome,
    autoscaler_stability,
)
from dgdlb_jax.studies.names import backend_names
from dgdlb_jax.studies.verdict import Verdict

HEADER = ("balancer", "mean latency", "replica-hours/h", "replicas, mean", "peak", "they swing by", "every", "verdict")


def growing_table(names: Sequence[str]) -> GrowingTable:
    """The table of balancers of these names, whose rows are not known yet."""
    return GrowingTable(HEADER, [max(map(len, [*names, HEADER[0]])), 12, 15, 14, 8, 13, 8, 18])


def cells(row: ScaledOutcome) -> tuple[str, ...]:
    """The row of a balancer."""
    latency = "grows" if row.verdict is Verdict.diverging else seconds(row.mean_latency)
    replicas = (number(each) for each in (row.replica_hours, row.mean_replicas, row.peak_replicas))
    return row.balancer, latency, *replicas, percent(row.swing), seconds(row.period), row.verdict.words


def title(autoscaler: AbstractAutoscaler) -> str:
    """The rule in a line."""
    startup, target = (np.asarray(each, float) for each in (autoscaler.startup, autoscaler.target))
    each = f", every {seconds(interval)}" if (interval := getattr(autoscaler, "interval", 0.0)) else ""
    return (
        f"{type(autoscaler).__name__}, {autoscaler.metric} {ranging(float(target.min()), float(target.max()))}{each}, start-up "
        f"{ranging(float(startup.min()), float(startup.max()), seconds)}"
    )


def notes(study: AutoscalingStudy) -> list[str]:
    """What stands below the table."""
    found = [
        f"run: {seconds(study.duration)}, the last fifth counts; step size "
        f"{ranging(float(study.step_size.min()), float(study.step_size.max()))} 1/s^2; replicas are paid for from their command on"
    ]
    return found + [f"{row.balancer}: {row.reason}" for row in study.rows if row.reason]


def study_document(study: AutoscalingStudy) -> dict[str, Any]:
    """What a script reads: null where there is no number."""

    def entry(row: ScaledOutcome) -> dict[str, Any]:
        found = {
            "balancer": row.balancer, "mean_latency": row.mean_latency, "replica_hours_per_hour": row.replica_hours,
            "mean_replicas": row.mean_replicas, "peak_replicas": row.peak_replicas, "swing": row.swing, "period": row.period,
            "verdict": row.verdict.name, "reason": row.reason,
        }  # fmt: skip
        return nullified(found)

    return {
        "autoscaler": {"kind": type(study.autoscaler).__name__, **settings_document(study.autoscaler)},
        "duration": study.duration,
        "balancers": [entry(row) for row in study.rows],
        "units": {"time": "s", "replica_hours_per_hour": "replicas"},
    }


def settings_document(autoscaler: AbstractAutoscaler) -> dict[str, Any]:
    """Settings without infinities, which JSON has none of."""
    finite = lambda value: None if isinstance(value, float) and not math.isfinite(value) else value
    return {name: finite(value) for name, value in settings(autoscaler).items()}


def autoscaler_report(network: Network, autoscaler: AbstractAutoscaler) -> "AutoscalerReport":
    """Assess an autoscaler in a single network."""
    return AutoscalerReport(autoscaler_stability(network, autoscaler, solve_optimum(network)))


@dataclass(frozen=True)
class AutoscalerReport:
    """What `dgdlb stability FLEET` says of a fleet with an autoscaler."""

    found: AutoscalerStability

    def text(self) -> str:
        """What a person reads."""
        return "\n".join([title(self.found.autoscaler), *map(self._alone, self.found.alone), *self._together()])

    def document(self) -> dict[str, Any]:
        """What a script reads: null where there is no number."""
        found = self.found
        names = backend_names(found.network)
        alone = [
            nullified({
                "backends": [names[j] for j in each.backends], "stable": each.stable, "critical_startup": each.startup,
                "period": each.period, "stable_intervals": each.intervals,
            })
            for each in found.alone
        ]  # fmt: skip
        return nullified({
            "autoscaler": settings_document(found.autoscaler), "alone": alone,
            "recommended": [float(each) for each in found.default], "limit_over_recommended": found.limit,
            "period": found.period, "units": {"time": "s", "step_size": "1/s^2"},
        })  # fmt: skip

    def _alone(self, each: ReplicaLimit) -> str:
        names, startup = backend_names(self.found.network), np.asarray(self.found.autoscaler.startup, float)
        now = float(np.broadcast_to(startup, len(names))[each.backends[0]])
        who = "by itself" if len(each.backends) == len(names) else enumerated([names[j] for j in each.backends])
        if math.isinf(each.startup):
            return f"  {who}: no start-up delay makes its law swing{self._intervals(each)}"
        state = "swings" if not each.stable else "does not swing"
        return (
            f"  {who}: startup_s (now {seconds(now)}) {state}; it begins at {seconds(each.startup)}, with a period of "
            f"{seconds(each.period)}{self._intervals(each)}"
        )

    def _intervals(self, each: ReplicaLimit) -> str:
        interval = getattr(self.found.autoscaler, "interval", 0.0)
        if each.intervals is None or not interval:
            return ""
        if not each.intervals:
            return f"; no interval_s near {seconds(interval)} is stable"
        return f"; interval_s (now {seconds(interval)}): stable {', '.join(ranging(*pair, seconds) for pair in each.intervals)}"

    def _together(self) -> list[str]:
        found = self.found
        lines = ["  (the law alone: without rounding, tolerance and windows, removal as slow as start-up)"]
        if math.isnan(found.limit):
            return [*lines, "  with DGD-LB: the autoscaler swings by itself"]
        size = ranging(float(found.default.min()), float(found.default.max()))
        if math.isinf(found.limit):
            return [
                *lines,
                f"  with DGD-LB (step size {size} 1/s^2): no limit, no frontend has two backends in use at the optimum",
            ]
        return [
            *lines,
            f"  with DGD-LB (step size {size} 1/s^2, cautious beside it): critical at {number(found.limit)} times that; beyond it traffic "
            f"and replicas swing with a period of {seconds(found.period)}",
            "  the autoscalers decide the split: where replicas are free to follow, traffic drifts to the cheapest backends until a limit "
            "of replicas stops it",
        ]
