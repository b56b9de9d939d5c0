"""Latencies as JSON, region by region: `{"us": {"eu": 70.1}}`, or several statistics of each pair; so does cloudping.co hand out those
between AWS regions, round trips of TCP handshakes in milliseconds.

Read from `cloudping-api/app.py` of mda590/cloudping.co at commit d8f77c87 (2026-03) and an answer of 2025-05: `metadata` with
`percentile`, `timeframe` and `unit`, and `data`, region by region. Its `/history` of one pair is refused. Without such metadata, which
of a round trip and one way the figures are is asked.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from dgdlb_jax.fleets.document import clipped, counted, listed
from dgdlb_jax.fleets.importers.base import Importer, Latencies, Options, Pair, arrows, selected
from dgdlb_jax.fleets.importers.fields import figure
from dgdlb_jax.fleets.importers.halves import completed, holes_in
from dgdlb_jax.fleets.importers.latency_pairs import ask
from dgdlb_jax.fleets.importers.plausible import check_latencies
from dgdlb_jax.fleets.importers.source import Source
from dgdlb_jax.fleets.importers.words import LATENCIES, LOST, statistic_rank, unit_of
from dgdlb_jax.numerics.results import InputError

STATISTIC = "percentile"
"""What `select` calls the statistics of a pair."""


class Cell(NamedTuple):
    """A figure of a pair, and which statistic it is where there are several."""

    pair: Pair
    statistic: str
    value: Any


def _is_cloudping(document: Any) -> bool:
    metadata = document.get("metadata") if isinstance(document, dict) else None
    return isinstance(metadata, dict) and {"unit", "timeframe"} <= metadata.keys()


def _is_history(document: Any) -> bool:
    """Whether an answer is about one pair over time."""
    metadata = document.get("metadata") if isinstance(document, dict) else None
    return isinstance(metadata, dict) and {"from", "to", "points"} <= metadata.keys()


def _data(source: Source) -> Any:
    document = source.document
    inner = document.get("data") if isinstance(document, dict) else None
    return document if inner is None else inner


def _cells(data: Any) -> list[Cell] | None:
    """The figures by pair: of two levels of names, or of three where statistics are the outermost or the innermost; None for others."""
    if not _all(data, Mapping):
        return None
    if all(_all(row, Mapping) or not row for row in data.values()) and any(data.values()):
        flat = [((a, b, c), value) for a, row in data.items() for b, inner in row.items() for c, value in inner.items()]
        inner_names, outer_names = {keys[2] for keys, _ in flat}, {keys[0] for keys, _ in flat}
        outer = all(map(_is_statistic, outer_names))
        if not outer and not all(map(_is_statistic, inner_names)):
            return None
        cells = [Cell((b, c), a, v) if outer else Cell((a, b), c, v) for (a, b, c), v in flat]
    else:
        cells = [Cell((a, b), "", value) for a, row in data.items() for b, value in row.items()]
    return cells if cells and all(_is_figure(cell.value) for cell in cells) else None


def _all(value: Any, kind: type) -> bool:
    return isinstance(value, Mapping) and bool(value) and all(isinstance(one, kind) for one in value.values())


def _is_statistic(name: str) -> bool:
    plain = name.lower().replace("_", "")
    return plain in ("avg", "mean", "average", "median", "min", "max", "latency") or (
        plain[:1] == "p" and plain[1:].isdigit()
    )


def _is_figure(value: Any) -> bool:
    if isinstance(value, str):
        return value.lower() in LOST or value.replace(".", "", 1).isdigit()
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))


def _recognises(source: Source, options: Options) -> bool:
    if _is_cloudping(source.document) or _is_history(source.document):
        return True
    if not isinstance(source.document, dict) or (cells := _cells(_data(source))) is None:
        return False
    rows, columns = ({cell.pair[k] for cell in cells} for k in (0, 1))
    return options.latency is not None or 2 * len(rows & columns) >= min(len(rows), len(columns))


def _read(source: Source, options: Options) -> tuple[Latencies]:
    cells = _cells(_data(source))
    if cells is None:
        raise InputError(
            f'{source.name}: data holds no latencies by region: ask for those of all regions, {{"us-east-1": {{"eu-west-1": 70.1, ...}}, '
            "...}, such as CloudPing's /latencies?percentile=p_50&timeframe=1Y."
        )
    unit = _unit(source, options)
    cells, which = _of_one_statistic(source, cells, options)
    seconds: dict[Pair, float] = {}
    for (origin, target), _, value in cells:
        text = None if isinstance(value, str) and value.lower() in LOST else value
        found = figure(f"{source.name}: {clipped(origin)}", {target: text}, target)
        if found or (found == 0 and origin != target):
            seconds[origin, target] = LATENCIES[unit] * found
    if not seconds:
        raise InputError(f"{source.name}: data holds no latency: ask for other regions or another time frame.")
    made = _made(source, seconds, cells, (f"{_said(source, cells)}, {unit}", *which))
    check_latencies(made)
    return (made,)


def _unit(source: Source, options: Options) -> str:
    """What the figures are: round trips in the unit that CloudPing says, or as told."""
    told = options.use("latency")
    metadata = source.document.get("metadata")
    stated = str(metadata["unit"]) if isinstance(metadata, dict) and "unit" in metadata else ""
    unit = unit_of(stated)
    if stated and unit is None:
        raise InputError(f'{source.name}: metadata.unit is "{clipped(stated)}": give s, ms, us or ns.')
    own = f"rtt_{unit}" if _is_cloudping(source.document) else told
    if own is None:
        raise ask(
            source.name,
            "the file",
            "does not say what its figures are",
            "write them as a table with the columns from, to and",
        )
    if (told is not None and told != own) or (unit and not own.endswith(f"_{unit}")) or own not in LATENCIES:
        what = f"round trips in {unit}" if own != told else f"figures in {unit}"
        raise InputError(f'{source.name} holds {what}, unit = "{told or own}": keep one of the two.')
    return own


def _of_one_statistic(source: Source, cells: list[Cell], options: Options) -> tuple[list[Cell], tuple[str, ...]]:
    """The figures of the median, or of what comes next to it, and a note of it where there are others."""
    if any(cell.statistic for cell in cells):
        cells = selected(source.name, cells, lambda cell: {STATISTIC: cell.statistic}, options)
    known = list(dict.fromkeys(cell.statistic for cell in cells))
    if len(known) < 2:
        return cells, ()
    best = min(known, key=statistic_rank)
    note = f"{best} of {listed(known)}; --select {STATISTIC}={known[-1] if known[-1] != best else known[0]} takes another one"
    return [cell for cell in cells if cell.statistic == best], (note,)


def _said(source: Source, cells: list[Cell]) -> str:
    regions = counted(len({name for cell in cells for name in cell.pair}), "region", "regions")
    if not _is_cloudping(source.document):
        return regions
    metadata = source.document["metadata"]
    what = clipped(f"{metadata.get(STATISTIC)} over {metadata['timeframe']}")
    return f"{regions}, {what}"


def _made(source: Source, seconds: dict[Pair, float], cells: list[Cell], notes: tuple[str, ...]) -> Latencies:
    senders, answerers = (dict.fromkeys(cell.pair[k] for cell in cells) for k in (0, 1))
    both = completed(seconds, senders, answerers)
    if both is not None:
        return Latencies(
            both, source.name, (*notes, "one direction of every pair is given: it takes the same time both ways")
        )
    empty = {cell.pair for cell in cells if cell.pair not in seconds and cell.pair[0] != cell.pair[1]}
    holes = tuple(pair for pair in holes_in(seconds, senders, answerers) if pair in empty)
    return Latencies(seconds, source.name, (*notes, *((f"no figure for {arrows(holes)}",) if holes else ())), holes)


IMPORTER = Importer("JSON of latencies by region (CloudPing)", "latency", _recognises, _read)
