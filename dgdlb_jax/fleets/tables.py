"""Reading tables with errors that name file, line and column."""

import copy
import csv
import io
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

from dgdlb_jax.fleets.document import Folder, clipped, counted, nearest_column, read_text, rule_for, shown
from dgdlb_jax.fleets.numerals import Numerals, is_unclear, mixes_notations, numerals_of
from dgdlb_jax.numerics.checks import in_range
from dgdlb_jax.numerics.results import InputError

# What no column is called.
_FIGURE = re.compile(r"[+-]?[\d.,]+(?:[eE][+-]?\d+)?")
# How a footnote begins.
_REMARK = re.compile(
    r"\W*[*†‡¹²³(\[]|\W*(?:notes?|sources?|legend|last updated|updated|as of|measured|data|all (?:times|figures|values))\b",
    re.IGNORECASE,
)
# The first line of files for Excel, which then knows what separates the cells.
_TELLS_SEPARATOR = re.compile(r"\"?sep=.\"?", re.IGNORECASE)


class Cells(Mapping[str, str]):
    """The cells of a line by column. All lines share the places of the columns: logs have millions of lines."""

    __slots__ = ("_places", "_texts")

    def __init__(self, places: dict[str, int], texts: Sequence[str]):
        self._places, self._texts = places, texts

    def __getitem__(self, column: str) -> str:
        return self._texts[self._places[column]]

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


class Row(NamedTuple):
    """One line of a table: its number in the file and its cells by column."""

    line: int
    cells: Mapping[str, str]


class Table:
    """A table in a text file: one header line, and comment lines that start with `#`. Titles above the header are left out, and that is
    among the `notes`. Further columns are ignored.

    Cells are separated by commas, by semicolons or by tabs, whichever the header line has most of. Numbers may have decimal commas
    and separated thousands, all of them in one way.
    """

    def __init__(self, name: str, text: str):
        self.name = clipped(name)
        self.notes: tuple[str, ...] = ()  # what became of its lines and columns
        self.title = ""  # what stands above its header
        self._mixed: dict[str, bool] = {}
        lines, cells = self._cells(text.removeprefix("\ufeff"))
        self.columns = cells[0]
        self._check_header(lines[0])
        self.positions = {column: k for k, column in enumerate(self.columns)}  # in the file
        self.rows = [self._row(line, row) for line, row in zip(lines[1:], cells[1:], strict=True)]
        inside = self.separator != "," or '"' in text  # only then can a cell have a comma in it
        self.numerals = numerals_of((c for row in cells[1:] for c in row), self.separator) if inside else Numerals()

    def only(self, rows: "list[Row]") -> "Table":
        """The same table with some of its rows."""
        part = copy.copy(self)
        part.rows = rows
        return part

    @classmethod
    def read(cls, folder: Folder, name: str, wanted_by: str) -> "Table":
        """The table in a file."""
        return cls(name, read_text(folder / name, f"{wanted_by}: the table "))

    @classmethod
    def of_records(cls, name: str, records: Sequence[Mapping[str, Any]]) -> "Table":
        """Records with the same kind of fields as a table; a field that a record lacks is an empty cell."""
        table = cls.__new__(cls)
        table.name, table.separator, table.numerals, table._mixed = clipped(name), ",", Numerals(), {}
        table.title = ""
        table.columns, table.notes = list(dict.fromkeys(str(key) for record in records for key in record)), ()
        table.positions = {column: k for k, column in enumerate(table.columns)}
        text = [{column: _cell(record.get(column)) for column in table.columns} for record in records]
        table.rows = [Row(number, cells) for number, cells in enumerate(text, start=1)]
        return table

    def _cells(self, text: str) -> tuple[list[int], list[list[str]]]:
        """The line numbers and cells of everything that is neither blank nor a comment nor a title."""
        numbered = enumerate(text.splitlines(), start=1)
        kept = {k: line for k, line in numbered if line.strip(' \t,;"') and not line.lstrip().startswith("#")}
        if _TELLS_SEPARATOR.fullmatch(next(iter(kept.values()), "").strip()):
            kept.pop(next(iter(kept)))
        self._leave_titles(kept)
        self._leave_footnotes(kept)
        self.separator = _separator(next(iter(kept.values()), ""))
        try:
            rows = list(csv.reader(io.StringIO("\n".join(kept.values())), delimiter=self.separator))
        except csv.Error as error:
            raise InputError(f"{self.name} is not a CSV table ({error}): separate plain cells by commas.") from error
        if len(rows) != len(kept):
            raise InputError(f"{self.name} has a quoted cell that runs over several lines: close the quotes in each.")
        if len(rows) < 2:
            raise InputError(f"{self.name} has no rows: write a line of column names and at least one line of values.")
        return list(kept), _without_empty_columns([[cell.strip() for cell in row] for row in rows])

    def _leave_titles(self, lines: dict[int, str]) -> None:
        """Remove the lines above the names of the columns that have a single cell, its first one: titles, dates of an export."""
        titles: list[int] = []
        for (number, line), (_, following) in pairwise(lines.items()):
            if not _is_alone(line):
                break
            titles.append(number)
            if len(_filled(following)) > 1:
                break
        else:
            return
        if titles and not any(map(_FIGURE.fullmatch, _filled(following))):
            self.title = ", ".join(clipped(" ".join(_filled(lines.pop(number)))) for number in titles)
            self.notes += (f"above its header, and left out: {self.title}",)

    def _leave_footnotes(self, lines: dict[int, str]) -> None:
        """Remove the lines below all others that have a single cell, with a remark."""
        found: list[str] = []
        for number in reversed(list(lines)):
            if len(lines) < 3 or not (_is_alone(lines[number]) and _REMARK.match(lines[number])):
                break
            found.append(clipped(" ".join(_filled(lines.pop(number)))))
        if found:
            self.notes += (f"below its lines, and left out: {', '.join(reversed(found))}",)

    def _check_header(self, line: int) -> None:
        if (nameless := self.columns.count("")) > 1:
            raise InputError(
                f"{self.name}:{line}: {nameless} columns have no name: name them all, or remove this line if it is a title above the names."
            )
        for k, column in enumerate(self.columns):
            if column in self.columns[:k]:
                raise InputError(f'{self.name}:{line}: column "{clipped(column)}" occurs twice: rename or remove one.')

    def _row(self, line: int, cells: list[str]) -> Row:
        if len(cells) != len(self.columns):
            raise InputError(
                f"{self.name}:{line}: the line has {counted(len(cells), 'cell', 'cells')}, but the table has "
                f"{counted(len(self.columns), 'column', 'columns')}: complete or correct the line."
            )
        return Row(line, Cells(self.positions, cells))

    def column(self, *known: str) -> str:
        """Whichever of the known spellings of a column the table has."""
        for name in known:
            if name in self.columns:
                return name
        hint = nearest_column(known[0], self.columns)
        raise InputError(f'{self.name}: column "{known[0]}" is missing ({hint}): add or rename it.')

    def number(
        self, row: Row, column: str, *, minimum: float = 0.0, above: bool = False, counts: bool = False
    ) -> float:
        """A cell as a finite number of at least (or above) `minimum`; `counts`: the column counts things."""
        if self.numerals.contradicts(row.cells[column]):
            raise self.error(row, column, "has a point, other numbers have decimal commas", "write all in one way.")
        plain = self._plain(row, column, counts)
        try:
            value = float(plain)
        except ValueError as error:
            raise self.error(row, column, "is not a number", "correct the cell.") from error
        if not in_range(value, minimum, above):
            raise self.error(row, column, "is out of range", f"give {rule_for(minimum, above)}.")
        return value

    def _plain(self, row: Row, column: str, counts: bool = False) -> str:
        """A cell as Python reads it, where it is clear which number it is."""
        cell = row.cells[column]
        if is_unclear(cell) and (not self.numerals.known or self._is_mixed(column, counts)):
            whole, decimals = cell.replace(".", "").replace(",", ""), cell.replace(",", ".")
            what = f"could be {whole} or {float(decimals):g}, and no other figure tells which"
            raise self.error(row, column, what, "write it without separated thousands, or all with other decimals.")
        return self.numerals.plain(cell)

    def _is_mixed(self, column: str, counts: bool) -> bool:
        """Whether the points of a column are decimal ones in some cells and cannot be in others; looked at once, logs are long."""
        if column not in self._mixed:
            pointed = self.numerals.decimal == "." and mixes_notations((row.cells[column] for row in self.rows), counts)
            self._mixed[column] = pointed
        return self._mixed[column]

    def is_number(self, cell: str) -> bool:
        """Whether a cell is a finite number as this table writes them."""
        try:
            return math.isfinite(float(self.numerals.plain(cell)))
        except ValueError:
            return False

    def numbers(self, column: str, *, minimum: float = 0.0, above: bool = False, counts: bool = False) -> list[float]:
        """A whole column."""
        return [self.number(row, column, minimum=minimum, above=above, counts=counts) for row in self.rows]

    def error(self, row: Row, column: str, problem: str, remedy: str) -> InputError:
        """The exception to raise about a cell: `latency.csv:7:3: rtt_ms "x" <problem>: <remedy>`."""
        place = f"{self.name}:{row.line}:{self.positions[column] + 1}"
        return InputError(f"{place}: {column} {shown(row.cells[column])} {problem}: {remedy}")

    def records(self) -> list[dict[str, str]]:
        """The rows by column, their numbers as Python reads them."""
        return [{column: self._plain(row, column) for column in row.cells} for row in self.rows]


def _separator(line: str) -> str:
    return max(",;\t", key=line.count)


def _filled(line: str) -> list[str]:
    """The cells of a line that are not empty."""
    return [cell.strip() for row in csv.reader([line], delimiter=_separator(line)) for cell in row if cell.strip()]


def _is_alone(line: str) -> bool:
    """Whether the first cell of a line is its only one."""
    return len(_filled(line)) == 1 and not line.lstrip('"').startswith((",", ";", "\t"))


def _without_empty_columns(rows: list[list[str]]) -> list[list[str]]:
    """The lines without the columns that have neither a name nor a cell, which spreadsheets leave beside others."""
    width = len(rows[0])
    if all(rows[0]) or any(len(row) != width for row in rows):
        return rows
    kept = [k for k in range(width) if any(row[k] for row in rows)]
    return [[row[k] for k in kept] for row in rows]


def _cell(value: Any) -> str:
    """A value of a record as the text of a cell."""
    return "" if value is None else str(value)
