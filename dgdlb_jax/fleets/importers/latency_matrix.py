"""Latencies as a matrix: who sends in the first column, who answers in the first row; all regions with each other, or frontends down
the side and backends across."""

from collections.abc import Sequence

from dgdlb_jax.fleets.document import clipped, counted, listed
from dgdlb_jax.fleets.importers.base import Importer, Latencies, Options, Pair, arrows
from dgdlb_jax.fleets.importers.halves import completed, holes_in
from dgdlb_jax.fleets.importers.latency_pairs import ask, is_latency
from dgdlb_jax.fleets.importers.plausible import check_latencies
from dgdlb_jax.fleets.importers.rate_units import period
from dgdlb_jax.fleets.importers.source import Source
from dgdlb_jax.fleets.importers.throughput_table import CAPS, HELD
from dgdlb_jax.fleets.importers.times import are_times, time_column
from dgdlb_jax.fleets.importers.words import (
    LATENCIES,
    LOST,
    first_of,
    normal,
    summaries,
    unit_of,
    way_of,
    words,
)
from dgdlb_jax.fleets.tables import Table
from dgdlb_jax.numerics.results import InputError

# Words of columns that say something of a place by itself.
_NO_LATENCY = {
    "rate", "weight", "share", "load", "replicas", "capacity", "requests", "lat", "lon", "latitude", "longitude", "population", "id",
}  # fmt: skip
# What the first cell of a matrix may be called that does not say what its figures are.
_PLACES = (
    "", "from", "to", "from_to", "to_from", "destination", "dst", "target", "server", "backend_frontend", "source_destination",
    "destination_source", "src_dst", "dst_src", "source_target", "target_source", "source", "src", "origin", "region", "regions",
    "frontend", "frontends", "backend", "backends", "frontend_backend", "client", "site", "location", "datacenter", "dc", "pop", "zone",
    "city", "cluster", "name",
)  # fmt: skip
# Who sends and who answers, in the first cell: what it names first is down the side.
_SENDING = {"from", "source", "src", "origin", "frontend", "frontends", "client"}
_ANSWERING = {"to", "destination", "dest", "dst", "target", "backend", "backends", "server"}


def is_matrix(table: Table, options: Options) -> bool:
    """Whether rows and columns are named alike, half of the shorter side at least, or names stand beside figures that are nothing else:
    neither order nor completeness matters."""
    columns = set(table.columns[1:])
    if len(set(map(table.is_number, columns))) > 1:  # a line of a list, above which its header lacks
        return False
    rows = _senders(table)
    shared = len(rows & columns)
    return bool(columns) and (2 * shared >= min(len(rows), len(columns)) > 0 or _is_rectangle(table, options))


def _senders(table: Table) -> set[str]:
    return {row.cells[table.columns[0]] for row in table.rows}


def _is_rectangle(table: Table, options: Options) -> bool:
    """Names beside figures that are latencies: by the first cell, by a name that is known, as told, or as they can be nothing else."""
    corner, *columns = table.columns
    if time_column(table) is not None or are_times(columns):
        return False
    rows, known = _senders(table), {*options.names, *options.backends}
    said = is_latency(corner) or (known & rows and known & set(columns))
    if not said:
        other = first_of(columns, HELD) or first_of(columns, CAPS)
        other = other or any(period(c) or is_latency(c) or _NO_LATENCY & set(words(c)) for c in columns)
        said = len(columns) > 1 and not other and (options.latency or normal(corner) in _PLACES)
    return bool(said) and not any(map(table.is_number, rows)) and _holds_figures(table, columns)


def _holds_figures(table: Table, columns: Sequence[str]) -> bool:
    cells = (row.cells[column] for row in table.rows for column in columns)
    return all(table.is_number(cell) or cell.lower() in LOST for cell in cells)


def _is_transposed(table: Table, options: Options) -> str:
    """What tells that columns send and rows answer, or nothing: more of the names that are known fit then, and the rows have not all of the
    frontends; or, where the names do not tell, the first cell."""
    rows, columns = _senders(table), set(table.columns[1:])
    frontends, backends = set(options.names), set(options.backends)
    straight, across = (len(a & frontends) + len(b & backends) for a, b in ((rows, columns), (columns, rows)))
    if across != straight:
        turned = across > straight and not (frontends <= rows if frontends else backends <= columns)
        return "the names of frontends and backends" if turned else ""
    ends = [word for word in words(table.columns[0]) if word in _SENDING | _ANSWERING]
    return f'"{clipped(table.columns[0])}" in the first cell' if ends and ends[0] in _ANSWERING else ""


def read_matrix(table: Table, options: Options) -> Latencies:
    """Seconds one way by pair: rows send and columns answer, or the other way round by the names of frontends and backends or by the first
    cell, such as `to/from`.

    A cell that is empty or a dash was not measured, nor was 0 on the diagonal, or where the other way round is above 0. A matrix of all
    regions with each other of which half is given is completed; else cells that are empty are its `holes`. The figures are what the
    first cell says, such as `rtt_ms`, or what `options.latency` says.

    **Raises:** `InputError` where nothing says what the figures are, and for other cells that are no latencies.
    """
    unit = _unit(table, options)
    seconds = _figures(table, LATENCIES[unit])
    rows, columns = list(dict.fromkeys(row.cells[table.columns[0]] for row in table.rows)), table.columns[1:]
    left_out: tuple[str, ...] = ()
    sums = summaries(table.name, (*rows, *columns), {*options.names, *options.backends})
    if sums:
        options.use("names")
        options.use("backends")
        left_out = (f"left out, as they sum the others up: {listed(sums)}",)
        rows, columns = ([name for name in side if name not in sums] for side in (rows, columns))
        seconds = {pair: value for pair, value in seconds.items() if not set(pair) & set(sums)}
    zeros = [(i, j) for (i, j), value in seconds.items() if value == 0 and seconds.get((j, i))]
    for pair in zeros:
        del seconds[pair]
    holes = holes_in(seconds, rows, columns)
    size = f"a matrix of {len(rows)} x {counted(len({*columns} - {''}), 'region', 'regions')} in {unit}"
    if (both := completed(seconds, rows, columns)) is not None:
        note = f"{size}, half of it given and completed: a pair takes the same time both ways"
        names = _in_one_order(rows, columns)
        return Latencies(both, table.name, (note, *left_out), order=(names, names))
    if set(rows) != set(columns):  # else frontends and backends make no difference
        options.use("names")
        options.use("backends")
    order = tuple(rows), tuple(columns)
    if by := _is_transposed(table, options):
        order = order[1], order[0]
        seconds = {(frontend, backend): value for (backend, frontend), value in seconds.items()}
        holes = tuple((frontend, backend) for backend, frontend in holes)
        note = f"{size}: columns send, rows answer, by {by}"
    else:
        note = f"{size}: rows send, columns answer"
    notes = (note, *left_out, *((f"no figure for {arrows(holes)}",) if holes else ()))
    return Latencies(seconds, table.name, notes, holes, order)


def _in_one_order(rows: Sequence[str], columns: Sequence[str]) -> tuple[str, ...]:
    """All regions of half a matrix, whose first row or first column may be missing."""
    first, second = (columns, rows) if rows[0] in columns else (rows, columns)
    return tuple(dict.fromkeys((*first, *second)))


def _unit(table: Table, options: Options) -> str:
    """The word that says what the figures are: that of the first cell or of the title above, or as told."""
    corner = next(
        (said for said in (table.columns[0], table.title) if f"{way_of(said)}_{unit_of(said)}" in LATENCIES),
        table.columns[0],
    )
    stated, told = f"{way_of(corner)}_{unit_of(corner)}", options.use("latency")
    if stated not in LATENCIES:
        if told is None:
            raise ask(
                table.name, "the matrix", "does not say what its figures are", "write into its first cell", corner
            )
        if (unit := unit_of(corner)) and not told.endswith(f"_{unit}"):
            raise InputError(f'{table.name}: the figures are in {unit}, unit = "{told}": keep one of the two.')
        return told
    if told not in (None, stated):
        raise InputError(f'{table.name}: "{clipped(corner)}" says {stated}, unit = "{told}": keep one of the two.')
    return stated


def _figures(table: Table, scale: float) -> dict[Pair, float]:
    """Seconds one way in the cells that were measured."""
    corner = table.columns[0]
    seconds: dict[Pair, float] = {}
    origins: set[str] = set()
    for row in table.rows:
        origin = row.cells[corner]
        if origin in origins:
            raise table.error(row, corner, "names a second row", "keep one of the two.")
        origins.add(origin)
        for target in table.columns[1:]:
            if row.cells[target].lower() in LOST or (origin == target and table.number(row, target) == 0):
                continue
            if not (origin and target):
                raise table.error(
                    row, target, "has no region in its first row or column", "name it, or remove the cell."
                )
            seconds[origin, target] = table.number(row, target) * scale
    if not seconds:
        raise InputError(f"{table.name}: no cell of the matrix holds a figure: fill in what was measured.")
    return seconds


def _recognises(source: Source, options: Options) -> bool:
    return source.table is not None and is_matrix(source.table, options)


def _read(source: Source, options: Options) -> tuple[Latencies]:
    assert source.table is not None
    found = read_matrix(source.table, options)
    check_latencies(found)
    return (found,)


IMPORTER = Importer("matrix of latencies", "latency", _recognises, _read)
