"""Demand as counts: a line for every bin of time with a column of requests or one for each frontend, or a line for every bin and place."""

import numpy as np
from jaxtyping import Float

from dgdlb_jax.fleets.document import clipped, counted, listed
from dgdlb_jax.fleets.importers.base import Demand, Importer, Options
from dgdlb_jax.fleets.importers.bins import bin_width, columns_of, look_like_bins, requests_column
from dgdlb_jax.fleets.importers.long_counts import Wide, is_long, widened
from dgdlb_jax.fleets.importers.rate_units import period
from dgdlb_jax.fleets.importers.rates import by_place, is_rate, place_of, speaks_of_requests
from dgdlb_jax.fleets.importers.source import Source
from dgdlb_jax.fleets.importers.times import are_times, time_column
from dgdlb_jax.fleets.importers.words import summaries, words
from dgdlb_jax.fleets.tables import Table
from dgdlb_jax.numerics.results import InputError

# What a single column of figures is called that has no name of its own, as monitoring systems export it.
_UNSAID = ({"value"}, {"val"}, {"y"})  # of these, not even that they are sums
_GRAFANA = "Time"
_NAMELESS = ({"value"}, {"sum"}, {"total"}, {"val"}, {"y"})


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
        rates = [column for column in table.columns if is_rate(column)]
        placed = {place_of(column): column for column in rates or filter(speaks_of_requests, table.columns)}
        if set(names) <= set(placed):
            return tuple(placed[name] for name in names)
        if len(placed) > 1 and set(names) & set(placed):
            by_place(table, rates)  # complains where two of them are about one place
            return tuple(table.column(name, placed.get(name, name)) for name in names)
        every = rates[0] if len(rates) == 1 else None
    return (every,) if every is not None and not named else tuple(table.column(name) for name in names)


def read_counts(wide: Wide, options: Options) -> Demand:
    """The bins of a table as they are; rates, of all requests such as `rps` or of each place such as `us_rps`, times the width."""
    table, every = wide.table, requests_column(wide.table)
    width = bin_width(table, options)
    columns = counted_columns(table, options.names) if options.names else _columns(table, every)
    placed = by_place(table, columns, options.names)
    names = tuple(placed) or columns
    if set(names) & set(options.names):
        options.use("names")
    if len(columns) == 1 and (set(words(columns[0])) in _NAMELESS or speaks_of_requests(columns[0])):
        every = columns[0]
    if len(columns) > 1 and are_times(columns):
        raise InputError(
            f"{table.name}: its columns {listed(columns)} are times, as its lines are: write a line for each time, with the date and the "
            "hour in its first column."
        )
    rates = [column for column in columns if is_rate(column) and column not in options.names]
    if not rates and columns != (every,):
        summaries(table.name, columns, options.names)
    if not placed and (rates or (columns == (every,) and every not in options.names)):
        names = ()
    is_count = not rates and wide.seconds is None
    if is_count and not options.names:
        _check_said(table, columns)
    counts = np.array([table.numbers(column, counts=is_count) for column in columns]).T
    notes = (*_left_out(table, columns), *(_fractions(table, columns, counts, options) if is_count else ()))
    if not is_count:
        counts = counts * width / np.array([wide.seconds or period(column) or 1.0 for column in columns])
    what = f"{counted(len(table.rows), 'bin', 'bins')} of {width:g} s, {_said(columns, names, not is_count)}"
    return Demand(names, width, counts, table.name, (what, *notes))


def _said(columns: tuple[str, ...], names: tuple[str, ...], is_rate: bool) -> str:
    """What is in the bins, in words."""
    if names:
        return (
            f"{'rates, times their width, ' if is_rate else ''}in a column for each of {', '.join(map(clipped, names))}"
        )
    if is_rate:
        return f'requests, "{clipped(columns[0])}" times their width'
    return "requests" if columns[0] == "requests" else f'requests in "{clipped(columns[0])}"'


def _check_said(table: Table, columns: tuple[str, ...]) -> None:
    """Raise `InputError` for what Grafana exports without a unit: it draws rates and counts alike, and calls its times `Time`."""
    nameless = len(columns) == 1 and set(words(columns[0])) in _UNSAID
    if (
        (time_column(table) != _GRAFANA and not nameless)
        or requests_column(table)
        or any(map(speaks_of_requests, columns))
    ):
        return
    each = "" if nameless else f"{clipped(columns[0])}_"
    raise InputError(
        f"{table.name}: nothing says whether the figures of {listed(columns)} are requests of a bin or requests/s, and dashboards export "
        f"both: call {'the column' if nameless else 'columns'} {each}requests, or {each}rps."
    )


def _fractions(
    table: Table, columns: tuple[str, ...], counts: Float[np.ndarray, "bins columns"], options: Options
) -> tuple[str, ...]:
    """That counts are no whole numbers, where they are called counts; elsewhere it is asked what they are."""
    if not (counts % 1).any():
        return ()
    if not options.names and time_column(table) != "time_s" and requests_column(table) is None:
        raise InputError(
            f"{table.name}: the figures of {listed(columns)} stand at even times and are no whole numbers, of a bin or of a second: call "
            "the column of times time_s where they are requests per bin, or columns of requests/s us_rps, eu_rps or, a single one, rps."
        )
    return (
        f"{listed(columns)}: no whole numbers; if they are requests/s, call them so, as us_rps and eu_rps, or a single one rps",
    )


def _columns(table: Table, every: str | None) -> tuple[str, ...]:
    """The columns to read where no frontends are known.

    **Raises:** `InputError` where a column may be a place, or none, and nothing tells which.
    """
    found = columns_of(table)
    further = [column for column in found.counts if column != every]
    if every is None and found.others:
        raise InputError(
            f"{table.name}: {listed(found.others)} {'counts' if len(found.others) == 1 else 'count'} no requests of a place, by name or "
            "cells: remove what is no frontend, or name the frontends (dgdlb import: --frontends); where every line is one request, "
            "keep the column of times only."
        )
    if every is not None and further:
        raise InputError(
            f"{table.name} has a column {clipped(every)} and the further columns {listed(further)}: remove it where "
            "these are frontends, or these where they are none."
        )
    return found.counts if every is None else (every,)


def _left_out(table: Table, columns: tuple[str, ...]) -> tuple[str, ...]:
    """Which columns are not used."""
    found = columns_of(table)
    unused = [column for column in (*found.counts, *found.others) if column not in columns]
    notes = (f"not used, as they name no frontend: {listed(unused)}",) if unused else ()
    return (*notes, *(f'not used, as it numbers the lines: "{clipped(column)}"' for column in found.numbering))


def is_counts(table: Table, options: Options) -> bool:
    """Whether a table counts requests per bin: a column says so, or its lines look like bins."""
    column = time_column(table)
    if column is None or len(table.columns) < 2:
        return False
    if requests_column(table) is not None or set(options.names) & set(table.columns) or is_long(table, options):
        return True
    try:
        return look_like_bins(table, options)
    except InputError:
        return False


def _recognises(source: Source, options: Options) -> bool:
    return source.table is not None and is_counts(source.table, options)


def _read(source: Source, options: Options) -> tuple[Demand]:
    assert source.table is not None
    wide = widened(source.table, options)
    wide = wide.in_order(options)
    found = read_counts(wide, options)
    return (found._replace(notes=(*found.notes, *wide.notes)),)


IMPORTER = Importer("table of requests per bin", "demand", _recognises, _read)
