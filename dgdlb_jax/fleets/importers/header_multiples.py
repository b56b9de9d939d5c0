"""Headers that tell a multiple of a unit, as `requests (thousands)`, `krps` or `requests/10s`: figures are written in the plain one."""

import re
from collections.abc import Sequence

from dgdlb_jax.fleets.document import clipped
from dgdlb_jax.fleets.importers.rate_units import OF_REQUESTS, OF_TIME, SHORT, is_no_rate
from dgdlb_jax.fleets.importers.unit_column import renamed
from dgdlb_jax.fleets.importers.words import words
from dgdlb_jax.fleets.numerals import is_unclear
from dgdlb_jax.fleets.tables import Cells, Row, Table
from dgdlb_jax.numerics.results import InputError

_THOUSANDS = r"k|K|kilo|[Tt]housands?|THOUSANDS|[Tt]sd\.?|[x×*]? ?1[,.' ]?000s?|['’]?000s?|1[eE]3|10\^3"
_MILLIONS = r"M|mega|[Mm]illions?|MILLIONS|[Mm]io\.?|[x×*]? ?1[,.' ]?000[,.' ]?000|1[eE]6|10\^6"
_COUNTED = (
    rf"(?i:{SHORT}|(?![rqc](?![a-z])){OF_REQUESTS}|toks?|tokens?|[rqc]?[ _]*(?:/|per[ _])[ _]*{OF_TIME})(?![A-Za-z])"
)


def _many(number: int) -> str:
    """The pattern of a multiple; a pattern can have its groups once only."""
    return rf"(?:(?P<k{number}>{_THOUSANDS})|(?P<M{number}>{_MILLIONS}))"


# `requests (k)`, `requests in millions`, `requests_k`; in front of a unit, `k req/s`.
_APART = re.compile(
    rf"[ _]*[(\[] *(?:in )?{_many(1)} *[)\]]|[ _]+in[ _]+{_many(2)}(?![A-Za-z0-9]|[,.' ]\d)"
    r"|(?<=[a-z])(?:[ _]+(?:(?P<k3>[kK]|thousands?|tsd)|(?P<M3>M|millions?|mio))| *[x×*] ?(?P<k4>1000))$"
)
_BEFORE = re.compile(rf"(?<![A-Za-z0-9]){_many(1)}(?:[ _]of)?[ _]*(?={_COUNTED})")
# `requests/10s`
_SPAN = re.compile(rf"(?P<per>(?:/|\bper|_per)[ _]*)(?P<span>\d+(?:\.\d+)?)[ _]*(?={OF_TIME}(?![A-Za-z]))")
# What no rate here counts per, letters in front of units that could be several multiples, and shares.
_UNKNOWN = re.compile(
    r"(?:/|(?<![A-Za-z])per)[ _]*(?P<per>[mun]s|msecs?|milliseconds?|weeks?|months?|quarters?|years?|\d+)(?![A-Za-z0-9])"
    rf"|(?<![A-Za-z])(?P<letter>[a-jl-zA-JLN-Z])(?=(?i:{SHORT})(?![A-Za-z]))"
    r"|[(\[] *(?P<one>m|[Hh]undreds?|[Dd]ozens?|lakh|[Bb]illions?|bn) *[)\]]"
    r"|(?P<share>%|(?<![A-Za-z])(?:percent|pct)(?![A-Za-z]))"
)
_AMOUNTS = {
    "request", "requests", "req", "reqs", "queries", "calls", "hits", "arrivals", "count", "counts", "throughput", "tput", "token",
    "tokens", "rps", "qps", "tps", "rpm", "rph", "concurrency", "users", "clients",
}  # fmt: skip
_RATES = {"request", "requests", "req", "reqs", "queries", "throughput", "tput", "token", "tokens", "tok"}
_NO_AMOUNT = {"time", "timestamp", "date"}
_NO_SHARE = _AMOUNTS - {"users", "clients", "concurrency"} | {"percent", "pct"}


def with_plain_units(table: Table) -> Table:
    """A table with columns in multiples of a unit as one in the unit: `krps` with 3 becomes `rps` with 3000; any other table as it is.

    **Raises:** `InputError` for a column of requests, tokens or throughput in a unit that is not known, and for two that become one.
    """
    columns = [
        column for column in table.columns if not _NO_AMOUNT & set(words(column)) and _has_figures(table, column)
    ]
    found = {c: plain for c in columns if (plain := _plain(c, columns)) is not None}
    for column in columns:
        _check_known(table, found[column][0] if column in found else column, columns)
    if not found:
        return table
    for column, (name, _) in found.items():
        if name in table.columns or sum(name == other for other, _ in found.values()) > 1:
            raise InputError(
                f'{table.name}: two columns are "{clipped(name)}", "{clipped(column)}" among them: keep one.'
            )
    plain = table.only([_scaled(table, row, found) for row in table.rows])
    notes = tuple(
        f'"{clipped(c)}" {_times(factor)} is read as "{clipped(name)}"' for c, (name, factor) in found.items()
    )
    return renamed(plain, {column: name for column, (name, _) in found.items()}, notes)


def _times(factor: float) -> str:
    return f"times {factor:.7g}" if factor >= 1 else f"divided by {1 / factor:.7g}"


def _has_figures(table: Table, column: str) -> bool:
    return any(table.is_number(row.cells[column]) for row in table.rows)


def _plain(column: str, columns: Sequence[str]) -> tuple[str, float] | None:
    """The name of a column in the plain unit, and how many of these its own is."""
    name, factor = column, 1.0
    found = apart if (apart := _APART.search(name)) and _is_multiple(column, columns) else _BEFORE.search(name)
    if found is not None and not _is_one_of_letters(found, columns):
        factor *= 1e3 if any(text for group, text in found.groupdict().items() if group[0] == "k") else 1e6
        name = name[: found.start()] + name[found.end() :]
    if span := _SPAN.search(name):
        factor /= float(span["span"]) or 1.0
        name = name[: span.start()] + span["per"] + name[span.end() :]
    return None if name == column or not name else (name, factor)


def _is_one_of_letters(found: re.Match[str], columns: Sequence[str]) -> bool:
    """Whether a letter is the name of a place, as others of the same columns are: `requests_j` beside `requests_k`."""
    start, end = next(found.span(group) for group, text in found.groupdict().items() if text)
    before, after = found.string[:start], found.string[end:]
    others = {c[start] for c in columns if len(c) == len(found.string) and c.startswith(before) and c.endswith(after)}
    return end - start == 1 and any(other.isalpha() for other in others - set("kKM"))


def _is_multiple(column: str, columns: Sequence[str]) -> bool:
    """Whether what stands in brackets is a multiple, and no part of the name of a place, as in `Frankfurt (M)`."""
    if _AMOUNTS & set(words(column)):
        return True
    return "(k)" in column or "thousands)" in column or (len(columns) > 1 and all(map(_APART.search, columns)))


def _check_known(table: Table, column: str, columns: Sequence[str]) -> None:
    found, said = set(words(column)), _UNKNOWN.search(column)
    if (
        said is None
        or is_no_rate(column)
        or not (_AMOUNTS & found or said["letter"] or _is_in_all(said["one"], columns))
        or (said["per"] and not _RATES & found)
    ):
        return
    if said["share"]:
        others = [c for c in columns if c != column and _AMOUNTS & set(words(c))]
        if found <= _NO_SHARE and not others:
            raise InputError(
                f'{table.name}: "{clipped(column)}" is a share, which tells no number of requests: give counts, or requests/s.'
            )
        return
    unit = said["per"] or said["letter"] or said["one"]
    raise InputError(
        f'{table.name}: "{unit}" in the column "{clipped(column)}" is no unit known here: write figures of requests, k requests or '
        "M requests, for rates per s, min, h or d."
    )


def _is_in_all(unit: str | None, columns: Sequence[str]) -> bool:
    """Whether what stands in brackets is a unit, as all of several columns have it."""
    return (
        unit is not None
        and len(columns) > 1
        and all(f"({unit})" in column or f"[{unit}]" in column for column in columns)
    )


def _scaled(table: Table, row: Row, found: dict[str, tuple[str, float]]) -> Row:
    """A line with its figures in the plain units."""
    cells = dict(row.cells)
    for column, (_, factor) in found.items():
        if factor != 1 and table.is_number(cells[column]):
            text = f"{table.number(row, column, minimum=-float('inf')) * factor:.15g}"
            text += "0" if is_unclear(text) else ""
            cells[column] = text.replace(".", table.numerals.decimal)
    return Row(
        row.line, Cells({column: k for k, column in enumerate(table.columns)}, [cells[c] for c in table.columns])
    )
