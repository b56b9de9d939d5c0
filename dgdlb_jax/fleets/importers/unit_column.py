"""Tables whose figures have their unit in a column of its own: it is put into the names of the columns that it is about."""

import copy
from collections.abc import Mapping

from dgdlb_jax.fleets.document import clipped, listed
from dgdlb_jax.fleets.importers.words import LOST, UNITS, first_of, unit_of, words
from dgdlb_jax.fleets.tables import Cells, Row, Table
from dgdlb_jax.numerics.results import InputError

_UNIT = ("unit", "units", "uom", "unit_of_measure")
_QUANTITIES = {
    "latency", "delay", "rtt", "ping", "owd", "trip", "response", "duration", "throughput", "tput", "rate", "value", "val",
    "figure", "measurement", "result", "avg", "average", "mean", "median", "min", "minimum", "max", "maximum", "sum", "total",
    "requests", "count",
}  # fmt: skip
"""Words of columns that a unit may be about."""
_NO_UNIT = {"", "none", "count", "counts", "request", "requests", "req", "1", "-"}
"""Units of what is counted, which say nothing."""
_COUNT = {"count", "counts", "request", "requests", "req"}


def with_units(table: Table) -> Table:
    """A table with a column of units as one whose columns say them: `latency` beside `ms` becomes `latency (ms)`; any other table as it
    is. Times in several units are written in the first of them.

    **Raises:** `InputError` for a column that is in another unit by its name.
    """
    column = first_of(table.columns, _UNIT)
    if column is None or any(table.is_number(row.cells[column]) for row in table.rows):
        return table
    units = list(dict.fromkeys(row.cells[column] for row in table.rows if row.cells[column].lower() not in _NO_UNIT))
    about = [c for c in table.columns if c != column and _QUANTITIES & set(words(c)) and _has_figures(table, c)]
    if units and all(map(_time, units)):  # how many times were measured is in no unit of time
        about = [c for c in about if not {"count", "requests"} & set(words(c))]
    if not units:
        counts = any(row.cells[column].lower() in _COUNT for row in table.rows)
        return renamed(table, {c: f"{c} (requests)" for c in about if counts and len(words(c)) == 1}, without=column)
    if not about or (len(units) > 1 and None in map(_time, units)):
        why = f"its lines are in {listed(units)}" if about else "no column is one that it could be about"
        return renamed(table, {}, (f'"{clipped(column)}" is not used, as {why}',), without=column)
    for name in about:
        if unit_of(name) and {unit_of(name)} != set(map(_time, units)):
            raise InputError(
                f'{table.name}: column "{clipped(name)}" is in {unit_of(name)} by its name, and in {listed(units)} by the column '
                f'"{clipped(column)}": keep one of the two.'
            )
    said = f"{listed(about)}: in {units[0]} by the column {clipped(column)}"
    if len(units) > 1:
        said += f", where some lines are in {listed(units[1:])}"
        table = table.only([_in_one_unit(table, row, column, about, units[0]) for row in table.rows])
    return renamed(table, {name: f"{name} ({units[0]})" for name in about}, (said,), without=column)


def _time(unit: str) -> str | None:
    """The unit of time that a cell is, not one that something is counted per."""
    return None if "/" in unit or "per" in words(unit) else unit_of(unit)


def renamed(table: Table, names: Mapping[str, str], notes: tuple[str, ...] = (), without: str | None = None) -> Table:
    """The table with some of its columns under new names, and one left out."""
    changed = copy.copy(table)
    kept = [c for c in table.columns if c != without]
    changed.columns = [names.get(c, c) for c in kept]
    places = {c: k for k, c in enumerate(changed.columns)}
    changed.positions = {names.get(c, c): at for c, at in table.positions.items()}
    changed.rows = [Row(row.line, Cells(places, [row.cells[c] for c in kept])) for row in table.rows]
    changed.notes = (*table.notes, *notes)
    return changed


def is_quantity(column: str) -> bool:
    """Whether a column is called after what is measured in it, which may have a unit."""
    return bool(_QUANTITIES & set(words(column)))


def _has_figures(table: Table, column: str) -> bool:
    return any(table.is_number(row.cells[column]) for row in table.rows)


def _in_one_unit(table: Table, row: Row, column: str, about: list[str], unit: str) -> Row:
    """A line with its times in one unit."""
    own = _time(row.cells[column])
    if own is None:
        raise table.error(row, column, "is empty, others are not", "complete the line.")
    scale = UNITS[own] / UNITS[_time(unit) or own]
    cells = dict(row.cells)
    for name in about if scale != 1 else ():
        if cells[name].lower() not in LOST:
            value = repr(table.number(row, name) * scale)
            cells[name] = value.replace(".", table.numerals.decimal)
    return Row(row.line, cells)
