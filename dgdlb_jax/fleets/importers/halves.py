"""Latencies of which one direction is given: half of a matrix, or a list with a line for every two regions."""

from collections.abc import Collection, Mapping
from itertools import combinations

from dgdlb_jax.fleets.importers.base import Pair


def holes_in(seconds: Mapping[Pair, float], senders: Collection[str], answerers: Collection[str]) -> tuple[Pair, ...]:
    """The pairs of different regions without a figure."""
    return tuple((i, j) for i in senders for j in answerers if i != j and i and j and (i, j) not in seconds)


def completed(
    seconds: Mapping[Pair, float], senders: Collection[str], answerers: Collection[str]
) -> dict[Pair, float] | None:
    """Both directions of every pair, where exactly one is given for every two regions; None for any other latencies.

    Frontends and backends that share no name are no regions with each other, nor are those that share some and lack pairs.
    """
    names = {*senders, *answerers} - {""}
    if not set(senders) & set(answerers):
        return None
    if not all(((a, b) in seconds) != ((b, a) in seconds) for a, b in combinations(names, 2)):
        return None
    return dict(seconds) | {(j, i): value for (i, j), value in seconds.items()}
