"""The conclusion of a comparison: a few sentences, computed from the figures. Each is a function of its own, and empty where it is not
true."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from dgdlb_jax.numerics.formatting import enumerated, number, percent, ranging, seconds
from dgdlb_jax.studies.balancers import CURRENT, DGD, ORACLE
from dgdlb_jax.studies.event_words import about_events
from dgdlb_jax.studies.outcome import Outcome, backend_names, beyond_measured, frontend_names
from dgdlb_jax.studies.scatter import Scatter
from dgdlb_jax.studies.switching import Switch
from dgdlb_jax.studies.verdict import Verdict

if TYPE_CHECKING:
    from dgdlb_jax.studies.comparison import Comparison

_ARRIVED = 0.002  # excess below which DGD-LB counts as being there
_ELSEWHERE = 0.05  # of a frontend's requests: routings that differ by less need no explanation
_SAME_FLOW = 0.01  # of all requests: what a backend gets more or less without being worth a word
_LITTLE_NETWORK = 0.1  # of the mean latency
_NO_GAIN = 1e-3  # of the mean latency: not worth a change of routing


def conclusion(comparison: "Comparison") -> str:
    """What the figures say, in sentences."""
    rows = comparison.outcomes
    sentences = [about_events(comparison), no_percentage(comparison)]
    if DGD in rows:
        sentences += [about_dgd(comparison, rows[DGD]), about_routings(comparison, rows[DGD])]
    sentences.append(about_rivals([row for row in rows.values() if row.balancer not in (DGD, ORACLE, CURRENT)]))
    if CURRENT in rows:
        sentences += [about_current(rows[CURRENT]), about_switch(comparison.switch)]
    sentences.append(about_scatter(comparison.scatter))
    return " ".join(filter(None, sentences))


def no_percentage(comparison: "Comparison") -> str:
    """Why there is no excess over a quasi-static reference, where there is none."""
    if comparison.unmeasurable is None:
        return ""
    steady, service = comparison.unmeasurable
    return (
        f"Demand stays as it is for {seconds(steady)} and a request up to {seconds(service)} at a backend, so queues cannot follow "
        "and a quasi-static optimum is nothing to be held against: no percentages over it."
    )


def about_extrapolation(comparison: "Comparison") -> str:
    """Which backends the optimum loads beyond what was measured of their curves."""
    network, best = comparison.network, comparison.optimum
    beyond = np.flatnonzero(beyond_measured(network, best.workload))
    if not beyond.size:
        return ""
    inflow = np.asarray(network.arrival_rate, float) @ np.asarray(best.routing, float)
    part = (inflow / np.asarray(network.nominal_capacity, float))[beyond]
    names = [backend_names(network)[j] for j in beyond[np.argsort(-part, kind="stable")]]
    are, most = ("is", "") if len(names) == 1 else ("are", "up to ")
    most += percent(float(part.max()))
    return (
        f"At the optimum {enumerated(names)} {are} outside the measured range of the service curve, with {most} of the highest throughput "
        "measured: figures there are extrapolated."
    )


def about_dgd(comparison: "Comparison", row: Outcome) -> str:
    """Whether DGD-LB gets to the optimum."""
    target = "the quasi-static reference" if comparison.moving else "the optimum"
    reached = seconds(row.mean_latency)
    if math.isfinite(row.excess):
        reached = f"{reached}, {excess(row)} against {target} of {seconds(comparison.best_latency)}"
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


def about_routings(comparison: "Comparison", row: Outcome) -> str:
    """That it does not matter, where DGD-LB has another routing than the optimum and is as good."""
    if comparison.moving or row.verdict is not Verdict.settled or not abs(row.excess) <= _ARRIVED:
        return ""
    best = np.asarray(comparison.optimum.routing, float)
    found = comparison.mean_routing(DGD)
    rate = np.asarray(comparison.network.arrival_rate, float)
    elsewhere = np.where(rate > 0, np.abs(found - best).sum(1) / 2, 0)
    i = int(np.argmax(elsewhere))
    if elsewhere[i] < _ELSEWHERE:
        return ""
    flows = np.abs(rate @ (found - best)) / rate.sum()
    j = int(np.argmax(flows))
    backends = (
        "every backend gets as much"
        if flows[j] < _SAME_FLOW
        else f"{backend_names(comparison.network)[j]} gets {percent(flows[j])} of all requests more or less"
    )
    share = float(comparison.optimum.network_share)
    why = f", as the network is {percent(share)} of it" if share < _LITTLE_NETWORK else ""
    return (
        f"Its routing is another ({frontend_names(comparison.network)[i]} sends {percent(elsewhere[i])} of its requests elsewhere), "
        f"but {backends} and the mean latency differs by only {percent(abs(row.excess))}{why}: it hardly matters which you take."
    )


def about_rivals(rivals: Sequence[Outcome]) -> str:
    """Who comes closest of the others, who costs most, who drowns."""
    working = sorted((row for row in rivals if math.isfinite(row.mean_latency)), key=lambda row: row.mean_latency)
    drowning = [row.balancer for row in rivals if row.verdict is Verdict.diverging]
    parts = []
    if working:
        first, last = working[0], working[-1]
        text = f"{first.balancer} comes closest of the others ({_cost(first)})"
        parts.append(text if last is first else f"{text}, {last.balancer} costs most ({_cost(last)})")
    if drowning:
        parts.append(
            f"{enumerated(drowning)} send{'s' if len(drowning) == 1 else ''} some backends more than they can serve"
        )
    text = "; ".join(parts)
    return f"{text[:1].upper()}{text[1:]}." if text else ""


def about_current(row: Outcome) -> str:
    """What the routing in use costs."""
    if row.verdict is Verdict.diverging:
        return (
            f"Your current routing is short by {number(row.short_by)} requests/s at {enumerated(row.short_backends)}."
        )
    if row.verdict is Verdict.failed:
        return f"The run with your current routing failed: {row.result.sentence}"
    return f"Your current routing costs {seconds(row.mean_latency)}{f' ({excess(row)})' if excess(row) else ''}."


def about_switch(found: Switch | None) -> str:
    """What changing to the optimum brings, and which changes bring most of it."""
    if found is None or not math.isfinite(found.after):
        return ""
    gain = found.before - found.after
    if gain <= _NO_GAIN * found.after:
        return "Changing it would bring less than 0.1 %: leave it as it is."
    brings = (
        f"saves {seconds(gain)} of it ({percent(gain / found.before)})"
        if math.isfinite(gain)
        else f"ends the overload and leaves {seconds(found.after)}"
    )
    text = f"Changing to the recommended routing {brings}."
    if not found.moves:
        return f"{text} No single change helps by itself."
    moves = "; ".join(
        f"{move.frontend}, {percent(move.share)} of its requests from {move.source} to {move.target}"
        for move in found.moves
    )
    first = "The change" if len(found.moves) == 1 else f"The {len(found.moves)} changes"
    verb = "brings" if len(found.moves) == 1 else "bring"
    reached = found.moves[-1].latency
    if math.isfinite(found.part):
        effect = f"({percent(found.part)} of that)"
    else:
        effect = f"({seconds(reached)} after them)" if math.isfinite(reached) else "(more are needed)"
    return f"{text} {first} that {verb} most {effect}: {moves}."


def about_scatter(found: Scatter | None) -> str:
    """How far to trust the routing and the gain, given the scatter of the measurements."""
    if found is None:
        return ""
    if not any(found.error.values()) and not found.unserved:
        return ""
    errors = enumerated([f"{percent(error)} at {name}" for name, error in found.error.items()])
    latency, inflow = ranging(*found.latency, seconds), ranging(*found.inflow, percent)
    text = (
        f"Measured throughputs scatter about the curves through their neighbours ({errors}): within that the optimum is {latency}, and "
        f"{found.backend}, whose share moves most, gets {inflow} of all requests."
    )
    if found.unserved:
        text += f" {found.unserved} of {found.draws} sets of curves that fit as well could not carry the demand."
    low, high = found.gain
    if math.isfinite(low):
        gain = f"less than 0 to {percent(high)}" if low <= 0 else ranging(low, high, percent)
        act = "no reason to change anything" if low <= 0 else "more than the scatter explains"
        text += f" The recommended routing takes {gain} off your current latency, {act}."
    return text


def excess(row: Outcome) -> str:
    """A row's excess over the optimum or the reference, with its sign; empty when there is none."""
    if not math.isfinite(row.excess):
        return ""
    return "0.000 %" if abs(row.excess) < 5e-6 else f"{'+' if row.excess > 0 else ''}{percent(row.excess)}"


def _cost(row: Outcome) -> str:
    return excess(row) or seconds(row.mean_latency)
