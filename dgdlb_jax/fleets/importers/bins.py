"""Bins of time: how wide those of a table are, which of its columns may count requests in them, and bins joined to wider ones."""

import math
import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from dgdlb_jax.fleets.document import clipped
from dgdlb_jax.fleets.importers.base import Demand, Options
from dgdlb_jax.fleets.importers.rate_units import period, tokens_of
from dgdlb_jax.fleets.importers.times import read_times, time_column
from dgdlb_jax.fleets.importers.words import NOTHING, PLACES, first_of, words
from dgdlb_jax.fleets.tables import Table
from dgdlb_jax.numerics.results import InputError

# Bin edges of a trace may be off an even spacing by this fraction of a bin: rounded timestamps, not missing lines.
UNEVEN = 1e-6

# What the column of all requests may be called.
_COUNTS = (
    "requests", "num_requests", "total_requests", "requests_total", "request_count", "requests_count", "count", "counts", "arrivals", "n",
    "queries", "hits", "calls", "req", "reqs", "num_reqs", "req_count", "reqs_count", "num_calls", "call_count", "num_hits", "hit_count",
    "invocations", "sample_count", "samplecount",
)  # fmt: skip
# Words of columns that say something else of a bin or of a single request than how many came from a place.
_NO_PLACE = {
    "error", "errors", "fail", "failed", "failure", "failures", "success", "successes", "successful", "ok", "timeout", "timeouts",
    "retries", "status", "code", "latency", "duration", "elapsed", "time", "ms", "ttft", "tpot", "itl", "std", "stddev", "percent", "pct",
    "ratio", "rate", "fraction", "share", "usage", "util", "utilization", "utilisation", "cpu", "memory", "mem", "temperature", "replicas",
    "pods", "instances", "nodes", "queue", "queued", "waiting", "running", "active", "concurrency", "user", "users", "session", "sessions",
    "connections", "token", "tokens", "length", "len", "bytes", "size", "coverage", "cost", "price", "loss", "version", "day", "hour",
    "minute", "weekday", "week", "month", "year", "date",
}  # fmt: skip
_PERCENTILE = re.compile(r"p\d+")
# Columns that say only together with that of times when a bin begins.
_OTHER_TIMES = ("date", "day", "weekday", "day_of_week", "week", "month", "year", "hour")
# A unit of time behind a name is that of a latency.
_IN_TIME = re.compile(r"[(\[](?:[num\u00b5\u03bc]?s|m?secs?|(?:milli|micro|nano)?seconds?)[)\]]$", re.IGNORECASE)
# Requests do not come at multiples of this many seconds by chance.
_NO_CHANCE = 60.0
# A figure with its unit or a suffix, as dashboards write: `1.2 req/s`, `3K`.
_WITH_UNIT = re.compile(r"[\d.,]+ ?(?:[kKMG%]|(?:[kKMG]? ?(?:req|reqs|requests|ops|rps|rpm|c)?(?:/s|/min|ps)?))")


class Columns(NamedTuple):
    """The columns beside the times: those that may count requests of a place or of all, those that cannot, and one that numbers lines."""

    counts: tuple[str, ...]
    others: tuple[str, ...]
    numbering: tuple[str, ...]


def columns_of(table: Table) -> Columns:
    """What the columns beside that of the times may be, by their names and cells."""
    beside = [column for column in table.columns if column != time_column(table)]
    index = tuple(column for column in beside if _is_index(table, column))
    others = tuple(c for c in beside if c not in index and (_is_no_place(c) or not _holds_figures(table, c)))
    return Columns(tuple(c for c in beside if c not in index and c not in others), others, index)


def _is_no_place(column: str) -> bool:
    if period(column) and not tokens_of(column):
        return False
    found = words(column)
    return (
        "%" in column
        or _IN_TIME.search(column) is not None
        or bool(_NO_PLACE & set(found))
        or any(map(_PERCENTILE.fullmatch, found))
    )


def _is_index(table: Table, column: str) -> bool:
    """Whether a column without a name of its own numbers the lines, as data frames are saved."""
    if column and words(column)[:1] not in (("unnamed",), ("index",)):
        return False
    cells = [row.cells[column] for row in table.rows]
    return any(cells == [str(first + k) for k in range(len(cells))] for first in (0, 1))


def only_figures(table: Table) -> bool:
    """Whether all columns besides that of times hold figures, none of which is said of a single request."""
    found = columns_of(table)
    return bool(found.counts) and not found.others


def look_like_bins(table: Table, options: Options) -> bool:
    """Whether lines without a column that counts are bins all the same: they hold figures that no single request has, at times so even
    that no requests would come at them. Such times may lack a line, which is then asked for; two times are always even."""
    times = np.sort(_times(table, time_column(table) or "time_s", options))
    spacing = spacing_of(times)
    wide = spacing == "wide" and first_of(table.columns, PLACES) is None
    steps = np.diff(times)
    even = bool(spacing) and np.ptp(steps) <= UNEVEN * steps.max()
    if not (wide or (even and (len(steps) > 1 or "time_s" in table.columns))):
        return False
    found = columns_of(table)
    return bool(found.counts) and (wide or all(_holds_figures(table, column) for column in found.others))


def spacing_of(times: Float[np.ndarray, " times"]) -> str:
    """`"even"` for sorted times that are one step apart, `"wide"` for those that are multiples of a step apart at which requests do not
    come by chance, nothing for others."""
    steps = np.diff(times)
    if not (len(steps) and steps.min() > 0 and np.allclose(steps / steps.min() % 1, 0, atol=len(steps) * UNEVEN)):
        return ""
    return "wide" if steps.min() >= _NO_CHANCE else "even" if np.ptp(steps) <= UNEVEN * steps.max() else ""


def _holds_figures(table: Table, column: str) -> bool:
    cells = [row.cells[column] for row in table.rows]
    return any(cell[:1].isdigit() for cell in cells) and all(
        table.is_number(cell) or cell.lower() in NOTHING or _WITH_UNIT.fullmatch(cell) for cell in cells
    )


def requests_column(table: Table) -> str | None:
    """The column that counts all requests of a bin: `requests`, or what else it may be called; a rate is none."""
    return first_of(table.columns, _COUNTS)


def in_order(table: Table, options: Options) -> Table:
    """The table with its lines in the order of their times, which some programs do not keep."""
    column = time_column(table)
    if column is None:
        return table
    times = _times(table, column, options)
    order = np.argsort(times, kind="stable")
    if (np.diff(order) > 0).all():
        return table
    ordered = table.only([table.rows[k] for k in order])
    ordered.notes = (*table.notes, "its lines are put in the order of their times")
    return ordered


def bin_width(table: Table, options: Options) -> float:
    """The bin width in seconds from the column of times, which have to be evenly spaced.

    **Raises:** `InputError` naming the first line that breaks the spacing.
    """
    column = "time_s" if "time_s" in table.columns else time_column(table) or table.column("time_s")
    times = _times(table, column, options)
    if len(times) < 2:
        raise table.error(table.rows[0], column, "is the only line", "give at least two bins, or bin_width_s.")
    width = times[1] - times[0]
    for k, row in list(enumerate(table.rows))[1:]:
        if times[k] == times[k - 1]:
            remedy = "say which column names places with by (dgdlb import: --by), or give one line per bin."
            other = first_of([c for c in table.columns if c != column], _OTHER_TIMES)
            if other is not None:
                both = f'"{clipped(other)}" and "{clipped(column)}"'
                remedy = f"write {both} as one column of times such as 2026-01-31 13:00."
            raise table.error(row, column, "is that of the line above", remedy)
        if not width > 0 or abs(times[k] - times[0] - k * width) > UNEVEN * width * k:
            raise table.error(row, column, "breaks the even spacing of the bins", "give one line per bin, in order.")
    return float(width)


def _times(table: Table, column: str, options: Options) -> Sequence[float]:
    if column == "time_s" and table.is_number(table.rows[0].cells[column]):
        return table.numbers(column, minimum=-math.inf)
    return read_times(table, column, options).seconds.tolist()


def rebinned(found: Demand, width: float | None) -> Demand:
    """The same requests in bins of another width, of several of the old ones each; as they are where none is asked for.

    **Raises:** `InputError` for a width that is no multiple of the old one, or makes fewer than two bins.
    """
    if width is None:
        return found
    several = width / found.width
    joined = round(several) if several < len(found.counts) else 0
    if abs(several - joined) > UNEVEN * several or (joined != 1 and len(found.counts) < 2 * joined):
        most = len(found.counts) // 2
        widths = f"multiples of {found.width:g} s up to {most * found.width:g} s" if most > 1 else f"{found.width:g} s"
        raise InputError(
            f"{found.origin}: bins of {width:g} s cannot be made of its {len(found.counts)} bins of {found.width:g} s, as at least two "
            f"have to come out whole: possible {'are' if most > 1 else 'is'} {widths} (dgdlb import: --bin)."
        )
    if joined == 1:
        return found
    bins = len(found.counts) // joined
    counts = found.counts[: bins * joined].reshape(bins, joined, -1).sum(axis=1)
    left = len(found.counts) - bins * joined
    note = f"{joined} bins make one of {width:g} s" + (f", and the last {left} none" if left else "")
    return found._replace(width=width, counts=counts, notes=(*found.notes, note))
