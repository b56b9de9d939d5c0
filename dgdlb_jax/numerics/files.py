"""Files that appear whole or not at all: written under another name in the same folder, then renamed."""

import contextlib
import errno
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from importlib.resources.abc import Traversable
from pathlib import Path

from dgdlb_jax.numerics.results import InputError

_HEADER = 1 << 17  # bytes: a netCDF file of a run takes 44 to 57 kB beside its numbers


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """The path of a draft beside a file, which it replaces when the block ends well; otherwise nothing is left behind.

    Every call has a draft of its own, so processes that write the same file do not disturb each other: the last one stays.
    """
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        yield draft
        draft.replace(path)
    finally:
        with contextlib.suppress(OSError):  # of the block itself there may be one to tell about already
            draft.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """A text file in UTF-8, whole or not at all."""
    with whole_file(path) as draft:
        draft.write_text(text, encoding="utf-8", newline="\n")


def write_texts(folder: Path, texts: Mapping[str, str]) -> None:
    """Several text files of one folder, name -> text. All of them are written before the first one appears."""
    with contextlib.ExitStack() as stack:
        # The stack closes backwards, and the last file shall appear last.
        drafts = {name: stack.enter_context(whole_file(folder / name)) for name in reversed(list(texts))}
        for name, text in texts.items():
            drafts[name].write_text(text, encoding="utf-8", newline="\n")


@contextlib.contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """The path of a draft folder whose files move to `folder` when the block ends well; otherwise nothing is left behind.

    Missing parents are made. Files of the same name are replaced, other files in an existing folder stay.
    """
    folder = folder.absolute()
    new_parents = [parent for parent in folder.parents if not parent.exists()]
    draft = folder.with_name(f".{folder.name}-{secrets.token_hex(4)}.part")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        draft.mkdir()
        yield draft
        _publish(draft, folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
        for parent in new_parents:
            with contextlib.suppress(OSError):  # not empty, or never made
                parent.rmdir()


def _publish(draft: Path, folder: Path) -> None:
    if not folder.exists():
        draft.rename(folder)
        return
    for file in draft.iterdir():
        file.replace(folder / file.name)


def exists(path: Path) -> bool:
    """Whether there is anything by that name; no where no file can have it (too long, a NUL in it)."""
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def is_folder(path: Path | Traversable) -> bool:
    """Whether it is a folder; no where no file can have that name."""
    try:
        return path.is_dir()
    except (OSError, ValueError):
        return False


@contextlib.contextmanager
def disk_errors(what: str, remedy: str = "choose another place") -> Iterator[None]:
    """Raise `InputError` with one sentence where the disk refuses: what cannot be written, why, and the remedy."""
    try:
        yield
    except OSError as error:
        raise InputError(f"{what} cannot be written ({error.strerror or error}): {remedy}.") from error


def require_room(folder: Path, size: int) -> None:
    """Raise `OSError` where a disk has no room for a netCDF file with so many bytes of numbers: HDF5 ends the process when it is full.

    What is compressed takes less, but how much less is known afterwards only.
    """
    if shutil.disk_usage(folder).free < size + _HEADER:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder))


def flush(path: Path) -> None:
    """Make sure that a file or a folder is on disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
