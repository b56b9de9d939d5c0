"""Results of vLLM's serving benchmark: `vllm bench serve --save-result`, and folders of `vllm bench sweep serve`.

Read from `vllm/benchmarks/sweep/serve.py` of vLLM at commit 0031557f (2026; the command is documented from 0.11.2 to 0.32) and from
results of 2026-03: a JSON object per run, JSON lines of `--append-result`, `summary.json` (a list of runs), `summary.csv` of a sweep,
and its folders `SERVE-...-BENCH-...` with `run=N.json`.
"""

import re
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from dgdlb_jax.fleets.importers.base import Curve, Importer, Options, Point
from dgdlb_jax.fleets.importers.fields import figure, needed
from dgdlb_jax.fleets.importers.source import Source

_SERVE = re.compile(r"SERVE-+(.*?)(?:-BENCH-|/|$)")
# What tells kinds of requests apart, where runs of one folder differ in it.
_KINDS = ("dataset_name", "random_input_len", "random_output_len", "sharegpt_output_len", "input_len", "output_len")

Run = Mapping[str, Any]


def _runs(source: Source) -> list[tuple[str, Run]]:
    """Every run in a file or folder, with the name of the file that it stands in: measured runs, not warm-ups nor summaries of both."""
    found = []
    whole = any(re.search(r"run=\d+\.json$", file.name) for file in source.files)
    for file in source.files:
        last = file.name.rpartition("/")[2]
        if last == "warmup.json" or last.endswith(".failure.json") or (whole and last.startswith("summary.")):
            continue
        documents: Sequence[Any] = [file.document] if isinstance(file.document, dict) else file.records or []
        if not documents and last.endswith(".csv") and (file is source or last == "summary.csv"):
            table = file.table
            documents = [row.cells for row in table.rows] if table and "request_throughput" in table.columns else []
        found += [(file.name, run) for run in documents if _is_run(run)]
    return found


def _is_run(run: Any) -> bool:
    return isinstance(run, Mapping) and "request_throughput" in run and ("mean_ttft_ms" in run or "mean_e2el_ms" in run)


def _point(place: str, run: Run) -> tuple[Point, str]:
    """A run, and where its mean end-to-end time comes from."""
    cap, rate = figure(place, run, "max_concurrency"), run.get("request_rate")
    latency, origin = _latency(place, run)
    setting = f"{cap} at once, {rate} requests/s, {run.get('num_prompts', '')}"
    generated, requests = figure(place, run, "total_output_tokens"), figure(place, run, "completed")
    tokens = generated / requests if generated and requests else None
    return Point(
        needed(place, run, "request_throughput"), cap=cap, latency=latency, tokens=tokens, setting=setting
    ), origin


def _latency(place: str, run: Run) -> tuple[float | None, str]:
    """Mean end-to-end time in seconds: as reported, else from the tokens of every request, else from the means over them."""
    reported = figure(place, run, "mean_e2el_ms")
    if reported is not None:
        return reported / 1e3, ""
    firsts, gaps = run.get("ttfts"), run.get("itls")
    if isinstance(firsts, list) and isinstance(gaps, list) and firsts and len(firsts) == len(gaps):
        try:
            return fmean(
                first + sum(between) for first, between in zip(firsts, gaps, strict=True)
            ), "times of all tokens"
        except TypeError:
            pass
    first, token = figure(place, run, "mean_ttft_ms"), figure(place, run, "mean_tpot_ms")
    tokens, requests = figure(place, run, "total_output_tokens"), figure(place, run, "completed")
    if first is None or token is None or not tokens or not requests:
        return None, ""
    return (first + token * (tokens / requests - 1)) / 1e3, "mean_ttft_ms + mean_tpot_ms x (tokens - 1)"


def _recognises(source: Source, options: Options) -> bool:
    del options
    return bool(_runs(source))


def _read(source: Source, options: Options) -> tuple[Curve, ...]:
    """A curve for each model, setting of the server and kind of request."""
    del options
    curves: dict[str, list[Point]] = {}
    origins = set()
    runs = _runs(source)
    kinds = [key for key in _KINDS if len({str(run.get(key)) for _, run in runs}) > 1]
    for place, run in runs:
        point, origin = _point(place, run)
        origins.add(origin)
        served = _SERVE.search(place)
        parts = [str(run.get("model_id") or "vllm").rpartition("/")[2], *([served[1]] if served else [])]
        name = "-".join([*parts, *(f"{key}-{run.get(key)}" for key in kinds)])
        curves.setdefault(name, []).append(point)
    notes = tuple(f"end-to-end time from {origin}, as the runs report none" for origin in sorted(origins) if origin)
    return tuple(Curve(name, tuple(points), source.name, notes) for name, points in curves.items())


IMPORTER = Importer("vLLM serving benchmark", "curves", _recognises, _read)
