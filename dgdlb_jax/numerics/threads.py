"""A batch in parts that run at the same time on one CPU device: JAX releases the interpreter, and the device takes work from many threads.

A part is dispatched from a thread of its own, since what one thread dispatches runs one after the other. Nothing is split under a
transformation, on an accelerator, over several devices or under a mesh, where JAX itself spreads the work, nor in a thread that is not
the main one: whoever made that thread uses the cores already.
"""

import concurrent.futures
import math
import os
import threading
from collections.abc import Callable
from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from dgdlb_jax.numerics import device
from dgdlb_jax.numerics.parallel import cores, in_this_context
from dgdlb_jax.numerics.results import InputError, is_concrete

VARIABLE = "DGDLB_THREADS"
LEAST = 8
"""Items of a part: for fewer of them a thread is not worth its start."""


def parts_for(size: int, batch: PyTree, threads: int | None = None) -> int:
    """In how many parts a batch of so many items is run; depends on `size` and the number of threads alone.

    **Arguments:** `threads`: as many at most; by default what the environment variable DGDLB_THREADS says, or one for each core that the
    process may use.

    **Raises:** `InputError` for a number of threads that is not a positive integer.
    """
    most = _most_threads(threads)
    return max(1, min(most, size // LEAST)) if _may_use_threads(batch) else 1


def in_threads(function: Callable[[PyTree], PyTree], batch: PyTree, parts: int) -> PyTree:
    """`function(part)` for parts of a batch at the same time, put together again.

    All parts are equally long, so that they share one compiled program; the last ones overlap where the batch cannot be divided. The
    first part goes ahead until it is compiled and dispatched.

    **Arguments:** `function`, compiled, from a batch to a batch; `batch`, arrays with one leading axis, and scalars that all parts share.

    **Raises:** what `function` raises; of several exceptions that of the first part.
    """
    if parts == 1:
        return function(batch)
    size = _size(batch)
    length = math.ceil(size / parts)
    starts = tuple(min(k * length, size - length) for k in range(parts))
    pieces = _cut(batch, starts, length)
    pool = concurrent.futures.ThreadPoolExecutor(parts - 1, thread_name_prefix="dgdlb-part")
    try:
        done = [function(pieces[0])]
        # Each waits for its own part: a thread that is free again would be given the next one, and dispatch it behind the first.
        others = [
            pool.submit(in_this_context(lambda piece=piece: jax.block_until_ready(function(piece))))
            for piece in pieces[1:]
        ]
        done += [future.result() for future in others]
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
    return _join(done, starts, length)


def _size(batch: PyTree) -> int:
    return next(leaf.shape[0] for leaf in jax.tree.leaves(batch) if leaf.ndim)


def _most_threads(threads: int | None) -> int:
    place, value = ("threads", threads) if threads is not None else (VARIABLE, os.getenv(VARIABLE) or cores())
    try:
        most = int(value)
    except (TypeError, ValueError):
        most = 0
    if most < 1 or most != float(value):
        raise InputError(
            f"{place} is {value!r}: give a positive integer, 1 for a single thread, or leave it out for all cores."
        )
    return most


def _may_use_threads(batch: PyTree) -> bool:
    in_main = threading.current_thread() is threading.main_thread()
    plain = in_main and device.on_cpu() and not jax.config.jax_disable_jit  # pyright: ignore[reportAttributeAccessIssue]
    return plain and is_concrete(batch) and not _under_jit() and _on_one_device(batch)


def _under_jit() -> bool:
    """Whether what is computed here is traced, even with numbers that are known."""
    return not is_concrete(jnp.zeros(()) + 0)


def _on_one_device(batch: PyTree) -> bool:
    return all(len(leaf.devices()) == 1 for leaf in jax.tree.leaves(batch) if isinstance(leaf, jax.Array))


@eqx.filter_jit
def _cut(batch: PyTree, starts: tuple[int, ...], length: int) -> list[PyTree]:
    part = lambda start, leaf: leaf[start : start + length] if leaf.ndim else leaf
    return [jax.tree.map(partial(part, start), batch) for start in starts]


@eqx.filter_jit
def _join(done: list[PyTree], starts: tuple[int, ...], length: int) -> PyTree:
    """The results after each other; what a part has in common with the one before is left out."""
    ends = [0, *(start + length for start in starts)]
    news = [end - start for start, end in zip(starts, ends[:-1], strict=True)]
    return jax.tree.map(
        lambda *leaves: jnp.concatenate([leaf[new:] for leaf, new in zip(leaves, news, strict=True)]), *done
    )
