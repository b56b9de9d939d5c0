"""Latencies between AWS regions as cloudping.co hands them out: round trips of TCP handshakes in milliseconds.

Read from `cloudping-api/app.py` of mda590/cloudping.co at commit d8f77c87 (2026-03) and an answer of 2025-05: `metadata` with
`percentile`, `timeframe` and `unit`, and `data`, region by region.
"""

from dgdlb_jax.fleets.document import clipped, counted
from dgdlb_jax.fleets.importers.base import Importer, Latencies, Options, Pair
from dgdlb_jax.fleets.importers.fields import needed
from dgdlb_jax.fleets.importers.halves import completed
from dgdlb_jax.fleets.importers.source import Source
from dgdlb_jax.fleets.importers.words import UNITS, unit_of
from dgdlb_jax.numerics.results import InputError


def _recognises(source: Source, options: Options) -> bool:
    del options
    document = source.document
    if not isinstance(document, dict) or not isinstance(document.get("metadata"), dict):
        return False
    data = document.get("data")
    named = {"percentile", "timeframe", "unit"} <= document["metadata"].keys()
    return named and isinstance(data, dict) and bool(data) and all(isinstance(row, dict) for row in data.values())


def _read(source: Source, options: Options) -> tuple[Latencies]:
    metadata, seconds = source.document["metadata"], dict[Pair, float]()
    unit = unit_of(str(metadata["unit"]))
    if unit is None:
        raise InputError(f'{source.name}: metadata.unit is "{clipped(str(metadata["unit"]))}": give s, ms, us or ns.')
    if options.use("latency") not in (None, f"rtt_{unit}"):
        raise InputError(f'{source.name} holds round trips in {unit}, unit = "{options.latency}": keep one of the two.')
    for origin, row in source.document["data"].items():
        for target in row:
            seconds[origin, target] = 0.5 * UNITS[unit] * needed(f"{source.name}: {clipped(origin)}", row, target)
    if not seconds:
        raise InputError(f"{source.name}: data holds no latency: ask for other regions or another time frame.")
    data = source.document["data"]
    both = completed(seconds, data, dict.fromkeys(target for row in data.values() for target in row))
    half = () if both is None else ("one direction of every pair is given: it takes the same time both ways",)
    what = clipped(f"{metadata['percentile']} over {metadata['timeframe']}")
    regions = counted(len(data), "region", "regions")
    notes = (f"{regions}, {what}, round trips in {metadata['unit']}", *half)
    return (Latencies(both or seconds, source.name, notes),)


IMPORTER = Importer("CloudPing latencies", "latency", _recognises, _read)
