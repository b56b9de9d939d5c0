"""From runs of a load test to a curve: how many requests were in the server, by Little's law where that was not measured."""

import math
from collections.abc import Sequence
from statistics import fmean, median

from dgdlb_jax.fleets.document import counted, listed
from dgdlb_jax.fleets.importers.base import Curve, Point
from dgdlb_jax.numerics.results import InputError

# Beyond this relative difference between what was set and what Little's law gives, somebody should look.
_DIFFERENT = 0.1
# A server cannot hold more than was allowed. What rounding and the ends of a run do to the two figures is less than this factor.
_IMPOSSIBLE = 2.0
# Requests whose numbers of tokens differ by more than this factor are of different kinds; sampled lengths differ by less.
_UNLIKE = 1.5
# Repetitions of one measurement lie closer together than this factor, or somebody should look.
_APART = 1.25


def workload(point: Point) -> float | None:
    r"""$N = \lambda W$ where the number of requests was only capped and $W$ was measured; else what was held, else the cap."""
    if point.held is not None:
        return point.held
    return point.throughput * point.latency if point.latency is not None else point.cap


def settled(curve: Curve) -> Curve:
    """The curve with one point for every setting, in order of the workload, and what its workloads are in words.

    Repetitions of a setting become their median.

    **Raises:** `InputError` when fewer than two points are left, or a point has no workload.
    """
    by_setting: dict[str, list[Point]] = {}
    for k, point in enumerate(curve.points):
        by_setting.setdefault(point.setting or f"#{k}", []).append(point)
    merged = [_median(points) for points in by_setting.values()]
    if any(workload(point) is None for point in merged):
        raise InputError(
            f"{curve.origin}: nothing says how many requests were in the server: give a concurrency or batch size, or a mean "
            "end-to-end time (of which Little's law makes one)."
        )
    _check_possible(curve.origin, merged)
    if len(merged) < 2:
        raise InputError(
            f"{curve.origin}: one point is no curve, which takes at least two points: give runs at several concurrencies or rates together."
        )
    notes = (
        *curve.notes,
        *_failed(curve.points),
        *_repeated(merged, len(curve.points)),
        *_unlike(merged),
        *_compared(merged),
    )
    return Curve(curve.name, tuple(sorted(merged, key=lambda point: workload(point) or 0.0)), curve.origin, notes)


def _check_possible(origin: str, points: Sequence[Point]) -> None:
    for rate, latency, cap in ((point.throughput, point.latency, point.cap) for point in points):
        if cap and latency and rate * latency > _IMPOSSIBLE * cap:
            raise InputError(
                f"{origin}: {rate:.4g} requests/s of {latency:.4g} s each are {rate * latency:.4g} at once, and no more than {cap:g} were "
                "allowed: check the units of throughput and time."
            )


def _median(points: Sequence[Point]) -> Point:
    if len(points) == 1:
        return points[0]

    def middle(values: list[float | None]) -> float | None:
        known = [value for value in values if value is not None]
        return median(known) if known else None

    rates = sorted(point.throughput for point in points)
    return points[0]._replace(
        throughput=median(rates),
        held=middle([point.held for point in points]),
        latency=middle([point.latency for point in points]),
        low=rates[0],
        high=rates[-1],
        samples=len(points),
    )


def _failed(points: Sequence[Point]) -> tuple[str, ...]:
    """How many requests failed, where some did: they are in no throughput, although they held a place in the server."""
    completed, failed = sum(point.completed for point in points), sum(point.failed for point in points)
    return (f"{failed:g} of {failed + completed:g} requests failed; they are not counted",) if failed else ()


def _repeated(kept: Sequence[Point], given: int) -> tuple[str, ...]:
    """That medians were taken, and how far repetitions lie apart where that is far."""
    if given == len(kept):
        return ()
    widest = max((point.high or 0.0) / (point.low or math.inf) for point in kept)
    apart = f"; repetitions differ by up to a factor of {widest:.3g}, look at them" if widest > _APART else ""
    return (f"{counted(given, 'run', 'runs')} of {counted(len(kept), 'setting', 'settings')}: medians{apart}",)


def _unlike(points: Sequence[Point]) -> tuple[str, ...]:
    """That a curve mixes short and long requests, where it does: it then is that of no kind of request."""
    tokens = [point.tokens for point in points if point.tokens]
    if not tokens or max(tokens) <= _UNLIKE * min(tokens):
        return ()
    return (
        f"its requests are not alike: {min(tokens):.4g} to {max(tokens):.4g} tokens each; import runs of one kind at a time",
    )


def _compared(points: Sequence[Point]) -> tuple[str, ...]:
    """Where the workload comes from, and how far it is from what else is known of it."""
    if all(point.held is None and point.latency is None for point in points):
        return ("the workload is the concurrency that was allowed; how much of it was used nothing here tells",)
    by_law = any(point.held is None and point.latency is not None for point in points)
    notes = ["the workload is throughput times mean end-to-end time (Little's law)"] if by_law else []
    capped = [f"{point.cap:g}" for point in points if point.held is None and point.latency is None]
    if capped:
        notes.append(
            f"no mean end-to-end time at concurrency {listed(capped)}: there the workload is the concurrency that was allowed, and "
            "fewer may have been in the server"
        )
    pairs = [
        (point.throughput * point.latency, point.cap if point.held is None else point.held)
        for point in points
        if point.latency is not None
    ]
    ratios = [law / set_to for law, set_to in pairs if set_to]
    worst = max(ratios, key=lambda ratio: abs(ratio - 1), default=1.0)
    if abs(worst - 1) > _DIFFERENT:
        what = "the concurrency that was allowed" if by_law else "the workload that is stated"
        low, high = f"{min(ratios):.3g}", f"{max(ratios):.3g}"
        factor = low if low == high else f"between {low} and {high}"
        mean = "" if low == high else f" ({fmean(ratios):.3g} on average)"
        notes.append(
            f"throughput times end-to-end time is {factor} times {what}{mean}: they differ by more than {_DIFFERENT:.0%}, look at the runs"
        )
    return tuple(notes)
