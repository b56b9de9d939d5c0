"""How often a curve in the complex plane winds around 0: roots counted by the argument principle, with no root computed."""

from collections.abc import Callable

import numpy as np

from dgdlb_jax.numerics.results import ConvergenceError

_LARGEST_TURN = 0.6  # radians between neighbours
_LARGEST_SURPRISE = 0.3  # radians between the turn seen and the one that the derivatives at both ends predict
_MOST_POINTS = 2_000_000


def turn(phase: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]], first: float, last: float) -> float:
    """The continuous change of a phase along an interval, in radians.

    Points are added until neighbours differ by little and agree with what the derivatives predict. A phase that turns by more than
    a full circle between two points (many identical factors) shows in its derivative.

    **Arguments:** `phase(points)` gives the phase modulo a full circle and its derivative, at sorted points.

    **Raises:** `ConvergenceError` when the curve passes too close to 0 to be counted.
    """
    points = np.geomspace(first, last, 65)
    value, slope = phase(points)
    while True:
        step = np.diff(points)
        seen = np.angle(np.exp(1j * np.diff(value)))
        expected = step * (slope[1:] + slope[:-1]) / 2
        rough = (np.abs(seen) > _LARGEST_TURN) | ~(np.abs(seen - expected) <= _LARGEST_SURPRISE)
        rough &= step > 1e-13 * points[1:]
        if not rough.any():
            return float(seen.sum())
        if points.size > _MOST_POINTS:
            raise ConvergenceError(
                "A root lies too close to the imaginary axis to be counted: move the step size by a little."
            )
        new = (points[:-1] + step / 2)[rough]
        values, slopes = phase(new)
        order = np.argsort(np.concatenate([points, new]), kind="stable")
        points, value, slope = (
            np.concatenate(pair)[order] for pair in ((points, new), (value, values), (slope, slopes))
        )
