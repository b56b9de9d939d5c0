"""What depends on the kind of device: a CPU lives on its cache, an accelerator on its memory and on never waiting for its host."""

import contextlib
import math
import os
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import numpy as np

from dgdlb_jax.numerics.results import InputError, is_concrete

PLANNED = 0.8
"""Of memory, how much may be planned for: something else runs, too."""
_COPIES: ContextVar[int] = ContextVar("copies", default=1)
_CGROUP_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


@dataclass(frozen=True)
class _Assumed:
    platform: str | None = None
    memory: float | None = None
    interprets: bool = False


_AS_IT_IS = _Assumed()
_ASSUMED: ContextVar[_Assumed] = ContextVar("assumed", default=_AS_IT_IS)


@contextlib.contextmanager
def assumed(*, platform: str | None = None, memory: float | None = None, interprets: bool = False) -> Iterator[None]:
    """Within it, code takes the device for another one, so that what it does there can be tried on this one.

    **Arguments:** `platform`: `"cpu"` or `"gpu"`, the kind of device; `memory`: bytes that it has; `interprets`: kernels of a GPU are
    interpreted on CPU, slowly.
    """
    before = _ASSUMED.set(_Assumed(platform, memory, interprets))
    if platform is not None:
        jax.clear_caches()  # the kind is compiled in
    try:
        yield
    finally:
        _ASSUMED.reset(before)
        if platform is not None:
            jax.clear_caches()


def on_cpu() -> bool:
    """Whether arrays live on CPU unless somebody says otherwise."""
    if (platform := _ASSUMED.get().platform) is not None:
        return platform == "cpu"
    chosen = jax.default_device.value
    return (jax.default_backend() if chosen is None else getattr(chosen, "platform", chosen)) == "cpu"


def on_gpu() -> bool:
    """Whether arrays live on a GPU."""
    if (platform := _ASSUMED.get().platform) is not None:
        return platform == "gpu"
    return not on_cpu() and jax.local_devices()[0].platform == "gpu"


def has_kernels() -> bool:
    """Whether kernels of a GPU can run."""
    return on_gpu() or _ASSUMED.get().interprets


def memory() -> float:
    """Bytes that one device can hold, on CPU those of the machine; infinite where it does not tell."""
    if (known := _ASSUMED.get().memory) is not None:
        return known
    if on_cpu():
        return host_memory()
    return float((jax.local_devices()[0].memory_stats() or {}).get("bytes_limit", float("inf")))


def all_memory() -> float:
    """Bytes that all devices of this process hold together, on CPU those of the machine."""
    if (known := _ASSUMED.get().memory) is not None:
        return known
    limits = [(one.memory_stats() or {}).get("bytes_limit") for one in jax.local_devices()]
    told = [float(limit) for limit in limits if limit is not None]
    return sum(told) if told else host_memory()


def host_memory(control_group: tuple[Path, ...] = _CGROUP_LIMITS) -> float:
    """Bytes that this process may use: of the machine, of its control group (files with a limit), of its own limit; infinite where
    nothing tells."""
    return min(_physical_memory(), *map(_limit_in, control_group), _own_limit())


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
