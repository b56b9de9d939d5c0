"""Latencies as a square matrix: regions in the first row and in the first column."""

from dgdlb_jax.fleets.document import counted
from dgdlb_jax.fleets.importers.base import Importer, Latencies, Options, Pair
from dgdlb_jax.fleets.importers.latency_pairs import ask
from dgdlb_jax.fleets.importers.source import Source
from dgdlb_jax.fleets.importers.words import LATENCIES, unit_of, way_of
from dgdlb_jax.fleets.tables import Table
from dgdlb_jax.numerics.results import InputError

# What stands in a cell where nothing was measured.
_NOTHING = ("", "-", "--", "x", "n/a", "na", "nan", "none", "null")


def is_matrix(table: Table) -> bool:
    """Whether rows and columns are named alike, half of the shorter side at least: neither order nor completeness matters."""
    columns = table.columns[1:]
    rows = [row.cells[table.columns[0]] for row in table.rows]
    shared = len(set(rows) & set(columns))
    return bool(columns) and shared > 0 and 2 * shared >= min(len(set(rows)), len(columns))


def read_matrix(table: Table, unit: str | None = None) -> Latencies:
    """Seconds one way by pair: rows send, columns answer.

    A cell that is empty or a dash was not measured, nor was 0 on the diagonal. The figures are what the first cell says, such as
    `rtt_ms`, or what `unit` says.

    **Raises:** `InputError` where nothing says what the figures are, and for other cells that are no latencies.
    """
    corner = table.columns[0]
    stated = f"{way_of(corner)}_{unit_of(corner)}"
    unit, stated = unit or (stated if stated in LATENCIES else None), stated if stated in LATENCIES else None
    if unit is None:
        raise ask(table.name, "the matrix", "does not say what its figures are, in its first cell or elsewhere")
    if stated is not None and stated != unit:
        raise InputError(f'{table.name}: the first cell says {stated}, unit = "{unit}": keep one of the two.')
    seconds: dict[Pair, float] = {}
    origins: set[str] = set()
    for row in table.rows:
        origin = row.cells[corner]
        if origin in origins:
            raise table.error(row, corner, "names a second row", "keep one of the two.")
        origins.add(origin)
        for target in table.columns[1:]:
            if row.cells[target].lower() in _NOTHING or (origin == target and table.number(row, target) == 0):
                continue
            if not (origin and target):
                raise table.error(
                    row, target, "has no region in its first row or column", "name it, or remove the cell."
                )
            seconds[origin, target] = table.number(row, target) * LATENCIES[unit]
    if not seconds:
        raise InputError(f"{table.name}: no cell of the matrix holds a figure: fill in what was measured.")
    size = f"{len(origins)} x {counted(len(set(table.columns[1:]) - {''}), 'region', 'regions')}"
    return Latencies(seconds, table.name, (f"a matrix of {size} in {unit}: rows send, columns answer",))


def _recognises(source: Source, options: Options) -> bool:
    del options
    return source.table is not None and is_matrix(source.table)


def _read(source: Source, options: Options) -> tuple[Latencies]:
    assert source.table is not None
    return (read_matrix(source.table, options.latency),)


IMPORTER = Importer("square matrix of latencies", "latency", _recognises, _read)
