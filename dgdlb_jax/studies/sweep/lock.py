"""Who works on a store: file locks that vanish with their process, however it ends.

One byte of the lock file stands for every process number and one for every chunk. A process locks its number while it runs, and a
chunk while it computes it. The operating system releases the locks of a process that is killed, so nothing is ever left behind.
"""

import errno
import json
import os
import socket
import stat
from datetime import UTC, datetime
from pathlib import Path

from dgdlb_jax.numerics.results import InputError

try:
    import fcntl
except ImportError:  # no file locks on this system
    fcntl = None

_FIRST_CHUNK = 2**40  # numbers of processes lie below
_NOTE = 256  # bytes at the start of the file for each process: who it is
_held: dict[
    tuple[int, int], set[int]
] = {}  # file -> bytes locked by this very process, whom the system would let in twice


class Lock:
    """The locks of one process on one store; a context manager.

    **Arguments:** `path` of the lock file; `process`: the number of this process among those that share the sweep.

    **Raises:** `InputError` when another sweep runs on the store, or the file system has no locks.
    """

    def __init__(self, path: Path, process: int = 0):
        self.path, self.process = path, process

    def __enter__(self) -> "Lock":
        self._file = self._open()
        status = os.fstat(self._file)
        self._mine = _held.setdefault((status.st_dev, status.st_ino), set())
        if not self._take(self.process):
            who = self._who()
            if not self._mine:
                os.close(self._file)
            raise InputError(
                f"{self.path.parent.parent}: another sweep{who} is running on this store: wait until it ends, or choose another --output."
            )
        note = {
            "process": os.getpid(),
            "host": socket.gethostname()[:100],
            "since": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        os.pwrite(self._file, json.dumps(note).encode().ljust(_NOTE), self.process * _NOTE)
        return self

    def __exit__(self, *_) -> None:
        self._release(self.process)
        if not self._mine:  # closing one handle would release the locks of all
            os.close(self._file)

    def _open(self) -> int:
        try:
            file = os.open(self.path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NONBLOCK", 0), 0o644)
        except OSError as error:
            raise InputError(
                f"{self.path} cannot be written ({error.strerror}): make the store writable, or, if something else stands in the "
                "place of this file or its folder, use --recompute-corrupt."
            ) from error
        if not stat.S_ISREG(os.fstat(file).st_mode):
            os.close(file)
            raise InputError(f"{self.path} is a pipe or a device, not a file: --recompute-corrupt puts a file there.")
        return file

    def claim(self, chunk: int) -> bool:
        """Take a chunk; False when another process has it."""
        return self._take(_FIRST_CHUNK + chunk)

    def release(self, chunk: int) -> None:
        """Let a chunk go."""
        self._release(_FIRST_CHUNK + chunk)

    def _take(self, place: int) -> bool:
        if place in self._mine:
            return False
        if fcntl is not None:
            try:
                fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, place)
            except OSError as error:
                if error.errno in (errno.EACCES, errno.EAGAIN):
                    return False
                raise InputError(
                    f"{self.path.parent.parent}: this file system has no file locks ({error.strerror}): choose a folder on another one."
                ) from error
        self._mine.add(place)
        return True

    def _release(self, place: int) -> None:
        self._mine.discard(place)
        if fcntl is not None:
            fcntl.lockf(self._file, fcntl.LOCK_UN, 1, place)

    def _who(self) -> str:
        try:
            note = json.loads(os.pread(self._file, _NOTE, self.process * _NOTE).decode())
            return f" (process {note['process']} on {note['host']}, since {note['since']})"
        except (ValueError, KeyError, TypeError, OSError):
            return ""
