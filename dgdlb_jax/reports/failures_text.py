"""What people read of failures: one table over backends and balancers, and what follows."""

import math
from typing import Any

from dgdlb_jax.numerics.formatting import enumerated, number, seconds
from dgdlb_jax.reports.text_table import columns
from dgdlb_jax.studies.balancers import DGD
from dgdlb_jax.studies.failures import Failures, Loss
from dgdlb_jax.studies.schedule import Recovery


def table(found: Failures) -> str:
    """One line per backend, the one whose loss costs most first."""
    header, rows = cells(found)
    return columns(header, rows, right=(1,))


def cells(found: Failures) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Header and rows of that table; for every balancer the worst latency on the way, requests lost, and when it is back."""
    names = list(dict.fromkeys(name for loss in found.losses for name in loss.recoveries))
    rows = []
    for loss in in_order(found):
        best = seconds(loss.latency) or f"short by {number(loss.short_by)} req/s"
        rows.append((loss.backend, best, *(_recovery(loss.recoveries.get(name)) for name in names)))
    return ("fails", "optimum then", *(f"under {name}" for name in names)), rows


def _recovery(one: Recovery | None) -> str:
    if one is None:
        return ""
    return f"{seconds(one.worst_latency)}, {number(one.lost)}, {seconds(one.time) or '-'}"


def in_order(found: Failures) -> list[Loss]:
    """The backend whose loss costs most first."""
    return sorted(found.losses, key=lambda loss: (-loss.short_by, -loss.latency))


def facts(found: Failures) -> str:
    """How this was found."""
    steps = " to ".join(dict.fromkeys(map(seconds, _ends(found))))
    return (
        f"each backend fails at {seconds(found.begin)} of {seconds(found.duration)}, from the optimum of "
        f"{seconds(float(found.optimum.mean_latency))}; time steps {steps}\n"
        "under a balancer: the highest mean latency on the way, requests lost, and the time after which it stays within 1 % of the optimum"
    )


def _ends(found: Failures) -> tuple[float, float]:
    steps = found.time_steps.values()
    return min(steps), max(steps)


def sentences(found: Failures) -> str:
    """What follows."""
    short = [loss for loss in in_order(found) if loss.short_by > 0]
    served = [loss for loss in in_order(found) if math.isfinite(loss.latency)]
    parts = []
    if short:
        verb = "has" if len(short) == 1 else "have"
        parts.append(
            f"{enumerated([loss.backend for loss in short])} {verb} no substitute: the others cannot serve the demand."
        )
    else:
        names = [loss.backend for loss in found.losses]
        which = names[0] if len(names) == 1 else f"any one of {enumerated(names)}"
        which = "any one of its backends" if len(names) == found.network.backends else which
        parts.append(f"The fleet can do without {which}.")
    if served:
        worst = served[0]
        parts.append(
            f"Of those that it can do without, {worst.backend} costs most: {seconds(worst.latency)} per request at best."
        )
        own = [loss.recoveries[DGD] for loss in served if DGD in loss.recoveries]
        late = [one for one in own if not math.isfinite(one.time)]
        if own:
            times = [one.time for one in own if math.isfinite(one.time)]
            text = (
                f"{DGD} is back within 1 % after {seconds(max(times))} at the latest"
                if times
                else f"{DGD} does not get back in time"
            )
            parts.append(
                f"{text}{f', but for {len(late)} of {len(own)} failures not within the run' if late and times else ''}."
            )
    return " ".join(parts)


def document(found: Failures) -> dict[str, Any]:
    """What a script reads; None where there is nothing, see `short_by`, or where a balancer was not back within the run."""
    finite = lambda value: float(value) if math.isfinite(value) else None
    return {
        "fleet": found.network.name,
        "optimum_mean_latency": float(found.optimum.mean_latency),
        "fails_at": found.begin,
        "duration": found.duration,
        "time_steps": found.time_steps,
        "failures": [
            {
                "backend": loss.backend,
                "optimum_mean_latency": finite(loss.latency),
                "short_by": float(loss.short_by),
                "balancers": [
                    {
                        "balancer": name,
                        "worst_latency": finite(one.worst_latency),
                        "requests_lost": finite(one.lost),
                        "back_within_1_percent_after": finite(one.time),
                    }
                    for name, one in loss.recoveries.items()
                ],
            }
            for loss in in_order(found)
        ],
        "conclusion": sentences(found),
        "units": {"time": "s", "rate": "requests/s"},
    }
