"""Round numbers: 1, 2 or 5 times a power of ten."""

import math


def round_down(value: float) -> float:
    """The largest round number that is not above `value` (a positive number); round ones stay."""
    power = math.floor(math.log10(value * (1 + 1e-9)))
    return max(float(f"{digit}e{power}") for digit in (1, 2, 5) if digit * 10.0**power <= value * (1 + 1e-9))


def round_up(value: float) -> float:
    """The smallest round number that is not below `value` (a positive number); round ones stay."""
    power = math.floor(math.log10(value * (1 - 1e-9)))
    return min(float(f"{digit}e{power}") for digit in (1, 2, 5, 10) if digit * 10.0**power >= value * (1 - 1e-9))
