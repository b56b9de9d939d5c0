"""Tables whose cells hold a unit behind their figure, `70.1 ms` or `1.2K req/s`, as dashboards and people write them."""

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from dgdlb_jax.fleets.document import clipped, listed
from dgdlb_jax.fleets.importers.rate_units import OF_REQUESTS, OF_TIME, SHORT, said_period
from dgdlb_jax.fleets.importers.unit_column import is_quantity, renamed
from dgdlb_jax.fleets.importers.words import LOST, UNITS, unit_of
from dgdlb_jax.fleets.numerals import numerals_of
from dgdlb_jax.fleets.tables import Cells, Row, Table
from dgdlb_jax.numerics.results import InputError

_FACTORS = {"": 1.0, "k": 1e3, "K": 1e3, "M": 1e6, "Mil": 1e6}
_SPACE = "[ \u00a0\u202f]*"
_CELL = re.compile(
    rf"([+-]?\d(?:[\d.,'’ \u00a0\u202f]*\d)?){_SPACE}(k|K|Mil|M|){_SPACE}"
    rf"(ns|us|µs|μs|ms|msec|s|secs?|seconds?|{SHORT}|(?:{OF_REQUESTS}|tok|tokens?|){_SPACE}(?:/|per){_SPACE}{OF_TIME}|)"
)


class _Figure(NamedTuple):
    """A cell without its unit; `text` as it is written."""

    text: str
    factor: float = 1.0
    unit: str = ""


def with_cell_units(table: Table) -> Table:
    """A table with columns of figures with units as one whose columns say them: `rtt` with `70 ms` becomes `rtt (ms)` with 70; any
    other table as it is. Times in several units are written in one of them: that which the column names, or the first. A matrix is one
    column in this, and its first cell is the name.

    A column with a cell that is neither such a figure nor empty stays as it is.

    **Raises:** `InputError` for a column that names another unit than all of its cells do.
    """
    found = {column: figures for column in table.columns if (figures := _figures(table, column))}
    if not found:
        return table
    texts = [_texts(row, found, k) for k, row in enumerate(table.rows)]
    plain = table.only([Row(row.line, _cells(table, cells)) for row, cells in zip(table.rows, texts, strict=True)])
    plain.numerals = numerals_of((cell for row in plain.rows for cell in row.cells.values()), table.separator)
    found = {column: figures for column, figures in found.items() if _are_numbers(plain, figures)}
    units, names = _units_and_names(plain, found)
    rows = []
    for k, row in enumerate(table.rows):
        cells = {column: _in_unit(plain, figures[k], units[column]) for column, figures in found.items()}
        rows.append(Row(row.line, _cells(table, dict(row.cells) | cells)))
    plain.rows = rows
    notes = [
        f"{listed([c for c in found if units[c] == unit])}: in {unit}, by the cells"
        for unit in dict.fromkeys(units.values())
        if unit
    ]
    scaled = [column for column, figures in found.items() if any(one.factor != 1 for one in figures)]
    notes += [f"{listed(scaled)}: in thousands (K) or millions (M), as rounded there"] if scaled else []
    return renamed(plain, names, tuple(notes))


def _units_and_names(plain: Table, found: Mapping[str, Sequence[_Figure]]) -> tuple[dict[str, str], dict[str, str]]:
    """The unit in which every column is written, and the new names of columns that do not say it."""
    is_matrix = _is_matrix(plain, found)
    units: dict[str, str] = {}
    names: dict[str, str] = {}
    for columns in [list(found)] if is_matrix else [[column] for column in found]:
        name = plain.columns[0] if is_matrix else columns[0]
        said = plain.title if is_matrix and unit_of(plain.title) and not unit_of(name) else name
        own = list(dict.fromkeys(one.unit for column in columns for one in found[column] if one.unit))
        bare = [
            (row, c) for c in columns for row, one in zip(plain.rows, found[c], strict=True) if _is_bare(plain, one)
        ]
        unit = _named_unit(plain, said, own, bool(bare) or (is_matrix and len(columns) < len(_full(plain))))
        units |= dict.fromkeys(columns, unit or next(iter(own), ""))
        names |= {} if unit or not own else {name: f"{name} ({own[0]})".strip()}
        if own and bare and not unit and said_period(name) is None:
            raise plain.error(*bare[0], f"has no unit, another cell is in {own[0]}", "complete the cell.")
    return units, names


def _is_bare(plain: Table, one: _Figure) -> bool:
    """Whether a figure has no unit although it needs one: 0 is 0 in all of them."""
    return not one.unit and plain.is_number(one.text) and float(plain.numerals.plain(one.text)) != 0


def _named_unit(table: Table, name: str, units: Sequence[str], plainly: bool) -> str:
    """The one of the units of its cells that a name says, empty for a name that says none; `plainly`: other figures have none.

    **Raises:** `InputError` for a name that says another one.
    """
    if not units:
        return ""
    times = all(map(_is_time, units))
    said = unit_of(name) if times and said_period(name) is None else None
    told = said or said_period(name)
    fitting = [unit for unit in units if told == (unit_of(unit) if times else said_period(unit))]
    if said and plainly and not fitting:
        return said
    if told is not None and not fitting:
        by_name = said or f"figures per {told:g} s"
        raise InputError(
            f'{table.name}: "{clipped(name)}" is in {by_name} by its name, and its cells are in {listed(units)}: correct one of the two.'
        )
    return fitting[0] if fitting and said else ""


def _full(table: Table) -> list[str]:
    """The columns beside the first one that are not empty."""
    return [c for c in table.columns[1:] if any(row.cells[c].lower() not in LOST for row in table.rows)]


def _is_matrix(table: Table, found: Mapping[str, Sequence[_Figure]]) -> bool:
    """Whether names stand beside times that are nothing but those between places: none of their columns says what it is."""
    corner, *columns = table.columns
    timed = [column for column in found if any(_is_time(one.unit) for one in found[column] if one.unit)]
    return (
        len(columns) > 1
        and bool(timed)
        and all(not row.cells[corner][:1].isdigit() for row in table.rows)
        and not any(is_quantity(column) or unit_of(column) for column in columns)
        and all(column in timed or (unit_of(corner) and _has_only_figures(table, column)) for column in _full(table))
    )


def _figures(table: Table, column: str) -> list[_Figure]:
    """The cells of a column that has units or multiples, without them; none for any other column."""
    first = next((cell for row in table.rows if (cell := row.cells[column]).lower() not in LOST), "")
    if not first[:1].isdigit() or table.is_number(first) or _CELL.fullmatch(first) is None:
        return []
    figures = []
    for row in table.rows:
        cell = row.cells[column]
        found = _CELL.fullmatch(cell)
        if found is None and cell.lower() not in LOST:
            return []
        figures.append(_Figure(cell) if found is None else _Figure(found[1], _FACTORS[found[2]], found[3]))
    units = {one.unit for one in figures if one.text.strip("0.,") and one.text.lower() not in LOST} - {""}
    return figures if len(units) < 2 or all(map(_is_time, units)) else []


def _is_time(unit: str) -> bool:
    return "/" not in unit and "per" not in unit and unit_of(unit) is not None


def _has_only_figures(table: Table, column: str) -> bool:
    return all(table.is_number(row.cells[column]) or row.cells[column].lower() in LOST for row in table.rows)


def _texts(row: Row, found: Mapping[str, Sequence[_Figure]], k: int) -> dict[str, str]:
    return dict(row.cells) | {column: figures[k].text for column, figures in found.items()}


def _cells(table: Table, by_column: Mapping[str, str]) -> Cells:
    return Cells({column: k for k, column in enumerate(table.columns)}, [by_column[column] for column in table.columns])


def _are_numbers(plain: Table, figures: Sequence[_Figure]) -> bool:
    return all(plain.is_number(one.text) or one.text.lower() in LOST for one in figures)


def _in_unit(plain: Table, one: _Figure, unit: str) -> str:
    """A figure in the unit of its column: as it is written where that is its own."""
    other = one.unit and one.unit != unit
    scale = one.factor * (UNITS[unit_of(one.unit) or "s"] / UNITS[unit_of(unit) or "s"] if other else 1.0)
    if scale == 1 or not plain.is_number(one.text):
        return one.text
    return repr(float(plain.numerals.plain(one.text)) * scale).replace(".", plain.numerals.decimal)
