"""Rows of InferenceX (formerly InferenceMAX, SemiAnalysis): a configuration of model and hardware at a concurrency.

Read from `utils/process_result.py` of SemiAnalysisAI/InferenceX at commit 843c6254 and, of InferenceX-app, from the rows that its
interface serves (`benchmarks.json` at 3a600f1d) and the CSV files of its dashboard (`csv-export-helpers.ts` at 77ca49a6 and 37372501),
of 2026: fields `hw` or `hardware`, `model`, `framework`, `precision`, `isl`, `osl`, `conc`, and `output_tput_per_gpu`, `mean_ttft`,
`mean_tpot`, `mean_e2el` (seconds), the latter in the row or in its `metrics`.
"""

import re
from collections.abc import Mapping
from math import prod
from typing import Any

from dgdlb_jax.fleets.document import clipped
from dgdlb_jax.fleets.importers.base import Curve, Importer, Options, Point, selected
from dgdlb_jax.fleets.importers.fields import figure, needed, telling
from dgdlb_jax.fleets.importers.source import Source
from dgdlb_jax.numerics.results import InputError

# What tells servers and kinds of requests apart, in the order of a curve's name.
_SERVER = (
    "model", "hardware", "hw", "framework", "precision", "spec_decoding", "spec_method", "disagg", "tp", "pp", "ep", "dp_attention",
    "dcp_size", "pcp_size", "num_prefill_gpu", "prefill_tp", "prefill_ep", "prefill_dp_attention", "prefill_num_workers",
    "num_decode_gpu", "decode_tp", "decode_ep", "decode_dp_attention", "decode_num_workers", "offload_mode", "benchmark_type", "isl", "osl",
)  # fmt: skip

# Columns of the dashboard's CSV files: the letters of their headers, and the field that they hold.
_COLUMNS = {
    "concurrency": "conc", "disaggregated": "disagg", "num_prefill_gpus": "num_prefill_gpu", "num_prefill_chips": "num_prefill_gpu",
    "num_decode_gpus": "num_decode_gpu", "num_decode_chips": "num_decode_gpu",
    "output_throughput_gpu_tok_s": "output_tput_per_gpu", "output_throughput_chip_tok_s": "output_tput_per_gpu",
}  # fmt: skip
_TIMES = {"ttft": "mean_ttft", "tpot": "mean_tpot", "e2e_latency": "mean_e2el"}
_TIME = re.compile(rf"mean_({'|'.join(_TIMES)})_(ms|s)")

_GPUS = ("num_gpus", "tp", "pp", "pcp_size", "decode_tp", "num_decode_gpu", "num_prefill_gpu")

_TOLD = "tokens/s divided by the tokens that a request really had: 1 + (end-to-end time - first token) / time per token"
_ASKED = "tokens/s divided by the tokens that were asked for (osl), as no end-to-end time tells how many there were"


def _rows(source: Source) -> list[dict[str, Any]]:
    """The rows with their metrics as fields, values as they are; none for other files."""
    records: list[dict[str, Any]] = source.records or []
    if isinstance(source.document, dict):
        records = [source.document]
    elif not records and source.table is not None:
        columns = {column.lower() for column in source.table.columns}
        if "conc" in columns:
            records = list(source.table.records())
        elif {"concurrency", "hardware", "framework"} <= columns:
            lines = [f"{source.name}:{row.line}" for row in source.table.rows]
            records = [_exported(*pair) for pair in zip(lines, source.table.records(), strict=True)]
    flat = [row | row["metrics"] if isinstance(row.get("metrics"), dict) else row for row in records]
    return [row for row in flat if "conc" in row and ("output_tput_per_gpu" in row or "tput_per_gpu" in row)]


def _exported(place: str, cells: Mapping[str, str]) -> dict[str, Any]:
    """A line of a CSV file of the dashboard. Its first headers said ms over seconds: there, tokens/s times time per token is 1."""
    plain = {re.sub(r"[^a-z0-9]+", "_", header.lower()).strip("_"): value for header, value in cells.items()}
    row: dict[str, Any] = {_COLUMNS.get(header, header): value for header, value in plain.items()}
    token, speed = (figure(place, plain, header) for header in ("mean_tpot_ms", "mean_interactivity_tok_s_user"))
    seconds = token is not None and speed is not None and token * speed < 30
    for header in plain:
        found = _TIME.fullmatch(header)
        if found is not None and (value := figure(place, plain, header)) is not None:
            row[_TIMES[found[1]]] = value if seconds or found[2] == "s" else value / 1e3
    return row


def _gpus(place: str, row: Mapping[str, Any]) -> float:
    """GPUs behind the figures "per GPU" of output: all of a server, or those that decode where the work is split."""
    known = {key: figure(place, row, key) for key in _GPUS}
    whole = [prod(known[key] or 1.0 for key in (size, "pp", "pcp_size")) for size in ("tp", "decode_tp") if known[size]]
    found = (
        [known["num_decode_gpu"], known["num_prefill_gpu"], *whole]
        if _is_split(row)
        else [*whole, known["num_decode_gpu"]]
    )
    count = next((value for value in (known["num_gpus"], *found) if value), None)
    if count is None:
        raise InputError(f"{place}: no field says how many GPUs the server has: add num_gpus or tp.")
    return count


def _point(place: str, row: Mapping[str, Any]) -> tuple[Point, bool]:
    """A row, and whether its tokens per request are only those that were asked for."""
    first, token, latency = (figure(place, row, f"mean_{name}") for name in ("ttft", "tpot", "e2el"))
    measured = False
    if first is None or not token:
        tokens = needed(place, row, "osl")
    elif latency is None:
        tokens = needed(place, row, "osl")
        latency = first + token * (tokens - 1)
    else:
        tokens, measured = 1 + (latency - first) / token, True
    if not tokens > 0:
        raise InputError(f"{place}: mean_e2el is shorter than mean_ttft: leave this row out.")
    cap = needed(place, row, "conc")
    rate = _per_gpu(place, row, tokens) * _gpus(place, row)
    return Point(rate, cap=cap, latency=latency, tokens=tokens, setting=f"{cap:g} at once"), not measured


def _per_gpu(place: str, row: Mapping[str, Any], tokens: float) -> float:
    """Requests/s per GPU: by the tokens that came out, in rows of 2025 by those that went in or came out."""
    both = figure(place, row, "tput_per_gpu")
    if not both or _is_split(row) or figure(place, row, "output_tput_per_gpu") is not None:
        return needed(place, row, "output_tput_per_gpu") / tokens
    return both / (needed(place, row, "isl") + tokens)


def _is_split(row: Mapping[str, Any]) -> bool:
    return "true" in (str(row.get(key, "")).lower() for key in ("disagg", "is_multinode"))


def _recognises(source: Source, options: Options) -> bool:
    del options
    return bool(_rows(source))


def _read(source: Source, options: Options) -> tuple[Curve, ...]:
    rows = selected(source.name, _rows(source), lambda row: row, options)
    differing = telling(_SERVER, rows) or ["model"]
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
