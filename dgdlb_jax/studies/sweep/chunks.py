"""A chunk of a sweep: trying some of its cases, computing all of them; nothing here knows of a store."""

import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dgdlb_jax.fleets.document import clipped
from dgdlb_jax.numerics.results import InputError
from dgdlb_jax.numerics.versions import versions
from dgdlb_jax.studies.sweep.batches import (
    Batch,
    OutOfMemory,
    Refusal,
    batches,
    compute_chunk,
    default_batch,
    prepared,
    shapes_of,
    taken,
)
from dgdlb_jax.studies.sweep.cases import Columns, kinds
from dgdlb_jax.studies.sweep.inputs import NEEDS_DOUBLE
from dgdlb_jax.studies.sweep.measures import DOUBLE, MEASURES
from dgdlb_jax.studies.sweep.spec import Spec

_LONGEST_SENTENCE = 500  # letters
_PROBED = 32  # cases that are prepared before a store is made


@dataclass(frozen=True)
class Finished:
    """A chunk as it goes into a store: measure -> values of its cases, flat; and how it was computed."""

    values: dict[str, np.ndarray]
    notes: dict[str, Any]


def compute(spec: Spec, chunk: int, batch: int, after_batch: Callable[[int], None] | None = None) -> Finished:
    """Compute a chunk, in smaller batches after running out of memory.

    **Arguments:** `batch`: how many cases run side by side; `after_batch`: told how many cases are done.
    """
    began, columns, fitting = time.perf_counter(), spec.cases(spec.region(chunk)), batch
    while True:
        try:
            found = compute_chunk(spec, columns, fitting, after_batch)
            break
        except OutOfMemory:
            fitting //= 2  # with one at a time, what does not fit is marked
    notes = {
        "cases_side_by_side": fitting,
        "smaller_for_lack_of_memory": fitting < batch,
        "refused": {str(case): clipped(why, _LONGEST_SENTENCE) for case, why in found.refused.items()},
        "seconds": round(time.perf_counter() - began, 3),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "host": socket.gethostname(),
        "device": str(jax.devices()[0].device_kind),
        "devices": jax.local_device_count(),
        "versions": versions(),
    }
    return Finished(found.values, notes)


@dataclass(frozen=True)
class Tried:
    """Some cases from all over a sweep, prepared but not run: how many, the batches they make, and a sentence about each that could only
    be marked as refused once the sweep runs."""

    count: int
    batches: list[Batch]
    refused: list[str]


def check_precision(spec: Spec) -> None:
    """Raise `InputError` in single precision for what needs double."""
    needing = [name for name in spec.measures if DOUBLE in MEASURES[name].needs]
    needing += [name for name in NEEDS_DOUBLE if spec.values_of(name)]
    if needing and jnp.zeros(()).dtype != jnp.float64:
        raise InputError(
            f'{spec.name}: {needing[0]} needs double precision: put jax.config.update("jax_enable_x64", True) before dgd.sweep.'
        )


def check_possible(spec: Spec) -> Tried:
    """Prepare a few cases, evenly spread.

    **Raises:** `InputError` when none of them can be computed here: with what the first is refused for.
    """
    tried = Tried(0, [], [])
    for columns in _spread(spec):
        batches, refused = _probe(spec, columns)
        tried = Tried(tried.count + columns["seed"].size, tried.batches + batches, tried.refused + refused)
    if len(tried.refused) == tried.count:
        raise InputError(tried.refused[0])
    return tried


def _probe(spec: Spec, columns: Columns) -> tuple[list[Batch], list[str]]:
    """Of cases of one kind the batches, and why others are refused."""
    found, refused, batch = [], [], batch_of(spec)
    for rows, cases in prepared(columns, np.arange(len(columns["seed"])), spec, batch):
        if isinstance(cases, Refusal):
            refused += [cases.sentence] * rows.size
            continue
        try:
            cases.balancer(*jax.tree.map(jnp.asarray, (cases.networks, cases.optimum)))
        except InputError as error:  # parameters that it does not have
            refused += [str(error)] * rows.size
            continue
        shapes = shapes_of(cases, spec.measures)
        refused += [why.sentence for why in shapes.values() if isinstance(why, Refusal)]
        found += batches(cases, shapes, spec.measures, batch)
    return found, refused


def batch_of(spec: Spec) -> int:
    """How many cases run side by side: never more than a chunk has, or than there are, but for a few that share compiled code."""
    most = min(spec.chunk, max(spec.size, default_batch()))
    return min(spec.batch or default_batch(), 2 ** (most - 1).bit_length())


def _spread(spec: Spec, count: int = _PROBED) -> list[Columns]:
    """Up to `count` cases, evenly spread, by kind."""
    flat = np.unique(np.linspace(0, spec.size - 1, min(count, spec.size)).astype(int))
    cases = [
        spec.cases(tuple(slice(int(k), int(k) + 1) for k in (np.unravel_index(case, spec.shape) if spec.axes else ())))
        for case in flat
    ]
    columns = {name: np.concatenate([case[name] for case in cases]) for name in cases[0]}
    return [taken(columns, rows) for rows in kinds(columns)]
