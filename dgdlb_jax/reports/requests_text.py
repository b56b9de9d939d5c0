"""What whole requests make of a comparison, as text."""

import math

from dgdlb_jax.numerics.formatting import enumerated, number, percent, seconds
from dgdlb_jax.reports.text_table import GrowingTable, columns
from dgdlb_jax.stability.noise import TRUSTED, Noise
from dgdlb_jax.studies.balancers import DGD
from dgdlb_jax.studies.requests import DISCIPLINES, PERCENTILES, RequestOutcome, RequestStudy

HEADER = ("balancer", "fluid", "whole requests", "+-", "noise costs", *PERCENTILES)


def growing_table(names) -> GrowingTable:
    """The table of balancers of these names, whose rows are not known yet."""
    return GrowingTable(HEADER, [max([*map(len, names), 8]), 8, 14, 8, 18, *(8 for _ in PERCENTILES)])


def cells(row: RequestOutcome) -> tuple[str, ...]:
    """The row of a balancer."""
    return (
        row.balancer, seconds(row.fluid), seconds(row.mean), seconds(row.error), _noise(row), *map(seconds, row.quantiles),
    )  # fmt: skip


def table(study: RequestStudy) -> str:
    """One line per balancer."""
    return columns(HEADER, [cells(row) for row in study.rows])


def facts(study: RequestStudy) -> str:
    """With what they ran."""
    return (
        f"{study.seeds} runs of {seconds(study.duration)} each, {DISCIPLINES[study.discipline]}, at scale {number(study.scale)}; "
        "latencies with their network time"
    )


def sentences(study: RequestStudy) -> list[str]:
    """What follows from the figures: whether the order of the balancers holds, what noise costs, and from which scale on little."""
    found = []
    if len(study.rows) > 1:
        swapped = [f"{worse} before {better}" for better, worse in study.swaps]
        found.append(
            f"With whole requests the order of the balancers is another one: {enumerated(swapped)}."
            if swapped
            else "The order of the balancers holds with whole requests, as far as these runs can tell."
        )
    about = next((row for row in study.rows if row.balancer == DGD), study.rows[0] if study.rows else None)
    if about is not None:
        found.append(_about_noise(study, about))
    if study.predicted is not None:
        found.append(_about_theory(study, study.predicted))
    counting = [row.balancer for row in study.rows if row.counts_own and study.scale != 1]
    if counting:
        found.append(
            f"With {enumerated(counting)} the difference is not noise alone: the rule weighs its own requests one by one, so that at scale "
            f"{number(study.scale)} it is another one than in the fluid run."
        )
    if study.left_out:
        found.append(f"Not run: {enumerated(study.left_out)}, whose fluid run has no latency.")
    unknown = [row.balancer for row in study.rows if any(math.isnan(value) for value in row.quantiles)]
    if unknown:
        found.append(
            f"{enumerated(unknown)}: some requests stayed longer than they were followed, so a percentile is missing."
        )
    return found


def _about_noise(study: RequestStudy, row: RequestOutcome) -> str:
    scale = study.holds_from(row)
    costs = f"Randomness changes the mean latency of {row.balancer} by {_noise(row)}"
    if abs(row.noise) <= 2 * row.noise_error:
        return f"{costs}, which these runs cannot tell from nothing."
    if scale <= study.scale:
        return f"{costs}: at this scale the fluid figures hold within 1 %."
    return f"{costs}; it falls like one over the scale, so the fluid figures hold within 1 % from a scale of about {number(scale)} on."


def _about_theory(study: RequestStudy, predicted: Noise) -> str:
    static, jitter = (100 * float(part) / study.optimum for part in (predicted.static, predicted.jitter))
    said = f"Linear theory says +{static:.2g} % for a routing that never changes and {jitter:+.2g} % for the jitter of {DGD}"
    if bool(predicted.holds):
        return f"{said}."
    return (
        f"{said}, but is only a guide at this scale: noise of {number(float(predicted.distance))} standard deviations empties a link or "
        f"brings another one into use ({TRUSTED:.0f} are wanted)."
    )


def _noise(row: RequestOutcome) -> str:
    return f"{'+' if row.noise > 0 else ''}{percent(row.noise)} +- {percent(row.noise_error)}"
