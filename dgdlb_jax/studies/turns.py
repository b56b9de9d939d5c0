"""How series go up and down: their turns, the swings between turns, and whether they go in one direction."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

REVERSAL = 0.25
"""A movement counts as a turn from this part of the range that a series still has ahead of it."""


@dataclass(frozen=True)
class Turns:
    """Turns of many series, arrays `(...)` of one entry per series.

    - `peaks`, `troughs`: how many turns each way.
    - `largest`: largest distance from one turn to the next; 0 with fewer than two turns. In the units of the series.
    - `shrinkage`: by which factor the distance from turn to turn changes in a period (two turns), by a straight line through its
      logarithm; 1 with fewer than three turns.
    """

    peaks: Int[np.ndarray, "..."]
    troughs: Int[np.ndarray, "..."]
    largest: Float[np.ndarray, "..."]
    shrinkage: Float[np.ndarray, "..."]


def turns(values: Float[np.ndarray, "time ..."], least: Float[np.ndarray, "..."]) -> Turns:
    """Count the turns of series, small ones left out.

    A peak is a highest value that is followed by a fall of `REVERSAL` times the range that is still to come, and of `least` at
    least; a trough likewise. The range to come makes a decaying oscillation turn to its end.

    **Arguments:** `values` `(time, ...)`, finite; `least` `(...)`, in their units.
    """
    limit = np.maximum(REVERSAL * _range_ahead(values), least)
    shape = values.shape[1:]
    high, low = values[0].copy(), values[0].copy()
    rising, falling = np.zeros(shape, bool), np.zeros(shape, bool)  # neither before the first movement that counts
    last = np.full(shape, np.nan)
    peaks, troughs = np.zeros(shape, int), np.zeros(shape, int)
    legs = _Legs(shape)
    for now, enough in zip(values[1:], limit[1:], strict=True):
        high, low = np.maximum(high, now), np.minimum(low, now)
        down, up = ~falling & (high - now > enough), ~rising & (now - low > enough)
        up &= ~down
        peak, trough = down & rising, up & falling
        legs.add(peak | trough, np.abs(np.where(peak, high, low) - last))
        last = np.where(peak, high, np.where(trough, low, last))
        peaks, troughs = peaks + peak, troughs + trough
        rising, falling = (rising | up) & ~down, (falling | down) & ~up
        high, low = np.where(up, now, high), np.where(down, now, low)
    return Turns(peaks, troughs, legs.largest, legs.shrinkage)


def crossings(values: Float[np.ndarray, " time"]) -> Int[np.ndarray, " found"]:
    """Where a series rises through the middle of its range, after having been in the lowest `REVERSAL` of it: once in every period."""
    low, high = values.min(), values.max()
    found, below = [], False
    for number, value in enumerate(values):
        if value <= low + REVERSAL * (high - low):
            below = True
        elif below and value > (low + high) / 2:
            found.append(number)
            below = False
    return np.array(found, int)


def one_way(values: Float[np.ndarray, "time ..."]) -> Bool[np.ndarray, "..."]:
    """Whether series go in one direction: what they go back on the way is at most `REVERSAL` of their range."""
    fall = (np.maximum.accumulate(values, 0) - values).max(0)
    rise = (values - np.minimum.accumulate(values, 0)).max(0)
    return np.minimum(rise, fall) <= REVERSAL * (values.max(0) - values.min(0))


def _range_ahead(values: Float[np.ndarray, "time ..."]) -> Float[np.ndarray, "time ..."]:
    backwards = values[::-1]
    return (np.maximum.accumulate(backwards, 0) - np.minimum.accumulate(backwards, 0))[::-1]


class _Legs:
    """Sums over the distances from turn to turn, for the largest and for a straight line through their logarithms."""

    def __init__(self, shape: tuple[int, ...]):
        self.count = np.zeros(shape, int)
        self.largest = np.zeros(shape)
        self.sums = np.zeros((4, *shape))  # of k, k^2, log leg, k log leg

    def add(self, turned: Bool[np.ndarray, "..."], leg: Float[np.ndarray, "..."]) -> None:
        """One more distance where a series turned; NaN where it turned for the first time."""
        good = turned & (leg > 0)
        if not good.any():
            return
        k, size = self.count, np.log(np.where(good, leg, 1))
        self.sums += np.where(good, np.stack([k, k**2, size, k * size]), 0)
        self.largest = np.where(good, np.maximum(self.largest, leg), self.largest)
        self.count = k + good

    @property
    def shrinkage(self) -> Float[np.ndarray, "..."]:
        k, squares, size, product = self.sums
        spread = self.count * squares - k**2
        slope = np.where(spread > 0, self.count * product - k * size, 0) / np.where(spread > 0, spread, 1)
        return np.exp(2 * slope)
