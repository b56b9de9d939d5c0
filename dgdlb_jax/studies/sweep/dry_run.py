"""What a sweep would take, from a short probe: cases, compiled shapes, memory, time."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import jax

from dgdlb_jax.fleets.document import counted
from dgdlb_jax.numerics.patience import patience
from dgdlb_jax.studies.sweep.batches import device_memory, memory, run_batch
from dgdlb_jax.studies.sweep.chunks import check_possible, check_precision
from dgdlb_jax.studies.sweep.executors import Crew, Executor, Setup, connected, workers_of
from dgdlb_jax.studies.sweep.measures import wanted
from dgdlb_jax.studies.sweep.progress import compile_seconds, duration
from dgdlb_jax.studies.sweep.spec import Spec

_PATIENCE = 12.0  # seconds after which no other batch is tried


@dataclass(frozen=True)
class Estimate:
    """What a sweep would take.

    - `cases`, `chunks`; `shapes`: (frontends, backends, delay rows) that code is compiled for, with the share of the cases.
    - `compiling`, `computing`: seconds. `devices`: of this process; `memory`, `device_memory`: bytes on them, needed and there.
    - `disk`: bytes of the store, before compression. `probed`: how many cases were run; `refused`: a sentence about each
      of those tried that cannot be computed. `threads`: of each worker there is elsewhere; None without an executor that tells.
    """

    cases: int
    chunks: int
    shapes: dict[tuple[int, int, int], float]
    compiling: float
    computing: float
    memory: int
    devices: str
    device_memory: float
    disk: int
    probed: int
    refused: tuple[str, ...]
    threads: tuple[int, ...] | None = None


def estimate(spec: Spec, executor: Executor | str | None = None, worker_setup: Setup | None = None) -> Estimate:
    """Prepare a few cases from all over the sweep, and run as many of them as a few seconds allow, here; nothing is written.

    **Arguments:** `executor` and `worker_setup` as for `sweep`: whether somebody is there who can compute it.

    **Raises:** `InputError` as `sweep` would.
    """
    check_precision(spec)
    with connected(executor) as pool:
        if pool is None:
            return _estimate(spec)
        Crew(pool, spec, worker_setup, probe=False)
        workers = workers_of(pool)
        return replace(_estimate(spec), threads=None if workers is None else tuple(workers))


def _estimate(spec: Spec) -> Estimate:
    began, before = time.perf_counter(), compile_seconds()
    tried = check_possible(spec)
    preparing, running, ran = _seconds(lambda: check_possible(spec)), 0.0, 0
    for batch in sorted(tried.batches, key=lambda batch: -batch.rows.size):  # those that most cases are like come first
        if ran and time.perf_counter() - began > patience(_PATIENCE):
            break
        running += batch.rows.size / batch.width * _seconds(lambda batch=batch: run_batch(batch, spec.measures))
        ran += batch.rows.size
    can_run = sum(batch.rows.size for batch in tried.batches)
    shapes: dict[tuple[int, int, int], float] = {}
    for batch in tried.batches:
        key = batch.shape.frontends, batch.shape.backends, batch.shape.rows
        shapes[key] = shapes.get(key, 0) + batch.rows.size / tried.count
    return Estimate(
        cases=spec.size,
        chunks=spec.chunks,
        shapes=shapes,
        compiling=compile_seconds() - before,
        computing=(preparing + running * can_run / max(ran, 1)) / tried.count * spec.size,
        memory=max((memory(batch.shape, spec.measures) * batch.width for batch in tried.batches), default=0),
        devices=_devices(),
        device_memory=device_memory(),
        disk=spec.size * sum(1 if measure.flags else 8 for measure in wanted(spec.measures).values()),
        probed=ran,
        refused=tuple(tried.refused),
    )


def _devices() -> str:
    """`NVIDIA H200`, `8 x NVIDIA H200`."""
    count, kind = jax.local_device_count(), jax.local_devices()[0].device_kind
    return kind if count == 1 else f"{count} x {kind}"


def text(spec: Spec, found: Estimate) -> str:
    """The estimate for people."""
    axes = " x ".join(f"{axis.name} {axis.size}" for axis in spec.axes) or "no axes"
    shapes = ", ".join(
        f"{frontends} x {backends} with {rows} delay rows ({share:.0%})"
        for (frontends, backends, rows), share in sorted(found.shapes.items(), key=lambda item: -item[1])
    )
    lines = [
        f"{spec.name}: {found.cases:,} cases ({axes}) in {counted(found.chunks, 'chunk', 'chunks')} of up to {spec.chunk}",
        f"measures:  {', '.join(spec.measures)}",
        f"compiled:  {shapes or 'nothing: none of the cases tried can run'}",
        f"memory:    {size(found.memory)} on {found.devices}, of {size(found.device_memory)}; {size(found.disk)} on disk",
        f"time:      about {duration(found.computing)}, and {duration(found.compiling)} to compile "
        f"(from running {found.probed} cases)",
    ]
    if found.threads is not None:
        workers = counted(len(found.threads), "worker", "workers")
        lines.append(
            f"workers:   {workers} with {counted(sum(found.threads), 'thread', 'threads')}; time and memory are those of here"
        )
    if found.refused:
        lines.append(f"refused:   {len(found.refused)} of the cases tried, the first because: {found.refused[0]}")
    return "\n".join(lines)


def size(count: float) -> str:
    """`3.2 MB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


def _seconds(work: Callable[[], object]) -> float:
    """How long something takes beside compiling."""
    began, before = time.perf_counter(), compile_seconds()
    work()
    return max(0.0, time.perf_counter() - began - (compile_seconds() - before))
