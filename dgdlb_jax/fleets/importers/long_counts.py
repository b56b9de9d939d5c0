"""Counts, or rates, with a line for every bin and place, as a database groups them."""

from typing import NamedTuple

from dgdlb_jax.fleets.document import clipped, listed, nearest
from dgdlb_jax.fleets.importers.base import Options, check_names, selected
from dgdlb_jax.fleets.importers.bins import in_order, requests_column
from dgdlb_jax.fleets.importers.rate_units import period
from dgdlb_jax.fleets.importers.rates import is_rate
from dgdlb_jax.fleets.importers.times import read_times, time_column
from dgdlb_jax.fleets.importers.words import PLACES, first_of, summaries
from dgdlb_jax.fleets.tables import Row, Table
from dgdlb_jax.numerics.results import InputError


class Wide(NamedTuple):
    """A table with a column for every place, and what there is to say of it; whether it was a long one, and the seconds for which the
    figures of that one counted where they were rates."""

    table: Table
    notes: tuple[str, ...]
    is_long: bool = False
    seconds: float | None = None

    def in_order(self, options: Options) -> "Wide":
        """The same with its lines in the order of their times."""
        table = in_order(self.table, options)
        return self if table is self.table else self._replace(table=table, notes=(*self.notes, table.notes[-1]))


def is_long(table: Table, options: Options) -> bool:
    """Whether a table has a line for every bin and place."""
    return time_column(table) is not None and _figures(table) is not None and _place(table, options) is not None


def widened(table: Table, options: Options) -> Wide:
    """A table with a line for every bin and place as one with a column for every place; any other table as it is.

    A place without a line in a bin has no requests in it: databases leave empty groups out.

    **Raises:** `InputError` for a place that is no frontend where these are known, and for two lines of one bin and place.
    """
    time, figures, place = time_column(table), _figures(table), _place(table, options)
    if time is None or figures is None or place is None:
        return Wide(table, table.notes)
    table = table.only(selected(table.name, table.rows, lambda row: row.cells, options))
    sums = summaries(table.name, (row.cells[place] for row in table.rows), options.names)
    if sums:
        options.use("names")
        table = table.only([row for row in table.rows if row.cells[place] not in sums])
        table.notes = (*table.notes, f"left out, as they sum the others up: {listed(sums)}")
    if options.names:
        check_names(table, place, options.use("names"))
    names = dict.fromkeys((*(row.cells[place] for row in table.rows), *options.names))
    seconds = period(figures) if is_rate(figures) else None
    bins: dict[float, dict[str, float]] = {}
    lines: dict[float, int] = {}  # where the first of each bin stands
    for row, at in zip(table.rows, read_times(table, time, options).seconds.tolist(), strict=True):
        _add(table, row, place, figures, bins.setdefault(at, {}), counts=seconds is None)
        lines.setdefault(at, row.line)
    if len(bins) < 2:
        raise table.error(table.rows[0], time, "is the only time", "give at least two bins.")
    wide = Table.of_records(
        table.name,
        [{"time_s": at} | {name: found.get(name, 0) for name in names} for at, found in sorted(bins.items())],
    )
    wide.rows = [Row(lines[at], row.cells) for at, row in zip(sorted(bins), wide.rows, strict=True)]
    wide.positions["time_s"] = table.positions[time]
    return Wide(wide, _notes(table, {time, figures, place}, names, bins), True, seconds)


def _figures(table: Table) -> str | None:
    """The column that counts all requests of a line, or the only one that is their rate."""
    rates = [column for column in table.columns if is_rate(column)]
    return requests_column(table) or (rates[0] if len(rates) == 1 else None)


def _place(table: Table, options: Options) -> str | None:
    """The column that says where requests enter: as told, or by its name; None where figures stand in it, or other places."""
    if options.by in table.columns:
        return options.use("by")
    place = first_of(table.columns, PLACES)
    if place is None or table.is_number(table.rows[0].cells[place]):
        return None
    if options.by is not None:
        raise InputError(
            f'{table.name}: there is no column "{clipped(options.by)}": {nearest(options.by, table.columns)}'
        )
    known = not options.names or set(options.names) & {row.cells[place] for row in table.rows}
    return place if known else None


def _add(table: Table, row: Row, place: str, figures: str, found: dict[str, float], counts: bool) -> None:
    name = row.cells[place]
    if not name:
        raise table.error(row, place, "names no place", "complete or remove the line.")
    if name in found:
        raise table.error(row, place, "has a second line in this bin", "keep one of the two, or add them up.")
    found[name] = table.number(row, figures, counts=counts)


def _notes(
    table: Table, used: set[str], names: dict[str, None], bins: dict[float, dict[str, float]]
) -> tuple[str, ...]:
    """What is not used, and where a place has no line."""
    notes = [*table.notes]
    if unused := [column for column in table.columns if column not in used]:
        notes.append(f"not used: {listed(unused)}")
    missing = {name: sum(name not in found for found in bins.values()) for name in names}
    if lacking := [name for name, count in missing.items() if count]:
        total = sum(missing.values())
        notes.append(f"{total} of {len(names) * len(bins)} bins have no line ({listed(lacking)}): no requests in them")
    return tuple(notes)
