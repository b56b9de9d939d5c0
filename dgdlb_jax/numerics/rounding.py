"""Round numbers, 1, 2 or 5 times a power of ten; and numbers of few digits that are enough."""

import math


def round_down(value: float) -> float:
    """The largest round number that is not above `value` (a positive number); round ones stay."""
    power = math.floor(math.log10(value * (1 + 1e-9)))
    return max(float(f"{digit}e{power}") for digit in (1, 2, 5) if digit * 10.0**power <= value * (1 + 1e-9))


def round_up(value: float) -> float:
    """The smallest round number that is not below `value` (a positive number); round ones stay."""
    power = math.floor(math.log10(value * (1 - 1e-9)))
    return min(float(f"{digit}e{power}") for digit in (1, 2, 5, 10) if digit * 10.0**power >= value * (1 - 1e-9))


def enough(value: float, digits: int = 3) -> float:
    """The smallest number of so many digits that is not below `value` (a positive number): for what is asked of people."""
    unit = 10.0 ** (math.floor(math.log10(value)) - digits + 1)
    return math.ceil(value / unit * (1 - 1e-9)) * unit
