"""Independent pieces of work at the same time: compiling and running release the interpreter, so threads use the cores."""

import concurrent.futures
import contextlib
import contextvars
import os
from collections.abc import Callable, Iterator
from typing import Any

import jax

from dgdlb_jax.numerics.results import InputError

VARIABLE = "DGDLB_THREADS"

# What JAX keeps for each thread and compiles with: set by the caller, it holds wherever the work is done. Plain values, but for the
# default device, which another process does not have.
_SETTINGS = (
    "enable_x64",
    "default_matmul_precision",
    "debug_nans",
    "debug_infs",
    "numpy_dtype_promotion",
    "numpy_rank_promotion",
)


def workers_for(asked: int | None = None, most: int = 4) -> int:
    """How many threads to use: as asked, or as many as the process may use, at most `most`."""
    return asked or min(most, thread_limit())


def thread_limit(asked: int | None = None) -> int:
    """How many threads may compute: as asked, else the environment variable DGDLB_THREADS, else one for each core.

    **Raises:** `InputError` for anything but a positive integer.
    """
    name, given = ("threads", asked) if asked is not None else (VARIABLE, os.getenv(VARIABLE) or cores())
    try:
        number = int(given)
    except (TypeError, ValueError, OverflowError):
        number = 0
    if number < 1 or number != float(given):
        raise InputError(
            f"{name} is {given!r}: give a positive integer, 1 for a single thread, or leave it out for all cores."
        )
    return number


def cores() -> int:
    """How many cores the process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def in_order(jobs: dict[str, Callable[[], Any]], workers: int) -> Iterator[tuple[str, Any]]:
    """Run named pieces of work in threads; (name, result) of each as soon as it and all before it have ended, so always in one order.

    The caller's thread only waits, so that Ctrl-C is heard. The first exception in that order ends it; what has not begun by then is
    never begun.
    """
    pool = concurrent.futures.ThreadPoolExecutor(workers, thread_name_prefix="dgdlb")
    try:
        futures = {name: pool.submit(in_this_context(work)) for name, work in jobs.items()}
        for name, future in futures.items():
            yield name, future.result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


@contextlib.contextmanager
def in_the_background() -> Iterator[Callable[[Callable[[], Any]], concurrent.futures.Future]]:
    """A function that hands work to another thread, piece after piece, and returns a future for its result."""
    pool = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="dgdlb-background")
    try:
        yield lambda work: pool.submit(in_this_context(work))
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def settings() -> dict[str, Any]:
    """What this thread has told JAX, name -> value; it can be sent to another process."""
    return {name: getattr(jax, name).value for name in _SETTINGS}


@contextlib.contextmanager
def with_settings(chosen: dict[str, Any]) -> Iterator[None]:
    """Within it JAX has the `settings` of another thread, for this thread alone."""
    with contextlib.ExitStack() as stack:
        for name, value in chosen.items():
            stack.enter_context(getattr(jax, name)(value))
        yield


def in_this_context(work: Callable[[], Any]) -> Callable[[], Any]:
    """The same work, with this thread's precision, default device, search for NaN and the like, which another thread would not know."""
    chosen, device, variables = settings(), jax.default_device.value, contextvars.copy_context()

    def here() -> Any:
        with with_settings(chosen), jax.default_device(device):
            return variables.run(work)

    return here
