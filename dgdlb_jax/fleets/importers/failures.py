"""Requests that failed: they came, so they are demand, and nothing was served, so they are no throughput. Either way it is said."""

from collections import Counter
from collections.abc import Callable

from dgdlb_jax.fleets.document import clipped, listed
from dgdlb_jax.fleets.importers.words import NOTHING, first_of, words
from dgdlb_jax.fleets.tables import Table

_STATUS = (
    "status", "status_code", "http_status", "http_status_code", "response_code", "responsecode", "response_status", "elb_status_code",
    "code",
)  # fmt: skip
_SUCCESS = ("success", "succeeded", "successful", "ok", "is_success")
_ERROR = ("error", "errors", "failed", "failure", "is_error", "error_message", "error_code", "exception")
_FALSE = {"false", "0", "0.0", "no", "f", "0%"}
_WHOLE = {"1", "1.0", "1.00", "100", "100.0", "100%"}
_BAD = {"error", "failed", "failure", "fail", "ko", "timeout", "aborted", "rejected"}
# Words of columns that count failures beside a throughput.
_FAILURES = {"error", "errors", "failed", "failure", "failures", "fail", "timeouts"}

_KINDS: tuple[tuple[tuple[str, ...], Callable[[str], bool]], ...] = (
    (_STATUS, lambda cell: cell.lower() in _BAD or (cell[:3].isdigit() and 400 <= int(cell[:3]) <= 599)),
    (_SUCCESS, lambda cell: cell.lower() in _FALSE),
    (_ERROR, lambda cell: cell.lower() not in (*_FALSE, *NOTHING)),
)
"""What columns that say how a request ended may be called, and whether a cell says that it failed."""


def failed_requests(table: Table) -> tuple[str, ...]:
    """How many requests of a log failed, by the first column that says so: status codes from 400 on, no success, or an error."""
    for spellings, is_failed in _KINDS:
        column = first_of(table.columns, spellings)
        cells = Counter() if column is None else Counter(row.cells[column] for row in table.rows)
        bad = sum(count for cell, count in cells.items() if is_failed(cell))
        if not bad:
            continue
        good = Counter({cell: count for cell, count in cells.items() if not is_failed(cell)}).most_common(1)
        without = (
            f"; dgdlb import --select {column}={clipped(good[0][0])} leaves them out" if good and good[0][0] else ""
        )
        return (f'{bad} of {len(table.rows)} requests failed, by "{column}"; they came, so they are counted{without}',)
    return ()


def _all(table: Table, column: str, cells: set[str]) -> bool:
    """Whether a column has nothing but some cells, and empty ones."""
    return all(row.cells[column].lower() in (*cells, *NOTHING) for row in table.rows)


def failures_beside(table: Table) -> tuple[str, ...]:
    """That requests failed in a load test, where a column of its table says so: whether its throughput counts them nobody knows."""
    columns = {c: set(words(c)) for c in table.columns}
    counting = [c for c, found in columns.items() if found & _FAILURES and not _all(table, c, _FALSE)]
    counting += [c for c, found in columns.items() if {"success", "rate"} <= found and not _all(table, c, _WHOLE)]
    return (f"requests failed ({listed(counting)}); the throughput should be that of the others",) if counting else ()
