"""Results of AIPerf and of its predecessor GenAI-Perf: `profile_export_aiperf` and `profile_export_genai_perf`, JSON and CSV.

Read from `docs/reference/json-export-schema.md` of ai-dynamo/aiperf at commit 1554b478 (schema 1.0 to 1.5; documented for 0.8 to 0.14),
its `metrics_json_exporter.py` at 047d59dd and `metrics_csv_exporter.py` at 309c4e8c, and the CSV and JSON exporters of genai-perf 0.0.11
(`genai_perf/export_data` of triton-inference-server/perf_analyzer, also at 09628cd6).
A file is one run: give several, or the folder above them.
"""

import csv
import io
import re
from collections.abc import Mapping
from typing import Any

from dgdlb_jax.fleets.document import clipped
from dgdlb_jax.fleets.importers.base import Curve, Importer, Options, Point
from dgdlb_jax.fleets.importers.fields import figure, needed
from dgdlb_jax.fleets.importers.same_server import server_of
from dgdlb_jax.fleets.importers.source import Source
from dgdlb_jax.fleets.importers.words import UNITS, unit_of
from dgdlb_jax.numerics.results import InputError

_METRIC = re.compile(r"(.*?)\s*(?:\(([^()]*)\))?")
_PHASE = re.compile(r"(.*)/phases/[^/]+/[^/]+")

Metrics = dict[str, tuple[float, str]]
"""Mean (or only) value and unit by metric, under the names of the JSON export."""


def _metrics(file: Source) -> Metrics | None:
    """The metrics of a run; None for any other file."""
    document = file.document
    if isinstance(document, dict):
        metrics = document.get("records", document)
        if not isinstance(metrics, dict) or not isinstance(metrics.get("request_throughput"), dict):
            return None
        return {
            str(key): (value, str(metric.get("unit", "")))
            for key, metric in metrics.items()
            if isinstance(metric, dict) and (value := _mean(file.name, key, metric)) is not None
        }
    if document is None and file.text.lstrip().startswith(("Metric,", '"Metric"')):
        return _csv_metrics(file)
    return None


def _mean(place: str, key: object, metric: Mapping[str, Any]) -> float | None:
    return figure(f"{place}: {key}", metric, "avg") if "avg" in metric else None


def _csv_metrics(file: Source) -> Metrics | None:
    """Lines such as `Request Latency (ms),"1,476.90",...`: the first figure is the mean, or the only one."""
    found: Metrics = {}
    for row in csv.reader(io.StringIO(file.text)):
        if len(row) < 2 or row[0] == "Metric":
            continue
        named = _METRIC.fullmatch(row[0].strip())
        try:
            value = float(row[1].replace(",", ""))
        except ValueError:
            continue  # telemetry of GPUs has other columns
        if named is not None:
            found.setdefault(named[1].lower().replace(" ", "_"), (value, named[2] or ""))
    return _less_rounded(found) if "request_throughput" in found else None


def _less_rounded(metrics: Metrics) -> Metrics:
    """CSV files have two decimals, few for a throughput of 0.03 requests/s: the count over the duration has more."""
    rounded, unit = metrics["request_throughput"]
    count, duration = (metrics.get(name, (0.0, ""))[0] for name in ("request_count", "benchmark_duration"))
    exact = count / duration if duration > 0 else 0.0
    return metrics | {"request_throughput": (exact, unit)} if abs(exact - rounded) < 0.0051 else metrics


def _point(file: Source, metrics: Metrics) -> Point:
    if "request_throughput" not in metrics:
        raise InputError(f"{file.name}: request_throughput has no avg: leave this run out, or run it again.")
    throughput = needed(file.name, {"request_throughput": metrics["request_throughput"][0]}, "request_throughput")
    held, tokens = (metrics.get(name, (0.0, ""))[0] for name in ("effective_concurrency", "output_sequence_length"))
    cap, rate = (_setting(file.document, *names) for names in (("concurrency",), ("request_rate", "rate")))
    completed, failed = (metrics.get(name, (0.0, ""))[0] for name in ("request_count", "error_request_count"))
    known = cap is not None or rate is not None
    setting = f"{cap} at once, {rate} requests/s" if known else ""
    return Point(
        throughput,
        held=held or None,
        cap=float(cap) if cap is not None else None,
        latency=_latency(file.name, metrics),
        tokens=tokens or None,
        setting=setting,
        completed=completed,
        failed=failed,
    )


def _latency(place: str, metrics: Metrics) -> float | None:
    """Mean time of a request, seconds."""
    if "request_latency" not in metrics:
        return None
    latency, written = metrics["request_latency"]
    unit = unit_of(written)
    if unit is None:
        raise InputError(f'{place}: request_latency is in "{clipped(written)}": give it in s, ms, us or ns.')
    return latency * UNITS[unit]


def _setting(document: Any, *names: str) -> float | None:
    """A positive setting of the measured load, wherever a version puts it: `loadgen`, `stimulus`, or a list of phases."""
    if isinstance(document, dict):
        if "warmup" in str(document.get("name", "")).lower():
            return None
        for name in names:
            value = document.get(name)
            if isinstance(value, int | float) and not isinstance(value, bool) and value > 0:
                return float(value)
    inner = document.values() if isinstance(document, dict) else document if isinstance(document, list) else ()
    found = (_setting(value, *names) for value in inner)
    return next((value for value in found if value is not None), None)


def _model(document: Any) -> str:
    """The models of a run, under any of the names that they had; empty where none is told."""
    if not isinstance(document, dict):
        return ""
    for name in ("model_names", "models", "model"):
        given = document.get(name)
        names = [given] if isinstance(given, str) else given if isinstance(given, list) else []
        if names and all(isinstance(one, str) for one in names):
            return "-".join(one.rpartition("/")[2] for one in names)
    return next(filter(None, map(_model, document.values())), "")


def _tool(file: Source, metrics: Metrics) -> str:
    """Which of the two wrote a file: GenAI-Perf says "per sec" in CSV, and no version in JSON."""
    if isinstance(file.document, dict):
        return "aiperf" if {"schema_version", "aiperf_version"} & file.document.keys() else "genai-perf"
    return "genai-perf" if metrics["request_throughput"][1] == "per sec" else "aiperf"


def _files(source: Source) -> list[tuple[Source, Metrics]]:
    """The runs. Where one lies there as JSON and as CSV, the JSON, which says more; where its phases lie below it, these."""
    runs = [(file, metrics) for file in source.files if (metrics := _metrics(file))]
    json_stems = {file.name.removesuffix(".json") for file, _ in runs if file.name.endswith(".json")}
    phases = {found[1] for file, _ in runs if (found := _PHASE.fullmatch(file.name))}
    return [
        (file, metrics)
        for file, metrics in runs
        if file.name.removesuffix(".csv") not in json_stems and file.name.rpartition("/")[0] not in phases
    ]


def _recognises(source: Source, options: Options) -> bool:
    del options
    return bool(_files(source))


def _read(source: Source, options: Options) -> tuple[Curve, ...]:
    """A curve for each model."""
    del options
    points: dict[str, list[Point]] = {}
    servers: dict[str, list[dict[str, Any]]] = {}
    for file, metrics in _files(source):
        config = file.document.get("input_config") if isinstance(file.document, dict) else None
        name = clipped(_model(config)) or _tool(file, metrics)
        points.setdefault(name, []).append(_point(file, metrics))
        servers.setdefault(name, []).append(_plain(config))
    return tuple(Curve(name, tuple(found), source.name, (), server_of(servers[name])) for name, found in points.items())


def _plain(config: Any) -> dict[str, Any]:
    """The fields of a configuration and of the sections in it."""
    if not isinstance(config, dict):
        return {}
    inner = {key: value for section in config.values() for key, value in _plain(section).items()}
    return inner | {key: value for key, value in config.items() if not isinstance(value, dict)}


IMPORTER = Importer("AIPerf or GenAI-Perf export", "curves", _recognises, _read)
