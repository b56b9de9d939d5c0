"""Doubts about figures that are possible and unlikely: what a mistaken unit, or a name written in two ways, makes of a file."""

from collections.abc import Iterable
from typing import TypeVar

import numpy as np

from dgdlb_jax.fleets.document import clipped, counted, listed
from dgdlb_jax.fleets.importers.base import Curve, Demand, Latencies, arrows
from dgdlb_jax.fleets.importers.little import workload
from dgdlb_jax.numerics.results import InputError

# s one way between regions: 200 m of fibre, seven times as long as light takes through fibre around the world.
_BETWEEN = 1e-6, 2.0
_UNEVEN = 2  # times as long in one direction as in the other; cables are the same
_LONG = 5e-3  # s one way: shorter ones may well differ by chance
_THROUGHPUT = 1e-4, 1e5  # requests/s of one server
_RESPONSE = 1e-4, 86400.0  # s in a server
_HELD = 0.1, 1e6  # requests in a server, when it holds most
_WIDTH = 0.5, 31 * 86400.0  # s of a bin
_RISES = 7  # times in a row that demand rises by chance once in 5000
_RATE = 0.0, 1e7  # requests/s in all

F = TypeVar("F", bound=Latencies | Curve | Demand)


def doubted(found: F) -> F:
    """A finding with its doubts among its notes."""
    return found._replace(notes=(*found.notes, *doubts(found)))


def doubts(found: Latencies | Curve | Demand) -> tuple[str, ...]:
    """What is unlikely in a finding, a sentence for each kind of figure."""
    if isinstance(found, Latencies):
        return (*_latencies(found), *_names(region for pair in found.seconds for region in pair))
    if isinstance(found, Curve):
        rates = [point.throughput for point in found.points]
        times = [(workload(point) or 0.0) / point.throughput for point in found.points if point.throughput]
        most = max((workload(point) or 0.0 for point in found.points), default=0.0)
        return (
            *_outside("a server", rates, _THROUGHPUT, "requests/s"),
            *_outside("a request", times, _RESPONSE, "s"),
            *_outside("the largest workload", [most], _HELD, "requests"),
        )
    rate = float(found.counts.sum()) / (len(found.counts) * found.width)
    return (
        *_outside("a bin", [found.width], _WIDTH, "s"),
        *_outside("the demand", [rate], _RATE, "requests/s"),
        *_counters(found),
        *_names(found.names),
    )


def _latencies(found: Latencies) -> tuple[str, ...]:
    low, high = _BETWEEN
    odd = [pair for pair, value in found.seconds.items() if pair[0] != pair[1] and not low <= value <= high]
    odd += [pair for pair, value in found.seconds.items() if pair[0] == pair[1] and not 0 < value <= high]
    uneven = [(i, j) for (i, j), value in found.seconds.items() if value > _UNEVEN * found.seconds.get((j, i), value)]
    values = [1e3 * found.seconds[pair] for pair in odd]
    expected = f"where {1e3 * low:g} to {1e3 * high:g} ms are expected; check the unit"
    notes = (f"unlikely: {_range(values)} ms one way for {arrows(odd)}, {expected}",) if odd else ()
    factor = f"unlikely: more than {_UNEVEN} times as long one way as back"
    return (*notes, f"{factor}: {arrows(uneven)}") if uneven else notes


def check_latencies(found: Latencies) -> None:
    """Raise `InputError` for figures between regions that no network has, such as requests from each to each.

    A region that is farther from itself than from every other one, or most pairs more than twice as long one way as back: the paths
    are the same.
    """
    seconds = found.seconds
    farthest = {i: max((value for (a, b), value in seconds.items() if a == i != b), default=0.0) for i, _ in seconds}
    own = [i for i, j in seconds if i == j and farthest[i]]
    beyond = [i for i in own if seconds[i, i] > farthest[i]]
    pairs = [(i, j) for i, j in seconds if i < j and (j, i) in seconds and max(seconds[i, j], seconds[j, i]) > _LONG]
    uneven = [(i, j) for i, j in pairs if not 1 / _UNEVEN <= seconds[i, j] / (seconds[j, i] or 1.0) <= _UNEVEN]
    if len(own) > 1 and 2 * len(beyond) > len(own):
        why = f"by them {listed(beyond)} would be farther from {'itself' if len(beyond) == 1 else 'themselves'} than from all others"
    elif len(pairs) > 2 and 2 * len(uneven) > len(pairs):
        why = f"most pairs differ by more than a factor of {_UNEVEN} one way and back, as {arrows(uneven[:3])}"
    else:
        return
    raise InputError(
        f"{found.origin}: its figures are hardly latencies, {why}: give measured times (if these are, call the columns from,to,one_way_s)."
    )


def _outside(what: str, values: Iterable[float], expected: tuple[float, float], unit: str) -> tuple[str, ...]:
    low, high = expected
    odd = [value for value in values if not low <= value <= high]
    if not odd:
        return ()
    return (
        f"unlikely: {_range(odd)} {unit} for {what}, where {low:g} to {high:g} {unit} are expected; check the units",
    )


def _counters(found: Demand) -> tuple[str, ...]:
    """Counts that never fall, as those of a counter that is not set back."""
    steps = np.diff(found.counts.sum(axis=1))
    rises = len(steps) >= _RISES and bool((steps > 0).all())
    return (
        ("unlikely: there are more requests in every bin than in the one before; are they those of a counter?",)
        if rises
        else ()
    )


def _range(values: list[float]) -> str:
    low, high = f"{min(values):.6g}", f"{max(values):.6g}"
    return low if low == high else f"{low} to {high}"


def _names(names: Iterable[str]) -> tuple[str, ...]:
    """Names that differ in case or separators only, which are different places all the same."""
    spellings: dict[str, dict[str, None]] = {}
    for name in names:
        spellings.setdefault("".join(c for c in name.lower() if c.isalnum()), {})[name] = None
    alike = [" and ".join(map(clipped, found)) for found in spellings.values() if len(found) > 1]
    return (f"{counted(len(alike), 'name is', 'names are')} written in several ways: {listed(alike)}",) if alike else ()
