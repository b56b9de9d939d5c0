"""Results of AIPerf and of its predecessor GenAI-Perf: `profile_export_aiperf` and `profile_export_genai_perf`, JSON and CSV.

Read from AIPerf 0.8 to 0.14 (reference "profile_export_aiperf.json Schema", tutorial "Working with Profile Export Files") and from the
CSV and JSON exporters of genai-perf 0.0.11. A file is one run: give several, or the folder above them.
"""

import csv
import io
import re
from collections.abc import Mapping
from typing import Any

from dgdlb_jax.fleets.importers.base import Curve, Importer, Options, Point
from dgdlb_jax.fleets.importers.fields import figure, needed
from dgdlb_jax.fleets.importers.source import Source
from dgdlb_jax.fleets.importers.words import UNITS, unit_of
from dgdlb_jax.numerics.results import InputError

_METRIC = re.compile(r"(.*?)\s*(?:\((.*)\))?")


def _metrics(file: Source) -> dict[str, tuple[float, str]] | None:
    """Mean (or only) value and unit by metric, under the names of the JSON export; None for any other file."""
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


def _csv_metrics(file: Source) -> dict[str, tuple[float, str]]:
    """Lines such as `Request Latency (ms),"1,476.90",...`: the first figure is the mean, or the only one."""
    found: dict[str, tuple[float, str]] = {}
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
    return found if "request_throughput" in found else {}


def _point(file: Source, metrics: Mapping[str, tuple[float, str]]) -> Point:
    throughput = needed(file.name, {"request_throughput": metrics["request_throughput"][0]}, "request_throughput")
    held = metrics.get("effective_concurrency", (None, ""))[0]
    cap = _concurrency(file.document)
    setting = "" if cap is None else f"{cap:g} at once"
    return Point(throughput, held=held or None, cap=cap, latency=_latency(file.name, metrics), setting=setting)


def _latency(place: str, metrics: Mapping[str, tuple[float, str]]) -> float | None:
    """Mean time of a request, seconds."""
    if "request_latency" not in metrics:
        return None
    latency, written = metrics["request_latency"]
    unit = unit_of(written)
    if unit is None:
        raise InputError(f'{place}: request_latency is in "{written}": give it in s, ms, us or ns.')
    return latency * UNITS[unit]


def _concurrency(document: Any) -> float | None:
    """The concurrency among the settings of a run, wherever this version puts them."""
    if not isinstance(document, dict):
        return None
    value = document.get("concurrency")
    if isinstance(value, int | float) and not isinstance(value, bool) and value > 0:
        return float(value)
    inner = (_concurrency(value) for value in document.values())
    return next((value for value in inner if value is not None), None)


def _files(source: Source) -> list[tuple[Source, dict[str, tuple[float, str]]]]:
    """The runs; where a run lies there as JSON and as CSV, the JSON, which says more."""
    runs = [(file, metrics) for file in source.files if (metrics := _metrics(file))]
    json_stems = {file.name.removesuffix(".json") for file, _ in runs if file.name.endswith(".json")}
    return [(file, metrics) for file, metrics in runs if file.name.removesuffix(".csv") not in json_stems]


def _recognises(source: Source, options: Options) -> bool:
    del options
    return bool(_files(source))


def _read(source: Source, options: Options) -> tuple[Curve]:
    del options
    points = tuple(_point(file, metrics) for file, metrics in _files(source))
    return (Curve("aiperf", points, source.name),)


IMPORTER = Importer("AIPerf or GenAI-Perf export", "curves", _recognises, _read)
