"""The conclusion of a comparison: one or two sentences, computed from the figures."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from dgdlb_jax.numerics.formatting import enumerated, number, percent, seconds
from dgdlb_jax.studies.balancers import CURRENT, DGD, ORACLE
from dgdlb_jax.studies.outcome import Outcome
from dgdlb_jax.studies.verdict import Verdict

if TYPE_CHECKING:
    from dgdlb_jax.studies.compare import Comparison

_ARRIVED = 0.002  # excess below which DGD-LB counts as being there


def conclusion(comparison: "Comparison") -> str:
    """One or two sentences, computed from the figures."""
    rows = comparison.outcomes
    sentences = [_about_dgd(comparison, rows[DGD])] if DGD in rows else []
    sentences.append(_about_rivals([row for row in rows.values() if row.balancer not in (DGD, ORACLE, CURRENT)]))
    if CURRENT in rows:
        sentences.append(_about_current(rows[CURRENT]))
    return " ".join(filter(None, sentences))


def _about_dgd(comparison: "Comparison", row: Outcome) -> str:
    target = "the quasi-static reference" if comparison.moving else "the optimum"
    reached = f"{seconds(row.mean_latency)}, {excess(row)} against {target} of {seconds(comparison.best_latency)}"
    if row.verdict is Verdict.diverging:
        return f"{DGD} lets queues grow at {enumerated(row.short_backends)}: give it more time or a larger step size."
    if row.verdict is Verdict.failed:
        return f"{DGD} failed: {row.result.sentence}"
    if row.verdict is Verdict.oscillating:
        swing = percent(row.swing)
        return f"{DGD} has not come to rest (swing {swing}): {reached}. Try a longer duration or a smaller step size."
    if comparison.moving:
        return f"Under this demand {DGD} averages {reached}."
    if row.verdict is Verdict.too_short:
        return f"The run is too short to judge {DGD}: {reached}; {row.reason}."
    if abs(row.excess) <= _ARRIVED:
        return f"{DGD} finds the optimum by itself despite the network latencies: {reached}."
    return f"{DGD} is still on its way: {reached}. Give it a longer duration or a larger step size."


def _about_rivals(rivals: Sequence[Outcome]) -> str:
    working = sorted((row for row in rivals if math.isfinite(row.mean_latency)), key=lambda row: row.mean_latency)
    drowning = [row.balancer for row in rivals if row.verdict is Verdict.diverging]
    parts = []
    if working:
        first, last = working[0], working[-1]
        text = f"{first.balancer} comes closest of the others ({excess(first)})"
        parts.append(text if last is first else f"{text}, {last.balancer} costs most ({excess(last)})")
    if drowning:
        parts.append(
            f"{enumerated(drowning)} send{'s' if len(drowning) == 1 else ''} some backends more than they can serve"
        )
    text = "; ".join(parts)
    return f"{text[:1].upper()}{text[1:]}." if text else ""


def _about_current(row: Outcome) -> str:
    if row.verdict is Verdict.diverging:
        return (
            f"Your current routing is short by {number(row.short_by)} requests/s at {enumerated(row.short_backends)}."
        )
    return f"Your current routing costs {seconds(row.mean_latency)} ({excess(row)})."


def excess(row: Outcome) -> str:
    """A row's excess over the optimum or the reference, with its sign; empty when there is none."""
    if not math.isfinite(row.excess):
        return ""
    return "0.000 %" if abs(row.excess) < 5e-6 else f"{'+' if row.excess > 0 else ''}{percent(row.excess)}"
