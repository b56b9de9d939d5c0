"""Numbers as spreadsheets of different languages write them: `1234.5`, `1,234.5`, `1234,5`, `1.234,5`."""

import re
from collections.abc import Iterable
from typing import NamedTuple

_MARKS = {".": ",", ",": "."}  # decimal mark, and what then separates thousands
_SIGNED, _POWER = r"[+-]?", r"([eE][+-]?\d+)?"
_DECIMAL = {mark: re.compile(rf"{_SIGNED}\d*{re.escape(mark)}\d+{_POWER}") for mark in _MARKS}
_GROUPED = {
    mark: re.compile(rf"{_SIGNED}[1-9]\d{{0,2}}({re.escape(other)}\d{{3}})+({re.escape(mark)}\d+)?")
    for mark, other in _MARKS.items()
}


class Numerals(NamedTuple):
    """How the numbers of a table are written: their decimal mark, and whether the other mark separates thousands."""

    decimal: str = "."
    grouped: bool = False

    def plain(self, cell: str) -> str:
        """A cell as Python reads it, if it is a number; any other cell as it is."""
        other = _MARKS[self.decimal]
        if (
            other in cell
            and _GROUPED[self.decimal].fullmatch(cell)
            and (self.grouped or _says_groups(cell, self.decimal))
        ):
            cell = cell.replace(other, "")
        return cell.replace(",", ".") if self.decimal == "," and _DECIMAL[","].fullmatch(cell) else cell

    def contradicts(self, cell: str) -> bool:
        """Whether a cell has the other decimal mark."""
        return self.decimal == "," and self.plain(cell) == cell and _DECIMAL["."].fullmatch(cell) is not None


def numerals_of(cells: Iterable[str], separator: str) -> Numerals:
    """How numbers are written in the cells of a table.

    `1.234,5` and `1,234.5` say all. A comma alone, as in `122,6`, is a decimal mark; `1,234` is none in a table that is separated by
    commas, where it could be either.
    """
    decimal, grouped = False, dict.fromkeys(_MARKS, False)
    for cell in cells:
        if "," not in cell:
            continue
        for mark in _MARKS:
            grouped[mark] |= bool(_GROUPED[mark].fullmatch(cell)) and _MARKS[mark] in cell and mark in cell
        unclear = separator == "," and _GROUPED["."].fullmatch(cell)
        decimal |= not unclear and _DECIMAL[","].fullmatch(cell) is not None
    if grouped["."] and not grouped[","]:
        return Numerals(".", True)
    return Numerals(",", grouped[","]) if decimal or grouped[","] else Numerals()


def _says_groups(cell: str, decimal: str) -> bool:
    """Whether a cell shows by itself that its marks separate thousands: by both marks, or by one of them twice."""
    return decimal in cell or cell.count(_MARKS[decimal]) > 1
