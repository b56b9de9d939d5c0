"""Computing the cases of a chunk: batches of one compiled shape each, smaller ones when memory runs out.

A simulation is compiled for a padded size, a number of delay rows (one of a few) and a number of cases side by side (all that are
asked for, or a quarter of them). Time steps, durations and how often something is saved are data. How a case is computed depends on
nothing but itself.
"""

import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dgdlb_jax.analysis.optimum import Optimum
from dgdlb_jax.experiments.sweep.cases import Cases, Columns, join, kinds, prepare, runnable
from dgdlb_jax.experiments.sweep.measures import COSTS, JUDGED, WORKLOADS, Runs, compute, empty, needs
from dgdlb_jax.experiments.sweep.spec import Spec
from dgdlb_jax.experiments.verdict import INSTANTS, LAST_PART
from dgdlb_jax.numerics import device
from dgdlb_jax.numerics.delay import rows_for
from dgdlb_jax.numerics.results import InputError
from dgdlb_jax.simulation.engine import simulate_batch
from dgdlb_jax.simulation.trajectory import SaveAt

_ROWS = (64, 256)  # sizes of delay lines; larger ones are powers of two
_INSTANTS = 1024  # of a latency's history, up to twice as many: enough for the time to settle
_LOOKS = 2 ** math.ceil(math.log2(INSTANTS))  # of workloads for a verdict, up to twice as many
_FINE = 16  # steps between two saved workloads, at most: suggest_dt gives a loop at least 125 steps per period
_COPIES = 4  # how often the delay lines and the saved history exist while a program runs: inputs, loop, outputs
_MEMORY_SHARE = 0.8  # of the device's memory that may be planned for


class Shape(NamedTuple):
    """What a simulation is compiled for, beyond the number of cases side by side; and how often it looks (0: never)."""

    frontends: int
    backends: int
    rows: int
    frames: int
    every: int


@dataclass(frozen=True)
class Batch:
    """Rows of prepared cases that run side by side, where there is `room` for so many."""

    cases: Cases
    rows: np.ndarray
    shape: Shape
    room: int

    @property
    def width(self) -> int:
        """How many cases the compiled code takes: all that there is room for, or a quarter of it."""
        return self.room if self.rows.size > self.room // 4 else max(1, self.room // 4)


class OutOfMemory(Exception):
    """A device or the machine could not hold a batch."""


def default_batch() -> int:
    """How many cases run side by side unless the specification says so."""
    devices = jax.local_device_count()
    return devices * (32 if device.on_cpu() else 1024)


def compute_chunk(
    spec: Spec, columns: Columns, batch: int, after_batch: Callable[[int], None] | None = None
) -> dict[str, np.ndarray]:
    """All measures of all cases of a chunk: name -> values, flat.

    **Arguments:** `batch`: at most how many cases side by side; `after_batch`: told how many cases are done.

    **Raises:** `OutOfMemory`; `InputError` when a single case does not fit into the device.
    """
    size = len(next(iter(columns.values())))
    wanted = needs(spec.measures)
    found: dict[str, np.ndarray] = {}
    for rows in kinds(columns):
        cases = prepare_all({name: values[rows] for name, values in columns.items()}, spec.max_steps, wanted, batch)
        values = empty(spec.measures, cases.result, cases.defined)
        if not found:
            found = {name: np.empty(size, value.dtype) for name, value in values.items()}
        for part in batches(cases, spec.measures, batch):
            for name, value in run_batch(part, spec.measures).items():
                values[name][part.rows] = value
            if after_batch is not None:
                after_batch(part.rows.size)
        for name, value in values.items():
            found[name][rows] = value
    return found


def prepare_all(columns: Columns, max_steps: int, wanted: set[str], batch: int) -> Cases:
    """Prepare the cases of one kind, `batch` at a time; the last ones are filled up, so that all share compiled code."""
    size = len(next(iter(columns.values())))
    parts = []
    for first in range(0, size, batch):
        rows = _filled(np.arange(first, min(first + batch, size)), batch)
        with _memory_errors():
            parts.append(prepare({name: values[rows] for name, values in columns.items()}, max_steps, wanted))
    counts = [min(batch, size - first) for first in range(0, size, batch)]
    return join([part.take(np.arange(count)) for part, count in zip(parts, counts, strict=True)], size)


def batches(cases: Cases, measures: tuple[str, ...], batch: int) -> Iterator[Batch]:
    """The cases that can run, in batches of one shape, those of similar length together; small ones where memory is short."""
    rows, wanted = runnable(cases), needs(measures)
    steps = _steps(cases)
    shapes = [shape_of(cases, int(row), float(steps[row]), wanted) for row in rows]
    for shape in sorted(set(shapes)):
        members = rows[[k for k, found in enumerate(shapes) if found == shape]]
        members = members[np.argsort(steps[members], kind="stable")]
        room = min(batch, fitting(shape, measures))
        for first in range(0, members.size, room):
            yield Batch(cases, members[first : first + room], shape, room)


def _steps(cases: Cases) -> np.ndarray:
    with np.errstate(all="ignore"):
        steps = np.ceil(cases.duration / cases.dt * (1 - 1e-12))
    return np.where(np.isfinite(steps), np.maximum(steps, 1), 0)


def shape_of(cases: Cases, row: int, steps: float, wanted: set[str]) -> Shape:
    """What the simulation of a case is compiled for."""
    _, frontends, backends = cases.networks.latency.shape
    longest = float(max(cases.networks.latency[row].max(), cases.networks.feedback_latency[row].max()))
    needed = rows_for(longest, float(cases.dt[row]))
    rows = next((size for size in _ROWS if size >= needed), 2 ** (needed - 1).bit_length())
    if not wanted & {COSTS, WORKLOADS, JUDGED}:
        return Shape(frontends, backends, rows, 0, 0)
    most = 2 * (_INSTANTS if wanted & {COSTS, WORKLOADS} else _LOOKS)
    every = 2 ** max(0, math.ceil(math.log2(steps / most)))
    if WORKLOADS in wanted:
        every = min(_FINE, every)
    frames = max(most, 2 ** math.ceil(math.log2(steps / every))) + 1
    return Shape(frontends, backends, rows, frames, every)


def memory(shape: Shape, measures: tuple[str, ...]) -> int:
    """About how many bytes one case takes on the device."""
    wanted, arcs = needs(measures), shape.frontends * shape.backends
    kept = 1 + bool(wanted & {WORKLOADS, JUDGED}) * shape.backends + (COSTS in wanted)
    numbers = shape.rows * (arcs + shape.backends) + shape.frames * kept + 50 * arcs
    return _COPIES * numbers * jnp.zeros(()).dtype.itemsize


def fitting(shape: Shape, measures: tuple[str, ...]) -> int:
    """How many cases fit into the memory of the devices of this process, a power of two.

    **Raises:** `InputError` when not even one does.
    """
    each = memory(shape, measures)
    room = int(_MEMORY_SHARE * device_memory()) // each
    if room < 1:
        raise InputError(
            f"A case of {shape.frontends} x {shape.backends} with {shape.rows} delay rows needs about "
            f"{each / 1e9:.3g} GB, the device has {device_memory() / 1e9:.3g} GB: raise dt, lower max_steps, or use smaller networks."
        )
    return 2 ** int(math.log2(room))


def device_memory() -> int:
    """Bytes that all devices of this process have together; on CPU the memory of the machine."""
    statistics = [device.memory_stats() or {} for device in jax.local_devices()]
    limits = [found["bytes_limit"] for found in statistics if "bytes_limit" in found]
    return sum(limits) if limits else os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def run_batch(batch: Batch, measures: tuple[str, ...]) -> dict[str, np.ndarray]:
    """Simulate a batch and compute its measures.

    **Raises:** `OutOfMemory`.
    """
    count = batch.rows.size
    cases = batch.cases.take(_filled(batch.rows, batch.width))
    with _memory_errors():
        networks, optimum = jax.tree.map(jnp.asarray, (cases.networks, cases.optimum))
        policy = cases.balancer(networks, optimum)
        trajectory = simulate_batch(
            networks,
            policy,
            duration=cases.duration,
            dt=cases.dt,
            initial=(jnp.asarray(cases.routing), jnp.asarray(cases.workload)),
            save=_save(cases, batch.shape, optimum, needs(measures)),
            max_latency=(batch.shape.rows - 2.5) * float(cases.dt.min()),  # makes the delay line of that many rows
            frames=batch.shape.frames,
            throw=False,
        )
        runs = Runs(
            networks=networks,
            policy=policy,
            optimum=optimum,
            dt=cases.dt,
            duration=cases.duration,
            default=cases.default,
            sufficient=cases.sufficient,
            critical=cases.critical,
            trajectory=jax.block_until_ready(trajectory),
        )
        return compute(measures, runs, count)


def _save(cases: Cases, shape: Shape, optimum: Optimum, wanted: set[str]) -> SaveAt:
    fields = ("cost_rate",) * (COSTS in wanted) + ("workload",) * bool(wanted & {WORKLOADS, JUDGED})
    after = (1 - LAST_PART) * cases.duration
    return SaveAt(shape.every or None, fields=fields, after=after, reference=optimum.workload, resumable=False)


def _filled(rows: np.ndarray, size: int) -> np.ndarray:
    """Filled up with copies of the last one."""
    return np.concatenate([rows, np.repeat(rows[-1:], size - rows.size)])


class _memory_errors:
    """Whatever a device or the machine says when memory runs out, as `OutOfMemory`."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind, error, trace) -> None:
        if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and "RESOURCE_EXHAUSTED" in str(error)):
            raise OutOfMemory(str(error)) from error
