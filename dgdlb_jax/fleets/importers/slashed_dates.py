"""Dates with strokes, as spreadsheets write them: `2026/01/31 12:00`, `1/31/2026 12:00 PM`, `31/01/2026 12:00`."""

import re
from collections.abc import Sequence
from datetime import UTC, datetime

_SLASHED = re.compile(
    r"(\d{1,4})/(\d{1,2})/(\d{2,4})(?:,? +(\d{1,2}):(\d\d)(?::(\d\d(?:\.\d{1,6})?))?(?: ?([AaPp])\.?[Mm]\.?)?)?"
)


def slashed(cells: Sequence[str]) -> list[float] | None:
    """Seconds since 1970 of dates with strokes; None for any other cells, and where nothing tells days from months.

    The year stands first, or last. Then the first figure is the day where one of them is above 12, the month where the second is above
    12, and where there is a clock of twelve hours.
    """
    if not cells or "/" not in cells[0]:  # logs are long
        return None
    found = [_SLASHED.fullmatch(cell) for cell in cells]
    parts = [[text or "" for text in match.groups()] for match in found if match]
    if len(parts) < len(found):
        return None
    year_first = all(len(first) == 4 for first, *_ in parts)
    day_first = any(int(first) > 12 for first, *_ in parts)
    month_first = any(int(part[1]) > 12 or part[6] for part in parts)
    if not year_first and day_first == month_first:
        return None
    try:
        return [_seconds(part, year_first, day_first) for part in parts]
    except ValueError:
        return None


def are_unclear(cells: Sequence[str]) -> bool:
    """Whether cells are dates with strokes, of which nothing tells days from months."""
    found = [_SLASHED.fullmatch(cell) for cell in cells]
    parts = [match.groups() for match in found if match]
    return len(parts) == len(cells) and all(
        len(first) < 4 and int(first) <= 12 and int(second) <= 12 and not half for first, second, *_, half in parts
    )


def _seconds(part: Sequence[str], year_first: bool, day_first: bool) -> float:
    first, second, third = map(int, part[:3])
    year, month, day = (
        (first, second, third) if year_first else (third, *((second, first) if day_first else (first, second)))
    )
    hour, minute, rest = int(part[3] or 0), int(part[4] or 0), float(part[5] or 0)
    if part[6]:
        if not 1 <= hour <= 12:
            raise ValueError(hour)
        hour = hour % 12 + (12 if part[6] in "Pp" else 0)
    return datetime(year + 2000 * (year < 100), month, day, hour, minute, tzinfo=UTC).timestamp() + rest
