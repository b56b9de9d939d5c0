"""Tables that look like bins, whose column of counts has a name that says nothing: they are asked about, not taken for single requests."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from dgdlb_jax.fleets.document import listed
from dgdlb_jax.fleets.importers.base import Options
from dgdlb_jax.fleets.importers.bins import columns_of, spacing_of
from dgdlb_jax.fleets.importers.times import time_column
from dgdlb_jax.fleets.importers.words import PLACES, first_of, words
from dgdlb_jax.fleets.tables import Table
from dgdlb_jax.numerics.results import InputError

# Words of columns that count something, as visitors, or that are rates, although they name no place.
_AMOUNTS = {
    "user", "users", "session", "sessions", "rate", "active", "load", "share", "percent", "percentage", "pct", "fraction", "ratio",
}  # fmt: skip


def check_no_bins(table: Table, seconds: Float[np.ndarray, " rows"], options: Options) -> None:
    """Raise `InputError` for lines at evenly spaced times, of each place once, with figures that may count the requests of a bin."""
    figures = _unnamed(table, options)
    if not figures or not spacing_of(np.unique(seconds)) or not _is_once_each(table, seconds, figures):
        return
    what = listed(figures) if len(figures) == 1 else f"one of {listed(figures)}"
    raise InputError(
        f"{table.name}: its times are evenly spaced, as those of bins are, and nothing says whether {what} counts requests: call the "
        "column that does requests (or rps where it is a rate), or leave the times only where every line is one request."
    )


def _unnamed(table: Table, options: Options) -> list[str]:
    """The columns of figures that are said neither of a single request nor of a place."""
    found, place = columns_of(table), _place(table, options)
    others = [
        c
        for c in found.others
        if ("%" in c or _AMOUNTS & set(words(c)))
        and all(table.is_number(row.cells[c].rstrip("% ")) for row in table.rows)
    ]
    return [c for c in (*found.counts, *others) if c != place]


def _place(table: Table, options: Options) -> str | None:
    return options.by if options.by in table.columns else first_of(table.columns, PLACES)


def _is_once_each(table: Table, seconds: Sequence[float] | Float[np.ndarray, " rows"], figures: list[str]) -> bool:
    """Whether every place, by all columns of text, has one line at a time at most, and two lines or more on average."""
    unused = {*figures, time_column(table)}
    texts = [
        c
        for c in table.columns
        if c not in unused and (c == first_of(table.columns, PLACES) or not table.is_number(table.rows[0].cells[c]))
    ]
    places = [tuple(row.cells[c] for c in texts) for row in table.rows]
    lines = set(zip(seconds, places, strict=True))
    return len(lines) == len(places) >= 2 * len(set(places))
