"""What depends on the kind of device: a CPU lives on its cache, an accelerator on its memory and on never waiting for its host."""

import contextlib
import math
import os
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import numpy as np

from dgdlb_jax.numerics.results import InputError, is_concrete

_COPIES: ContextVar[int] = ContextVar("copies", default=1)
_CGROUP_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


def on_cpu() -> bool:
    """Whether arrays live on CPU unless somebody says otherwise."""
    chosen = jax.default_device.value
    return (jax.default_backend() if chosen is None else getattr(chosen, "platform", chosen)) == "cpu"


def on_gpu() -> bool:
    """Whether arrays live on a GPU."""
    return not on_cpu() and jax.local_devices()[0].platform == "gpu"


def memory() -> float:
    """Bytes that one device can hold, on CPU those of the machine; infinite where it does not tell."""
    if on_cpu():
        return host_memory()
    return float((jax.local_devices()[0].memory_stats() or {}).get("bytes_limit", float("inf")))


def host_memory() -> float:
    """Bytes that this process may use: of the machine, of its control group, of its own limit; infinite where nothing tells."""
    return min(_physical_memory(), *map(_limit_in, _CGROUP_LIMITS), _own_limit())


@contextlib.contextmanager
def kept_together(copies: int) -> Iterator[None]:
    """Within it, what `check_fits` asks about exists so many times at once, as what the steps of a scan remember for its derivative."""
    before = _COPIES.set(copies * _COPIES.get())
    try:
        yield
    finally:
        _COPIES.reset(before)


def check_fits(needed: float, what: str, remedy: str) -> None:
    """Raise `InputError` when so many bytes are more than the default device has, before anything is allocated."""
    needed *= _COPIES.get()
    if needed > memory():
        place = "this machine" if on_cpu() else "the device"
        raise InputError(
            f"{what} takes about {needed / 1e9:.3g} GB of memory, {place} has {memory() / 1e9:.3g} GB: {remedy}."
        )


def _physical_memory() -> float:
    try:
        return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    except (AttributeError, OSError, ValueError):  # no POSIX system
        return math.inf


def _limit_in(file: Path) -> float:
    try:
        return float(file.read_text())
    except (OSError, ValueError):  # no control group, or one without a limit: "max"
        return math.inf


def _own_limit() -> float:
    try:
        import resource
    except ImportError:  # no POSIX system
        return math.inf
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    return math.inf if soft == resource.RLIM_INFINITY else float(soft)


def on_host(function: Callable[..., Any], *arguments: Any) -> Any:
    """`function(*arguments)` computed by the host's processor, where an accelerator would wait for it all the time.

    Nothing else than a call on CPU, under tracing, and where JAX was told to leave the processor alone.
    """
    if on_cpu() or not is_concrete(arguments) or not _has_cpu():
        return function(*arguments)
    home = jax.default_device.value
    with jax.default_device(jax.local_devices(backend="cpu")[0]):
        found = function(*moved(arguments))
    with jax.default_device(home):
        return moved(found)


def small_work() -> Any:
    """The device for a loop of many small steps, which an accelerator only slows down: the host's processor, unless
    `jax.default_device` says otherwise or JAX was told to leave the processor alone."""
    chosen = jax.default_device.value
    if chosen is not None or on_cpu() or not _has_cpu():
        return chosen
    return jax.local_devices(backend="cpu")[0]


def at_hand(tree: Any) -> bool:
    """Whether the host has the numbers: known, on one CPU device. NumPy then copies them without a program to compile for every shape."""
    arrays = [leaf for leaf in jax.tree.leaves(tree) if isinstance(leaf, jax.Array)]
    return is_concrete(arrays) and on_cpu() and all(len(array.devices()) == 1 for array in arrays)


def moved(tree: Any) -> Any:
    """The same numbers as uncommitted arrays on the default device."""
    return jax.tree.map(lambda leaf: jax.device_put(np.asarray(leaf)) if eqx.is_array(leaf) else leaf, tree)


def _has_cpu() -> bool:
    try:
        return bool(jax.local_devices(backend="cpu"))
    except RuntimeError:
        return False
