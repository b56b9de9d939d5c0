"""What came of a claim, and the words and numbers that judges have in common."""

import enum
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import xarray


class Verdict(enum.StrEnum):
    """Whether a claim holds in this project's model."""

    holds = "holds"
    in_part = "holds in part"
    fails = "does not hold"


@dataclass(frozen=True)
class Judgement:
    """What came of a claim.

    - `measured`: a sentence with the figures that decide. `verdict`: what follows.
    - `topologies`: how many networks it rests on. `numbers`: name -> figure, for tables and tests.
    - `against`: the case that speaks most clearly against the claim, as inputs of a sweep; None when none does.
    """

    measured: str
    verdict: Verdict
    topologies: int
    numbers: dict[str, float]
    against: dict[str, Any] | None = field(default=None)


def percent(part: float) -> str:
    """`4.1 %`, with two significant digits."""
    if not np.isfinite(part):
        return "no end" if part > 0 else "unknown"
    value = 100 * part
    return f"{value:.0f} %" if abs(value) >= 10 or value == 0 else f"{value:.2g} %"


def quantile(values: np.ndarray, q: float) -> float:
    """Of values; NaN without any."""
    return float(np.quantile(values, q)) if values.size else float("nan")


def known(values: "xarray.DataArray") -> np.ndarray:
    """The finite values."""
    flat = values.values.ravel()
    return flat[np.isfinite(flat)]


def topologies(runs: "xarray.Dataset") -> int:
    """Networks that differ in more than latency scale, load or what runs in them."""
    count = 1
    for name in ("seed", "family", "fleet", "network", "world"):
        count *= runs.sizes.get(name, 1)
    return count


def worst(runs: "xarray.Dataset", score: np.ndarray) -> dict[str, Any]:
    """The inputs and measures of the case with the highest score."""
    return case(runs, np.unravel_index(int(np.argmax(score)), score.shape), runs["growth_rate"].dims)


def case(runs: "xarray.Dataset", place: tuple, dims: tuple) -> dict[str, Any]:
    """The inputs of one case, fixed ones included, with what was measured."""
    case = runs.isel({str(dim): int(k) for dim, k in zip(dims, place, strict=True)})
    return {
        str(name): value.item() for name, value in [*case.coords.items(), *case.data_vars.items()] if value.ndim == 0
    }
