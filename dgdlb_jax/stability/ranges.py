"""Where along one setting a loop is stable: every range of it, since the stable set may be two intervals."""

from collections.abc import Callable

import numpy as np
from scipy.optimize import brentq

POINTS = 48
"""How many values of a setting are looked at first, evenly in its logarithm; a range between two of them is missed."""


def stable_ranges(
    radius: Callable[[float], float], low: float, high: float, *, points: int = POINTS
) -> list[tuple[float, float]]:
    """The ranges of a setting between `low` and `high` (both above 0) in which the largest multiplier has a modulus below 1.

    **Arguments:** `radius`: that modulus at a value; NaN where there is none (no rest point), which counts as not stable.

    **Returns:** pairs of edges in ascending order, exact to 1e-9 but where they are `low` or `high` themselves, or the loop ends.
    """
    grid = np.geomspace(low, high, points)
    outside = np.array([_excess(radius, value) for value in grid])
    ranges, begin = [], low if outside[0] < 0 else None
    for k in range(1, points):
        if (outside[k - 1] < 0) == (outside[k] < 0):
            continue
        edge = _edge(radius, grid[k - 1], grid[k])
        if begin is None:
            begin = edge
        else:
            ranges.append((begin, edge))
            begin = None
    return ranges if begin is None else [*ranges, (begin, high)]


def _excess(radius: Callable[[float], float], value: float) -> float:
    found = radius(value) - 1
    return found if np.isfinite(found) else 1.0


def _edge(radius: Callable[[float], float], low: float, high: float) -> float:
    return float(np.exp(brentq(lambda x: _excess(radius, float(np.exp(x))), np.log(low), np.log(high), xtol=1e-10)))
