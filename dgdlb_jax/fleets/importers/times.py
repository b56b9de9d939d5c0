"""Columns of times: dates, seconds since 1970 in any unit, seconds since some start."""

import math
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from dgdlb_jax.fleets.document import clipped
from dgdlb_jax.fleets.importers.base import Options
from dgdlb_jax.fleets.importers.date_and_time import JOINED
from dgdlb_jax.fleets.importers.slashed_dates import are_unclear, slashed
from dgdlb_jax.fleets.importers.words import UNITS, first_of, normal, unit_of, words
from dgdlb_jax.fleets.tables import Row, Table
from dgdlb_jax.numerics.results import InputError

SPELLINGS = (
    JOINED, "timestamp", "time", "arrival_time", "arrival_timestamp", "arrived_at", "arrival", "request_time", "start_time", "created_at",
    "received_at", "datetime", "date", "ts", "t", "starttime", "arrivaltime", "time_stamp", "event_time",
    "time_iso_8601", "start", "begin", "window_start", "bin_start", "interval_start", "period_start",
)  # fmt: skip
"""What a column of times may be called, besides any of these with a unit."""

_CALENDAR = {"minute": 60.0, "hour": 3600.0, "day": 86400.0}
"""Seconds in what columns of dashboards number, or in what they name the beginning of."""
_SLOTS = ("bin", "interval", "slot", "bucket", "window", "period")
"""Columns that number bins without saying how wide they are."""

BURSTGPT = ("Request tokens", "Response tokens")
"""Columns of BurstGPT, whose times are seconds."""

_PLAIN_DATE = re.compile(r"(\d{4}-\d\d-\d\d[ T]\d\d:\d\d(?::\d\d(?:\.\d{1,9})?)?)(Z|\+00:00| UTC)?")
_TIME_OF_DAY = re.compile(r"(\d{1,2}):(\d\d)(?::(\d\d(?:\.\d{1,9})?))?")
# Day, month and year with points between them, as German and its neighbours write dates.
_POINTED_DATE = re.compile(r"(\d{1,2})\.(\d{1,2})\.(\d{4})(?:,? (\d{1,2}):(\d\d)(?::(\d\d))?)?")

# What bins that stand across a table are called.
_TIME = re.compile(
    r"\d{1,4}(?:[-/.:hT ]+\d{1,4}){0,6}Z?|\d{1,2} ?(?:[ap]\.?m\.?|h)|(?:h|hr|hour|bin|day|week|month|t|min|minute)[ _]?\d{1,5}"
    r"|(?:jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)[a-z]*\.?(?: ?\d{1,4})?|(?:mon|tue|wed|thu|fri|sat|sun)[a-z]*\.?",
    re.IGNORECASE,
)

# Seconds since 1970 lie here between the years 2001 and 2128; figures in smaller units lie in ranges of their own.
_EPOCH = (1e9, 5e9)


class Times(NamedTuple):
    """Seconds since the first time of all, in the order of the rows, and how they were written."""

    seconds: Float[np.ndarray, " rows"]
    written: str


def are_times(columns: Sequence[str]) -> bool:
    """Whether columns are named after times, as bins are that stand across: dates, times of day, numbers of seconds or of hours."""
    return len(columns) > 1 and all(map(_TIME.fullmatch, columns))


def time_column(table: Table) -> str | None:
    """The column of times, by its name."""
    plain = first_of(table.columns, SPELLINGS)
    if plain is not None:
        return plain
    bare = {
        column: "_".join(words(column)[:-1]) for column in table.columns if unit_of(column) and len(words(column)) > 1
    }
    found = next((column for column, name in bare.items() if name in SPELLINGS), None)
    return found or first_of(table.columns, (*_CALENDAR, *_SLOTS))


def read_times(table: Table, column: str, options: Options) -> Times:
    """A column of times.

    Figures are in the unit that the header says, or `options.time_unit`, or in the one in which they are times since 1970.

    **Raises:** `InputError` for cells that are no times, and for figures whose unit nothing says.
    """
    if table.is_number(table.rows[0].cells[column]):
        values = np.array([table.number(row, column, minimum=-math.inf) for row in table.rows])
        epoch = _epoch_unit(values)
        if epoch is None and normal(column) in (*_CALENDAR, *_SLOTS):
            return _numbered(table, column, values)
        unit, said = options.use("time_unit"), unit_of(column)
        if unit and said and unit != said:
            raise InputError(
                f'{table.name}: column "{clipped(column)}" is in {said} by its name, but time_unit is {unit}: keep one of the two.'
            )
        unit = unit or said or _layout_unit(table, column, values)
        if unit is None and epoch is None:
            raise InputError(
                f'{table.name}: column "{clipped(column)}" does not say its unit: call it {column}_s, {column}_ms, {column}_us or '
                f"{column}_ns, or say time_unit in the section of the demand (dgdlb import: --time-unit)."
            )
        since = " since 1970" if epoch is not None and epoch == (unit or epoch) else ""
        unit = unit or epoch or "s"
        return Times((values - values.min()) * UNITS[unit], f'"{clipped(column)}" in {unit}{since}')
    dates = _times_of_day(table, column)
    if dates is None:
        dates = _plain_dates(table, column)
    if dates is None and (found := slashed([row.cells[column] for row in table.rows])) is not None:
        dates = np.array(found)
    if dates is None and are_unclear([row.cells[column] for row in table.rows]):
        raise table.error(
            table.rows[0],
            column,
            "and all below are dates of which nothing tells the day from the month",
            "write 2026-01-31 12:00, year first, in every line.",
        )
    if dates is None:
        dates = np.array([_date(table, row, column) for row in table.rows])
    return Times(dates - dates.min(), f'"{clipped(column)}" as dates')


def _numbered(table: Table, column: str, values: Float[np.ndarray, " rows"]) -> Times:
    """Hours, minutes or days that are numbered."""
    seconds = _CALENDAR.get(normal(column))
    if seconds is None:
        raise InputError(
            f'{table.name}: column "{clipped(column)}" numbers bins and does not say how wide they are: call it time_s, and give the '
            "seconds at which each begins."
        )
    return Times((values - values.min()) * seconds, f'"{clipped(column)}" in {normal(column)}s')


def _times_of_day(table: Table, column: str) -> Float[np.ndarray, " rows"] | None:
    """Seconds since midnight of times such as 18:15, of one day; None for others.

    **Raises:** `InputError` for a time that is earlier than the one before.
    """
    found = [_TIME_OF_DAY.fullmatch(row.cells[column]) for row in table.rows]
    times = [3600.0 * int(match[1]) + 60 * int(match[2]) + float(match[3] or 0) for match in found if match]
    if len(times) < len(found):
        return None
    for row, before, time in zip(table.rows[1:], times, times[1:], strict=False):
        if time < before:
            raise table.error(row, column, "is before the line above", "write dates where a day is passed, or sort.")
    return np.array(times)


def _layout_unit(table: Table, column: str, values: Float[np.ndarray, " rows"]) -> str | None:
    """The unit that a published layout has: Mooncake's whole numbers are milliseconds, Qwen-Bailian's and BurstGPT's are seconds."""
    columns = set(table.columns)
    if column == "timestamp" and {"input_length", "output_length"} <= columns:
        return "s" if "chat_id" in columns else None if (values % 1).any() else "ms"
    if column == "Timestamp" and columns.issuperset(BURSTGPT):
        return "s"
    return None


def _epoch_unit(values: Float[np.ndarray, " rows"]) -> str | None:
    low, high = float(values.min()), float(values.max())
    return next((unit for unit, s in UNITS.items() if _EPOCH[0] <= low * s and high * s <= _EPOCH[1]), None)


def _plain_dates(table: Table, column: str) -> Float[np.ndarray, " rows"] | None:
    """Dates that all lack a time zone, or all have UTC, with any number of digits; None for others."""
    found = [_PLAIN_DATE.fullmatch(row.cells[column]) for row in table.rows]
    plain = [match[1].replace(" ", "T", 1) for match in found if match]
    if len(plain) < len(found) or len({match[2] is None for match in found if match}) > 1:
        return None
    try:
        dates = np.array(plain, "datetime64[ns]")
    except ValueError:
        return None
    return (dates - dates.min()).astype("timedelta64[ns]").astype(float) / 1e9


def _date(table: Table, row: Row, column: str) -> float:
    try:
        text = row.cells[column].removesuffix(" UTC")
        if pointed := _POINTED_DATE.fullmatch(text):
            day, month, year, hour, minute, second = (int(part or 0) for part in pointed.groups())
            text = f"{year:04d}-{month:02d}-{day:02d} {hour:02d}:{minute:02d}:{second:02d}"
        found = datetime.fromisoformat(text)
        return (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError, OSError) as error:
        raise table.error(
            row, column, "is no time", "write 2026-01-31 12:00:00.5 or a number of seconds in every line."
        ) from error
