"""`sweep`: compute what a store lacks, chunk by chunk, together with other processes if there are any."""

import contextlib
import hashlib
import os
import signal
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from dgdlb_jax.numerics.results import InputError
from dgdlb_jax.numerics.versions import versions
from dgdlb_jax.studies.sweep.chunks import batch_of, check_possible, check_precision, compute
from dgdlb_jax.studies.sweep.executors import Crew, Executor, Setup, connected
from dgdlb_jax.studies.sweep.fleet import fleet_network
from dgdlb_jax.studies.sweep.lock import Lock
from dgdlb_jax.studies.sweep.progress import Meter, Told, shown
from dgdlb_jax.studies.sweep.spec import Spec, read_spec
from dgdlb_jax.studies.sweep.store import Store, open_dataset, read_identity

if TYPE_CHECKING:
    import xarray

_BATCH = "cases_side_by_side"  # of the facts that a store keeps
_POLL = 0.2  # seconds between two looks at what other processes do
_GRACE = 5.0  # seconds that Ctrl-C leaves the chunk in flight; then that ends with the batch in flight
_LONG_AGO = 60.0  # seconds after which nobody still works on a file that is half-written


def sweep(
    spec: "str | Path | Mapping[str, Any] | Spec",
    store: str | Path | None = None,
    *,
    progress: Told | bool = True,
    recompute_corrupt: bool = False,
    process: int = 0,
    processes: int = 1,
    executor: Executor | str | None = None,
    worker_setup: Setup | None = None,
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
    - `executor`: a `concurrent.futures.Executor` that computes the chunks, or `"dask://HOST:PORT"`, the scheduler of a dask cluster;
      this process stores what comes back. `worker_setup`: a function of a module that workers can import; it registers there what the
      specification names, once in every worker.

    **Returns:** an `xarray.Dataset`, opened lazily from the store: a dimension per axis, inputs as coordinates, measures as variables.

    **Raises:** `InputError` for a specification that makes no sense, a store that belongs to another one, is in use or corrupt, a
    disk that refuses, workers that cannot compute it. `KeyboardInterrupt` when interrupted, after the chunk in flight if that
    takes a few seconds only.
    """
    require_extra()
    found = read_spec(spec)
    check_precision(found)
    if executor is not None and processes > 1:
        raise InputError(f"An executor and {processes} processes exclude each other: leave out one of them.")
    if store is None:
        with tempfile.TemporaryDirectory(prefix="dgdlb-") as folder:
            path = Path(folder) / "sweep.zarr"
            return sweep(found, path, progress=progress, executor=executor, worker_setup=worker_setup).load()
    path = Path(store)
    with connected(executor) as pool:
        crew = None if pool is None else Crew(pool, found, worker_setup, probe=not path.exists())
        open_store = _open(path, found, crew)
        with open_store.lock(process, recompute_corrupt) as lock, _patience() as stop:
            if process == 0:
                _look_after(open_store, recompute_corrupt)
            with _told(progress, found.name, quiet=not progress or process > 0) as told:
                if crew is None:
                    _work(open_store, lock, stop, told, process, processes)
                else:
                    crew.batch = open_store.facts[_BATCH]
                    _collect(open_store, lock, stop, told, crew)
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


def _told(progress: Told | bool, name: str, quiet: bool) -> contextlib.AbstractContextManager[Told | None]:
    return contextlib.nullcontext(progress) if callable(progress) else shown(name, quiet)


def _open(path: Path, spec: Spec, crew: Crew | None) -> Store:
    facts = _facts(spec, None if crew is None else crew.batch)
    if path.exists() or path.is_symlink():
        begun = read_identity(path)["facts"].get(_BATCH)  # with the devices of the process that began it
        return Store(path, spec, facts | {_BATCH: begun} if isinstance(begun, int) else facts)
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        raise InputError(f"{path} cannot be written: no permission to write in {folder}; choose another place.")
    if crew is None:
        check_possible(spec)
    return Store.create(path, spec, facts)


def _facts(spec: Spec, batch: int | None = None) -> dict[str, Any]:
    """What the results depend on beside the specification."""
    facts: dict[str, Any] = {
        "dgdlb_jax": versions()["dgdlb_jax"],
        "precision": str(jnp.zeros(()).dtype),
        _BATCH: batch or batch_of(spec),
    }
    for name in spec.values_of("fleet"):
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


def _collect(store: Store, lock: Lock, stop: threading.Event, told: Told | None, crew: Crew) -> None:
    """Store what a crew computes, until all chunks are complete."""
    spec, claimed = store.spec, set()
    meter = Meter(spec.size, sum(_size(spec, chunk) for chunk in store.complete()), told)

    def missing() -> Iterator[int]:
        for chunk in range(spec.chunks):
            if not store.is_complete(chunk) and chunk not in claimed and lock.claim(chunk):
                claimed.add(chunk)
                yield chunk

    left = lambda: spec.chunks - len(store.complete())
    try:
        while len(store.complete()) < spec.chunks:
            with contextlib.closing(crew.compute_missing(missing(), stop, left)) as results:
                for chunk, found in results:
                    store.write(chunk, found.values, found.notes)
                    claimed.remove(chunk)
                    lock.release(chunk)
                    meter.cases(_size(spec, chunk))
                    meter.chunk(sum(_size(spec, done) for done in store.complete()))
            _check(stop)
            time.sleep(_POLL if len(store.complete()) < spec.chunks else 0)  # another process works on the rest
    finally:
        for chunk in claimed:
            lock.release(chunk)
    store.tidy()


def _finish(store: Store, lock: Lock, stop: threading.Event, meter: Meter, chunk: int) -> bool:
    """Compute and store a chunk, unless it is complete or somebody else is at it. **Returns:** whether it was computed."""
    if store.is_complete(chunk) or not lock.claim(chunk):
        return False
    try:
        _check(stop)
        if store.is_complete(chunk):
            return False
        found = compute(store.spec, chunk, store.facts[_BATCH], meter.cases)
        store.write(chunk, found.values, found.notes)
    finally:
        lock.release(chunk)
    meter.chunk(sum(_size(store.spec, done) for done in store.complete()))
    _check(stop)
    return True


def _size(spec: Spec, chunk: int) -> int:
    return int(np.prod([part.stop - part.start for part in spec.region(chunk)]))


def _check(stop: threading.Event) -> None:
    if stop.is_set():
        raise KeyboardInterrupt


@contextlib.contextmanager
def _patience() -> Iterator[threading.Event]:
    """The first SIGTERM (from a cluster) lets the chunk in flight finish, so does Ctrl-C for some seconds; a second one does not."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    second = threading.Timer(_GRACE, signal.raise_signal, [signal.SIGINT])
    second.daemon = True

    def wait(number, _):
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()
        if number == signal.SIGINT:
            second.start()

    before = {number: signal.signal(number, wait) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        second.cancel()
        for number, handler in before.items():
            signal.signal(number, handler)
