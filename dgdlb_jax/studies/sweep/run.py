"""`sweep`: compute what a store lacks, chunk by chunk, together with other processes if there are any."""

import contextlib
import hashlib
import os
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from dgdlb_jax.fleets.document import clipped
from dgdlb_jax.numerics.results import InputError
from dgdlb_jax.numerics.versions import versions
from dgdlb_jax.studies.sweep.batches import (
    Batch,
    Computed,
    OutOfMemory,
    Refusal,
    batches,
    compute_chunk,
    default_batch,
    prepared,
    shapes_of,
    taken,
)
from dgdlb_jax.studies.sweep.cases import Columns, fleet_network, kinds
from dgdlb_jax.studies.sweep.lock import Lock
from dgdlb_jax.studies.sweep.progress import Meter, Told, shown
from dgdlb_jax.studies.sweep.spec import Spec, read_spec
from dgdlb_jax.studies.sweep.store import Store, open_dataset

if TYPE_CHECKING:
    import xarray

_POLL = 0.2  # seconds between two looks at what other processes do
_LONG_AGO = 60.0  # seconds after which nobody still works on a file that is half-written
_LONGEST_SENTENCE = 500  # letters
_PROBED = 32  # cases that are prepared before a store is made


def sweep(
    spec: "str | Path | Mapping[str, Any] | Spec",
    store: str | Path | None = None,
    *,
    progress: Told | bool = True,
    recompute_corrupt: bool = False,
    process: int = 0,
    processes: int = 1,
) -> "xarray.Dataset":
    """Compute a sweep, or what is still missing of it.

    **Arguments:**

    - `spec`: a TOML file, the name of a ready sweep (`dgdlb sweep --list`), or a dict with the same keys; the format is described in
      `dgdlb_jax.studies.sweep`.
    - `store`: the folder to keep the results in; the same call goes on where an earlier one ended, however it ended. None keeps
      nothing.

    Other arguments:

    - `progress`: a bar if somebody watches (True), nothing (False), or a function that is told a `Progress` after every batch.
    - `recompute_corrupt`: compute again what is not what the manifest says: chunks, coordinates, metadata.
    - `process`, `processes`: the number of this process among those that share the sweep. Chunks of one that dies are taken over.

    **Returns:** an `xarray.Dataset`, opened lazily from the store: a dimension per axis, inputs as coordinates, measures as variables.

    **Raises:** `InputError` for a specification that makes no sense, a store that belongs to another one, is in use or corrupt, a
    disk that refuses. `KeyboardInterrupt` after the chunk in flight has been finished, when interrupted.
    """
    require_extra()
    found = read_spec(spec)
    if store is None:
        with tempfile.TemporaryDirectory(prefix="dgdlb-") as folder:
            return sweep(found, Path(folder) / "sweep.zarr", progress=progress).load()
    path = Path(store)
    open_store = _open(path, found)
    with open_store.lock(process, recompute_corrupt) as lock, _patience() as stop:
        if process == 0:
            _look_after(open_store, recompute_corrupt)
        if callable(progress):
            _work(open_store, lock, stop, progress, process, processes)
        else:
            with shown(found.name, quiet=not progress or process > 0) as told:
                _work(open_store, lock, stop, told, process, processes)
    return open_dataset(path)


def open_sweep(store: str | Path) -> "xarray.Dataset":
    """The store of a sweep as an `xarray.Dataset`, opened lazily, like `xarray.open_zarr`, after comparing all files with their checksums.

    **Raises:** `InputError` when it is none, or damaged: it names the file, and how to repair it.
    """
    require_extra()
    return open_dataset(Path(store), verify=True)


def require_extra() -> None:
    """Say which line to type when a package for stores is missing."""
    try:
        import xarray  # noqa: F401
        import zarr  # noqa: F401
    except ImportError as error:
        raise InputError(f'{error.name} is not installed; type: pip install "dgdlb_jax[sweep]".') from error


def probe(spec: Spec, columns: Columns) -> tuple[list[Batch], list[str]]:
    """Prepare some cases of one kind.

    **Returns:** the batches they make, and a sentence about each that could only be marked as refused once the sweep runs.
    """
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


def check_possible(spec: Spec) -> None:
    """Raise `InputError` when none of a few cases, evenly spread, can be computed here: with what the first is refused for."""
    tried = spread(spec)
    refused = [sentence for columns in tried for sentence in probe(spec, columns)[1]]
    if len(refused) == sum(columns["seed"].size for columns in tried):
        raise InputError(refused[0])


def batch_of(spec: Spec) -> int:
    """How many cases run side by side: never more than a chunk has, or than there are, but for a few that share compiled code."""
    most = min(spec.chunk, max(spec.size, default_batch()))
    return min(spec.batch or default_batch(), 2 ** (most - 1).bit_length())


def spread(spec: Spec, count: int = _PROBED) -> list[Columns]:
    """Up to `count` cases, evenly spread, by kind."""
    flat = np.unique(np.linspace(0, spec.size - 1, min(count, spec.size)).astype(int))
    cases = [
        spec.cases(tuple(slice(int(k), int(k) + 1) for k in (np.unravel_index(case, spec.shape) if spec.axes else ())))
        for case in flat
    ]
    columns = {name: np.concatenate([case[name] for case in cases]) for name in cases[0]}
    return [taken(columns, rows) for rows in kinds(columns)]


def _open(path: Path, spec: Spec) -> Store:
    facts = _facts(spec)
    if path.exists() or path.is_symlink():
        return Store(path, spec, facts)
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        raise InputError(f"{path} cannot be written: no permission to write in {folder}; choose another place.")
    check_possible(spec)
    return Store.create(path, spec, facts)


def _facts(spec: Spec) -> dict[str, Any]:
    """What the results depend on beside the specification."""
    facts: dict[str, Any] = {
        "dgdlb_jax": versions()["dgdlb_jax"],
        "precision": str(jnp.zeros(()).dtype),
        "cases_side_by_side": batch_of(spec),
    }
    fleets = [spec.fixed.get("fleet"), *(name for axis in spec.axes for name in axis.values.get("fleet", ()))]
    for name in fleets:
        if name is not None:
            leaves = jax.tree.leaves(fleet_network(str(name)))
            digest = hashlib.sha256(b"".join(np.ascontiguousarray(leaf).tobytes() for leaf in leaves))
            facts[f"fleet {name}"] = digest.hexdigest()[:16]
    return facts


def _look_after(store: Store, recompute_corrupt: bool) -> None:
    """Before anything new is computed: damage, and what killed processes left behind."""
    if recompute_corrupt:
        store.repair()
    found = store.damage()
    if found:
        chunks = len({damage.chunk for damage in found} - {None})
        count = f"{chunks} of {store.spec.chunks} chunks corrupt, " if chunks else ""
        raise InputError(
            f"{store.path}: {count}{found[0]}: --recompute-corrupt computes again what is damaged and keeps the rest."
        )
    store.tidy(_LONG_AGO)


def _work(store: Store, lock: Lock, stop: threading.Event, told: Told | None, process: int, processes: int) -> None:
    """Compute chunks until all are complete: one's own first, then those that nobody works on."""
    spec = store.spec
    own = range(process, spec.chunks, processes)
    others = [chunk for chunk in range(spec.chunks) if chunk % processes != process]
    meter = Meter(spec.size, sum(_size(spec, chunk) for chunk in store.complete()), told)
    for chunk in own:
        _finish(store, lock, stop, meter, chunk)
    while others:
        before = len(others)
        others = [chunk for chunk in others if not store.is_complete(chunk)]
        for chunk in others:
            if _finish(store, lock, stop, meter, chunk):
                break
        _check(stop)
        if len(others) == before:
            time.sleep(_POLL)
    if len(store.complete()) == spec.chunks:  # nobody writes any more
        store.tidy()


def _finish(store: Store, lock: Lock, stop: threading.Event, meter: Meter, chunk: int) -> bool:
    """Compute and store a chunk, unless it is complete or somebody else is at it. **Returns:** whether it was computed."""
    if store.is_complete(chunk) or not lock.claim(chunk):
        return False
    try:
        _check(stop)
        if store.is_complete(chunk):
            return False
        began = time.perf_counter()
        computed, batch = _compute(store.spec, chunk, meter)
        notes = {
            "cases_side_by_side": batch,
            "smaller_for_lack_of_memory": batch < batch_of(store.spec),
            "refused": {str(case): clipped(why, _LONGEST_SENTENCE) for case, why in computed.refused.items()},
            "seconds": round(time.perf_counter() - began, 3),
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
            "host": socket.gethostname(),
            "device": str(jax.devices()[0].device_kind),
            "devices": jax.local_device_count(),
            "versions": versions(),
        }
        store.write(chunk, computed.values, notes)
    finally:
        lock.release(chunk)
    meter.chunk(sum(_size(store.spec, done) for done in store.complete()))
    _check(stop)
    return True


def _compute(spec: Spec, chunk: int, meter: Meter) -> tuple[Computed, int]:
    """The values of a chunk, and how many cases ran side by side: fewer after running out of memory."""
    columns, batch = spec.cases(spec.region(chunk)), batch_of(spec)
    while True:
        try:
            return compute_chunk(spec, columns, batch, meter.cases), batch
        except OutOfMemory:
            batch //= 2  # with one at a time, what does not fit is marked


def _size(spec: Spec, chunk: int) -> int:
    return int(np.prod([part.stop - part.start for part in spec.region(chunk)]))


def _check(stop: threading.Event) -> None:
    if stop.is_set():
        raise KeyboardInterrupt


@contextlib.contextmanager
def _patience() -> Iterator[threading.Event]:
    """The first Ctrl-C (or SIGTERM, from a cluster) lets the chunk in flight finish, the second does not."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def wait(number, _):
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()

    before = {number: signal.signal(number, wait) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
