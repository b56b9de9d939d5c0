"""What a sweep would take, from a short probe: cases, compiled shapes, memory, time."""

import time
from collections.abc import Callable
from dataclasses import dataclass

from dgdlb_jax.studies.sweep.batches import device_memory, memory, run_batch
from dgdlb_jax.studies.sweep.chunks import check_possible, probe, spread
from dgdlb_jax.studies.sweep.measures import wanted
from dgdlb_jax.studies.sweep.progress import compile_seconds, duration
from dgdlb_jax.studies.sweep.spec import Spec


@dataclass(frozen=True)
class Estimate:
    """What a sweep would take.

    - `cases`, `chunks`; `shapes`: (frontends, backends, delay rows) that code is compiled for, with the share of the cases.
    - `compiling`, `computing`: seconds. `memory`, `device_memory`: bytes on the devices of this process, needed and there.
    - `disk`: bytes of the store, before compression. `probed`: how many cases were tried; `refused`: a sentence about each
      of them that cannot be computed.
    """

    cases: int
    chunks: int
    shapes: dict[tuple[int, int, int], float]
    compiling: float
    computing: float
    memory: int
    device_memory: float
    disk: int
    probed: int
    refused: tuple[str, ...]


def estimate(spec: Spec) -> Estimate:
    """Prepare and run a few cases from all over the sweep; nothing is written.

    **Raises:** `InputError` as `sweep` would.
    """
    before = compile_seconds()
    check_possible(spec)
    computing, count, found, refused = 0.0, 0, [], []
    for columns in spread(spec):
        batches, sentences = probe(spec, columns)
        computing += _seconds(lambda columns=columns: probe(spec, columns))
        for batch in batches:
            run_batch(batch, spec.measures)
            share = batch.rows.size / batch.width
            computing += share * _seconds(lambda batch=batch: run_batch(batch, spec.measures))
        count += columns["seed"].size
        found += batches
        refused += sentences
    shapes: dict[tuple[int, int, int], float] = {}
    for batch in found:
        key = batch.shape.frontends, batch.shape.backends, batch.shape.rows
        shapes[key] = shapes.get(key, 0) + batch.rows.size / count
    return Estimate(
        cases=spec.size,
        chunks=spec.chunks,
        shapes=shapes,
        compiling=compile_seconds() - before,
        computing=computing / count * spec.size,
        memory=max((memory(batch.shape, spec.measures) * batch.width for batch in found), default=0),
        device_memory=device_memory(),
        disk=spec.size * sum(1 if measure.flags else 8 for measure in wanted(spec.measures).values()),
        probed=count,
        refused=tuple(refused),
    )


def text(spec: Spec, found: Estimate) -> str:
    """The estimate for people."""
    axes = " x ".join(f"{axis.name} {axis.size}" for axis in spec.axes) or "no axes"
    shapes = ", ".join(
        f"{frontends} x {backends} with {rows} delay rows ({share:.0%})"
        for (frontends, backends, rows), share in sorted(found.shapes.items(), key=lambda item: -item[1])
    )
    lines = [
        f"{spec.name}: {found.cases:,} cases ({axes}) in {found.chunks:,} chunks of up to {spec.chunk}",
        f"measures:  {', '.join(spec.measures)}",
        f"compiled:  {shapes or 'nothing: none of the cases tried can run'}",
        f"memory:    {size(found.memory)} on the devices, of {size(found.device_memory)}; {size(found.disk)} on disk",
        f"time:      about {duration(found.computing)}, and {duration(found.compiling)} to compile "
        f"(from {found.probed} cases all over the sweep)",
    ]
    if found.refused:
        lines.append(f"refused:   {len(found.refused)} of these cases, the first because: {found.refused[0]}")
    return "\n".join(lines)


def size(count: float) -> str:
    """`3.2 MB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


def _seconds(work: Callable[[], object]) -> float:
    """How long something takes."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began
