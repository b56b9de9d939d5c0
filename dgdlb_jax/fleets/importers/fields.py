"""Fields of records: figures, with complaints that name file and field, and what tells records apart."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from dgdlb_jax.fleets.document import clipped, shown
from dgdlb_jax.numerics.results import InputError


def figure(place: str, record: Mapping[str, Any], key: str) -> float | None:
    """A figure that is not negative, as a number or as text; None where it is missing, null or empty."""
    value = record.get(key)
    if value is None or value == "":
        return None
    try:
        found = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        found = math.nan
    if not (math.isfinite(found) and found >= 0):
        raise InputError(f"{place}: {clipped(key)} is {shown(value)}: give a finite number that is not negative.")
    return found


def needed(place: str, record: Mapping[str, Any], key: str) -> float:
    """A figure above 0 that has to be there."""
    found = figure(place, record, key)
    if found is None or found == 0:
        raise InputError(
            f"{place}: {clipped(key)} is {'missing' if found is None else 0}: leave this run out, or run it again."
        )
    return found


def telling(keys: Iterable[str], records: Sequence[Mapping[str, Any]]) -> list[str]:
    """The keys, in order, each of which tells records apart that those before it do not."""
    chosen: list[str] = []
    kinds = 1
    for key in keys:
        more = len({tuple(str(record.get(name)) for name in (*chosen, key)) for record in records})
        if more > kinds:
            chosen.append(key)
            kinds = more
    return chosen
