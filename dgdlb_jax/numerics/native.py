"""Where this package leans on an internal of XLA, and the only place.

On CPU, XLA runs a loop as a sequence of some twenty kernels per iteration, unless it is small: then the whole loop becomes one native
function. The tag below asks for that. It changes speed, not values; without it, or on other devices, everything works the same.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.xla_metadata import set_xla_metadata
from jaxtyping import Array, PyTree


def one_native_loop(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same function, compiled on CPU as one native function. Not for code that is differentiated."""
    if jax.default_backend() != "cpu":
        return function

    @jax.jit
    def inner(*arguments):
        return function(*arguments), _touch(arguments)

    def call(*arguments):
        arguments = jax.lax.optimization_barrier(arguments)
        outputs = set_xla_metadata(inner(*arguments), xla_cpu_small_call="true", inlineable="false")
        return jax.lax.optimization_barrier(outputs)[0]

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
