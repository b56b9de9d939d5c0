"""Demand as counts: a line for every bin of time, a column of requests or one column for each frontend."""

import math

import numpy as np

from dgdlb_jax.fleets.document import clipped, counted, listed
from dgdlb_jax.fleets.importers.base import Demand, Importer, Options
from dgdlb_jax.fleets.importers.source import Source
from dgdlb_jax.fleets.importers.words import words
from dgdlb_jax.fleets.tables import Table
from dgdlb_jax.numerics.results import InputError

# Bin edges of a trace may be off an even spacing by this fraction of a bin: rounded timestamps, not missing lines.
UNEVEN = 1e-6

_NO_COUNT = {"token", "tokens", "coverage", "length", "len"}


def bin_width(table: Table) -> float:
    """The bin width from the column `time_s`, whose times have to be evenly spaced.

    **Raises:** `InputError` naming the first line that breaks the spacing.
    """
    column = table.column("time_s")
    times = table.numbers(column, minimum=-math.inf)
    if len(times) < 2:
        raise table.error(table.rows[0], column, "is the only line", "give at least two bins, or bin_width_s.")
    width = times[1] - times[0]
    for k, row in enumerate(table.rows):
        if not width > 0 or abs(times[k] - times[0] - k * width) > UNEVEN * width * max(k, 1):
            raise table.error(row, column, "breaks the even spacing of the bins", "give one line per bin, in order.")
    return width


def counted_columns(table: Table, names: tuple[str, ...]) -> tuple[str, ...]:
    """`("requests",)`, or the columns of the frontends.

    **Raises:** `InputError` when both are there: a column that names a frontend is used or refused.
    """
    named = [name for name in names if name in table.columns]
    if "requests" in table.columns and named and "requests" not in names:
        raise InputError(
            f"{table.name} has a column requests and columns of the frontends {listed(named)}: remove one or the others."
        )
    if "requests" in table.columns and not named:
        return ("requests",)
    return tuple(table.column(name) for name in names)


def read_counts(table: Table, options: Options) -> Demand:
    """The bins of a table as they are."""
    width = bin_width(table)
    others = tuple(c for c in table.columns if c != "time_s" and not _NO_COUNT & set(words(c)))
    columns = counted_columns(table, options.names) if options.names else ("requests",)
    if not options.names and "requests" not in table.columns:
        columns = others
    elif not options.names and len(others) > 1:
        raise InputError(
            f"{table.name} has a column requests and the further columns {listed(others)}: name the frontends, or remove them."
        )
    counts = np.array([table.numbers(column) for column in columns]).T
    names = () if columns == ("requests",) else columns
    what = "requests" if not names else f"a column for each of {', '.join(map(clipped, names))}"
    note = f"{counted(len(table.rows), 'bin', 'bins')} of {width:g} s, {what}"
    return Demand(names, float(width), counts, table.name, (note,))


def _recognises(source: Source, options: Options) -> bool:
    """Evenly spaced `time_s` and nothing else but figures, none of which are tokens of a single request."""
    table = source.table
    if table is None or "time_s" not in table.columns or len(table.columns) < 2:
        return False
    if "requests" in table.columns or set(options.names) & set(table.columns):
        return True
    try:
        bin_width(table)
        for column in table.columns[1:]:
            table.numbers(column)
    except InputError:
        return False
    return not any(_NO_COUNT & set(words(column)) for column in table.columns)


def _read(source: Source, options: Options) -> tuple[Demand]:
    assert source.table is not None
    return (read_counts(source.table, options),)


IMPORTER = Importer("table of requests per bin", "demand", _recognises, _read)
