"""Numbers as people read them: three digits, a unit that suits, the digits of a percentage that matter."""

import math
from collections.abc import Callable, Sequence


def seconds(value: float) -> str:
    """A time with a unit that suits it, three digits."""
    if not math.isfinite(value):
        return ""
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if abs(value) >= 0.9995 * size:
            return f"{number(value / size)} {unit}"
    return "0 s" if value == 0 else f"{value:.2e} s"


def percent(value: float) -> str:
    """A part of one in percent, with the digits that matter."""
    if not math.isfinite(value):
        return ""
    digits = 0 if abs(value) >= 0.0995 else 1 if abs(value) >= 0.00995 else 2 if abs(value) >= 0.000995 else 3
    return f"{100 * value:.{digits}f} %"


def number(value: float) -> str:
    """A number with three digits."""
    value = float(value)
    if value != 0 and not 1e-3 <= abs(value) < 1e5:
        return f"{value:.2e}"
    return f"{value:.0f}" if abs(value) >= 99.95 else f"{value:#.3g}" if abs(value) >= 0.9995 else f"{value:.3g}"


def ranging(low: float, high: float, form: Callable[[float], str] = number) -> str:
    """`low to high`; one figure where both are written alike."""
    return " to ".join(dict.fromkeys((form(low), form(high))))


def enumerated(names: Sequence[str], most: int = 4) -> str:
    """`a, b and c`; of many names the first few, and how many more."""
    shown, more = names[:most], len(names) - most
    if more > 0:
        return f"{', '.join(shown)} and {more} more"
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} and {shown[-1]}"
