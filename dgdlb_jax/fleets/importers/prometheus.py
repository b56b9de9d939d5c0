"""Results of Prometheus' `query_range`, as its HTTP interface or `promtool query range --format=json` writes them.

Read from `docs/querying/api.md` of prometheus/prometheus at commit 01db19c0, "Range queries" and "Range vectors" (Prometheus 2 and 3):
`data.resultType` is `matrix`, values are `[seconds since 1970, "figure"]`. Which quantity a result is follows from the metric's name
(those in "Production Metrics" of vLLM 0.32 and `vllm/v1/metrics/loggers.py` at 005a810b, the same since 0.4: `num_requests_running`,
`num_requests_waiting`, `request_success_total`; those of SGLang, Envoy and Istio, and names that end alike), or from the user: a result of
`rate(...)` has no name.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from dgdlb_jax.fleets.document import clipped, counted, listed, nearest
from dgdlb_jax.fleets.importers.base import Curve, Demand, Importer, Options, Point, Series, selected
from dgdlb_jax.fleets.importers.source import Source
from dgdlb_jax.numerics.results import InputError

ROLES = ("arrivals", "throughput", "running", "waiting")
"""What a result can be: requests/s into each frontend, out of each backend, requests in service, and those that wait for it."""

_ENDINGS = {
    "running": ("num_requests_running", "requests_running", "num_running_reqs", "requests_active"),
    "waiting": ("num_requests_waiting", "requests_waiting", "num_queue_reqs", "num_waiting_reqs"),
    "throughput": (
        "request_success_total",
        "request_success",
        "requests_completed_total",
        "upstream_rq_completed",
        "sglang_num_requests_total",
    ),
    "arrivals": (
        "downstream_rq_total",
        "http_requests_total",
        "istio_requests_total",
        "requests_received_total",
        "requests_total",
    ),
}
Samples = tuple[Float[np.ndarray, "_"], Float[np.ndarray, "_"]]
"""Seconds and values."""

# Labels that tell apart what one server did, never places: their series are added.
_PARTS = {"finished_reason", "engine"}
_GROUPS, _LEAST = 10, 5  # points of a curve, and samples behind each of them


def series(source: Source, options: Options) -> tuple[Series, ...]:
    """The quantities in a result, by the label that tells their series apart.

    Counters (`..._total`, `..._count` of histograms) become rates: the increase over each step, from 0 after a reset.

    **Raises:** `InputError` where the quantity or the label is not known, and for values that are no numbers.
    """
    by_role: dict[str, list[Mapping[str, Any]]] = {}
    for result in selected(source.name, _results(source), lambda result: result["metric"], options):
        by_role.setdefault(options.role or _role(source, result), []).append(result)
    found = []
    for role, results in by_role.items():
        label, name = _label(source, results, options), _name(source, role, results)
        counter = role in ("arrivals", "throughput") and name.endswith(("_total", "_count", *_ENDINGS[role]))
        values: dict[str, list[Samples]] = {}
        kept = 0
        for result in results:
            key = "" if label is None else str(result["metric"].get(label, ""))
            samples = _samples(source, result)
            kept += len(samples[0])
            values.setdefault(key, []).append(_rate(*samples) if counter else samples)
        every = sum(len(result["values"]) for result in results)
        series_by_name = {key: _summed(source, key, parts) for key, parts in values.items()}
        notes = [f"{role} from {name or 'a result without a name'}" + (f", by {label}" if label else "")]
        notes += _added(role, label, results)
        if counter:
            notes.append(f"{name} is a counter: its increase over each step is taken")
        elif role in ("arrivals", "throughput"):
            notes.append(
                f"{role}: its figures are taken as requests/s, as rate() gives them; those of increase() are none"
            )
        notes += (
            [f"{role}: {every - kept} of {every} samples are no numbers (NaN or Inf) and left out"]
            if kept < every
            else []
        )
        notes += _left_out(values, series_by_name)
        found.append(Series(role, series_by_name, source.name, tuple(notes), every - kept))
    return tuple(found)


def _results(source: Source) -> list[Mapping[str, Any]]:
    """The series in an answer.

    **Raises:** `InputError` for an answer that says that the query failed, and for one that has no series over a range.
    """
    document = source.document
    if isinstance(document, dict) and document.get("status") == "error" and "errorType" in document:
        raise InputError(
            f"{source.name}: the query failed ({clipped(str(document.get('error')))}): correct it and query again."
        )
    data = document.get("data", document) if isinstance(document, dict) else document
    results = data.get("result") if isinstance(data, dict) else data
    found = [r for r in results if _is_series(r)] if isinstance(results, list) else []
    if isinstance(data, dict) and "resultType" in data and (not found or len(found) < len(results or ())):
        kind = clipped(str(data["resultType"]))
        lacks = "no series" if results in ([], None) else "native histograms" if kind == "matrix" else f"a {kind}"
        raise InputError(
            f"{source.name}: the answer holds {lacks}, but no counters or gauges over a range: query them with query_range."
        )
    return found


def _is_series(result: Any) -> bool:
    return (
        isinstance(result, dict) and isinstance(result.get("metric"), dict) and isinstance(result.get("values"), list)
    )


def _name(source: Source, role: str, results: Sequence[Mapping[str, Any]]) -> str:
    """The metric behind a quantity: one, as the sum of two would count requests twice."""
    names = sorted({str(result["metric"].get("__name__", "")) for result in results})
    if len(names) > 1:
        raise InputError(f"{source.name}: {listed(names)} are all {role}: query one of them.")
    return clipped(names[0])


def _role(source: Source, result: Mapping[str, Any]) -> str:
    name = str(result["metric"].get("__name__", ""))
    plain = name.replace(":", "_")
    for role, endings in _ENDINGS.items():
        if plain.endswith(endings):
            return role
    what = f'the metric "{clipped(name)}" is not known' if name else "the result has no metric name, as after rate()"
    raise InputError(
        f"{source.name}: {what}: say what it is in front of the file, one of {', '.join(f'{role}=FILE' for role in ROLES)}."
    )


def _label(source: Source, results: Sequence[Mapping[str, Any]], options: Options) -> str | None:
    """The label whose values name frontends or backends: the only one that differs, or the one that the user says."""
    labels = _labels(results)
    differing = _differing(labels)
    if (told := options.use("by")) is not None:
        if told in labels:
            return told
        raise InputError(f'{source.name}: there is no label "{clipped(told)}": {nearest(told, labels)}')
    if len(differing) > 1:
        raise InputError(
            f"{source.name}: the labels {listed(differing)} all differ: say which one names places with --by."
        )
    return differing[0] if differing else None


def _labels(results: Sequence[Mapping[str, Any]]) -> dict[str, set[str]]:
    """The values of every label."""
    keys = {key: None for result in results for key in result["metric"] if key != "__name__"}
    return {key: {str(result["metric"].get(key)) for result in results} for key in keys}


def _differing(labels: Mapping[str, set[str]]) -> list[str]:
    return sorted(key for key, values in labels.items() if len(values) > 1 and key not in _PARTS)


def _added(role: str, label: str | None, results: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """That series of several servers are added under one name, where they are."""
    if label is None or role == "arrivals":
        return ()
    places: dict[str, list[Mapping[str, Any]]] = {}
    for result in results:
        places.setdefault(str(result["metric"].get(label, "")), []).append(result)
    labels = [_labels(found) for found in places.values()]
    others = sorted({key for found in labels for key in _differing(found)} - {label})
    if not others:
        return ()
    most = max(len({tuple(str(r["metric"].get(key)) for key in others) for r in found}) for found in places.values())
    return (
        f"each {label} is the sum over up to {most} values of {listed(others)}: one curve of all of them together, as one server; "
        f"--by {others[0]} makes a curve of each",
    )


def _samples(source: Source, result: Mapping[str, Any]) -> Samples:
    try:
        times, values = np.array([(float(time), float(value)) for time, value in result["values"]]).reshape(-1, 2).T
    except (TypeError, ValueError) as error:
        raise InputError(
            f"{source.name}: the values of {clipped(str(dict(result['metric'])))} are no pairs of time and number: export it again."
        ) from error
    kept = np.isfinite(values) & np.isfinite(times)  # Prometheus writes NaN where a quotient has none
    if not kept.any() or (values[kept] < 0).any():
        none = f"no number in {counted(len(values), 'sample', 'samples')}"
        raise InputError(
            f"{source.name}: {clipped(str(dict(result['metric'])))} has {'a negative value' if kept.any() else none}: correct the query."
        )
    order = np.argsort(times[kept], kind="stable")
    times, values = times[kept][order], values[kept][order]
    if (np.diff(times) == 0).any():
        raise InputError(
            f"{source.name}: {clipped(str(dict(result['metric'])))} has two values at one time: query one range at a time."
        )
    return times, values


def _summed(source: Source, name: str, parts: list[Samples]) -> Samples:
    """One series for each name: several that share it are summed, at the times that all of them have."""
    times = parts[0][0]
    for other, _ in parts[1:]:
        times = np.intersect1d(times, other)
    if not times.size and len(parts) > 1:
        raise InputError(f'{source.name}: the series of "{clipped(name)}" have no time in common: query one range.')
    return times, sum((values[np.isin(found, times)] for found, values in parts), start=np.zeros(times.size))


def _left_out(parts: Mapping[str, Sequence[Samples]], sums: Mapping[str, Samples]) -> tuple[str, ...]:
    """How many times are lost in sums over series that do not all have them."""
    every = sum(len(np.unique(np.concatenate([times for times, _ in found]))) for found in parts.values())
    lost = every - sum(len(times) for times, _ in sums.values())
    return (f"{lost} of {every} samples are left out, as not all series that are added have them",) if lost else ()


def _rate(times: np.ndarray, values: np.ndarray) -> Samples:
    increase = np.where(np.diff(values) < 0, values[1:], np.diff(values))
    return times[1:], increase / np.diff(times)


def demand(arrivals: Series) -> Demand:
    """Arrival rates as requests per step.

    **Raises:** `InputError` where samples are missing: a gap is not a time without requests.
    """
    names = tuple(arrivals.by_name)
    times = [found for found, _ in arrivals.by_name.values()]
    if not all(found.size for found in times):
        raise InputError(f"{arrivals.origin}: arrivals have a single sample: query a longer range.")
    begin, end = max(found[0] for found in times), min(found[-1] for found in times)
    rates = [values[(found >= begin) & (found <= end)] for found, values in arrivals.by_name.values()]
    grid = times[0][(times[0] >= begin) & (times[0] <= end)]
    steps = np.diff(grid)
    if grid.size < 2 or {len(rate) for rate in rates} != {grid.size} or np.ptp(steps) > 1e-6 * steps[0]:
        lost = f" ({arrivals.lost} samples are NaN or Inf)" if arrivals.lost else ""
        raise InputError(
            f"{arrivals.origin}: arrivals have gaps, or fewer than two samples in common{lost}: query a range without gaps."
        )
    width, longest = float(steps[0]), max(len(found) for found in times)
    note = f"{counted(grid.size, 'sample', 'samples')} every {width:g} s"
    note += f", where all have one; the longest has {longest}" if longest > grid.size else ""
    counts = np.stack(rates, axis=1) * width
    return Demand(() if names == ("",) else names, width, counts, arrivals.origin, (*arrivals.notes, note))


def curves(found: Sequence[Series]) -> tuple[Curve, ...]:
    """A curve for each backend from what it held and what it served at the same times.

    Pairs are put in order of what was held and cut into at most 10 groups of equal size, of 5 samples at least; a point is the mean of
    a group, with the quartiles of its throughput as scatter. Times at which nothing was held say nothing of a curve.

    **Raises:** `InputError` where throughput or running requests are missing, or fewer than two groups come out.
    """
    by_role = {one.role: one for one in found}
    missing = [role for role in ("throughput", "running") if role not in by_role]
    if missing:
        have = " and ".join(f"{one.origin} ({one.role})" for one in found)
        wanted = " and ".join(f"{role}=FILE" for role in missing)
        raise InputError(f"{have}: a curve needs the throughput and the running requests of a backend: add {wanted}.")
    served, running, waiting = (by_role.get(role) for role in ("throughput", "running", "waiting"))
    assert served is not None
    assert running is not None
    origin = ", ".join(dict.fromkeys(one.origin for one in found))
    notes = [note for one in found for note in one.notes]
    if waiting is None:
        notes.append(
            "no waiting requests were given: the workload is what runs, which is too little where requests queue"
        )
    made = []
    for name in served.by_name:
        held = [one.by_name[name] for one in (running, waiting) if one is not None and name in one.by_name]
        if not held or (waiting is not None and len(held) < 2):
            raise InputError(
                f"{origin}: {_called(name)} has throughput, but not running and waiting: {nearest(name, running.by_name)}"
            )
        points, left = _grouped(origin, name, served.by_name[name], held)
        lost = (
            (
                f"{left} of {len(served.by_name[name][0])} samples are left out, as nothing was held or a figure is missing",
            )
            if left
            else ()
        )
        made.append(Curve(name or "backend", points, origin, (*notes, *lost, _scatter(name, points))))
    return tuple(made)


def _called(name: str) -> str:
    """A backend in messages; the only one has no name."""
    return f'"{clipped(name)}"' if name else "the backend"


def _grouped(origin: str, name: str, served: Samples, held: list[Samples]) -> tuple[tuple[Point, ...], int]:
    """The points, and how many samples of the throughput are in none."""
    times = served[0]
    for found, _ in held:
        times = np.intersect1d(times, found)
    if times.size < 2 * _LEAST <= served[0].size:
        raise InputError(
            f"{origin}: {_called(name)} has {served[0].size} samples of its throughput, and {times.size or 'none'} of them at times at "
            "which the requests in it were sampled too: query all with the same start, end and step."
        )
    rate = served[1][np.isin(served[0], times)]
    number = sum((values[np.isin(found, times)] for found, values in held), start=np.zeros(times.size))
    order = np.argsort(number[number > 0], kind="stable")
    number, rate = number[number > 0][order], rate[number > 0][order]
    groups = min(_GROUPS, number.size // _LEAST)
    points = [
        _point(*pair)
        for pair in zip(np.array_split(number, max(groups, 1)), np.array_split(rate, max(groups, 1)), strict=True)
    ]
    distinct = {point.held: point for point in points if point.throughput > 0}
    if groups < 2 or len(distinct) < 2:
        raise InputError(
            f"{origin}: {_called(name)} has {counted(number.size, 'sample', 'samples')} with requests, too few for two points with "
            f"{_LEAST} samples each, or all at one workload: query a longer range in which the load varies."
        )
    return tuple(distinct.values()), len(served[0]) - number.size


def _scatter(name: str, points: Sequence[Point]) -> str:
    """How far half of the samples behind a point lie apart."""
    spread = max(((p.high or 0.0) - (p.low or 0.0)) / p.throughput for p in points)
    least = min(point.samples for point in points)
    which = f'"{clipped(name)}": ' if name else ""
    return (
        f"{which}{counted(len(points), 'point', 'points')}, each the mean of {least} samples or more; the middle half of their throughputs "
        f"ranges over at most {spread:.0%} of the mean"
    )


def _point(number: np.ndarray, rate: np.ndarray) -> Point:
    low, high = np.quantile(rate, [0.25, 0.75]) if rate.size else (0.0, 0.0)
    mean = float(rate.mean()) if rate.size else 0.0
    return Point(
        mean,
        held=float(number.mean()) if number.size else 0.0,
        low=min(float(low), mean),  # the mean of a skewed group may lie outside of its quartiles
        high=max(float(high), mean),
        samples=int(rate.size),
    )


def _recognises(source: Source, options: Options) -> bool:
    del options
    return bool(_results(source))


IMPORTER = Importer("Prometheus range query", "series", _recognises, series)
