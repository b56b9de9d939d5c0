"""Runs that were given separately: of one server, or of several that their files call the same."""

from collections.abc import Sequence
from pathlib import PurePath
from statistics import median

from dgdlb_jax.fleets.importers.base import Curve

# Repetitions of a whole series of runs lie closer together than this.
_SCATTER = 0.05


def with_runs(curves: Sequence[Curve], more: Curve) -> list[Curve]:
    """Curves, and further runs: joined to the curve of their name, or a curve of their own where they contradict every one."""
    found = list(curves)
    for k, one in enumerate(found):
        if one.name == more.name and not _contradict(one, more):
            found[k] = _joined(one, more)
            return found
    return [*found, more]


def _contradict(one: Curve, other: Curve) -> bool:
    """Whether two series of runs differ at equal settings by more than repetitions would. A single run may be one of a series."""
    if min(len(one.points), len(other.points)) < 2:
        return False
    rates, others = _rates(one), _rates(other)
    return any(abs(others[at] - rate) > _SCATTER * rate for at, rate in rates.items() if at in others)


def _rates(curve: Curve) -> dict[str, float]:
    """Throughput by setting."""
    settings = {point.setting for point in curve.points} - {""}
    return {at: median(point.throughput for point in curve.points if point.setting == at) for at in settings}


def _joined(one: Curve, other: Curve) -> Curve:
    origin = one.origin if one.origin == other.origin else f"{one.origin}, {other.origin}"
    return Curve(one.name, one.points + other.points, origin, tuple(dict.fromkeys(one.notes + other.notes)))


def told_apart(curves: Sequence[Curve]) -> list[Curve]:
    """The curves, those that share a name called after their files as well."""
    names = [curve.name for curve in curves]
    return [curve if names.count(curve.name) == 1 else _after_its_file(curve) for curve in curves]


def _after_its_file(curve: Curve) -> Curve:
    stem = PurePath(curve.origin.split(", ")[0]).stem
    why = (
        f'another curve is called "{curve.name}" too and differs by more than {_SCATTER:.0%} at equal settings: two servers, told apart by '
        "their files"
    )
    return curve._replace(name=f"{curve.name}-{stem}", notes=(*curve.notes, why))
