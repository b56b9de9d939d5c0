"""Demand as rates in a column for each place: which place a column is about, and the seconds for which it counts."""

import re
from collections.abc import Iterable, Sequence

from dgdlb_jax.fleets.document import clipped, listed
from dgdlb_jax.fleets.importers.rate_units import OF_REQUESTS, OF_TIME, SHORT, period, tokens_of
from dgdlb_jax.fleets.importers.words import summaries
from dgdlb_jax.fleets.tables import Table
from dgdlb_jax.numerics.results import InputError

# What says of a column that it is a rate of requests: the rest of its name is that of a place.
_OF_REQUESTS = rf"(?:{OF_REQUESTS}|throughput|tput)"
_RATE = re.compile(
    rf"(?<![a-z])(?:{SHORT}|{_OF_REQUESTS}[ _]*(?:/|per)[ _]*{OF_TIME}|{_OF_REQUESTS}[ _]+{OF_TIME}|1? ?(?:/|per)[ _]*{OF_TIME})(?![a-z])",
    re.IGNORECASE,
)
# What says of a column that it counts requests.
_COUNT = re.compile(
    r"(?<![a-z])(?:num(?:ber)?[ _](?:of[ _])?)?(?:requests|reqs|calls|hits|arrivals)(?:[ _]count)?(?![a-z])",
    re.IGNORECASE,
)
_AROUND = " _-.:,;()[]{}/\t"


def is_rate(column: str) -> bool:
    """Whether a column counts requests for some seconds, by its name."""
    return bool(period(column)) and not tokens_of(column)


def place_of(column: str) -> str:
    """The place that a column of rates or counts is about, empty for that of all requests: `us-east` of `us-east (req/s)`."""
    return (_RATE if is_rate(column) else _COUNT).sub("", column).strip(_AROUND)


def speaks_of_requests(column: str) -> bool:
    """Whether a column says that it holds a rate or a count of requests."""
    return is_rate(column) or _COUNT.search(column) is not None


def by_place(table: Table, columns: Sequence[str], names: Iterable[str] = ()) -> dict[str, str]:
    """The columns by place, where all of them are rates, or all say that they count requests, of different places; nothing for others.

    **Arguments:** `names` of columns that are places as they stand, whatever is in their names.

    **Raises:** `InputError` where only some of several columns are rates, two are about one place, or one sums others up.
    """
    rates = [column for column in columns if is_rate(column) and column not in names]
    counts = all(map(_COUNT.search, columns)) and not set(columns) & set(names)
    if not (rates or counts) or len(columns) < 2:
        return {}
    if rates and len(rates) < len(columns):
        others = [column for column in columns if column not in rates]
        raise InputError(
            f"{table.name}: {listed(rates)} {'is a rate' if len(rates) == 1 else 'are rates'}, and {listed(others)} "
            f"{'is' if len(others) == 1 else 'are'} none: give rates of all places, such as us_rps, or counts of all, and remove the rest."
        )
    found: dict[str, str] = {}
    for column in columns:
        place = place_of(column)
        if place in found or not place:
            what = (
                f"{clipped(found[place])} and {clipped(column)} are"
                if place in found
                else f"{clipped(column)} is one of"
            )
            kind = "rates" if rates else "counts"
            raise InputError(f"{table.name}: {what} {kind} of the same requests: keep one column for each place.")
        found[place] = column
    summaries(table.name, found, tuple(names))
    return found
