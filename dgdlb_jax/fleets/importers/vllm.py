"""Results of vLLM's serving benchmark: `vllm bench serve --save-result`, folders of `vllm bench sweep serve` and `serve_workload`; and of
SGLang's, whose fields are nearly the same.

Read from `vllm/benchmarks/serve.py` at commit 009e6d4a of vllm-project/vllm, `sweep/serve.py` at 0031557f and `sweep/serve_workload.py`
at 24d6ea8a (2026; documented as 0.11.2 to 0.32), and from results of 2026-03: a JSON object per run, JSON lines of `--append-result`,
`summary.json` (a list of runs), `summary.csv` of a sweep, and its folders `SERVE-...-BENCH-...` with `run=N.json`. SGLang's
`python/sglang/bench_serving.py` at commit 0033168f of sgl-project/sglang: JSON lines, `mean_e2e_latency_ms`.
"""

import re
from collections.abc import Mapping, Sequence
from itertools import repeat
from statistics import fmean
from typing import Any

from dgdlb_jax.fleets.document import clipped
from dgdlb_jax.fleets.importers.base import Curve, Importer, Options, Point, selected
from dgdlb_jax.fleets.importers.fields import figure, needed
from dgdlb_jax.fleets.importers.same_server import is_of_a_server, server_of
from dgdlb_jax.fleets.importers.source import Source

_SERVE = re.compile(r"SERVE-+(.*?)(?:-BENCH-|-WL-|/|$)")
# Fields that say how a run went, and under which load. All others were set: by parameters of a sweep, or by --metadata.
_NO_SETTING = re.compile(
    r"model_id|date|run_number|unnamed.*|duration|completed|failed|rtfx|max_concurrency|max_concurrent_requests|max_output_tokens_per_s|"
    r"request_rate|burstiness|num_prompts|(total|probe|spec_decode|diffusion|ramp_up)_.*|.*(throughput|goodput).*|.*_ms|"
)

# Mean end-to-end times of vLLM and of SGLang.
_WHOLE = ("mean_e2el_ms", "mean_e2e_latency_ms")

Run = Mapping[str, Any]


def _runs(source: Source) -> list[tuple[str, Run]]:
    """Every run in a file or folder, with the name of the file that it stands in: measured runs, not warm-ups nor summaries of both."""
    found = []
    whole = any(re.search(r"run=\d+\.json$", file.name) for file in source.files)
    for file in source.files:
        last = file.name.rpartition("/")[2]
        if last == "warmup.json" or last.endswith("failure.json") or (whole and last.startswith("summary.")):
            continue
        documents: Sequence[Any] = [file.document] if isinstance(file.document, dict) else file.records or []
        if not documents and last.endswith(".csv") and (file is source or last == "summary.csv"):
            table = file.table
            documents = table.records() if table and "request_throughput" in table.columns else []
        found += [(file.name, run) for run in documents if _is_run(run)]
    return found


def _is_run(run: Any) -> bool:
    """Whether something says its throughput and either how long requests took or how many there could be at once."""
    if not isinstance(run, Mapping) or isinstance(run.get("request_throughput"), dict | list):
        return False
    return "request_throughput" in run and any(key in run for key in ("mean_ttft_ms", *_WHOLE, "max_concurrency"))


def _load(run: Run) -> str:
    return f"{run.get('max_concurrency')} at once, {run.get('request_rate')} requests/s, {run.get('num_prompts')}"


def _settings(place: str, run: Run) -> dict[str, str]:
    """What was set for a run besides its load: parameters of the server and of the requests."""
    served = _SERVE.search(place)
    plain = {str(key).replace("-", "_"): value for key, value in run.items() if isinstance(value, str | int | float)}
    chosen = {key: str(value) for key, value in plain.items() if not _NO_SETTING.fullmatch(key.lower())}
    return {"": served[1] if served else ""} | chosen


def _telling(settings: Sequence[Mapping[str, str]], loads: Sequence[str]) -> list[str]:
    """The settings that tell curves apart: what says which server it was, and what has several loads for each of its values, as the
    number of a job, or a parameter that follows the load, has not."""
    chosen = []
    for key in dict.fromkeys(key for one in settings for key in one):
        values = [one.get(key, "") for one in settings]
        several = 2 * len(set(values)) <= len(set(zip(values, loads, strict=True)))
        if len({*values} - {""} if is_of_a_server(key) else set(values)) > 1 and (several or is_of_a_server(key)):
            chosen.append(key)
    return chosen


def _point(place: str, run: Run) -> tuple[Point, str]:
    """A run, and where its mean end-to-end time comes from."""
    latency, origin = _latency(place, run)
    generated, requests = figure(place, run, "total_output_tokens"), figure(place, run, "completed")
    read = figure(place, run, "total_input_tokens")
    return Point(
        needed(place, run, "request_throughput"),
        cap=figure(place, run, "max_concurrency"),
        latency=latency,
        tokens=generated / requests if generated and requests else None,
        setting=_load(run),
        completed=requests or 0.0,
        failed=figure(place, run, "failed") or 0.0,
        inputs=read / requests if read and requests else None,
    ), origin


def _latency(place: str, run: Run) -> tuple[float | None, str]:
    """Mean end-to-end time in seconds: as reported, else from the times of every request, else from the means over them."""
    for key in _WHOLE:
        reported = figure(place, run, key)
        if reported is not None:
            return reported / 1e3, ""
    times = _request_times(run)
    tokens, requests = figure(place, run, "total_output_tokens"), figure(place, run, "completed")
    if times and (requests is None or len(times) == requests):
        return fmean(times), "the times of all requests"
    first, token = figure(place, run, "mean_ttft_ms"), figure(place, run, "mean_tpot_ms")
    if first is None or token is None or not tokens or not requests:
        return None, ""
    return (first + token * (tokens / requests - 1)) / 1e3, "mean_ttft_ms + mean_tpot_ms x (tokens - 1)"


def _request_times(run: Run) -> list[float]:
    """Seconds of each request that succeeded, where they were saved; a failed one has an error, or no time."""
    times, firsts, gaps, errors = (run.get(key) for key in ("latencies", "ttfts", "itls", "errors"))
    try:
        if not isinstance(times, list):
            times = [first + sum(between) for first, between in zip(firsts or (), gaps or (), strict=True)]
        pairs = zip(times, errors if isinstance(errors, list) else repeat(""), strict=False)
        return [float(time) for time, error in pairs if time > 0 and not error]
    except (TypeError, ValueError):
        return []


def _recognises(source: Source, options: Options) -> bool:
    del options
    return bool(_runs(source))


def _read(source: Source, options: Options) -> tuple[Curve, ...]:
    """A curve for each model, setting of the server and kind of request."""
    runs = selected(source.name, _runs(source), lambda found: found[1], options)
    settings = [_settings(place, run) for place, run in runs]
    telling = _telling(settings, [f"{run.get('model_id')}, {_load(run)}" for _, run in runs])
    curves: dict[str, list[tuple[str, Run]]] = {}
    for (place, run), chosen in zip(runs, settings, strict=True):
        model = str(run.get("model_id") or run.get("backend") or "vllm").rpartition("/")[2]
        parts = [f"{key}-{chosen.get(key, '')}".strip("-") for key in telling]
        curves.setdefault("-".join(filter(None, [model, *parts])), []).append((place, run))
    return tuple(_curve(source, name, runs) for name, runs in curves.items())


def _curve(source: Source, name: str, runs: Sequence[tuple[str, Run]]) -> Curve:
    points, origins = zip(*(_point(place, run) for place, run in runs), strict=True)
    notes = [f"end-to-end time from {origin}, as the runs report none" for origin in sorted(set(origins)) if origin]
    return Curve(clipped(name), points, source.name, tuple(notes), server_of(run for _, run in runs))


IMPORTER = Importer("vLLM or SGLang serving benchmark", "curves", _recognises, _read)
