"""Reports of GuideLLM: `benchmarks.json`, with a benchmark for every rate or number of streams.

Read from `benchmark/schemas` of vllm-project/guidellm at commit ee7a7745 (0.7.3, version 2 of the report) and from
`benchmark/benchmark.py` of 0.3.0: `metrics` by quantity and by how requests ended, with `mean` among others; the load is the `strategy`
in `config` (`args` until 0.3).
"""

from collections.abc import Mapping
from typing import Any

from dgdlb_jax.fleets.document import clipped
from dgdlb_jax.fleets.importers.base import Curve, Importer, Options, Point
from dgdlb_jax.fleets.importers.fields import figure, needed
from dgdlb_jax.fleets.importers.same_server import server_of
from dgdlb_jax.fleets.importers.source import Source

Benchmark = Mapping[str, Any]


def _benchmarks(file: Source) -> list[Benchmark]:
    """The benchmarks of a report; none for any other file."""
    document = file.document
    found = document.get("benchmarks") if isinstance(document, dict) else None
    if not isinstance(found, list):
        return []
    return [one for one in found if isinstance(one, dict) and _of(one, "metrics", "requests_per_second", "successful")]


def _of(record: Any, *keys: str) -> Mapping[str, Any]:
    """What stands under nested keys; nothing where it is no object."""
    for key in keys:
        record = record.get(key) if isinstance(record, Mapping) else None
    return record if isinstance(record, Mapping) else {}


def _point(place: str, benchmark: Benchmark) -> Point:
    def mean(quantity: str) -> float | None:
        found = _of(benchmark, "metrics", quantity, "successful")
        return figure(f"{place}: {quantity}.successful", found, "mean") if found else None

    strategy = _of(benchmark, "config", "strategy") or _of(benchmark, "args", "strategy")
    kind = str(strategy.get("type_", ""))
    cap = 1.0 if kind == "synchronous" else figure(place, strategy, "streams")
    totals = _of(benchmark, "metrics", "request_totals") or _of(benchmark, "request_totals")
    return Point(
        needed(
            f"{place}: requests_per_second.successful",
            _of(benchmark, "metrics", "requests_per_second", "successful"),
            "mean",
        ),
        held=mean("request_concurrency") or None,
        cap=cap,
        latency=mean("request_latency") or None,
        tokens=mean("output_token_count") or None,
        setting=f"{kind}, {cap} at once, {strategy.get('rate')} requests/s" if kind else "",
        completed=figure(place, totals, "successful") or 0.0,
        failed=figure(place, totals, "errored") or 0.0,
    )


def _backend(document: Any, benchmark: Benchmark) -> dict[str, Any]:
    """What is said of the server, under the names that versions have for it."""
    sections = (
        _of(document, "config"),
        _of(document, "args"),
        _of(document, "config", "backend"),
        _of(benchmark, "config", "backend"),
    )
    worker = {key.removeprefix("backend_"): value for key, value in _of(benchmark, "worker").items()}
    found = {key: value for section in (worker, *sections) for key, value in section.items() if isinstance(value, str)}
    return {key: found[key] for key in ("model", "backend") if key in found}


def _recognises(source: Source, options: Options) -> bool:
    del options
    return any(map(_benchmarks, source.files))


def _read(source: Source, options: Options) -> tuple[Curve, ...]:
    """A curve for each model."""
    del options
    points: dict[str, list[Point]] = {}
    servers: dict[str, list[dict[str, Any]]] = {}
    for file in source.files:
        for number, benchmark in enumerate(_benchmarks(file), start=1):
            server = _backend(file.document, benchmark)
            name = clipped(server.get("model", "guidellm").rpartition("/")[2])
            points.setdefault(name, []).append(_point(f"{file.name}, benchmark {number}", benchmark))
            servers.setdefault(name, []).append(server)
    return tuple(Curve(name, tuple(found), source.name, (), server_of(servers[name])) for name, found in points.items())


IMPORTER = Importer("GuideLLM report", "curves", _recognises, _read)
"""Reports as JSON; GuideLLM's CSV files, with their headers of three lines, are not read."""
