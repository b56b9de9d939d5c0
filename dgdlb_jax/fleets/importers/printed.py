"""What programs print or sum up for people: no layout of measurements, but known by its look, so that a sentence can say what to write."""

import re
from collections.abc import Mapping
from typing import NamedTuple

from dgdlb_jax.fleets.importers.source import Source
from dgdlb_jax.numerics.results import InputError

_PAIRS = "write its means into a table with the columns from,to,rtt_ms, a line for every pair"
_RUNS = "write its figures into a table with the columns concurrency,rps,mean_latency_ms, a line for every run"
_RANGE = (
    "give the JSON of a range query, such as promtool query range --format=json, or the answer of /api/v1/query_range"
)


class _Print(NamedTuple):
    """What a program is called, how its print begins or goes on, and what to do instead."""

    program: str
    pattern: re.Pattern[str]
    remedy: str


def _print(program: str, pattern: str, remedy: str) -> _Print:
    return _Print(program, re.compile(pattern, re.MULTILINE), remedy)


_TEXTS = (
    _print("ping", r"\APING \S+|^rtt min/avg/max|^round-trip min/avg/max|^Pinging \S+", _PAIRS),
    _print("fping", r"\A\S+ +: (?:[\d.]+ |- )|^\S+ : xmt/rcv/%loss", _PAIRS),
    _print("traceroute", r"\Atraceroute to |\ATracing route to |\A *1  ", _PAIRS),
    _print("mtr", r"\AStart: .*\n?HOST: |\AHOST: .*Loss%|\AMtr_Version,", _PAIRS),
    _print("wrk", r"\ARunning .* test @ |^Requests/sec: ", _RUNS),
    _print("ApacheBench", r"^Concurrency Level: ", _RUNS),
    _print("k6", r"^ *http_reqs\.+: ", _RUNS),
    _print("Vegeta", r"\ARequests +\[total, rate", _RUNS),
    _print("hey", r"\A\s*Summary:\n\s*Total:", _RUNS),
    _print("promtool", r"\A\s*[\w:]*\{[^\n]*\} =>", _RANGE),
    _print("a server that Prometheus scrapes, at one moment", r"\A\s*# (?:HELP|TYPE) ", _RANGE),
)
_FIELDS = {
    "k6": ({"metrics"}, _RUNS),
    "Vegeta": ({"latencies", "rate", "throughput"}, _RUNS),
    "mtr": ({"report"}, _PAIRS),
    "iperf": ({"start", "intervals", "end"}, _PAIRS),
    "CloudWatch": (
        {"MetricDataResults"},
        "give one metric, by get-metric-statistics, or a table of times and requests",
    ),
}
"""The fields that JSON of a program has, and what to do instead."""


def check_print(source: Source) -> None:
    """Raise `InputError` for the print or the summary of a known program."""
    if source.is_folder:
        return
    for one in _TEXTS:
        if one.pattern.search(source.text[:20_000]):
            raise _error(source, one.program, one.remedy)
    for program, (fields, remedy) in _FIELDS.items():
        if isinstance(source.document, Mapping) and fields <= source.document.keys():
            raise _error(source, program, remedy)


def _error(source: Source, program: str, remedy: str) -> InputError:
    return InputError(f"{source.name} is a summary of {program}, of which no reader is here: {remedy}.")
