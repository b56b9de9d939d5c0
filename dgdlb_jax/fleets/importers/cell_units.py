"""Tables whose cells hold a unit behind their figure, `70.1 ms` or `1.2K req/s`, as dashboards and people write them."""

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from dgdlb_jax.fleets.document import listed
from dgdlb_jax.fleets.importers.rate_units import OF_REQUESTS, OF_TIME, SHORT
from dgdlb_jax.fleets.importers.unit_column import renamed
from dgdlb_jax.fleets.importers.words import LOST, UNITS, unit_of
from dgdlb_jax.fleets.numerals import numerals_of
from dgdlb_jax.fleets.tables import Cells, Row, Table

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
    other table as it is. Of a matrix the first cell says it. Times in several units are written in the first of them.

    A column with a cell that is neither such a figure nor empty stays as it is.
    """
    found = {column: figures for column in table.columns if (figures := _figures(table, column))}
    if not found:
        return table
    texts = [_texts(row, found, k) for k, row in enumerate(table.rows)]
    plain = table.only([Row(row.line, _cells(table, cells)) for row, cells in zip(table.rows, texts, strict=True)])
    plain.numerals = numerals_of((cell for row in plain.rows for cell in row.cells.values()), table.separator)
    found = {column: figures for column, figures in found.items() if _are_numbers(plain, figures)}
    units = {column: next((one.unit for one in figures if one.unit), "") for column, figures in found.items()}
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
    return renamed(plain, _names(table, units), tuple(notes))


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
    units = {one.unit for one in figures if one.text.strip("0.,") and one.text.lower() not in LOST}
    return figures if len(units) < 2 or all(unit_of(unit) and _is_time(unit) for unit in units) else []


def _is_time(unit: str) -> bool:
    return "/" not in unit and "per" not in unit


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


def _names(table: Table, units: Mapping[str, str]) -> dict[str, str]:
    """The new names of columns: those of a matrix are regions, and stay."""
    corner, *columns = table.columns
    named = all(not row.cells[corner][:1].isdigit() for row in table.rows)
    times = {units.get(column, "") for column in columns}
    if (
        named
        and len(columns) > 1
        and len(times) == 1
        and all(unit and _is_time(unit) and unit_of(unit) for unit in times)
    ):
        return {corner: f"{corner} ({times.pop()})"}
    return {column: f"{column} ({unit})" for column, unit in units.items() if unit}
