"""The manifest of a store: which files it consists of, with checksums; every record of it carries a checksum of its own.

```
NAME.zarr/manifest/
  frame.json            everything but the results: the specification, and checksums of metadata and coordinates
  chunk-0000003.json    a chunk is complete when this exists: checksums of its files, of the frame it belongs to, how it was computed
  lock                  see `lock`
```

`find_damage` compares a store with its manifest. It reads files only, and neither zarr nor the specification is needed.
"""

import hashlib
import json
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dgdlb_jax.numerics.results import InputError

FOLDER, FRAME, ROOT = "manifest", "manifest/frame.json", "zarr.json"
_ENTRY = re.compile(r"chunk-(\d{7,})\.json")
_LARGEST_RECORD = 10**9  # bytes; more is no record of ours


@dataclass(frozen=True)
class Damage:
    """What is wrong with a store: the `file` (within the store), `why` in words, and the `chunk` to compute again, if any."""

    file: str
    why: str
    chunk: int | None = None

    def __str__(self) -> str:
        """`excess/c/1/0 (chunk 1) is missing`."""
        return f"{self.file}{_part(self)} {self.why}"


class DamagedRecord(ValueError):
    """A record of the manifest is not what was written; the message says how, as in "is missing"."""


def seal(record: dict[str, Any]) -> str:
    """A record as text, with a checksum of itself."""
    return json.dumps(record | {"checksum": _digest(record)}, indent=1)


def read_record(file: Path) -> dict[str, Any]:
    """A record that `seal` has made.

    **Raises:** `DamagedRecord`.
    """
    try:
        check_regular(file)
        if file.stat().st_size > _LARGEST_RECORD:
            raise DamagedRecord("is too large")
        record = json.loads(file.read_bytes())
        found = record.pop("checksum")
        if found != _digest(record):
            raise DamagedRecord("is damaged")
    except OSError as error:
        raise DamagedRecord(_reason(error)) from error
    except DamagedRecord:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DamagedRecord("is damaged") from error
    return record


def entry_name(chunk: int) -> str:
    """The file of a chunk's entry, within the store."""
    return f"{FOLDER}/chunk-{chunk:07d}.json"


def entries(path: Path) -> dict[int, Path]:
    """Chunk -> the file of its entry; files with other names are none of ours."""
    try:
        names = os.listdir(path / FOLDER)
    except (FileNotFoundError, NotADirectoryError):
        return {}
    found = {int(match[1]): name for name in sorted(names) if (match := _ENTRY.fullmatch(name))}
    return {chunk: path / FOLDER / name for chunk, name in found.items() if name == Path(entry_name(chunk)).name}


def checksum(file: Path) -> str:
    """SHA-256 of a regular file.

    **Raises:** `OSError`, also for anything that is no regular file: reading a pipe or a device would not end.
    """
    check_regular(file)
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def check_regular(file: Path) -> None:
    """Raise `IsADirectoryError` or `OSError` for what is no regular file."""
    mode = file.stat().st_mode
    if stat.S_ISDIR(mode):
        raise IsADirectoryError("is a folder, not a file")
    if not stat.S_ISREG(mode):
        raise OSError("is a pipe or a device, not a file")


def frame_digest(files: dict[str, str]) -> str:
    """One checksum for all files of a frame: what a chunk's entry says it belongs to."""
    return _digest(files)


def files_of(path: Path) -> dict[str, str]:
    """Every file below a folder, with its checksum."""
    return {str(file.relative_to(path)): checksum(file) for file in sorted(path.rglob("*")) if file.is_file()}


def find_damage(path: Path) -> Iterator[Damage]:
    """Everything in a store that is not what its manifest says, the frame first."""
    try:
        frame = read_record(path / FRAME)
        files, chunks = frame["files"], frame["chunks"]
    except DamagedRecord as error:
        yield Damage(FRAME, str(error))
        return
    yield from _differences(path, files)
    digest = frame_digest(files)
    for chunk, file in entries(path).items():
        yield from _damage_of_chunk(path, chunk, file, chunks, digest)


def check_whole(path: Path) -> None:
    """Raise `InputError` for a store with damage, saying what is damaged and how to repair it."""
    damage = next(find_damage(path), None)
    if damage is not None:
        raise InputError(f"{path} is damaged: {damage}; {REPAIR}.")


REPAIR = "repair it with dgdlb sweep SPEC --output STORE --recompute-corrupt, SPEC being what it was made from"


def _damage_of_chunk(path: Path, chunk: int, file: Path, chunks: int, digest: str) -> Iterator[Damage]:
    name = str(file.relative_to(path))
    try:
        entry = read_record(file)
    except DamagedRecord as error:
        yield Damage(name, str(error), chunk)
        return
    if entry.get("chunk") != chunk or chunk >= chunks:
        yield Damage(name, "stands for another chunk", chunk)
    elif entry.get("frame") != digest:
        yield Damage(name, "belongs to other coordinates or metadata", chunk)
    else:
        yield from _differences(path, entry["files"], chunk)


def _differences(path: Path, files: dict[str, str], chunk: int | None = None) -> Iterator[Damage]:
    for name, expected in files.items():
        try:
            if checksum(path / name) != expected:
                yield Damage(name, "is not what was written", chunk)
        except OSError as error:
            yield Damage(name, _reason(error), chunk)


def _reason(error: OSError) -> str:
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return "is missing"
    return f"cannot be read ({error.strerror})" if error.strerror else str(error)


def _part(damage: Damage) -> str:
    """What the file holds, in words."""
    array, _, inside = damage.file.partition("/")
    if damage.chunk is not None:
        return f" (chunk {damage.chunk})"
    if damage.file == ROOT or array == FOLDER:
        return ""
    return f" (the {'description' if inside == ROOT else 'values'} of {array})"


def _digest(document: Any) -> str:
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()
