"""Times in two columns: a date, and a time of day or an hour beside it, as web servers and spreadsheets write them."""

import copy
import re
from collections.abc import Mapping

from dgdlb_jax.fleets.document import clipped
from dgdlb_jax.fleets.importers.words import first_of
from dgdlb_jax.fleets.tables import Cells, Row, Table

JOINED = "date_time"
"""What the one column of times is called that is made of the two."""

_DATES = ("date", "day", "datum", "log_date", "event_date", "request_date")
_CLOCKS = (
    "time",
    "hour",
    "time_of_day",
    "hour_of_day",
    "hr",
    "hod",
    "uhrzeit",
    "stunde",
    "log_time",
    "event_time",
    "request_time",
)
_DATE = re.compile(r"\d{4}-\d\d-\d\d|\d{1,2}\.\d{1,2}\.\d{4}")
_CLOCK = re.compile(r"(\d{1,2})(?::(\d\d)(?::(\d\d)(\.\d+)?)?)?")


def with_one_time(table: Table) -> Table:
    """A table with a column of dates and one of times of day, or of hours, as one with a column of both; any other table as it is."""
    date, clock = first_of(table.columns, _DATES), first_of(table.columns, _CLOCKS)
    if date is None or clock is None or not table.rows:
        return table
    first = table.rows[0].cells
    if not (_DATE.fullmatch(first[date]) and _CLOCK.fullmatch(first[clock])):
        return table
    others = [column for column in table.columns if column not in (date, clock)]
    joined = copy.copy(table)
    joined.columns = [JOINED, *others]
    joined.positions = {**table.positions, JOINED: table.positions[date]}
    joined.notes = (*table.notes, f'"{clipped(date)}" and "{clipped(clock)}" are read as one time')
    places = {column: k for k, column in enumerate(joined.columns)}
    joined.rows = [
        Row(row.line, Cells(places, [_together(row.cells, date, clock), *(row.cells[column] for column in others)]))
        for row in table.rows
    ]
    return joined


def _together(cells: Mapping[str, str], date: str, clock: str) -> str:
    """Both cells in the notation of one time, as they are where the second is no time of day."""
    found = _CLOCK.fullmatch(cells[clock])
    if found is None:
        return f"{cells[date]} {cells[clock]}"
    hour, minute, second, fraction = found.groups()
    return f"{cells[date]} {int(hour):02d}:{minute or '00'}:{second or '00'}{fraction or ''}"
