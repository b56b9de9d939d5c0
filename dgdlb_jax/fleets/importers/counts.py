"""Demand as counts: a line for every bin of time with a column of requests or one for each frontend, or a line for every bin and place."""

import math
from collections.abc import Sequence

import numpy as np

from dgdlb_jax.fleets.document import clipped, counted, listed
from dgdlb_jax.fleets.importers.base import Demand, Importer, Options, check_names
from dgdlb_jax.fleets.importers.source import Source
from dgdlb_jax.fleets.importers.throughput_table import period
from dgdlb_jax.fleets.importers.times import read_times, time_column
from dgdlb_jax.fleets.importers.words import PLACES, check_no_summary, first_of, words
from dgdlb_jax.fleets.tables import Table
from dgdlb_jax.numerics.results import InputError

# Bin edges of a trace may be off an even spacing by this fraction of a bin: rounded timestamps, not missing lines.
UNEVEN = 1e-6

# What the column of all requests may be called besides "requests".
_COUNTS = (
    "num_requests",
    "request_count",
    "requests_count",
    "count",
    "counts",
    "arrivals",
    "n",
    "queries",
    "hits",
    "calls",
)
# Words of columns that say something of a single request.
_NO_COUNT = {
    "token",
    "tokens",
    "coverage",
    "length",
    "len",
    "status",
    "code",
    "latency",
    "duration",
    "error",
    "bytes",
    "size",
    "ttft",
    "tpot",
    "itl",
}


def bin_width(table: Table, unit: str | None = None) -> float:
    """The bin width in seconds from the column of times, which have to be evenly spaced; `unit` as for `read_times`.

    **Raises:** `InputError` naming the first line that breaks the spacing.
    """
    column = "time_s" if "time_s" in table.columns else time_column(table) or table.column("time_s")
    times = _times(table, column, unit)
    if len(times) < 2:
        raise table.error(table.rows[0], column, "is the only line", "give at least two bins, or bin_width_s.")
    width = times[1] - times[0]
    for k, row in enumerate(table.rows):
        if not width > 0 or abs(times[k] - times[0] - k * width) > UNEVEN * width * max(k, 1):
            raise table.error(row, column, "breaks the even spacing of the bins", "give one line per bin, in order.")
    return float(width)


def _times(table: Table, column: str, unit: str | None) -> Sequence[float]:
    if column == "time_s":
        return table.numbers(column, minimum=-math.inf)
    return read_times(table, column, unit).seconds.tolist()


def requests_column(table: Table) -> str | None:
    """The column that counts all requests of a bin: `requests`, or what else it may be called; a rate is none."""
    return "requests" if "requests" in table.columns else first_of(table.columns, _COUNTS)


def counted_columns(table: Table, names: tuple[str, ...]) -> tuple[str, ...]:
    """The column of all requests (or of their rate), or those of the frontends.

    **Raises:** `InputError` when both are there: a column that names a frontend is used or refused.
    """
    named = [name for name in names if name in table.columns]
    every = requests_column(table)
    if every is not None and named and every not in names:
        raise InputError(
            f"{table.name} has a column {clipped(every)} and columns of the frontends {listed(named)}: remove one or the others."
        )
    if every is None and not named:
        every = next((column for column in table.columns if period(column)), None)
    return (every,) if every is not None and not named else tuple(table.column(name) for name in names)


def read_counts(table: Table, options: Options) -> Demand:
    """The bins of a table as they are; a single column of rates, such as `rps`, counts their requests/s times the width."""
    width, every = bin_width(table, options.time_unit), requests_column(table)
    others = tuple(c for c in table.columns if c != time_column(table) and not _NO_COUNT & set(words(c)))
    columns = counted_columns(table, options.names) if options.names else others if every is None else (every,)
    further = [column for column in others if column != every]
    if not options.names and every is not None and further:
        raise InputError(
            f"{table.name} has a column {clipped(every)} and the further columns {listed(further)}: name the frontends, or remove them."
        )
    if columns != (every,):
        check_no_summary(table.name, columns, options.names)
    rates = [column for column in columns if period(column) and column not in options.names]
    if rates and len(columns) > 1:
        raise InputError(f'{table.name}: column "{clipped(rates[0])}" is a rate: give the requests in every bin.')
    counts = np.array([table.numbers(column) for column in columns]).T
    names = () if rates or (columns == (every,) and every not in options.names) else columns
    what = "requests" if not names else f"a column for each of {', '.join(map(clipped, names))}"
    if rates:
        counts, what = (
            counts * (width / (period(rates[0]) or 1.0)),
            f'requests, "{clipped(rates[0])}" times their width',
        )
    elif not options.names and not _says_counts(table) and (counts % 1).any():
        raise InputError(
            f"{table.name}: {listed(columns)} hold figures at even times that are no whole numbers, of a bin or of a second: call the "
            "column of times time_s where they are requests per bin, or a single column rps."
        )
    notes = [f"{counted(len(table.rows), 'bin', 'bins')} of {width:g} s, {what}"]
    if unused := [column for column in others if column not in columns]:
        notes.append(f"not used, as they name no frontend: {listed(unused)}")
    return Demand(names, width, counts, table.name, tuple(notes))


def rebinned(found: Demand, width: float | None) -> Demand:
    """The same requests in bins of another width, of several of the old ones each; as they are where none is asked for.

    **Raises:** `InputError` for a width that is no multiple of the old one, or makes fewer than two bins.
    """
    if width is None:
        return found
    several = width / found.width
    joined = round(several) if several < len(found.counts) else 0
    if abs(several - joined) > UNEVEN * several or (joined != 1 and len(found.counts) < 2 * joined):
        raise InputError(
            f"{found.origin}: its {len(found.counts)} bins of {found.width:g} s make no two or more of {width:g} s: give a multiple (dgdlb "
            "import: --bin)."
        )
    if joined == 1:
        return found
    bins = len(found.counts) // joined
    counts = found.counts[: bins * joined].reshape(bins, joined, -1).sum(axis=1)
    left = len(found.counts) - bins * joined
    note = f"{joined} bins make one of {width:g} s" + (f", and the last {left} none" if left else "")
    return found._replace(width=width, counts=counts, notes=(*found.notes, note))


def is_counts(table: Table, options: Options) -> bool:
    """Whether a table counts requests per bin: a column says so, or times are even and all else are figures, none of single requests."""
    column = time_column(table)
    if column is None or len(table.columns) < 2:
        return False
    if requests_column(table) is not None or set(options.names) & set(table.columns):
        return True
    try:
        bin_width(table, options.time_unit)
    except InputError:
        return False
    return only_figures(table) and (column == "time_s" or len(table.rows) > 2)  # two times are always even


def _says_counts(table: Table) -> bool:
    return time_column(table) == "time_s" or requests_column(table) is not None


def widened(table: Table, options: Options) -> Table:
    """A table with a line for every bin and place as one with a column for every place; any other table as it is.

    A place without a line in a bin has no requests in it: databases leave empty groups out.

    **Raises:** `InputError` for a place that is no frontend where these are known, and for two lines of one bin and place.
    """
    every, time = requests_column(table), time_column(table)
    place = options.by if options.by in table.columns else first_of(table.columns, PLACES)
    if every is None or time is None or place is None or table.is_number(table.rows[0].cells[place]):
        return table
    if options.names and options.by is None and not set(options.names) & {row.cells[place] for row in table.rows}:
        return table
    if options.names:
        check_names(table, place, options.names)
    names = dict.fromkeys((*(row.cells[place] for row in table.rows), *options.names))
    bins: dict[float, dict[str, str]] = {}
    for row, seconds in zip(table.rows, read_times(table, time, options.time_unit).seconds.tolist(), strict=True):
        found = bins.setdefault(seconds, {})
        if row.cells[place] in found:
            raise table.error(row, place, "has a second line in this bin", "keep one of the two, or add them up.")
        found[row.cells[place]] = table.numerals.plain(row.cells[every])
    return Table.of_records(
        table.name,
        [{"time_s": at} | {name: found.get(name, 0) for name in names} for at, found in sorted(bins.items())],
    )


def only_figures(table: Table) -> bool:
    """Whether all columns besides that of times hold figures, none of which is said of a single request."""
    others = [column for column in table.columns if column != time_column(table)]
    try:
        for column in others:
            table.numbers(column)
    except InputError:
        return False
    return bool(others) and not any(_NO_COUNT & set(words(column)) for column in others)


def _recognises(source: Source, options: Options) -> bool:
    return source.table is not None and is_counts(source.table, options)


def _read(source: Source, options: Options) -> tuple[Demand]:
    assert source.table is not None
    return (read_counts(widened(source.table, options), options),)


IMPORTER = Importer("table of requests per bin", "demand", _recognises, _read)
