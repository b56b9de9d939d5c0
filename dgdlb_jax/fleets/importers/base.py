"""What an importer is, what it may be told, and what it finds."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

import numpy as np
from jaxtyping import Float

from dgdlb_jax.fleets.answers import Answers
from dgdlb_jax.fleets.document import clipped, listed, nearest
from dgdlb_jax.fleets.importers.source import Source
from dgdlb_jax.fleets.importers.words import LATENCIES, UNITS
from dgdlb_jax.fleets.tables import Table
from dgdlb_jax.numerics.results import InputError

Pair = tuple[str, str]
_Row = TypeVar("_Row")


@dataclass(frozen=True)
class Options(Answers):
    """What a file cannot say of itself; each answers one question that an importer asks.

    - `latency`: what latencies are, a word of `words.LATENCIES`.
    - `time_unit`: of a column of times: `"s"`, `"ms"`, `"us"` or `"ns"`. `bin_s`: width of the bins, seconds.
    - `by`: the column or label that names frontends (or backends).
    - `tokens_per_request`: how many of the tokens that a throughput in tokens/s counts belong to one request.
    - `select`: which rows of a table to take, value by column; `seen`: the columns that rows read so far could be selected by.
    - `names`: the frontends, and `backends`: the backends, where they are known.
    - `role`: of a Prometheus result, a word of `prometheus.ROLES`.
    """

    latency: str | None = None
    time_unit: str | None = None
    bin_s: float | None = None
    by: str | None = None
    tokens_per_request: float | None = None
    select: dict[str, str] = field(default_factory=dict)
    names: tuple[str, ...] = ()
    backends: tuple[str, ...] = ()
    role: str | None = None
    seen: set[str] = field(default_factory=set, compare=False)

    def __post_init__(self) -> None:
        for name, given, known in (("latency", self.latency, LATENCIES), ("time unit", self.time_unit, UNITS)):
            if given is not None and given not in known:
                raise InputError(f'"{clipped(given)}" is no {name}: it is one of {", ".join(known)}.')


class Latencies(NamedTuple):
    """Seconds one way by pair of regions (from, to), and what was understood in sentences; `holes`: pairs of a matrix without a figure;
    `order`: of those who send and of those who answer, where the file has one besides that of its pairs."""

    seconds: dict[Pair, float]
    origin: str
    notes: tuple[str, ...] = ()
    holes: tuple[Pair, ...] = ()
    order: tuple[tuple[str, ...], tuple[str, ...]] = ((), ())

    def ends(self, k: int) -> tuple[str, ...]:
        """The regions that send (`k` = 0) or answer (1), in the order in which the file names them first, at whichever end."""
        there = {pair[k] for pair in self.seconds}
        named = (*self.order[k], *(name for pair in self.seconds for name in pair))
        return tuple(dict.fromkeys(name for name in named if name in there))


def arrows(pairs: Iterable[Pair]) -> str:
    """`a -> b, c -> d`, and how many more there are."""
    return listed([" -> ".join(map(clipped, pair)) for pair in pairs])


class Point(NamedTuple):
    """One measurement of a server.

    - `throughput`: requests/s. `latency`: mean end-to-end time, seconds, where measured.
    - `held`: mean number of requests in the server, where measured; `cap`: the most that there could be.
    - `tokens`: mean number of tokens that a request generated, where known.
    - `setting`: what was set in this run; runs with equal settings are repetitions of one measurement.
    - `low`, `high`: quartiles of the throughput over `samples` measurements, where there are several, and never beyond the throughput.
    - `inputs`: mean number of tokens of a prompt, where known.
    - `completed`, `failed`: how many requests succeeded and failed, where known.
    """

    throughput: float
    held: float | None = None
    cap: float | None = None
    latency: float | None = None
    tokens: float | None = None
    setting: str = ""
    low: float | None = None
    high: float | None = None
    samples: int = 1
    completed: float = 0.0
    failed: float = 0.0
    inputs: float | None = None


class Curve(NamedTuple):
    """The measurements of one kind of server, by name; `server`: what its files say of it besides, field by field."""

    name: str
    points: tuple[Point, ...]
    origin: str
    notes: tuple[str, ...] = ()
    server: tuple[tuple[str, str], ...] = ()


class Demand(NamedTuple):
    """Requests per bin of `width` seconds, a column for each name; names are empty where all is one stream."""

    names: tuple[str, ...]
    width: float
    counts: Float[np.ndarray, "bins columns"]
    origin: str
    notes: tuple[str, ...] = ()


class Series(NamedTuple):
    """A measured quantity over time, by name: seconds and values. `role` says which quantity it is, `lost` how many samples are no
    numbers."""

    role: str
    by_name: dict[str, tuple[Float[np.ndarray, " times"], Float[np.ndarray, " times"]]]
    origin: str
    notes: tuple[str, ...] = ()
    lost: int = 0


Finding = Latencies | Curve | Demand | Series


class Importer(NamedTuple):
    """One layout of files: its name with the version that was read, the section of a fleet it fills, how to know it, how to find what
    is in it."""

    name: str
    section: str
    recognises: Callable[[Source, Options], bool]
    find: Callable[[Source, Options], tuple[Finding, ...]]

    def read(self, source: Source, options: Options) -> tuple[Finding, ...]:
        """What is in a file, with what there is to say of its table whichever layout it has."""
        found = self.find(source, options)
        return tuple(one._replace(notes=tuple(dict.fromkeys((*source.notes, *one.notes)))) for one in found)


def selected(
    name: str, rows: Sequence[_Row], cells: Callable[[_Row], Mapping[str, Any]], options: Options
) -> list[_Row]:
    """The rows that `select` takes; all of them where it says nothing. A column that no row has may be that of another file.

    **Arguments:** `name` of the file; `cells` of a row, by column.

    **Raises:** `InputError` when no row has such values.
    """
    found = list(rows)
    if not options.select:
        return found
    options.seen.update(*map(cells, found))
    for column, value in options.select.items():
        known = {str(cells(row)[column]) for row in found if column in cells(row)}
        if not known:
            continue
        found = [row for row in found if column in cells(row) and str(cells(row)[column]) == value]
        if not found:
            raise InputError(f'{name}: no row has {clipped(column)} "{clipped(value)}": {nearest(value, known)}')
    return found


def check_names(table: Table, column: str, names: Collection[str]) -> None:
    """Raise `InputError` for a cell of a column of frontends that names none of them."""
    for row in table.rows:
        if row.cells[column] not in names:
            raise table.error(
                row, column, "is no frontend, others in this column are", nearest(row.cells[column], names)
            )


def check_selected(place: str, options: Options) -> None:
    """Raise `InputError` for a column of `select` that nothing could be selected by, once all files are read."""
    for column in options.select:
        if column not in options.seen:
            hint = nearest(column, options.seen) if options.seen else "no file here has lines that can be selected."
            raise InputError(f'{place} names the column "{clipped(column)}", which is not there: {hint}')
