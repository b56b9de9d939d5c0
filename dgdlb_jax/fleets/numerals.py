"""Numbers as spreadsheets of different languages write them: `1234.5`, `1,234.5`, `1234,5`, `1.234,5`, `1'234.5`, `1 234,5`."""

import re
from collections.abc import Iterable
from typing import NamedTuple

_MARKS = {".": ",", ",": "."}  # decimal mark, and what then may separate thousands
_SIGNED, _POWER = r"[+-]?", r"([eE][+-]?\d+)?"
_DECIMAL = {mark: re.compile(rf"{_SIGNED}\d*{re.escape(mark)}\d+{_POWER}") for mark in _MARKS}
_GROUPED = {
    mark: re.compile(rf"{_SIGNED}[1-9]\d{{0,2}}({re.escape(other)}\d{{3}})+({re.escape(mark)}\d+)?")
    for mark, other in _MARKS.items()
}
# Apostrophes and spaces, those that do not break among them, separate nothing but thousands.
_SPACED = re.compile(rf"{_SIGNED}[1-9]\d{{0,2}}(['’ \u00a0\u202f]\d{{3}})+([.,]\d+)?")
_SPACES = str.maketrans("", "", "'’ \u00a0\u202f")
# `1.200`, `1,200`: one mark and three digits behind it.
_UNCLEAR = re.compile(rf"{_SIGNED}[1-9]\d{{0,2}}[.,]\d{{3}}")


class Numerals(NamedTuple):
    """How the numbers of a table are written: their decimal mark, whether the other mark separates thousands, and whether it is known
    what the one mark of `1.200` or `1,200` is."""

    decimal: str = "."
    grouped: bool = False
    known: bool = True

    def plain(self, cell: str) -> str:
        """A cell as Python reads it, if it is a number; any other cell as it is."""
        if _SPACED.fullmatch(cell):
            cell = cell.translate(_SPACES)
        other = _MARKS[self.decimal]
        if (
            other in cell
            and _GROUPED[self.decimal].fullmatch(cell)
            and (self.grouped or not self.known or _says_groups(cell, self.decimal))
        ):
            cell = cell.replace(other, "")
        return cell.replace(",", ".") if self.decimal == "," and _DECIMAL[","].fullmatch(cell) else cell

    def contradicts(self, cell: str) -> bool:
        """Whether a cell has the other decimal mark."""
        return self.decimal == "," and self.plain(cell) == cell and _DECIMAL["."].fullmatch(cell) is not None


def numerals_of(cells: Iterable[str], separator: str) -> Numerals:
    """How numbers are written in the cells of a table.

    `1.234,5`, `1,234.5`, `0,5` and `122.6` tell which mark is the decimal one. A mark before three digits, as in `1.234`, does not, but
    for a comma in a table that is separated by semicolons: its commas are decimal.
    """
    tells, groups, unclear = (dict.fromkeys(_MARKS, False) for _ in range(3))
    for cell in cells:
        if "," not in cell and (tells["."] or "." not in cell):
            continue  # most cells of a long log
        if _SPACED.fullmatch(cell):
            cell = cell.translate(_SPACES)
        if _UNCLEAR.fullmatch(cell):
            unclear["." if "." in cell else ","] = True
            continue
        for mark in _MARKS:
            if _MARKS[mark] in cell and _GROUPED[mark].fullmatch(cell):
                groups[mark] = tells[mark] = True
            elif _DECIMAL[mark].fullmatch(cell):
                tells[mark] = True
    tells[","] |= unclear[","] and separator == ";"
    if tells["."] and tells[","]:
        return Numerals(".", True) if groups["."] and not groups[","] else Numerals(",", groups[","])
    if tells["."] or tells[","]:
        return Numerals("." if tells["."] else ",", True)
    return Numerals(known=not any(unclear.values()))


def is_unclear(cell: str) -> bool:
    """Whether a cell by itself is one number with separated thousands and another one with decimals."""
    return _UNCLEAR.fullmatch(cell) is not None


def mixes_notations(cells: Iterable[str], counts: bool) -> bool:
    """Whether a column of numbers with points is written as no program writes decimals, but people write thousands: `1.200` beside `980`.
    A fixed number of decimals makes 980.000 of the latter, and the shortest text 1.2 of the former. Counts have no decimals at all, so of
    them `1.200` is enough.
    """
    pointed = whole = zero = False
    for cell in cells:
        if "." not in cell:
            whole |= cell.isdigit()
        elif _UNCLEAR.fullmatch(cell):
            pointed, zero = True, zero or cell.endswith("0")
        elif _DECIMAL["."].fullmatch(cell):
            return False
    return pointed and zero and (whole or counts)


def _says_groups(cell: str, decimal: str) -> bool:
    """Whether a cell shows by itself that its marks separate thousands: by both marks, or by one of them twice."""
    return decimal in cell or cell.count(_MARKS[decimal]) > 1
