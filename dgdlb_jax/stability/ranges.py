"""Where along one setting a loop is stable: every range of it, since the stable set may be two intervals."""

import math
from collections.abc import Callable

import numpy as np

POINTS = 48
"""How many values of a setting are looked at first, evenly in its logarithm; a range between two of them is missed."""

_EXACT = 1e-9  # of an edge
_MARGINAL = 1e-11  # distance from 1 of a modulus that rounding does not tell from it


def stable_ranges(
    radius: Callable[[float], float], low: float, high: float, *, points: int = POINTS
) -> list[tuple[float, float]]:
    """The ranges of a setting between `low` and `high` (both above 0) in which the largest multiplier has a modulus below 1.

    **Arguments:** `radius`: that modulus at a value; NaN where there is none (no rest point), which counts as not stable.

    **Returns:** pairs of edges in ascending order, exact to 1e-9 but where they are `low` or `high` themselves, or the loop ends.
    """
    stable = lambda value: radius(value) < 1 - _MARGINAL
    grid = [float(value) for value in np.geomspace(low, high, points)]
    inside = [stable(value) for value in grid]
    ranges, begin = [], low if inside[0] else None
    for k in range(1, points):
        if inside[k - 1] == inside[k]:
            continue
        edge = _edge(stable, inside[k - 1], grid[k - 1], grid[k])
        if begin is None:
            begin = edge
        else:
            ranges.append((begin, edge))
            begin = None
    return ranges if begin is None else [*ranges, (begin, high)]


def _edge(stable: Callable[[float], bool], below: bool, low: float, high: float) -> float:
    """Where it turns, by bisection of the logarithm: it need not do so continuously."""
    while high / low > 1 + _EXACT:
        middle = math.sqrt(low * high)
        low, high = (middle, high) if stable(middle) == below else (low, middle)
    return math.sqrt(low * high)
