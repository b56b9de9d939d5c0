"""Headers as people write them: the words in them, units of time, round trip or one way."""

import re
from collections.abc import Collection, Iterable, Sequence

from dgdlb_jax.fleets.document import clipped
from dgdlb_jax.numerics.results import InputError

UNITS = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9}
"""Seconds in a unit of time."""

_SPELLINGS = {
    "s": ("s", "sec", "secs", "second", "seconds"),
    "ms": ("ms", "msec", "msecs", "millis", "millisecond", "milliseconds"),
    "us": ("us", "usec", "usecs", "micros", "microsecond", "microseconds"),
    "ns": ("ns", "nsec", "nanos", "nanosecond", "nanoseconds"),
}

LATENCIES = {
    f"{way}_{unit}": UNITS[unit] / parts for way, parts in (("one_way", 1), ("rtt", 2)) for unit in ("s", "ms", "us")
}
"""What a latency may be called, and the seconds one way in one of it: a round trip counts half."""

NOTHING = ("", "-", "--", "x", "n/a", "na", "nan", "none", "null")
"""What stands in a cell where nothing was measured."""

LOST = (*NOTHING, "*", "?", "–", "—", "timeout", "timed out", "time out", "unreachable", "lost", "no data")
"""What stands in the cell of a latency where nothing was measured, or no answer came."""

PLACES = ("frontend", "region", "site", "location", "datacenter", "pop", "origin", "cluster", "series")
"""Columns that say where requests enter."""

# Words end where a capital begins: `rttMs`, `latencyUS`.
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")
_STATISTIC = re.compile(r"p\d+")


def words(header: str) -> tuple[str, ...]:
    """`("round", "trip", "time", "ms")` for `Round-trip time [ms]`, `("p", "50")` joined to `p50`."""
    plain = header.replace("µ", "u").replace("μ", "u")
    found = [word.lower() for word in _WORD.findall(plain)]
    joined: list[str] = []
    for word in found:
        if word.isdigit() and joined and joined[-1] == "p":
            joined[-1] += word
        else:
            joined.append(word)
    return tuple(joined)


def normal(header: str) -> str:
    """`region_from` for `Region From`."""
    return "_".join(words(header))


def unit_of(header: str) -> str | None:
    """The unit of time that a header names, if it names exactly one."""
    found = {unit for unit, spellings in _SPELLINGS.items() if any(word in spellings for word in words(header))}
    return found.pop() if len(found) == 1 else None


def way_of(header: str) -> str | None:
    """`"rtt"` or `"one_way"`, if a header says which. What the program ping prints are round trips; half of one could be either."""
    text = f"_{normal(header)}_"
    round_trip = any(f"_{word}_" in text for word in ("rtt", "round_trip", "roundtrip", "ping", "two_way", "both_ways"))
    one_way = any(f"_{word}_" in text for word in ("one_way", "oneway", "owd", "one_direction"))
    halved = any(f"_{word}_" in text for word in ("half", "halved", "2"))
    return None if halved or round_trip == one_way else "rtt" if round_trip else "one_way"


def statistic_rank(header: str) -> int:
    """Which of several statistics of one quantity to take: the median or the only one, the mean, the least, others."""
    found = set(words(header))
    if found & {"avg", "mean", "average"}:
        return 1
    if found & {"min", "minimum", "best"}:
        return 2
    tails = {word for word in found if _STATISTIC.fullmatch(word)} - {"p50"}
    return 3 if tails or found & {"max", "maximum", "worst"} else 0


def first_of(columns: Collection[str], spellings: Sequence[str]) -> str | None:
    """The column whose header is the earliest of the spellings, whatever its case and separators."""
    by_name = {normal(column): column for column in columns}
    return next((by_name[name] for name in spellings if name in by_name), None)


_SUMMARIES = {
    "mean",
    "avg",
    "average",
    "median",
    "total",
    "totals",
    "sum",
    "overall",
    "max",
    "min",
    "maximum",
    "minimum",
}


def summaries(file: str, names: Iterable[str], known: Collection[str]) -> tuple[str, ...]:
    """The names in a row or a column of places that sum the others up, apart from those that were told.

    **Raises:** `InputError` for such a name where no places were told: it could be one.
    """
    found = tuple(name for name in dict.fromkeys(names) if name not in known and set(words(name)) & _SUMMARIES)
    if found and not known:
        what = (
            "sums the others up" if {"total", "totals", "sum", "overall"} & set(words(found[0])) else "is a statistic"
        )
        raise InputError(
            f'{file}: "{clipped(found[0])}" {what} and is no place: remove it, or name the places (dgdlb import: --frontends, '
            "--backends)."
        )
    return found
