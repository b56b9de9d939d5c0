"""The store of a sweep: a zarr directory, written chunk by chunk, with a manifest of what is complete.

```
NAME.zarr/
  zarr.json                 dimensions, inputs, units, specification, versions
  excess/c/0/3 ...          one file per measure and chunk, as zarr lays them out
  manifest/chunk-0000003.json   a chunk is complete when this exists: names and checksums of its files, how it was computed
  manifest/lock             see `lock`
```

Every file is written beside its place and moved there when it is whole and on disk; the manifest's entry comes last. So whatever
happens, a chunk either is complete or is computed again.
"""

import contextlib
import errno
import hashlib
import json
import os
import shutil
import tempfile
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dgdlb_jax.experiments.sweep.inputs import INPUTS, PARAMETERS
from dgdlb_jax.experiments.sweep.lock import Lock
from dgdlb_jax.experiments.sweep.measures import Measure, wanted
from dgdlb_jax.experiments.sweep.spec import Spec
from dgdlb_jax.numerics.results import InputError

if TYPE_CHECKING:
    import xarray

_FULL = (errno.ENOSPC, errno.EDQUOT)
_LEFT_OVER = ".part"


class Store:
    """A store on disk, open for writing.

    **Arguments:** `path` of a store that `create` has made; `spec`: the specification it has to belong to, with the facts that
    `create` was given.

    **Raises:** `InputError` when it is no store, or belongs to another specification.
    """

    def __init__(self, path: Path, spec: Spec, facts: dict[str, Any]):
        import zarr

        self.path, self.spec = path, spec
        check_same(path, spec, facts)
        with zarr.config.set({"array.write_empty_chunks": True}):  # a chunk of NaN is complete as well
            self._arrays = {name: zarr.open_array(path / name, mode="r+") for name in wanted(spec.measures)}
        self._manifest = path / "manifest"

    @classmethod
    def create(cls, path: Path, spec: Spec, facts: dict[str, Any]) -> "Store":
        """Make an empty store, whole or not at all; one that another process made in the meantime will do.

        **Arguments:** `facts`: what else the results depend on, kept as attributes.
        """
        with _disk_errors(path, "nothing is half-written"):
            path.parent.mkdir(parents=True, exist_ok=True)
            draft = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
            try:
                _write_frame(draft, spec, facts)
                (draft / "manifest").mkdir()
                draft.chmod(0o755)
                with contextlib.suppress(FileExistsError):
                    _move_folder(draft, path)
            finally:
                shutil.rmtree(draft, ignore_errors=True)
        return cls(path, spec, facts)

    def lock(self, process: int) -> Lock:
        """The locks of a process on this store."""
        return Lock(self._manifest / "lock", process)

    def complete(self) -> set[int]:
        """The chunks that are complete."""
        names = (entry.name for entry in os.scandir(self._manifest))
        return {int(name[6:-5]) for name in names if name.startswith("chunk-") and name.endswith(".json")}

    def is_complete(self, chunk: int) -> bool:
        """Whether a chunk is complete."""
        return self._entry(chunk).exists()

    def read_entry(self, chunk: int) -> dict[str, Any]:
        """What the manifest says about a complete chunk."""
        return json.loads(self._entry(chunk).read_text())

    def corrupt(self) -> dict[int, str]:
        """Complete chunks whose files are not what the manifest says: chunk -> the file at fault."""
        found = {}
        for chunk in sorted(self.complete()):
            try:
                files = self.read_entry(chunk)["files"]
                expected = {str(self._file(name, chunk).relative_to(self.path)) for name in self._arrays}
                bad = [name for name in sorted(expected) if files.get(name) != checksum(self.path / name)]
            except (OSError, ValueError, KeyError, TypeError, AttributeError):
                bad = [str(self._entry(chunk).relative_to(self.path))]
            if bad:
                found[chunk] = bad[0]
        return found

    def forget(self, chunk: int) -> None:
        """Take a chunk out of the manifest, so that it is computed again."""
        self._entry(chunk).unlink(missing_ok=True)

    def tidy(self, age: float = 0.0) -> None:
        """Remove what killed processes left half-written, if it is at least so many seconds old."""
        latest = time.time() - age
        for pattern in ("manifest/*" + _LEFT_OVER, "*/c/**/*.partial"):
            for file in self.path.glob(pattern):
                with contextlib.suppress(FileNotFoundError):  # another process may be just as tidy
                    if file.stat().st_mtime <= latest:
                        file.unlink()

    def write(self, chunk: int, values: dict[str, np.ndarray], notes: dict[str, Any]) -> None:
        """Write all measures of a chunk, then its entry in the manifest.

        **Raises:** `InputError` when the disk refuses; the store can go on later.
        """
        region = self.spec.region(chunk)
        shape = tuple(part.stop - part.start for part in region)
        files = [self._file(name, chunk) for name in self._arrays]
        try:
            with _disk_errors(self.path, "the chunks before are complete: the same command goes on from here"):
                for name, array in self._arrays.items():
                    self._file(name, chunk).unlink(missing_ok=True)  # zarr would read, and trip over, a broken one
                    array[region if region else ...] = values[name].reshape(shape)
                sums = {}
                for file in files:
                    _flush(file)
                    sums[str(file.relative_to(self.path))] = checksum(file)
                _write_whole(self._entry(chunk), json.dumps({"chunk": chunk, "files": sums, **notes}, indent=1))
        except BaseException:
            for file in [*files, self._entry(chunk)]:
                with contextlib.suppress(OSError):
                    file.unlink(missing_ok=True)
            raise

    def _file(self, name: str, chunk: int) -> Path:
        place = np.unravel_index(chunk, self.spec.blocks) if self.spec.axes else ()
        return self.path.joinpath(name, "c", *map(str, place))

    def _entry(self, chunk: int) -> Path:
        return self._manifest / f"chunk-{chunk:07d}.json"


def open_dataset(path: Path) -> "xarray.Dataset":
    """A store, complete or not, opened lazily; what is missing is NaN.

    **Raises:** `InputError` when it is no store of a sweep.
    """
    import xarray

    read_attributes(path)
    return xarray.open_dataset(path, engine="zarr", chunks=None, consolidated=True)


def read_attributes(path: Path) -> dict[str, Any]:
    """The attributes of a store.

    **Raises:** `InputError` when it is no store of a sweep.
    """
    try:
        attributes = json.loads((path / "zarr.json").read_text())["attributes"]
        return attributes | {"specification": json.loads(attributes["specification"])}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path} is no store of a sweep: give the folder that dgdlb sweep wrote.") from error


def check_same(path: Path, spec: Spec, facts: dict[str, Any]) -> None:
    """Raise `InputError` when the store belongs to another specification, naming what differs."""
    attributes = read_attributes(path)
    before, now = attributes["specification"], json.loads(json.dumps(spec.document()))
    for key in dict.fromkeys([*now, *before]):
        if before.get(key) != now.get(key):
            what = key if key in ("name", "description") else f"{key}: {_difference(before.get(key), now.get(key))}"
            raise InputError(
                f"{path} belongs to another specification ({what}): choose another --output, or remove it."
            )
    for key, value in facts.items():
        if attributes.get(key) != value:
            raise InputError(
                f"{path} was begun with {key} = {attributes.get(key)}, this is {value}: use the same, or choose another --output."
            )


def checksum(file: Path) -> str:
    """SHA-256 of a file."""
    return hashlib.sha256(file.read_bytes()).hexdigest()


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


def _write_frame(path: Path, spec: Spec, facts: dict[str, Any]) -> None:
    """The zarr hierarchy without any results: dimensions, coordinates, empty measures, attributes."""
    import zarr

    names = [name for axis in spec.axes for name in axis.values] + list(spec.fixed)
    attributes = {
        "title": f"Sweep {spec.name}",
        "description": spec.description,
        "specification": json.dumps(spec.document()),
        "cases": spec.size,
        "chunks": spec.chunks,
        "source": "dgdlb_jax; DGD-LB after arXiv:2504.10693",
        "coordinates": " ".join(sorted(names)),
        **facts,
    }
    group = zarr.create_group(path, zarr_format=3, attributes=attributes)
    for axis in spec.axes:
        for name, values in axis.values.items():
            _coordinate(group, name, np.array(values), (axis.name,))
    for name, value in spec.fixed.items():
        _coordinate(group, name, np.array(value), ())
    for name, measure in wanted(spec.measures).items():
        kind: Any = np.int8 if measure.flags else np.float64
        group.create_array(
            name, shape=spec.shape, chunks=spec.block, dtype=kind, fill_value=measure.fill,
            dimension_names=spec.dimensions, attributes=_attributes(measure),
        )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore"
        )  # consolidated metadata are outside the zarr standard so far, but every reader has them
        zarr.consolidate_metadata(path)


def _coordinate(group: Any, name: str, values: np.ndarray, dimensions: tuple[str, ...]) -> None:
    rule = INPUTS.get(name)
    meaning = rule.meaning if rule else f"{PARAMETERS[name.split('.')[0]]}: {name.split('.')[1]}"
    text = values.dtype.kind == "U"
    kind: Any = str if text else values.dtype
    array = group.create_array(
        name, shape=values.shape, chunks=values.shape, dtype=kind, dimension_names=dimensions,
        attributes={"units": rule.units if rule else "", "long_name": meaning},
    )  # fmt: skip
    array[...] = values.astype(object) if text else values


def _attributes(measure: Measure) -> dict[str, Any]:
    found: dict[str, Any] = {"units": measure.units, "long_name": measure.meaning}
    if measure.flags:
        found |= {
            "flag_values": list(measure.flags.values()),
            "flag_meanings": " ".join(measure.flags),
            "_FillValue": -1,
        }
    return found


def _write_whole(path: Path, text: str) -> None:
    draft = path.with_name(f"{path.name}.{os.getpid()}{_LEFT_OVER}")
    with draft.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)
    _flush(path.parent)


def _flush(path: Path) -> None:
    """Make sure that a file or a folder is on disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


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
