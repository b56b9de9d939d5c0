"""Tables as aligned text."""

from collections.abc import Sequence


def columns(header: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[int] = ()) -> str:
    """Aligned columns below a header and a rule."""
    table = GrowingTable(header, [max(map(len, cells)) for cells in zip(header, *rows, strict=True)], right)
    return "\n".join([table.head(), *map(table.row, rows)])


class GrowingTable:
    """A table whose rows are printed one by one, in columns as wide as the longest cell that may come; `right`: columns that are
    aligned to the right."""

    def __init__(self, header: Sequence[str], widths: Sequence[int], right: Sequence[int] = ()):
        self._header, self._right = header, right
        self._widths = [max(len(name), width) for name, width in zip(header, widths, strict=True)]

    def head(self) -> str:
        """The header and a rule."""
        return f"{self.row(self._header)}\n{'  '.join('-' * width for width in self._widths)}"

    def row(self, cells: Sequence[str]) -> str:
        """One row."""
        aligned = (
            str(cell).rjust(width) if k in self._right else str(cell).ljust(width)
            for k, (cell, width) in enumerate(zip(cells, self._widths, strict=True))
        )
        return "  ".join(aligned).rstrip()
