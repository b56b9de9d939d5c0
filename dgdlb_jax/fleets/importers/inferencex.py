"""Rows of InferenceX (formerly InferenceMAX, SemiAnalysis): a configuration of model and hardware at a concurrency.

Read from `utils/process_result.py` of SemiAnalysisAI/InferenceX and from the rows that its dashboard's interface serves, of 2026-08:
fields `hw` or `hardware`, `model`, `framework`, `precision`, `isl`, `osl`, `conc`, and `output_tput_per_gpu`, `mean_ttft`, `mean_tpot`,
`mean_e2el` (seconds), the latter in the row or in its `metrics`.
"""

from collections.abc import Mapping
from typing import Any

from dgdlb_jax.fleets.document import clipped, nearest
from dgdlb_jax.fleets.importers.base import Curve, Importer, Options, Point
from dgdlb_jax.fleets.importers.fields import figure, needed
from dgdlb_jax.fleets.importers.source import Source
from dgdlb_jax.numerics.results import InputError

# What tells servers apart, in the order of a curve's name.
_SERVER = (
    "model", "hardware", "hw", "framework", "precision", "spec_decoding", "spec_method", "disagg", "tp", "ep", "dp_attention",
    "num_decode_gpu", "decode_tp", "decode_ep", "isl", "osl",
)  # fmt: skip


_TOLD = "tokens/s divided by the tokens that a request really had: 1 + (end-to-end time - first token) / time per token"
_ASKED = "tokens/s divided by the tokens that were asked for (osl), as no end-to-end time tells how many there were"


def _rows(source: Source) -> list[dict[str, Any]]:
    """The rows with their metrics as fields, values as they are; none for other files."""
    records: list[dict[str, Any]] = source.records or []
    if isinstance(source.document, dict):
        records = [source.document]
    elif not records and source.table is not None and "conc" in source.table.columns:
        records = [dict(row.cells) for row in source.table.rows]
    flat = [row | row["metrics"] if isinstance(row.get("metrics"), dict) else row for row in records]
    return [row for row in flat if "conc" in row and ("output_tput_per_gpu" in row or "tput_per_gpu" in row)]


def _gpus(place: str, row: Mapping[str, Any]) -> float:
    """GPUs behind the figures "per GPU": those of decoding in a server that splits the work, where it says so."""
    split = str(row.get("disagg", "")).lower() == "true"
    keys = (
        ("num_decode_gpu", "num_gpus", "decode_tp", "tp")
        if split
        else ("num_gpus", "num_decode_gpu", "tp", "decode_tp")
    )
    found = [figure(place, row, key) for key in keys]
    known = [value for value in found if value]
    if not known:
        raise InputError(f"{place}: no field says how many GPUs the server has: add num_gpus or tp.")
    return known[0]


def _point(place: str, row: Mapping[str, Any]) -> tuple[Point, bool]:
    """A row, and whether its tokens per request are only those that were asked for."""
    first, token, latency = (figure(place, row, f"mean_{name}") for name in ("ttft", "tpot", "e2el"))
    tokens, measured = needed(place, row, "osl"), False
    if first is not None and token:
        if latency is None:
            latency = first + token * (tokens - 1)
        else:
            tokens, measured = 1 + (latency - first) / token, True
    if not tokens > 0:
        raise InputError(f"{place}: mean_e2el is shorter than mean_ttft: leave this row out.")
    rate = needed(place, row, "output_tput_per_gpu") * _gpus(place, row) / tokens
    cap = needed(place, row, "conc")
    return Point(rate, cap=cap, latency=latency, setting=f"{cap:g} at once"), not measured


def _recognises(source: Source, options: Options) -> bool:
    del options
    return bool(_rows(source))


def _read(source: Source, options: Options) -> tuple[Curve, ...]:
    rows = _rows(source)
    for key, value in options.select.items():
        known = {str(row.get(key)) for row in rows}
        rows = [row for row in rows if str(row.get(key)) == value]
        if not rows:
            raise InputError(f'{source.name}: no row has {clipped(key)} "{clipped(value)}": {nearest(value, known)}')
    differing = [key for key in _SERVER if len({str(row.get(key)) for row in rows}) > 1] or ["model"]
    latest: dict[tuple[str, str], dict[str, Any]] = {}
    for row in sorted(rows, key=lambda row: str(row.get("date", ""))):
        name = "-".join(str(row[key]).rpartition("/")[2] for key in differing if row.get(key) not in (None, ""))
        latest[name or "inferencex", str(row["conc"])] = row
    notes = () if len(latest) == len(rows) else ("of several rows for one concurrency the latest is taken",)
    curves: dict[str, list[Point]] = {}
    guessed: set[str] = set()
    for (name, concurrency), row in latest.items():
        point, asked = _point(f"{source.name}, {clipped(name)} at {clipped(concurrency)}", row)
        curves.setdefault(name, []).append(point)
        guessed |= {name} if asked else set()
    return tuple(
        Curve(name, tuple(points), source.name, (*notes, _ASKED if name in guessed else _TOLD))
        for name, points in curves.items()
    )


IMPORTER = Importer("InferenceX rows", "curves", _recognises, _read)
