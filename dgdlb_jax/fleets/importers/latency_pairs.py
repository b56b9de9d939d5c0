"""Latencies as a list: a line for every pair of regions."""

from collections.abc import Sequence
from statistics import median
from typing import NamedTuple

from dgdlb_jax.fleets.document import clipped, counted, nearest_column
from dgdlb_jax.fleets.importers.base import Importer, Latencies, Options, Pair, arrows, selected
from dgdlb_jax.fleets.importers.halves import completed
from dgdlb_jax.fleets.importers.plausible import check_latencies
from dgdlb_jax.fleets.importers.source import Source
from dgdlb_jax.fleets.importers.words import LATENCIES, LOST, first_of, statistic_rank, unit_of, way_of, words
from dgdlb_jax.fleets.tables import Row, Table
from dgdlb_jax.numerics.results import InputError

ENDS = (
    ("from", "to"),
    ("region_from", "region_to"),
    ("from_region", "to_region"),
    ("source_region", "destination_region"),
    ("source_region", "target_region"),
    ("src_region", "dst_region"),
    ("source", "destination"),
    ("source", "target"),
    ("src", "dst"),
    ("origin", "destination"),
    ("sending_region", "receiving_region"),
    ("frontend", "backend"),
    ("client", "server"),
)
"""What the columns of the two regions may be called."""

LAYOUTS = (
    "a latency table has the columns from, to and a figure called one of "
    f"{', '.join(LATENCIES)}, or is a matrix of figures with names in its first column (who sends) and in its first row (who answers)"
)
"""The layouts of latencies, for messages."""

# Two lines for one pair that differ by more than this factor are no repetition, and no median tells which is right.
_CONTRADICTION = 2

# Columns of lost packets, and cells that say that all were.
_LOSS = ("loss", "packet_loss", "loss_pct", "loss_percent", "packet_loss_pct", "packet_loss_percent", "lost_pct")
_ALL = ("100", "100.0", "100.00")

_NO_LATENCY = {"loss", "jitter", "std", "stddev", "mdev", "var", "count", "samples", "date", "timestamp", "km", "hops"}
_OF_PING = {"min", "avg", "mean", "average", "median", "max", "p50"}
_SPEAKS_OF_LATENCY = {"latency", "delay", "rtt", "ping", "owd", "time"}


class Figure(NamedTuple):
    """A column of latencies, and the word of `LATENCIES` that says what they are."""

    column: str
    unit: str


def ask(place: str, what: str, says: str, remedy: str = "call it", header: str = "") -> InputError:
    """The question that has to be answered before a latency can be used: which of the units it is, all of them named.

    **Arguments:** `header`, whose own unit may be none of them.
    """
    if unit_of(header) == "ns":
        says, remedy = "is in ns", f"write the figures in us, and {remedy}"
    elif not unit_of(header) and "min" in words(header):
        says += " (min is the least of several, and figures in minutes have to be written in s)"
    return InputError(
        f"{place}: {what} {says}: {remedy} one of {', '.join(LATENCIES)} (a round trip counts half), "
        f"or say which with unit in [latency] (dgdlb import: --latency)."
    )


def read_pairs(table: Table, unit: str | None = None) -> Latencies:
    """Seconds one way by pair.

    **Arguments:** `unit`: what the figures are, a word of `LATENCIES`, for a table that does not say.

    A pair that is listed repeatedly has the median of its latencies. One without a figure in any of its lines was not measured, nor was
    one with 0 where the other way round is above 0, or with a loss of 100 %: it is among the `holes`.

    **Raises:** `InputError` where direction or unit is not said, where two columns or two lines contradict each other, and for
    cells that are no latencies.
    """
    ends = _ends(table)
    figures = _figures(table, ends, unit)
    chosen = figures[0]
    values: dict[Pair, list[float]] = {}
    last: dict[Pair, Row] = {}
    lost: list[Pair] = []
    loss = first_of(table.columns, _LOSS)
    for row in table.rows:
        pair = _named(table, row, ends[0]), _named(table, row, ends[1])
        measured = [figure for figure in figures if row.cells[figure.column].lower() not in LOST]
        if not measured or (loss is not None and row.cells[loss].rstrip("% ") in _ALL):
            lost.append(pair)
            continue
        _check_agreement(table, row, measured)
        seconds = table.number(row, measured[0].column) * LATENCIES[measured[0].unit]
        values.setdefault(pair, []).append(seconds)
        last[pair] = row
    if not values:
        raise InputError(
            f'{table.name}: no cell of "{clipped(chosen.column)}" holds a figure: fill in what was measured.'
        )
    for pair, found in values.items():
        if len(found) == 2 and max(found) > _CONTRADICTION * min(found):
            problem = f"contradicts an earlier line for {clipped(pair[0])} -> {clipped(pair[1])}"
            raise table.error(last[pair], chosen.column, problem, "keep one of the two.")
    seconds = {pair: median(found) for pair, found in values.items()}
    for pair in [(i, j) for (i, j), value in seconds.items() if value == 0 and seconds.get((j, i))]:  # as in a matrix
        del seconds[pair]
        lost.append(pair)
    notes = (*_read_as(chosen), *_notes(values))
    both = completed(seconds, *(dict.fromkeys(pair[k] for pair in (*seconds, *lost)) for k in (0, 1)))
    if both is not None:
        notes = (*notes, *_lost(lost, ()), "one direction of every pair is given: it takes the same time both ways")
        return Latencies(both, table.name, notes)
    holes = tuple(dict.fromkeys(pair for pair in lost if pair[0] != pair[1] and pair not in seconds))
    return Latencies(seconds, table.name, (*notes, *_lost(lost, holes)), holes)


def _named(table: Table, row: Row, column: str) -> str:
    name = row.cells[column]
    if not name:
        raise table.error(row, column, "names no region", "complete or remove the line.")
    return name


def ends_of(table: Table) -> tuple[str, str] | None:
    """The columns of the two regions, if a table has both."""
    for spellings in ENDS:
        found = [first_of(table.columns, [name]) for name in spellings]
        if found[0] is not None and found[1] is not None:
            return found[0], found[1]
    return None


def _ends(table: Table) -> tuple[str, str]:
    if (found := ends_of(table)) is not None:
        return found
    missing = "from" if first_of(table.columns, [names[0] for names in ENDS]) is None else "to"
    hint = nearest_column(missing, table.columns)
    raise InputError(f'{table.name}: column "{missing}" is missing ({hint}): {LAYOUTS}.')


def _figures(table: Table, ends: tuple[str, str], unit: str | None) -> list[Figure]:
    """All columns that state the latency, the one to take first: medians before means, a statistic of one kind only."""
    candidates = [column for column in table.columns if column not in ends and is_latency(column)]
    candidates = candidates or _statistics(table)
    if not candidates:
        hint = nearest_column("one_way_ms", [column for column in table.columns if column not in ends])
        raise InputError(f'{table.name}: column "one_way_ms" is missing ({hint}): {LAYOUTS}.')
    rank = min(map(statistic_rank, candidates))
    candidates = [column for column in candidates if statistic_rank(column) == rank]
    complete = [Figure(column, f"{way_of(column)}_{unit_of(column)}") for column in candidates]
    complete = [figure for figure in complete if figure.unit in LATENCIES]
    if unit is not None and not any(figure.unit == unit for figure in complete):
        return _told(table, candidates, complete, unit)
    if unit is not None:
        complete.sort(key=lambda figure: figure.unit != unit)
    if not complete:
        column = candidates[0]
        known = way_of(column), unit_of(column)
        lacks = "whether it is a round trip or one way" if known[0] is None else "its unit"
        lacks = "its unit or whether it is a round trip or one way" if known == (None, None) else lacks
        raise ask(table.name, f'column "{clipped(column)}"', f"does not say {lacks}", header=column)
    return complete


def _statistics(table: Table) -> list[str]:
    """Columns that are called after statistics only, `min`, `avg` and `max`, as the program ping prints those of its round trips."""
    found = [column for column in table.columns if words(column) and set(words(column)) <= _OF_PING]
    return found if len(found) > 1 else []


def _told(table: Table, candidates: list[str], complete: list[Figure], unit: str) -> list[Figure]:
    """The one column that says nothing to the contrary of `unit`."""
    if complete:
        raise InputError(
            f'{table.name}: column "{clipped(complete[0].column)}" says {complete[0].unit}, which contradicts unit = "{unit}": '
            "keep one of the two."
        )
    if len(candidates) > 1:
        raise InputError(
            f"{table.name}: unit does not say which of the columns {', '.join(map(clipped, candidates))} it is about: remove the others."
        )
    way, found = way_of(candidates[0]), unit_of(candidates[0])
    if (way and not unit.startswith(way)) or (found and not unit.endswith(f"_{found}")):
        raise InputError(
            f'{table.name}: column "{clipped(candidates[0])}" contradicts unit = "{unit}": keep one of the two.'
        )
    return [Figure(candidates[0], unit)]


def is_latency(column: str) -> bool:
    """Whether a header speaks of a latency, or of nothing but a unit of time."""
    found = set(words(column))
    speaks = found & _SPEAKS_OF_LATENCY or way_of(column) or unit_of(column)
    return bool(speaks) and not found & _NO_LATENCY


def _check_agreement(table: Table, row: Row, figures: Sequence[Figure]) -> None:
    """Two columns of one line may differ by what rounding to their last digits makes, and by no more."""
    first = figures[0]
    for other in figures[1:]:
        values = [table.number(row, figure.column) * LATENCIES[figure.unit] for figure in (first, other)]
        rounding = sum(
            LATENCIES[figure.unit] * 10.0 ** -_decimals(table.numerals.plain(row.cells[figure.column]))
            for figure in (first, other)
        )
        if abs(values[0] - values[1]) > 0.5 * rounding + 1e-9 * values[0]:
            raise table.error(
                row, other.column, f"contradicts {first.column} {row.cells[first.column]}", "keep the right column."
            )


def _decimals(number: str) -> int:
    return len(number.partition(".")[2])


def _read_as(figure: Figure) -> tuple[str, ...]:
    """How a header was understood, where it is not one of the plain words itself."""
    odd = "" if statistic_rank(figure.column) <= 1 else ", although it is an extreme and no typical latency"
    return () if figure.column == figure.unit else (f'"{clipped(figure.column)}" is read as {figure.unit}{odd}',)


def _notes(values: dict[Pair, list[float]]) -> tuple[str, ...]:
    """That medians were taken, and how far the repetitions lie apart where they do most."""
    repeated = {pair: found for pair, found in values.items() if len(found) > 1}
    if not repeated:
        return ()
    widest = max(repeated, key=lambda pair: max(repeated[pair]) - min(repeated[pair]))
    low, high = min(repeated[widest]) * 1e3, max(repeated[widest]) * 1e3
    return (
        f"{counted(len(repeated), 'pair is', 'pairs are')} listed more than once, the median is taken; widest is "
        f"{clipped(widest[0])} -> {clipped(widest[1])}, {low:.4g} to {high:.4g} ms one way",
    )


def is_own(table: Table) -> bool:
    """Whether a table is one that this package writes, of a network that need not be real: nobody mistakes its unit."""
    return table.columns == ["from", "to", "one_way_s"]


def _lost(lost: Sequence[Pair], holes: Sequence[Pair]) -> tuple[str, ...]:
    """How many lines have no figure, and which pairs have none at all."""
    if not lost:
        return ()
    what = f"{counted(len(lost), 'line has', 'lines have')} no figure, or 0, and {'is' if len(lost) == 1 else 'are'} left out"
    return (what + (f"; no figure for {arrows(holes)}" if holes else ""),)


def _recognises(source: Source, options: Options) -> bool:
    del options
    table = source.table
    return (
        table is not None
        and ends_of(table) is not None
        and bool(any(map(is_latency, table.columns)) or _statistics(table))
    )


def _read(source: Source, options: Options) -> tuple[Latencies]:
    assert source.table is not None
    table = source.table.only(selected(source.name, source.table.rows, lambda row: row.cells, options))
    found = read_pairs(table, options.use("latency"))
    if not is_own(source.table):
        check_latencies(found)
    return (found,)


IMPORTER = Importer("table of pairs of regions", "latency", _recognises, _read)
