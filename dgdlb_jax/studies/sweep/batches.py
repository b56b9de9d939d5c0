"""Computing the cases of a chunk: batches of one compiled shape each, smaller ones when memory runs out.

A simulation is compiled for a padded size, a number of delay rows (one of a few) and a number of cases side by side (all that are
asked for, or a quarter of them). Time steps, durations and how often something is saved are data. How a case is computed depends on
nothing but itself.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dgdlb_jax.numerics import device
from dgdlb_jax.numerics.delay import delay_for, rows_for, steps_for
from dgdlb_jax.numerics.results import InputError
from dgdlb_jax.simulation.checks import LARGEST_LINE, LARGEST_STEP
from dgdlb_jax.simulation.memory import Memory
from dgdlb_jax.studies.assess import assess
from dgdlb_jax.studies.sweep.cases import Cases, Columns, KindError, join, kinds, padded_arcs, prepare, runnable
from dgdlb_jax.studies.sweep.inputs import STEP_SIZES
from dgdlb_jax.studies.sweep.measures import (
    COSTS,
    DOES_NOT_FIT,
    JUDGED,
    REFUSED,
    TOO_MANY_STEPS,
    WORKLOADS,
    Runs,
    compute,
    empty,
    needs,
    statistics,
    unknown,
)
from dgdlb_jax.studies.sweep.spec import Spec
from dgdlb_jax.studies.verdict import INSTANTS

_ROWS = (64, 256)  # sizes of delay lines; larger ones are powers of two
_INSTANTS = 1024  # of a latency's history, up to twice as many: enough for the time to settle
_LOOKS = 2 ** math.ceil(math.log2(INSTANTS))  # of workloads for a verdict, up to twice as many
_FINE = 16  # steps between two saved workloads, at most: suggest_dt gives a loop at least 125 steps per period
PREPARING = 60  # numbers per arc that the optimum and the step sizes take
_LATENCIES = "lower latencies (latency_scale)"
_MOST_MEMORY = 1e15  # bytes, where nothing tells


class Shape(NamedTuple):
    """What a simulation is compiled for, beyond the number of cases side by side; and how often it looks (0: never)."""

    frontends: int
    backends: int
    rows: int
    frames: int
    every: int

    @property
    def what(self) -> str:
        """In words."""
        return f"A case of {self.frontends} x {self.backends} with {self.rows} delay rows"


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


@dataclass(frozen=True)
class Refusal:
    """Why a case is not run: a code of `RESULTS`, and a sentence about this case."""

    code: int
    sentence: str


@dataclass(frozen=True)
class Computed:
    """All measures of all cases of a chunk, name -> values, flat; and by case a sentence about each that could not be computed."""

    values: dict[str, np.ndarray]
    refused: dict[int, str]

    def refuse(self, case: int, why: Refusal) -> None:
        """Mark a case."""
        self.values["result"][case] = why.code
        self.refused[case] = why.sentence


def compute_chunk(
    spec: Spec, columns: Columns, batch: int, after_batch: Callable[[int], None] | None = None
) -> Computed:
    """All measures of all cases of a chunk. A case that cannot be computed is marked, and stops no other.

    **Arguments:** `batch`: at most how many cases side by side; `after_batch`: told how many cases are done.

    **Raises:** `OutOfMemory`, unless `batch` is 1.
    """
    size = len(next(iter(columns.values())))
    found = Computed(unknown(spec.measures, size), {})
    for kind in kinds(columns):
        for rows, cases in prepared(columns, kind, spec, batch):
            if isinstance(cases, Refusal):
                for row in rows:
                    found.refuse(int(row), cases)
                continue
            for name, values in empty(spec.measures, cases.result, cases.defined).items():
                found.values[name][rows] = values
            shapes = shapes_of(cases, spec.measures)
            for row, why in shapes.items():
                if isinstance(why, Refusal):
                    found.refuse(int(rows[row]), why)
            for part in batches(cases, shapes, spec.measures, batch):
                _run(part, spec.measures, rows, found)
                if after_batch is not None:
                    after_batch(part.rows.size)
    return found


def _run(batch: Batch, measures: tuple[str, ...], rows: np.ndarray, found: Computed) -> None:
    """Run a batch, and its halves when it cannot be run as a whole: what a single case is refused for stands with that case."""
    try:
        values = run_batch(batch, measures)
    except (InputError, OutOfMemory) as error:
        size = batch.rows.size
        if isinstance(error, OutOfMemory) and batch.room > 1:
            raise
        if size > 1:
            for half in (batch.rows[: size // 2], batch.rows[size // 2 :]):
                _run(replace(batch, rows=half), measures, rows, found)
        elif isinstance(error, OutOfMemory):
            found.refuse(
                int(rows[batch.rows[0]]),
                Refusal(
                    DOES_NOT_FIT,
                    f"{batch.shape.what} does not fit into memory: {_remedy(batch.cases, _LATENCIES, 'use smaller networks')}.",
                ),
            )
        else:
            found.refuse(int(rows[batch.rows[0]]), Refusal(REFUSED, str(error)))
        return
    for name, value in values.items():
        found.values[name][rows[batch.rows]] = value


def prepared(
    columns: Columns, rows: np.ndarray, spec: Spec, batch: int
) -> Iterator[tuple[np.ndarray, Cases | Refusal]]:
    """The cases of one kind, prepared together; in halves where that is refused, until it is known for which case."""
    numbers = 1 if "fleet" in columns else padded_arcs(taken(columns, rows[:1]))
    each = PREPARING * numbers * jnp.zeros(()).dtype.itemsize
    room = int(device.PLANNED * device_memory() / each)
    if room < 1:
        gigabytes = f"{each / 1e9:.3g} GB, the device has {device_memory() / 1e9:.3g} GB"
        yield rows, Refusal(DOES_NOT_FIT, f"Its optimum needs about {gigabytes}: use smaller networks.")
        return
    batch = min(batch, 2 ** int(math.log2(room)))
    try:
        yield rows, prepare_all(taken(columns, rows), spec.max_steps, needs(spec.measures), batch)
    except OutOfMemory:
        if batch > 1:
            yield from prepared(columns, rows, spec, batch // 2)
        else:
            yield rows, Refusal(DOES_NOT_FIT, "Its optimum does not fit into memory: use smaller networks.")
    except InputError as error:
        if rows.size == 1 or isinstance(error, KindError):
            yield rows, Refusal(REFUSED, str(error))
            return
        for half in (rows[: rows.size // 2], rows[rows.size // 2 :]):
            yield from prepared(columns, half, spec, batch)


def taken(columns: Columns, rows: np.ndarray) -> dict[str, np.ndarray]:
    """Some of the cases."""
    return {name: values[rows] for name, values in columns.items()}


def prepare_all(columns: Columns, max_steps: int, wanted: set[str], batch: int) -> Cases:
    """Prepare the cases of one kind, `batch` at a time; the last ones are filled up, so that all share compiled code."""
    size = len(next(iter(columns.values())))
    parts = []
    for first in range(0, size, batch):
        rows = _filled(np.arange(first, min(first + batch, size)), batch)
        with _memory_errors():
            parts.append(prepare(taken(columns, rows), max_steps, wanted))
    counts = [min(batch, size - first) for first in range(0, size, batch)]
    return join([part.take(np.arange(count)) for part, count in zip(parts, counts, strict=True)], size)


def shapes_of(cases: Cases, measures: tuple[str, ...]) -> dict[int, Shape | Refusal]:
    """For every case that has an optimum and a step size: what its simulation is compiled for, or why it is not run."""
    steps = _steps(cases)
    return {int(row): _shape_of(cases, int(row), float(steps[row]), measures) for row in runnable(cases)}


def batches(cases: Cases, shapes: dict[int, Shape | Refusal], measures: tuple[str, ...], batch: int) -> Iterator[Batch]:
    """The cases that can run, in batches of one shape, those of similar length together; small ones where memory is short."""
    steps = _steps(cases)
    for shape in sorted({shape for shape in shapes.values() if isinstance(shape, Shape)}):
        members = np.array([row for row, found in shapes.items() if found == shape])
        members = members[np.argsort(steps[members], kind="stable")]
        room = min(batch, fitting(shape, measures))
        for first in range(0, members.size, room):
            yield Batch(cases, members[first : first + room], shape, room)


def _steps(cases: Cases) -> np.ndarray:
    with np.errstate(all="ignore"):
        return np.maximum(steps_for(cases.duration, cases.dt), 1)


def _shape_of(cases: Cases, row: int, steps: float, measures: tuple[str, ...]) -> Shape | Refusal:
    wanted = needs(measures)
    _, frontends, backends = cases.networks.latency.shape
    longest, dt = float(_longest(cases)[row]), float(cases.dt[row])
    if not steps <= LARGEST_STEP:
        return Refusal(
            TOO_MANY_STEPS,
            f"The run is {steps:.3g} steps of {dt:.2g} s, more than {LARGEST_STEP}: {_remedy(cases)}.",
        )
    if not longest / dt < LARGEST_LINE:
        return Refusal(
            DOES_NOT_FIT,
            f"The largest latency is {longest / dt:.3g} steps of {dt:.2g} s: {_remedy(cases, _LATENCIES, runs=False)}.",
        )
    needed = rows_for(longest, dt)
    rows = next((size for size in _ROWS if size >= needed), 2 ** (needed - 1).bit_length())
    shape = Shape(frontends, backends, rows, 0, 0)
    if wanted & {COSTS, WORKLOADS, JUDGED}:
        most = 2 * (_INSTANTS if wanted & {COSTS, WORKLOADS} else _LOOKS)
        every = 2 ** max(0, math.ceil(math.log2(steps / most)))
        if WORKLOADS in wanted:
            every = min(_FINE, every)
        frames = max(most, 2 ** math.ceil(math.log2(steps / every))) + 1
        shape = Shape(frontends, backends, rows, frames, every)
    if fitting(shape, measures) < 1:
        each, there = memory(shape, measures) / 1e9, device_memory() / 1e9
        return Refusal(
            DOES_NOT_FIT,
            f"{shape.what} needs about {each:.3g} GB, the device has {there:.3g} GB: {_remedy(cases, _LATENCIES, 'use smaller networks')}.",
        )
    return shape


def _remedy(cases: Cases, *more: str, runs: bool = True) -> str:
    """What to change: of what the specification says about steps, and about the length of `runs` if that matters, or `more`."""
    steps = [f"raise {name}" for name in ("dt", "dt_over_suggested") if name in cases.given]
    steps = steps or [f"lower {name}" for name in STEP_SIZES if name in cases.given]
    lengths = [f"lower {name}" for name in ("duration", "duration_over_suggested") if name in cases.given]
    *first, last = [*steps, *((lengths or ["lower max_steps"]) if runs else ()), *more]
    return f"{', '.join(first)}, or {last}" if first else last


def _longest(cases: Cases) -> np.ndarray:
    """The longest latency of every case, seconds."""
    return np.maximum(cases.networks.latency, cases.networks.feedback_latency).max((1, 2))


def memory(shape: Shape, measures: tuple[str, ...]) -> int:
    """About how many bytes one case takes on the device."""
    size, fields, itemsize = (
        (1, shape.frontends, shape.backends),
        _fields(needs(measures)),
        jnp.zeros(()).dtype.itemsize,
    )
    return int(Memory(size, 1, shape.rows, shape.frames, fields, resumable=False, itemsize=itemsize).bytes)


def fitting(shape: Shape, measures: tuple[str, ...]) -> int:
    """How many cases fit into the memory of the devices of this process, a power of two; 0 when not even one does."""
    room = int(device.PLANNED * device_memory()) // memory(shape, measures)
    if room < 1 or shape.rows * shape.frontends * shape.backends > LARGEST_LINE:
        return 0
    return 2 ** int(math.log2(room))


def device_memory() -> float:
    """Bytes that all devices of this process have together; on CPU the memory of the machine."""
    return min(device.all_memory(), _MOST_MEMORY)


def run_batch(batch: Batch, measures: tuple[str, ...]) -> dict[str, np.ndarray]:
    """Simulate a batch and compute its measures.

    **Raises:** `OutOfMemory`.
    """
    count = batch.rows.size
    cases = batch.cases.take(_filled(batch.rows, batch.width))
    with _memory_errors():
        networks, optimum = jax.tree.map(jnp.asarray, (cases.networks, cases.optimum))
        policy = cases.balancer(networks, optimum)
        assessed = assess(
            networks,
            policy,
            optimum=optimum,
            start=(jnp.asarray(cases.routing), jnp.asarray(cases.workload)),
            dt=cases.dt,
            duration=cases.duration,
            every=batch.shape.every,
            fields=_fields(needs(measures)),
            statistics=statistics(measures),
            frames=batch.shape.frames,
            max_latency=delay_for(batch.shape.rows, float(cases.dt.min())),
        )
        jax.block_until_ready(assessed.run)
        runs = Runs(
            assessed=assessed,
            policy=policy,
            optimum=optimum,
            dt=cases.dt,
            duration=cases.duration,
            default=cases.default,
            sufficient=cases.sufficient,
            critical=cases.critical,
        )
        return compute(measures, runs, count)


def _fields(wanted: set[str]) -> tuple[str, ...]:
    return ("cost_rate",) * (COSTS in wanted) + ("workload",) * bool(wanted & {WORKLOADS, JUDGED})


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
