"""Runs that were given separately: of one server, or of several that their files call the same."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import PurePath
from statistics import fmean, median
from typing import Any

from dgdlb_jax.fleets.document import clipped, listed
from dgdlb_jax.fleets.importers.base import Curve, Point

# Repetitions of a whole series of runs lie closer together than this.
_SCATTER = 0.05
# Prompts whose lengths differ by more than this factor are of different kinds; sampled ones differ by less.
_UNLIKE = 1.5
# Fields of results that say which server it was; a date, a seed or the number of a job do not.
_OF_A_SERVER = {
    "model", "model_id", "tokenizer_id", "backend", "endpoint", "endpoint_type", "framework", "engine", "version", "vllm_version",
    "server_version", "gpu", "gpu_type", "gpu_name", "gpu_model", "hardware", "hw", "accelerator", "device", "device_name", "num_gpus",
    "gpus", "gpu_count", "tp", "tp_size", "tensor_parallel", "tensor_parallel_size", "pp", "pipeline_parallel_size", "dp",
    "data_parallel_size", "ep", "dtype", "precision", "quantization",
}  # fmt: skip


def is_of_a_server(field: str) -> bool:
    """Whether a field of results says which server it was."""
    return field.lower().replace("-", "_") in _OF_A_SERVER


def server_of(runs: Iterable[Mapping[str, Any]]) -> tuple[tuple[str, str], ...]:
    """What all runs of a curve say of their server, field by field."""
    found: dict[str, set[str]] = {}
    for run in runs:
        for key, value in run.items():
            if is_of_a_server(str(key)) and isinstance(value, str | int | float) and value != "":
                found.setdefault(str(key).lower().replace("-", "_"), set()).add(str(value))
    return tuple((key, values.pop()) for key, values in sorted(found.items()) if len(values) == 1)


def with_runs(curves: Sequence[Curve], more: Curve) -> list[Curve]:
    """Curves, and further runs: joined to the curve of their name, or a curve of their own where they contradict every one."""
    found = list(curves)
    for k, one in enumerate(found):
        if one.name == more.name and not _contradict(one, more) and not _differing([one, more]):
            found[k] = _joined(one, more)
            return found
    return [*found, more]


def _contradict(one: Curve, other: Curve) -> bool:
    """Whether two series of runs differ at equal settings by more than repetitions would. A single run may be one of a series."""
    if min(len(one.points), len(other.points)) < 2:
        return False
    rates, others = _rates(one), _rates(other)
    return any(abs(others[at] - rate) > _SCATTER * rate for at, rate in rates.items() if at in others)


def _rates(curve: Curve) -> dict[str, float]:
    """Throughput by setting."""
    settings = {point.setting for point in curve.points} - {""}
    return {at: median(point.throughput for point in curve.points if point.setting == at) for at in settings}


def _differing(curves: Sequence[Curve]) -> list[str]:
    """The fields in which the servers of curves differ, as far as several of them say it."""
    values: dict[str, set[str]] = {}
    for curve in curves:
        for key, value in curve.server:
            values.setdefault(key, set()).add(value)
    return [key for key, found in values.items() if len(found) > 1]


def _joined(one: Curve, other: Curve) -> Curve:
    origin = one.origin if one.origin == other.origin else f"{one.origin}, {other.origin}"
    server = tuple((dict(one.server) | dict(other.server)).items())
    return Curve(one.name, one.points + other.points, origin, tuple(dict.fromkeys(one.notes + other.notes)), server)


def by_prompts(curve: Curve) -> list[Curve]:
    """The runs of a curve by the length of their prompts, where runs of one setting differ in it: these are no repetitions."""
    lengths = sorted({point.inputs for point in curve.points if point.inputs})
    breaks = [long for short, long in pairwise(lengths) if long > _UNLIKE * short]
    kinds: dict[int, list[Point]] = {}
    for point in curve.points:
        kinds.setdefault(sum((point.inputs or 0.0) >= length for length in breaks), []).append(point)
    settings = [{point.setting for point in points if point.setting} for points in kinds.values()]
    if sum(map(len, settings)) == len(set().union(*settings)):
        return [curve]
    why = "runs of one setting differ in the tokens of their prompts, so they are of several kinds of requests"
    return [
        curve._replace(
            name=f"{curve.name}-input-{fmean(point.inputs or 0.0 for point in points):.4g}",
            points=tuple(points),
            notes=(*curve.notes, why),
        )
        for _, points in sorted(kinds.items())
    ]


def told_apart(curves: Sequence[Curve]) -> list[Curve]:
    """The curves, those that share a name called after what else their files say of the servers, or after the files."""
    alike: dict[str, list[Curve]] = {}
    for curve in curves:
        alike.setdefault(curve.name, []).append(curve)
    found = {name: _after_their_servers(same) for name, same in alike.items()}
    return [found[curve.name].pop(0) for curve in curves]


def _after_their_servers(curves: list[Curve]) -> list[Curve]:
    if len(curves) == 1:
        return curves
    fields = _differing(curves)
    named = [_after_its_server(curve, fields) for curve in curves]
    if len({curve.name for curve in named}) == len(named):
        return named
    return [_after_its_file(curve) for curve in curves]


def _after_its_server(curve: Curve, fields: Sequence[str]) -> Curve:
    values = [value for key, value in curve.server if key in fields]
    why = f'other runs of "{curve.name}" differ in {listed(fields)}, so they are of several servers'
    return curve._replace(name=clipped("-".join([curve.name, *values])), notes=(*curve.notes, why))


def _after_its_file(curve: Curve) -> Curve:
    stem = PurePath(curve.origin.split(", ")[0]).stem
    why = (
        f'another curve is called "{curve.name}" too and differs by more than {_SCATTER:.0%} at equal settings: two servers, told apart by '
        "their files"
    )
    return curve._replace(name=f"{curve.name}-{stem}", notes=(*curve.notes, why))
