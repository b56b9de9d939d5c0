"""Compiled programs that outlive their process: the next one neither traces nor compiles them again.

JAX keeps what XLA made of a program, but finds it by the program: every process traces and lowers everything anew to ask for it, which
for a small fleet takes far longer than to run it. Here a program is found by what it is made *from*: the function, what its arguments
are besides arrays, the shapes of these, the settings of JAX, and in the folder's name the source of this package, the versions of
what it computes with and the processor. Whatever cannot be named in that way, such as anything of a user's own code, is left to JAX.

Only an entry point switches it on, see `kept_in`. Everything else gets `equinox.filter_jit`.
"""

import contextlib
import functools
import hashlib
import os
import pickle
import platform
import secrets
import shutil
import sys
import threading
import time
from collections.abc import Callable, Hashable, Sequence
from contextvars import ContextVar
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple, ParamSpec, TypeVar

import equinox as eqx
import jax
from jax.experimental import serialize_executable

from dgdlb_jax.numerics.canonical import Unnamed, canonical
from dgdlb_jax.numerics.files import whole_file
from dgdlb_jax.numerics.results import is_concrete, under_jit
from dgdlb_jax.numerics.versions import versions

_P = ParamSpec("_P")
_T = TypeVar("_T")

# Programs of another version, or of another machine, go when nobody has asked for them for so many seconds.
_UNUSED_S = 30 * 86400.0
# Settings of JAX with one of these words in their name say nothing about a program.
_NOT_OF_PROGRAMS = ("cache", "log", "traceback")


def compiled(function: Callable[_P, _T]) -> Callable[_P, _T]:
    """`equinox.filter_jit`, from the programs kept where an entry point keeps them.

    Arrays among the arguments are traced, everything else is part of the program. Within another program it is part of that.
    """
    plain = eqx.filter_jit(function)

    @functools.wraps(function)
    def call(*args: _P.args, **kwargs: _P.kwargs) -> _T:
        store = _STORE.get()
        program = None if store is None else store.program(function, (args, kwargs))
        return plain(*args, **kwargs) if program is None else program((args, kwargs))

    return call


def kept_in(folder: Path | None) -> None:
    """From now on, in this context and the threads it starts, programs are kept in this folder; None: no longer.

    Nothing happens on a disk that cannot be written: programs are then made anew, as without a folder.
    """
    _STORE.set(None if folder is None else _Store(folder / _fingerprint()))


class _Slot(NamedTuple):
    """Where an array was."""

    shape: tuple[int, ...]
    dtype: str
    weak: bool


class Program(NamedTuple):
    """A compiled program, which takes the arrays of its arguments in order, and the tree that its results belong to."""

    run: Callable[..., Sequence[jax.Array]]
    results: Any

    def __call__(self, arguments: Any) -> Any:
        """The function's results, when they are there: what goes wrong while it runs is raised here."""
        found = iter(jax.block_until_ready(self.run(*_arrays(arguments))))
        return jax.tree.map(
            lambda leaf: next(found) if isinstance(leaf, _Slot) else leaf, self.results, is_leaf=_is_slot
        )


class _Store:
    """The programs in a folder, those in use in memory besides."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._in_use: dict[Hashable, _Once] = {}
        with contextlib.suppress(OSError):
            _make_room(folder)

    def program(self, function: Callable[..., Any], arguments: Any) -> Program | None:
        """The program of a call; None where it is not one to keep."""
        if not is_concrete(arguments) or under_jit() or not _at_home(arguments):
            return None
        blank = jax.tree.map(lambda leaf: _slot(leaf) if eqx.is_array(leaf) else leaf, arguments)
        leaves, structure = jax.tree.flatten(blank, is_leaf=_is_slot)
        settings = _settings()
        key = function, structure, tuple(map(_told_apart, leaves)), settings
        try:
            once = self._in_use.setdefault(key, _Once())
        except TypeError:  # an argument without a hash
            return None
        return once.get(lambda: self._found(function, arguments, blank, settings))

    def _found(self, function: Callable[..., Any], arguments: Any, blank: Any, settings: Any) -> Program | None:
        try:
            name = hashlib.sha256(repr((canonical(function), canonical(blank), settings)).encode()).hexdigest()
        except Unnamed:
            return None
        file = self._folder / name[:40]
        return _read(file, len(_arrays(arguments))) or _made(function, arguments, file)


class _Once:
    """What is made once, however many threads ask for it at the same time."""

    def __init__(self) -> None:
        self._lock, self._made = threading.Lock(), []

    def get(self, make: Callable[[], _T]) -> _T:
        with self._lock:
            if not self._made:
                self._made.append(make())
        return self._made[0]


_STORE: ContextVar[_Store | None] = ContextVar("programs", default=None)


def _made(function: Callable[..., Any], arguments: Any, file: Path) -> Program:
    """Traced, compiled, and written down where the disk allows it and all of the results can be."""
    results: list[Any] = []

    def of_arrays(*arrays):
        left = iter(arrays)
        args, kwargs = jax.tree.map(lambda leaf: next(left) if eqx.is_array(leaf) else leaf, arguments)
        found = function(*args, **kwargs)
        results.append(jax.tree.map(lambda leaf: _slot(leaf) if eqx.is_array(leaf) else leaf, found))
        return _arrays(found)

    # A name of its own, so that JAX finds no such program among those it keeps: what it read from a file cannot be written again.
    of_arrays.__name__ = f"{getattr(function, '__name__', 'program')}_{secrets.token_hex(4)}"
    program = jax.jit(of_arrays).lower(*_arrays(arguments)).compile()
    with contextlib.suppress(OSError, ValueError, NotImplementedError, pickle.PicklingError, AttributeError, TypeError):
        _write(file, pickle.dumps((serialize_executable.serialize(program)[0], results[0])))
    return Program(program, results[0])


def _read(file: Path, count: int) -> Program | None:
    """What is in a file; None where there is none, or not what was written: it is made and written again."""
    try:
        digest, content = (whole := file.read_bytes())[:32], whole[32:]
        if hashlib.sha256(content).digest() != digest:
            return None
        executable, results = pickle.loads(content)
        taken = jax.tree.structure(((0,) * count, {}))
        given = jax.tree.structure([0] * sum(map(_is_slot, jax.tree.leaves(results, is_leaf=_is_slot))))
        home = jax.local_devices(backend="cpu")[:1]
        _load_lapack()
        return Program(
            serialize_executable.deserialize_and_load(executable, taken, given, backend="cpu", execution_devices=home),
            results,
        )
    except (OSError, ValueError, TypeError, AttributeError, ImportError, EOFError, pickle.UnpicklingError):
        return None  # damaged, or of another version
    except jax.errors.JaxRuntimeError:
        return None  # of another kind of processor, say


@functools.cache
def _load_lapack() -> None:
    """Linear algebra in a program calls functions that JAX looks up when it first lowers such a call; unasked for they are null."""
    jax.jit(jax.lax.linalg.cholesky).lower(jax.ShapeDtypeStruct((1, 1), "float32"))


def _write(file: Path, content: bytes) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(file) as draft:
        draft.write_bytes(hashlib.sha256(content).digest() + content)


def _make_room(folder: Path) -> None:
    """Mark the folder as used, and delete those beside it that nobody has used for long."""
    folder.mkdir(parents=True, exist_ok=True)
    os.utime(folder)
    for other in folder.parent.iterdir():
        if other.is_dir() and time.time() - other.stat().st_mtime > _UNUSED_S:
            shutil.rmtree(other, ignore_errors=True)


def _arrays(tree: Any) -> list[Any]:
    return [leaf for leaf in jax.tree.leaves(tree) if eqx.is_array(leaf)]


def _slot(array: Any) -> _Slot:
    return _Slot(tuple(array.shape), str(array.dtype), bool(getattr(array, "weak_type", False)))


def _is_slot(leaf: Any) -> bool:
    return isinstance(leaf, _Slot)


def _told_apart(leaf: Any) -> Hashable:
    """1, 1.0 and True are the same to `==`, and make different programs."""
    return type(leaf), leaf


def _at_home(arguments: Any) -> bool:
    """Whether everything is, and would be, on the only CPU device: where a kept program runs. Beside others it may be spread over all of
    them, whatever its arguments say."""
    chosen = jax.default_device.value
    if jax.device_count("cpu") > 1 or (chosen is None and jax.default_backend() != "cpu"):
        return False
    home = jax.local_devices(backend="cpu")[0]
    arrays = [leaf for leaf in _arrays(arguments) if isinstance(leaf, jax.Array)]
    return chosen in (None, "cpu", home) and all(array.devices() == {home} for array in arrays)


def _settings() -> tuple[tuple[str, str], ...]:
    """JAX's, as they are in this context."""
    given = jax.config.values
    names = sorted(name for name in given if not any(part in name for part in _NOT_OF_PROGRAMS))
    return tuple((name, repr(getattr(jax.config, name, given[name]))) for name in names)


@functools.cache
def _fingerprint() -> str:
    """Of the package's source, of what it computes with, and of the processor."""
    digest = hashlib.sha256()
    root = Path(str(files("dgdlb_jax")))
    for file in sorted(root.rglob("*.py")):
        digest.update(str(file.relative_to(root)).encode() + b"\0" + file.read_bytes())
    about = versions(), sys.version, platform.platform(), _processor(), os.getenv("XLA_FLAGS", "")
    digest.update(repr(about).encode())
    return digest.hexdigest()[:20]


def _processor() -> str:
    """What it can execute."""
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return platform.processor()
