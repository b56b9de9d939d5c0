"""Where this package leans on an internal of XLA, and the only place.

On CPU, XLA runs a loop as a sequence of some twenty kernels per iteration, unless it is small: then the whole loop becomes one native
function. The tag below asks for that. It changes speed, not values; without it, or on other devices, everything works the same.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.custom_batching
import jax.numpy as jnp
from jax.experimental.xla_metadata import set_xla_metadata
from jaxtyping import Array, PyTree

from dgdlb_jax.numerics import device

TOO_LARGE = (
    4096  # numbers; XLA makes other kernels for reductions of so many, and cannot put those into a native function
)


def one_native_loop(function: Callable[..., Any], size: int) -> Callable[..., Any]:
    """The same function, compiled on CPU as one native function. Not for code that is differentiated.

    **Arguments:** `size`, of the largest array that an iteration computes with. From 4096 numbers on, and under `vmap`, the function
    is left as it is: kernels then have enough to do.
    """
    if not device.on_cpu() or size >= TOO_LARGE:
        return function

    @jax.jit
    def inner(*arguments):
        return function(*arguments), _touch(arguments)

    @jax.custom_batching.custom_vmap
    def call(*arguments):
        arguments = jax.lax.optimization_barrier(arguments)
        outputs = set_xla_metadata(inner(*arguments), xla_cpu_small_call="true", inlineable="false")
        return jax.lax.optimization_barrier(outputs)[0]

    @call.def_vmap
    def many(count, batched, *arguments):
        del count
        arguments = jax.tree.map(jnp.asarray, arguments)  # constants come as something else
        some = any(jax.tree.leaves(batched))
        axes = jax.tree.map(lambda on: 0 if on else None, batched)
        outputs = jax.vmap(function, in_axes=axes)(*arguments) if some else function(*arguments)
        return outputs, jax.tree.map(lambda _: some, outputs)

    return call


def _touch(arguments: PyTree) -> Array:
    """A number of every array: XLA cannot compile a native function with an argument that nothing looks at."""
    numbers = [
        leaf
        for leaf in map(jnp.asarray, jax.tree.leaves(arguments))
        if jnp.issubdtype(leaf.dtype, jnp.number) or leaf.dtype == bool
    ]
    first = [jax.lax.slice(leaf.reshape(-1), (0,), (1,)) for leaf in numbers if leaf.size]
    return jnp.concatenate([number.astype(jnp.float32) for number in first])
