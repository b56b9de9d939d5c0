"""Throughput of a server as a plain table: a line for every workload, batch size or concurrency."""

import math
import re
from typing import NamedTuple

from dgdlb_jax.fleets.document import clipped, listed, nearest_column
from dgdlb_jax.fleets.importers.base import Curve, Importer, Options, Point, selected
from dgdlb_jax.fleets.importers.failures import failures_beside
from dgdlb_jax.fleets.importers.fields import telling
from dgdlb_jax.fleets.importers.rate_units import period, said_period, tokens_of
from dgdlb_jax.fleets.importers.source import Source
from dgdlb_jax.fleets.importers.whole_servers import of_whole_servers, together, whole_name
from dgdlb_jax.fleets.importers.words import UNITS, first_of, normal, statistic_rank, unit_of, words
from dgdlb_jax.fleets.tables import Row, Table
from dgdlb_jax.numerics.results import InputError

HELD = ("workload", "in_flight", "inflight", "batch_size", "batch", "batchsize", "num_running", "running", "n")
"""Columns that say how many requests were in the server."""
CAPS = (
    "concurrency", "max_concurrency", "conc", "num_concurrent", "concurrent_requests", "users", "user_count", "clients", "connections",
    "vus", "num_concurrent_requests",
)  # fmt: skip
"""Columns that say how many there could be at most."""
LAYOUT = (
    "a table of throughput has a column workload, batch_size or concurrency, and one called throughput (requests/s), "
    "throughput_rps or output_tokens_per_s"
)

_ASKED_FOR = {"target", "offered", "requested", "limit", "goal"}
_OUTPUT = ("output_tokens", "output_len", "osl", "generated_tokens", "output_length")
_INPUT = ("input_tokens", "input_len", "isl", "prompt_tokens", "input_length")
_OF_REQUEST = ("tokens_per_request", "tokens_per_req", "mean_tokens_per_request")
# Settings in figures: rows that differ in one of them belong to different servers.
_SETTINGS = {
    "tp", "pp", "ep", "dp", "gpus", "num_gpus", "n_gpus", "gpu_count", "chips", "num_chips", "nodes", "num_nodes", "instances", "replicas",
    "max_num_seqs", "max_batch_size", "isl", "osl", *_OUTPUT, *_INPUT,
}  # fmt: skip
_USED = 0.05  # of the concurrency that was allowed, at least: how much of it a load test keeps busy
_NO_NAME = {"date", "time", "timestamp", "url", "run", "seed", "note", "notes", "comment"}


class Layout(NamedTuple):
    """The columns of a table of throughput that are used; `tokens` says which tokens a throughput in tokens/s counts, `unit`
    that of the latency."""

    throughput: str
    tokens: str | None
    held: str | None
    cap: str | None
    latency: str | None
    unit: str = ""


def layout(table: Table) -> Layout:
    """Which column is what.

    **Raises:** `InputError` where there is no throughput, where two contradict each other, or where nothing says how many requests
    there were.
    """
    requests = [column for column in table.columns if period(column) and not tokens_of(column)]
    tokens = [column for column in table.columns if period(column) and tokens_of(column)]
    held, cap, latency = first_of(table.columns, HELD), first_of(table.columns, CAPS), _latency(table)
    if not requests and not tokens:
        raise _missing(table, "throughput")
    if held is None and cap is None and latency is None:
        raise _missing(table, "workload")
    if requests:
        achieved = _achieved(table, requests)
        if latency is None and cap is not None:
            return Layout(achieved, None, held, cap, *_latency_by_law(table, achieved, cap))
        return Layout(achieved, None, held, cap, latency, unit_of(latency or "") or "")
    tokens.sort(key=lambda column: tokens_of(column) != "output")
    return Layout(tokens[0], tokens_of(tokens[0]), held, cap, latency, unit_of(latency or "") or "")


def _latency_by_law(table: Table, achieved: str, cap: str) -> tuple[str | None, str]:
    """The column of mean end-to-end times that does not say its unit, and the unit in which throughput times it is about as many requests
    as there could be: units are a factor of 1000 apart."""
    column = next((c for c in table.columns if _is_latency(c) and unit_of(c) is None and statistic_rank(c) == 1), None)
    if column is None or not all(table.is_number(row.cells[c]) for row in table.rows for c in (column, achieved, cap)):
        return None, ""
    scale = 1.0 / (period(achieved) or 1.0)
    held = [table.number(row, achieved) * scale * table.number(row, column) for row in table.rows]
    caps = table.numbers(cap, above=True)
    fitting = [u for u, s in UNITS.items() if all(_USED < n * s / c <= 1.2 for n, c in zip(held, caps, strict=True))]
    return (column, fitting[0]) if len(fitting) == 1 else (None, "")


def _achieved(table: Table, columns: list[str]) -> str:
    """The throughput that was measured, not the one that was asked for; two of them have to be one figure, to 1 %."""
    figures = [column for column in columns if all(table.is_number(row.cells[column]) for row in table.rows)] or columns
    found = [column for column in figures if not _ASKED_FOR & set(words(column))] or figures
    rank = min(map(statistic_rank, found))
    first, *others = [column for column in found if statistic_rank(column) == rank]
    for row in table.rows if others else ():
        rates = {column: table.number(row, column) / (period(column) or 1.0) for column in (first, *others)}
        for other in others:
            if not math.isclose(rates[first], rates[other], rel_tol=0.01):
                raise table.error(row, other, f"contradicts {first} {row.cells[first]}", "keep the right column.")
    return first


def read_curves(table: Table, options: Options) -> tuple[Curve, ...]:
    """The curves of a table: one for each kind of server that its other columns tell apart."""
    per_gpu = _per_gpu(table)
    table = of_whole_servers(table, per_gpu)
    found = layout(table)
    rows = selected(table.name, table.rows, lambda row: row.cells, options)
    differing = telling(_grouping(table, found, rows), [row.cells for row in rows])
    groups: dict[str, list[Row]] = {}
    for row in rows:
        name = "-".join(_told(table, column, row.cells[column]) for column in differing)
        groups.setdefault(name, []).append(row)
    about = together(table.only(rows), by_gpu=not per_gpu)
    notes = (*table.notes, *_notes(table, found, options), *about, *failures_beside(table))
    if differing:
        names = " and ".join(f'"{clipped(column)}"' for column in differing)
        if (every := _summary(rows)) is not None:
            notes += (f"one line of several is that of all requests: --select {every} takes these",)
        notes += (f"{names} tell{'s' if len(differing) == 1 else ''} servers apart: {listed(list(groups))}",)
    stem = table.name.rpartition("/")[2].rpartition(".")[0] or table.name
    return tuple(
        Curve(name or stem, tuple(_point(table, row, found, options) for row in group), table.name, notes)
        for name, group in groups.items()
    )


def _summary(rows: list[Row]) -> str | None:
    """`Name=Aggregated` in a table of Locust, where the requests of all kinds have lines of their own."""
    return next((f"{c}={cell}" for row in rows for c, cell in row.cells.items() if cell == "Aggregated"), None)


def _told(table: Table, column: str, cell: str) -> str:
    """What a cell adds to the name of a curve: a figure says nothing without its column."""
    return f"{normal(column)}-{cell}" if table.is_number(cell) else cell


def _point(table: Table, row: Row, found: Layout, options: Options) -> Point:
    def figure(column: str | None) -> float | None:
        return None if column is None else table.number(row, column, above=True)

    per_request = _tokens_per_request(table, row, found, options) * (period(found.throughput) or 1.0)
    scale = UNITS[found.unit or "s"]
    held, cap, latency = figure(found.held), figure(found.cap), figure(found.latency)
    repeated = f"{held} held" if held is not None else f"{cap} at once" if cap is not None and latency is None else ""
    low, high = (figure(first_of(table.columns, [name])) for name in ("throughput_low", "throughput_high"))
    return Point(
        (figure(found.throughput) or 0.0) / per_request,
        held=held,
        cap=cap,
        latency=None if latency is None else latency * scale,
        setting=repeated,
        low=low,
        high=high,
        samples=int(figure(first_of(table.columns, ["samples"])) or 1),
    )


def _tokens_per_request(table: Table, row: Row, found: Layout, options: Options) -> float:
    if found.tokens is None:
        return 1.0
    if (told := options.use("tokens_per_request")) is not None:
        return told
    wanted = {"output": (_OUTPUT,), "input": (_INPUT,), "total": (_INPUT, _OUTPUT)}.get(found.tokens, ())
    columns = [first_of(table.columns, spellings) for spellings in wanted]
    known = [column for column in columns if column is not None]
    if not known or len(known) < len(columns):
        each = first_of(table.columns, _OF_REQUEST)
        if each is None:
            raise _asked_for_tokens(table, found)
        known = [each]
    return sum(table.number(row, column, above=True) for column in known)


def _asked_for_tokens(table: Table, found: Layout) -> InputError:
    """The question how many of the tokens that a throughput counts belong to a request."""
    per = {60.0: "min", 3600.0: "h", 86400.0: "day"}.get(period(found.throughput) or 1.0, "s")
    there = next((column for names in (_OUTPUT, _INPUT) if (column := first_of(table.columns, names))), None)
    if found.tokens == "some" and there is not None:
        return InputError(
            f'{table.name}: column "{clipped(found.throughput)}" does not say which tokens it counts: call it output tokens/{per}, input '
            f"tokens/{per} or total tokens/{per}, or say tokens_per_request in the section of the curve (dgdlb import: "
            "--tokens-per-request)."
        )
    lacking = "input_tokens" if found.tokens == "input" else "output_tokens"
    if found.tokens == "total":
        lacking = "output_tokens and input_tokens"
    elif found.tokens == "some":
        lacking = "output_tokens (and input_tokens for a total)"
    return InputError(
        f'{table.name}: column "{clipped(found.throughput)}" is in tokens/{per}, and nothing says how many of these tokens a request has: '
        f"add a column {lacking}, or say tokens_per_request in the section of the curve (dgdlb import: --tokens-per-request)."
    )


def _notes(table: Table, found: Layout, options: Options) -> tuple[str, ...]:
    notes = []
    if found.tokens is not None:
        told = "" if options.tokens_per_request is None else f", {options.tokens_per_request:g} as told"
        notes.append(f'"{clipped(found.throughput)}" divided by the tokens of a request{told}')
    if said_period(found.throughput) is None and first_of(table.columns, ["workload"]) is None:
        notes.append(f'"{clipped(found.throughput)}" is taken for requests/s, as it does not say')
    if period(found.throughput) != 1.0:
        notes.append(f'"{clipped(found.throughput)}" divided by {period(found.throughput):g} s')
    if found.latency is not None and unit_of(found.latency) is None:
        notes.append(
            f'"{clipped(found.latency)}" is taken in {found.unit}, as throughput times it is about the concurrency then'
        )
    unclear = [column for column in table.columns if _is_latency(column) and unit_of(column) is None]
    if found.held is None and found.latency is None and unclear:
        name, least = normal(unclear[0]).removesuffix("_min"), "min" in words(unclear[0])
        why = "is in no unit known here, or is the least one (min)" if least else "does not say its unit"
        notes.append(
            f'"{clipped(unclear[0])}" {why} and is not used: write the mean, and call it {clipped(name)}_s or {clipped(name)}_ms'
        )
    if found.latency is None and (times := [c for c in table.columns if _is_of_another_time(c)]):
        notes.append(f"not used, as they are no mean end-to-end times of a line: {listed(times)}")
    return tuple(notes)


def _is_of_another_time(column: str) -> bool:
    """Whether a column holds response times as Locust's history does: percentiles, and means since the test began."""
    return {"total", "response", "time"} <= set(words(column)) or re.fullmatch(r"\d+(\.\d+)?%", column) is not None


def _latency(table: Table) -> str | None:
    """The column of mean end-to-end times: that of the mean before that of the median, never a tail or a time per token."""
    found = [
        column
        for column in table.columns
        if _is_latency(column) and unit_of(column) is not None and statistic_rank(column) <= 1
    ]
    means = [column for column in found if statistic_rank(column) == 1]
    return (means or found or [None])[0]


def _is_latency(column: str) -> bool:
    found = set(words(column))
    whole = bool({"latency", "e2el", "duration"} & found) or "e2e" in column.lower()
    whole = whole or (
        {"response", "time"} <= found and "total" not in found
    )  # Locust's total is the mean since the test began
    return whole and not {"first", "token", "ttft", "tpot", "itl", "inter", "std"} & found


def _grouping(table: Table, found: Layout, rows: list[Row]) -> list[str]:
    """The columns that tell servers apart: names, and settings in figures."""
    return [
        column
        for column in table.columns
        if column not in found
        and not _is_latency(column)
        and not _NO_NAME & set(words(column))
        and (
            normal(column) in _SETTINGS
            or any(not table.is_number(row.cells[column].rstrip("% ")) for row in rows if row.cells[column])
        )
    ]


def _per_gpu(table: Table) -> list[str]:
    """The columns of throughput per GPU, where there is none of whole servers."""
    if any(map(period, table.columns)):
        return []
    return [column for column in table.columns if whole_name(column) != column and period(whole_name(column))]


def _missing(table: Table, wanted: str) -> InputError:
    hint = nearest_column(wanted, table.columns)
    return InputError(f'{table.name}: column "{wanted}" is missing ({hint}): {LAYOUT}.')


def _recognises(source: Source, options: Options) -> bool:
    del options
    if source.table is None:
        return False
    columns = source.table.columns
    return any(period(whole_name(column)) for column in columns) and (
        first_of(columns, HELD) is not None or first_of(columns, CAPS) is not None or _latency(source.table) is not None
    )


def _read(source: Source, options: Options) -> tuple[Curve, ...]:
    assert source.table is not None
    return read_curves(source.table, options)


IMPORTER = Importer("table of throughput", "curves", _recognises, _read)
