"""Independent pieces of work at the same time: compiling and running release the interpreter, so threads use the cores."""

import concurrent.futures
import contextlib
import os
from collections.abc import Callable, Iterator
from typing import Any

import jax


def workers_for(asked: int | None = None, most: int = 4) -> int:
    """How many threads to use: as asked, or one for each core that the process may use, at most `most`."""
    return asked or min(most, cores())


def cores() -> int:
    """How many cores the process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def as_completed(jobs: dict[str, Callable[[], Any]], workers: int) -> Iterator[tuple[str, Any]]:
    """Run named pieces of work in threads; (name, result) of each as soon as it has ended.

    The caller's thread only waits, so that Ctrl-C is heard. The first exception ends it; what has not begun by then is never begun.
    """
    pool = concurrent.futures.ThreadPoolExecutor(workers, thread_name_prefix="dgdlb")
    try:
        names = {pool.submit(in_this_context(work)): name for name, work in jobs.items()}
        for future in concurrent.futures.as_completed(names):
            yield names[future], future.result()
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


def in_this_context(work: Callable[[], Any]) -> Callable[[], Any]:
    """The same work, with this thread's precision, default device and search for NaN, which JAX would forget in another thread."""
    double, home, nans = jax.enable_x64.value, jax.default_device.value, jax.debug_nans.value

    def here() -> Any:
        with jax.enable_x64(double), jax.default_device(home), jax.debug_nans(nans):
            return work()

    return here
