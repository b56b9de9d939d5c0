"""Events in words, and what comparisons say of them."""

import math
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import ArrayLike

from dgdlb_jax.model import events as kinds
from dgdlb_jax.model.events import Event
from dgdlb_jax.numerics.formatting import enumerated, number, seconds
from dgdlb_jax.studies.balancers import DGD
from dgdlb_jax.studies.schedule import Phase, Recovery

if TYPE_CHECKING:
    from dgdlb_jax.studies.comparison import Comparison


_QUICKER = 0.9  # of the time that DGD-LB takes: what is worth a word


def happening(phase: Phase) -> str:
    """`100 s: east fails`."""
    return f"{phase.begin:g} s: {', '.join(map(described, phase.events))}"


def described(event: Event) -> str:
    """What happens, without the time."""
    backend = enumerated([str(one) for one in event.backends] or ["every backend"])
    frontend = enumerated([str(one) for one in event.frontends] or ["every frontend"])
    one = len(event.backends) == 1
    match event:
        case kinds.Fails(timeout=timeout):
            again = "" if timeout is None else f" (its requests are sent again after {seconds(timeout)})"
            return f"{backend} fail{'s' * one}{again}"
        case kinds.Drains():
            return f"{backend} drain{'s' * one}"
        case kinds.Recovers():
            return f"{backend} recover{'s' * one}"
        case kinds.Replicas(factor=factor):
            return f"{backend} with {_times(factor)} times the replicas"
        case kinds.Demand(factor=factor):
            return f"{frontend} with {_times(factor)} times the demand"
        case kinds.Closes():
            return f"{frontend} may not use {backend}"
        case kinds.Opens():
            return f"{frontend} may use {backend} again"
        case kinds.Latency(factor=factor, news=news):
            return f"{_times(factor)} times the latency{' and that of news' * news} from {frontend} to {backend}"
        case kinds.Breaks():
            return f"the link from {frontend} to {backend} breaks"
    return f"the link from {frontend} to {backend} is back"


def _times(factor: ArrayLike) -> str:
    return f"{float(np.asarray(factor)):.4g}"


def about_events(comparison: "Comparison") -> str:
    """What happens, what is best then, and how DGD-LB and the quickest of the others get over it."""
    if not comparison.phases:
        return ""
    before, *phases = comparison.phases
    sentences = []
    for phase in phases:
        found = {one.balancer: one for one in comparison.recoveries if one.phase is phase}
        sentences.append(f"At {happening(phase)}{_change(before, phase)}; {_course(found)}.")
        before = phase
    return " ".join([*sentences, "All else is about the end, after the last event."])


def _change(before: Phase, phase: Phase) -> str:
    if math.isnan(phase.latency):
        return f", and the fleet is short by {number(phase.short_by)} requests/s"
    if math.isnan(before.latency):
        return f", and the optimum is {seconds(phase.latency)} again"
    return f", which moves the optimum from {seconds(before.latency)} to {seconds(phase.latency)}"


def _course(found: dict[str, Recovery]) -> str:
    """How DGD-LB does, and who is quicker."""
    known = [one for one in found.values() if math.isfinite(one.time)]
    first = min(known, key=lambda one: one.time, default=None)
    own = found.get(DGD)
    if own is None:
        return "no balancer is back within 1 % of it" if first is None else f"first back is {_back(first)}"
    text = _back(own) if math.isfinite(own.time) else f"{DGD} does not get back within 1 % of it{_price(own)}"
    if first is None or first.time >= _QUICKER * own.time:
        return text
    return f"{text}, {_back(first)}"


def _back(one: Recovery) -> str:
    return f"{one.balancer} is back within 1 % of it after {seconds(one.time)}{_price(one)}"


def _price(one: Recovery) -> str:
    lost = f", {number(one.lost)} requests lost" if one.lost > 0 else ""
    return f" (at worst {seconds(one.worst_latency)}{lost})"
