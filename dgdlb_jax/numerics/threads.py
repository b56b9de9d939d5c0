"""A batch in parts that run at the same time on one CPU device: JAX releases the interpreter, and the device takes work from many threads.

A part is dispatched from a thread of its own, since what one thread dispatches runs one after the other. Nothing is split under a
transformation, on an accelerator, over several devices or under a mesh, where JAX itself spreads the work, nor in a thread that is not
the main one: whoever made that thread uses the cores already.
"""

import concurrent.futures
import math
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from dgdlb_jax.numerics import device
from dgdlb_jax.numerics.parallel import in_this_context, thread_limit
from dgdlb_jax.numerics.results import is_concrete, under_jit

LEAST = 8
"""Items of a part: for fewer of them a thread is not worth its start."""


def parts_for(size: int, batch: PyTree, threads: int | None = None) -> int:
    """In how many parts a batch of so many items is run; depends on `size` and the number of threads alone.

    **Arguments:** `threads`: as many at most; by default what `thread_limit` says.

    **Raises:** `InputError` for a number of threads that is not a positive integer.
    """
    most = min(thread_limit(threads), size // LEAST)
    return most if most > 1 and _may_use_threads(batch) else 1


def in_threads(function: Callable[[PyTree], PyTree], batch: PyTree, parts: int, at_once: int | None = None) -> PyTree:
    """`function(part)` for parts of a batch at the same time, put together again.

    All parts are equally long, so that they share one compiled program, which JAX compiles once however many threads ask for it; the last
    ones overlap where the batch cannot be divided. The caller's thread only waits, so that Ctrl-C is heard.

    **Arguments:** `function`, compiled, from a batch to a batch; `batch`, arrays with one leading axis, and scalars and other values that
    all parts share; `at_once`: how many parts at the same time, by default all.

    **Raises:** what `function` raises; of several exceptions that of the first part.
    """
    if parts == 1:
        return function(batch)
    shared, batched = eqx.partition(batch, is_shared)
    batched = jax.tree.map(np.asarray, batched)  # views of the same memory: cutting them copies and compiles nothing
    size = jax.tree.leaves(batched)[0].shape[0]
    length = math.ceil(size / parts)
    starts = [min(k * length, size - length) for k in range(parts)]

    def compute(start: int) -> PyTree:
        part = jax.tree.map(lambda leaf: leaf[start : start + length], batched)
        # A thread that is free again would be given the next part, and run it after this one.
        return jax.block_until_ready(function(eqx.combine(part, shared)))

    pool = concurrent.futures.ThreadPoolExecutor(at_once or parts, thread_name_prefix="dgdlb-part")
    try:
        futures = [pool.submit(in_this_context(partial(compute, start))) for start in starts]
        done = [future.result() for future in futures]
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
    return _join(done, [0, *(start + length for start in starts[:-1])], starts)


def is_shared(leaf: Any) -> bool:
    """Whether a leaf of a batch has no batch axis."""
    return not eqx.is_array(leaf) or leaf.ndim == 0


def _may_use_threads(batch: PyTree) -> bool:
    in_main = threading.current_thread() is threading.main_thread()
    plain = in_main and device.on_cpu() and not jax.config.values["jax_disable_jit"]
    known = is_concrete(batch) and not under_jit()
    return plain and known and jax.sharding.get_abstract_mesh().empty and _on_one_device(batch)


def _on_one_device(batch: PyTree) -> bool:
    return all(len(leaf.devices()) == 1 for leaf in jax.tree.leaves(batch) if isinstance(leaf, jax.Array))


def _join(done: list[PyTree], ends: list[int], starts: list[int]) -> PyTree:
    """The results after each other; what a part has in common with the one before, which ends at `ends`, is left out."""

    def join(*leaves):
        pieces = zip(leaves, ends, starts, strict=True)
        return jnp.asarray(np.concatenate([np.asarray(leaf)[end - start :] for leaf, end, start in pieces]))

    return jax.tree.map(join, *done)
