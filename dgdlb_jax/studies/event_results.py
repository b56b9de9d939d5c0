"""Events and recoveries in files: for JSON, and as variables of a dataset."""

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from dgdlb_jax.studies.event_words import described
from dgdlb_jax.studies.schedule import Phase, Recovery

if TYPE_CHECKING:
    from dgdlb_jax.studies.comparison import Comparison


def events_json(comparison: "Comparison") -> list[dict[str, Any]]:
    """Every event in the order of time: what happens, what is best then, and how balancers get over it."""
    return [_phase(comparison, phase) for phase in comparison.phases[1:]]


def _phase(comparison: "Comparison", phase: Phase) -> dict[str, Any]:
    served = math.isfinite(phase.latency)
    found = {
        "at_s": phase.begin,
        "what": [described(event) for event in phase.events],
        "optimum_mean_latency": phase.latency if served else None,
        "balancers": [_recovery(one) for one in comparison.recoveries if one.phase is phase],
    }
    return found if served else found | {"short_by": phase.short_by}


def _recovery(one: Recovery) -> dict[str, Any]:
    found = {"balancer": one.balancer, "worst_latency": one.worst_latency, "requests_lost": one.lost}
    if math.isfinite(one.time):
        return found | {"back_within_1_percent_after": one.time}
    reason = "it did not get and stay there before the next event, or the end"
    return found | {"back_within_1_percent_after": None, "null_because": {"back_within_1_percent_after": reason}}


def event_variables(comparison: "Comparison") -> dict[str, tuple]:
    """The same as arrays, over balancers and events."""
    phases = comparison.phases[1:]
    if not phases:
        return {}
    axis, both = ("event",), ("balancer", "event")
    table = {
        "event_worst_latency": ("worst_latency", "s", "highest moving mean of the latency until the next event"),
        "event_lost": ("lost", "requests", "requests lost until the next event"),
        "event_recovery_time": ("time", "s", "after which the latency stays within 1 % of the new optimum; NaN where it does not"),
    }  # fmt: skip
    rows = len(comparison.runs)

    def over_both(field: str) -> np.ndarray:
        values = [getattr(one, field) for one in comparison.recoveries]
        return np.array(values).reshape(len(phases), rows).T

    return {
        "event_time": (axis, [phase.begin for phase in phases], "s", "when it happens"),
        "event_what": (axis, [", ".join(map(described, phase.events)) for phase in phases], "", "what happens"),
        "event_optimum": (axis, [phase.latency for phase in phases], "s", "optimal mean latency then; NaN where demand cannot be served"),
        **{name: (both, over_both(field), units, meaning) for name, (field, units, meaning) in table.items()},
    }  # fmt: skip
