"""Files as people have them, read by their content: latencies, throughput, demand.

Each layout is one module with an `IMPORTER`, entered once in `IMPORTERS`; the first that recognises a file reads it. A fleet file names
such files as tables, and `dgdlb import` turns them into tidy ones.
"""

import re
from collections.abc import Iterable
from typing import Any

from dgdlb_jax.fleets.document import Folder, clipped, listed
from dgdlb_jax.fleets.importers import (
    aiperf,
    counts,
    guidellm,
    inferencex,
    latency_json,
    latency_matrix,
    latency_pairs,
    prometheus,
    requests,
    throughput_table,
    vllm,
)
from dgdlb_jax.fleets.importers.base import (
    Curve,
    Demand,
    Finding,
    Importer,
    Latencies,
    Options,
    Point,
    Series,
    check_selected,
)
from dgdlb_jax.fleets.importers.bins import requests_column
from dgdlb_jax.fleets.importers.little import settled, workload
from dgdlb_jax.fleets.importers.plausible import doubted
from dgdlb_jax.fleets.importers.printed import check_print
from dgdlb_jax.fleets.importers.same_server import by_prompts, told_apart, with_runs
from dgdlb_jax.fleets.importers.source import Source
from dgdlb_jax.fleets.importers.times import are_times
from dgdlb_jax.fleets.importers.words import LATENCIES
from dgdlb_jax.fleets.tables import Table
from dgdlb_jax.numerics.results import InputError

__all__ = [
    "IMPORTERS", "LATENCIES", "Curve", "Demand", "Finding", "Importer", "Latencies", "Options", "Point", "Series", "Source",
    "check_kind", "check_selected", "find_importer", "gathered", "read_curve", "read_latency", "settled", "workload",
]  # fmt: skip

IMPORTERS: tuple[Importer, ...] = tuple(
    module.IMPORTER
    for module in (
        prometheus, latency_json, aiperf, guidellm, inferencex, vllm, latency_pairs, latency_matrix, throughput_table, counts, requests,
    )
)  # fmt: skip
"""All layouts; those that say most of themselves come first, and AIPerf's CSV files, which are no tables, before all tables."""


def find_importer(source: Source, options: Options) -> Importer:
    """The first importer that recognises a file.

    **Raises:** `InputError` naming all layouts when none does.
    """
    try:
        for importer in IMPORTERS:
            if importer.recognises(source, options):
                return importer
    except InputError:
        check_print(source)  # whose lines look like those of no table
        raise
    check_print(source)
    if source.table is not None:
        _complain_about(source.table)
    if isinstance(source.document, dict):
        _check_answer(source.name, source.document)
    columns = [] if source.table is None else source.table.columns
    has = f", and has the columns {listed(columns)}" if columns else ""
    if isinstance(source.document, dict):
        has = f", and has the fields {listed(list(source.document))}"
    known = ", ".join(one.name for one in IMPORTERS)
    raise InputError(
        f"{clipped(source.name)} is none of the layouts known here ({known}){has}: latencies need from,to and one of "
        f"{', '.join(LATENCIES)}; throughput needs workload,throughput or concurrency,throughput; demand needs a column of times such as "
        "timestamp_s."
    )


def _check_answer(name: str, document: dict[str, Any]) -> None:
    """Raise `InputError` for what a program answers that gave nothing, such as `{"message": "Forbidden"}`."""
    for key in ("error", "message", "detail", "errorMessage", "Message"):
        if len(document) < 5 and isinstance(document.get(key), str):
            raise InputError(f'{name} holds an answer without figures, "{clipped(document[key])}": query again.')


def check_kind(source: Source, options: Options, section: str, what: str) -> None:
    """Raise `InputError` for a file that is recognised as one for another section of a fleet; `what` it is called there."""
    if source.table is not None and are_times(source.table.columns[1:]):
        raise _across(source.table)
    for importer in IMPORTERS:
        if importer.section not in (section, "series") and importer.recognises(source, options):
            raise InputError(
                f"{what} is a {importer.name}, and belongs into [{importer.section}]: name another file here."
            )


def _across(table: Table) -> InputError:
    return InputError(
        f"{table.name}: its columns {listed(table.columns[1:3])}, ... are times, so its lines are places or figures: turn it, so that "
        "every line is a time, and call the first column time."
    )


def _complain_about(table: Table) -> None:
    """Raise the complaint of the layout that a table nearly has, if it nearly has one."""
    if are_times(table.columns[1:]):
        raise _across(table)
    if len(table.columns) == 1 and re.search(r"\S(?:[|: ]| {2,})+\S", table.columns[0]):
        raise InputError(
            f"{table.name}: its cells are separated by neither commas nor semicolons nor tabs: save it with one of these."
        )
    if (figure := next(filter(table.is_number, table.columns), None)) is not None:
        raise InputError(
            f"{table.name}: its first line holds the figure {clipped(figure)} and should name the columns: write a line such as "
            "from,to,rtt_ms above it."
        )
    if latency_pairs.ends_of(table) is not None:
        latency_pairs.read_pairs(table)
    if any(map(throughput_table.period, table.columns)):
        throughput_table.layout(table)
    if (every := requests_column(table)) is not None:
        raise InputError(
            f'{table.name}: "{clipped(every)}" counts requests, and no column says when: add a column of times such as time_s.'
        )


def gathered(findings: Iterable[Finding]) -> list[Latencies | Curve | Demand]:
    """What several files say together: runs of one kind of server make one curve, and results of Prometheus demand and curves."""
    found: list[Latencies | Demand] = []
    curves: list[Curve] = []
    series: list[Series] = []
    for finding in findings:
        if isinstance(finding, Curve):
            curves = with_runs(curves, finding)
        elif isinstance(finding, Series):
            _check_once(finding, series)
            series.append(finding)
        else:
            found.append(doubted(finding))
    made = _without_single_points(told_apart([part for curve in curves for part in by_prompts(curve)]))
    rest = [one for one in series if one.role != "arrivals"]
    made += prometheus.curves(rest) if rest else ()
    found += [doubted(prometheus.demand(one)) for one in series if one.role == "arrivals"]
    return [*found, *(doubted(settled(curve)) for curve in made)]


def _without_single_points(curves: list[Curve]) -> list[Curve]:
    """The curves with two points or more, where there are any: in a large table many servers were measured only once."""
    single = [curve for curve in curves if len(curve.points) < 2]
    if len(single) == len(curves) > 1:
        origins, names = list(dict.fromkeys(curve.origin for curve in curves)), [curve.name for curve in curves]
        raise InputError(
            f"{listed(origins)}: runs of {len(curves)} servers, {listed(names)}, and one point of each is no curve, which takes two: give "
            "runs of each at several concurrencies or rates, or leave out what tells them apart."
        )
    if not single or len(single) == len(curves):
        return curves
    note = f"left out, as one point is no curve: {listed([curve.name for curve in single])}"
    return [curve._replace(notes=(*curve.notes, note)) for curve in curves if len(curve.points) > 1]


def _check_once(new: Series, known: Iterable[Series]) -> None:
    for one in known:
        if one.role == new.role:
            raise InputError(
                f"{new.origin} gives {new.role} once more, after {one.origin}: give each quantity once (role=FILE says what a file is)."
            )


def read_latency(folder: Folder, name: str, wanted_by: str, options: Options) -> Latencies:
    """The latencies in a file that a fleet file names.

    **Raises:** `InputError` for any other file.
    """
    source = Source(folder / name, name, f"{wanted_by}: the table ")
    for importer in IMPORTERS:
        if importer.section == "latency" and importer.recognises(source, options):
            found = importer.read(source, options)[0]
            assert isinstance(found, Latencies)
            own = source.table is not None and latency_pairs.is_own(source.table)
            return found if own else doubted(found)
    check_kind(source, options, "latency", f"{wanted_by}: {clipped(name)}")
    return latency_pairs.read_pairs(source.table or Table.read(folder, name, wanted_by), options.use("latency"))


def read_curve(folder: Folder, name: str, wanted_by: str, options: Options) -> Curve:
    """The one curve in a file or folder that a fleet file names.

    **Raises:** `InputError` when it holds none, or several that `select` does not tell apart.
    """
    source = Source(folder / name, name, f"{wanted_by}: the table ")
    importer = next(
        (one for one in IMPORTERS if one.section in ("curves", "series") and one.recognises(source, options)), None
    )
    if importer is None:
        check_kind(source, options, "curves", f"{wanted_by}: {clipped(name)}")
        importer = throughput_table.IMPORTER  # whose complaint names the columns it wants
        if source.table is None:
            what = "cannot be read as results of a load test"
            raise InputError(f"{source.wanted_by}{clipped(name)} {what}: {throughput_table.LAYOUT}.")
    found = [one for one in gathered(importer.read(source, options)) if isinstance(one, Curve)]
    check_selected(f"{wanted_by} select", options)
    if len(found) != 1:
        names = ", ".join(clipped(curve.name) for curve in found[:8]) or "none"
        raise InputError(
            f'{clipped(name)} has {len(found)} curves ({names}): take one with select = {{column = "value"}}, or import the file first '
            "(dgdlb import)."
        )
    return found[0]
