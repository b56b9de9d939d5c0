"""The store of a sweep: a zarr directory, written chunk by chunk, with a manifest of what is complete.

```
NAME.zarr/
  zarr.json                 dimensions, inputs, units, specification, versions
  load/c/0 ...              coordinates
  excess/c/0/3 ...          one file per measure and chunk, as zarr lays them out
  manifest/                 checksums of all of these, and what is complete: see `manifest`
```

Every file is written beside its place and moved there when it is whole and on disk; the manifest's entry comes last. So whatever
happens, a chunk either is complete or is computed again.
"""

import contextlib
import errno
import json
import os
import shutil
import tempfile
import time
import warnings
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dgdlb_jax.numerics.files import flush
from dgdlb_jax.numerics.results import InputError
from dgdlb_jax.studies.sweep import manifest
from dgdlb_jax.studies.sweep.frame import write_frame
from dgdlb_jax.studies.sweep.lock import Lock
from dgdlb_jax.studies.sweep.manifest import Damage
from dgdlb_jax.studies.sweep.measures import wanted
from dgdlb_jax.studies.sweep.spec import Spec

if TYPE_CHECKING:
    import xarray

_FULL = (errno.ENOSPC, errno.EDQUOT)
_LEFT_OVER, _DRAFT = ".part", ".frame-"


class Store:
    """A store on disk, open for writing.

    **Arguments:** `path` of a store that `create` has made; `spec`: the specification it has to belong to, with the facts that
    `create` was given.

    **Raises:** `InputError` when it is no store, or belongs to another specification.
    """

    def __init__(self, path: Path, spec: Spec, facts: dict[str, Any]):
        check_same(path, spec, facts)
        self.path, self.spec, self.facts = path, spec, facts

    @classmethod
    def create(cls, path: Path, spec: Spec, facts: dict[str, Any]) -> "Store":
        """Make an empty store, whole or not at all; one that another process made in the meantime will do.

        **Arguments:** `facts`: what else the results depend on, kept as attributes.
        """
        with _disk_errors(path, "nothing is half-written"):
            path.parent.mkdir(parents=True, exist_ok=True)
            draft = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
            try:
                _write_all_but_results(draft, spec, facts)
                draft.chmod(0o755)
                with contextlib.suppress(FileExistsError):
                    _move_folder(draft, path)
            finally:
                shutil.rmtree(draft, ignore_errors=True)
        return cls(path, spec, facts)

    @cached_property
    def _arrays(self) -> dict[str, Any]:
        import zarr

        with zarr.config.set({"array.write_empty_chunks": True}):  # a chunk of NaN is complete as well
            return {name: zarr.open_array(self.path / name, mode="r+") for name in wanted(self.spec.measures)}

    @cached_property
    def _frame(self) -> str:
        """The checksum of the frame that chunks belong to."""
        return manifest.frame_digest(manifest.read_record(self.path / manifest.FRAME)["files"])

    def lock(self, process: int, repair: bool = False) -> Lock:
        """The locks of a process on this store.

        **Arguments:** `repair`: put a file where the lock has to be when something else stands there.
        """
        file = self.path / manifest.FOLDER / "lock"
        if repair and not file.is_file():
            with self._disk_errors():
                _make_way(self.path, file)
        return Lock(file, process)

    def complete(self) -> set[int]:
        """The chunks that are complete."""
        return set(manifest.entries(self.path))

    def is_complete(self, chunk: int) -> bool:
        """Whether a chunk is complete."""
        return self._entry(chunk).exists()

    def damage(self) -> list[Damage]:
        """Everything that is not what the manifest says."""
        return list(manifest.find_damage(self.path))

    def repair(self) -> None:
        """Write coordinates and metadata again where they are damaged, and forget damaged chunks, which are then computed again.

        **Raises:** `InputError` when something stands in the way that cannot be computed again.
        """
        with self._disk_errors():
            found = self.damage()
            if any(damage.chunk is None for damage in found):
                self._restore_frame()
                found = self.damage()
            for damage in found:
                if damage.chunk is not None:
                    _make_way(self.path, self._entry(damage.chunk))

    def _restore_frame(self) -> None:
        with tempfile.TemporaryDirectory(prefix=_DRAFT, dir=self.path) as draft:
            _write_all_but_results(Path(draft), self.spec, self.facts)
            for name, expected in manifest.files_of(Path(draft)).items():
                file = self.path / name
                with contextlib.suppress(OSError):
                    if manifest.checksum(file) == expected:
                        continue
                _make_way(self.path, file)
                (Path(draft) / name).replace(file)

    def tidy(self, age: float = 0.0) -> None:
        """Remove what killed processes left half-written, if it is at least so many seconds old."""
        latest = time.time() - age
        for pattern in ("manifest/*" + _LEFT_OVER, "*/c/**/*.partial", _DRAFT + "*"):
            for file in self.path.glob(pattern):
                with contextlib.suppress(FileNotFoundError):  # another process may be just as tidy
                    if file.stat().st_mtime <= latest:
                        shutil.rmtree(file) if file.is_dir() else file.unlink()

    def write(self, chunk: int, values: dict[str, np.ndarray], notes: dict[str, Any]) -> None:
        """Write all measures of a chunk, then its entry in the manifest.

        **Raises:** `InputError` when the disk refuses; the store can go on later.
        """
        region = self.spec.region(chunk)
        shape = tuple(part.stop - part.start for part in region)
        files = [self._file(name, chunk) for name in values]
        try:
            with self._disk_errors():
                for name, array in self._arrays.items():
                    _make_way(self.path, self._file(name, chunk))  # zarr would read, and trip over, a broken one
                    array[region if region else ...] = values[name].reshape(shape)
                sums = {}
                for file in files:
                    flush(file)
                    sums[str(file.relative_to(self.path))] = manifest.checksum(file)
                entry = {"chunk": chunk, "frame": self._frame, "files": sums, **notes}
                _write_whole(self._entry(chunk), manifest.seal(entry))
        except BaseException:
            for file in [*files, self._entry(chunk)]:
                with contextlib.suppress(OSError):
                    file.unlink(missing_ok=True)
            raise

    def _file(self, name: str, chunk: int) -> Path:
        return _chunk_file(self.path, name, chunk, self.spec.blocks)

    def _entry(self, chunk: int) -> Path:
        return self.path / manifest.entry_name(chunk)

    def _disk_errors(self) -> "_disk_errors":
        return _disk_errors(self.path, "the chunks before are complete: the same command goes on from here")


def open_dataset(path: Path, verify: bool = False) -> "xarray.Dataset":
    """A store, complete or not, opened lazily; what is not complete is NaN.

    **Arguments:** `verify`: compare every file with its checksum first.

    **Raises:** `InputError` when it is no store of a sweep, or damaged.
    """
    import xarray

    identity = read_identity(path)
    if verify:
        manifest.check_whole(path)
    dataset = xarray.open_dataset(path, engine="zarr", chunks=None, consolidated=True)
    return _without_doubtful(path, dataset, identity) if verify else dataset


def _without_doubtful(path: Path, dataset: "xarray.Dataset", identity: dict[str, Any]) -> "xarray.Dataset":
    """Without values that no entry of the manifest vouches for: those of a chunk that is being written, or whose entry is lost."""
    spec = Spec.from_document(identity["specification"])
    complete = manifest.entries(path)
    missing = [chunk for chunk in range(spec.chunks) if chunk not in complete]
    if missing:
        warnings.warn(
            f"{path}: {len(missing)} of {spec.chunks} chunks are not complete; their values are NaN.", stacklevel=3
        )
    names = list(wanted(spec.measures))
    doubtful = [
        chunk for chunk in missing if any(_chunk_file(path, name, chunk, spec.blocks).exists() for name in names)
    ]
    if doubtful:
        dataset = dataset.load()
    for chunk in doubtful:
        for name in names:
            dataset[name].values[spec.region(chunk) or ...] = np.nan
    return dataset


def read_identity(path: Path) -> dict[str, Any]:
    """What a store was made from: its `specification` and the facts beside it; from the manifest, or else from the attributes.

    **Raises:** `InputError` when it is no store of a sweep.
    """
    try:
        return manifest.read_record(path / manifest.FRAME)
    except manifest.DamagedRecord as damaged:
        try:
            manifest.check_regular(path / manifest.ROOT)
            attributes = json.loads((path / manifest.ROOT).read_text())["attributes"]
            return {"specification": json.loads(attributes["specification"]), "facts": attributes}
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            if (path / manifest.FRAME).exists():
                raise InputError(
                    f"{path}: {manifest.FRAME} {damaged}, and so is {manifest.ROOT}: nothing says what the store was made from; "
                    "remove it, or choose another --output."
                ) from error
            raise InputError(f"{path} is no store of a sweep: give the folder that dgdlb sweep wrote.") from error


def check_same(path: Path, spec: Spec, facts: dict[str, Any]) -> None:
    """Raise `InputError` when the store belongs to another specification, naming what differs."""
    identity = read_identity(path)
    before, now = identity["specification"], json.loads(json.dumps(spec.document()))
    for key in dict.fromkeys([*now, *before]):
        if before.get(key) != now.get(key):
            what = key if key in ("name", "description") else f"{key}: {_difference(before.get(key), now.get(key))}"
            raise InputError(
                f"{path} belongs to another specification ({what}): choose another --output, or remove it."
            )
    for key, value in facts.items():
        if identity["facts"].get(key) != value:
            raise InputError(
                f"{path} was begun with {key} = {identity['facts'].get(key)}, this is {value}: use the same, or choose another --output."
            )


def _difference(before: Any, now: Any) -> str:
    """The first place where two documents differ, shortly."""
    if isinstance(before, dict) and isinstance(now, dict):
        for key in dict.fromkeys([*now, *before]):
            if before.get(key) != now.get(key):
                return f"{key} {_difference(before.get(key), now.get(key))}"
    if isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        for old, new in zip(before, now, strict=True):
            if old != new:
                return _difference(old, new)
    short = [str(value) if len(str(value)) <= 60 else f"{str(value)[:57]}..." for value in (before, now)]
    return f"{short[0]} there, {short[1]} here"


def _chunk_file(path: Path, name: str, chunk: int, blocks: tuple[int, ...]) -> Path:
    place = np.unravel_index(chunk, blocks) if blocks else ()
    return path.joinpath(name, "c", *map(str, place))


def _write_all_but_results(path: Path, spec: Spec, facts: dict[str, Any]) -> None:
    """An empty store and its record in the manifest."""
    write_frame(path, spec, facts)
    record = {
        "specification": spec.document(),
        "facts": facts,
        "chunks": spec.chunks,
        "files": manifest.files_of(path),
    }
    (path / manifest.FOLDER).mkdir()
    _write_whole(path / manifest.FRAME, manifest.seal(record))


def _make_way(root: Path, file: Path) -> None:
    """Remove what stands in the place of a file, or of one of the folders it lies in below `root`; make those folders.

    **Raises:** `InputError` for a folder that is not empty: nobody knows whose files they are.
    """
    for folder in [root / name for name in reversed(file.relative_to(root).parents)][1:]:
        if not folder.is_dir():
            folder.unlink(missing_ok=True)
            folder.mkdir(exist_ok=True)
    try:
        file.rmdir() if file.is_dir() and not file.is_symlink() else file.unlink(missing_ok=True)
    except OSError as error:
        if error.errno != errno.ENOTEMPTY:
            raise
        raise InputError(
            f"{file} is a folder with files in it, where the store has a file of its own: move it away."
        ) from error


def _write_whole(path: Path, text: str) -> None:
    draft = path.with_name(f"{path.name}.{os.getpid()}{_LEFT_OVER}")
    with draft.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)
    flush(path.parent)


def _move_folder(draft: Path, path: Path) -> None:
    try:
        draft.rename(path)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            raise FileExistsError(str(path)) from error
        raise


class _disk_errors:
    """What the disk refuses, as one sentence."""

    def __init__(self, path: Path, state: str):
        self.path, self.state = path, state

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind, error, trace) -> None:
        if isinstance(error, OSError):
            why = "the disk is full" if error.errno in _FULL else (error.strerror or str(error))
            remedy = "make room" if error.errno in _FULL else "choose another place, or correct its permissions"
            raise InputError(f"{self.path} cannot be written ({why}): {remedy}; {self.state}.") from error
