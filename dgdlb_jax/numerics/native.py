"""Where this package leans on an internal of XLA, and the only place.

On CPU, XLA runs a loop as a sequence of some twenty kernels per iteration, unless it is small: then the whole loop becomes one native
function. The tag below asks for that. It changes speed, not values; without it, or on other devices, everything works the same.
"""

from collections.abc import Callable
from typing import Any

import jax
from jax.experimental.xla_metadata import set_xla_metadata


def one_native_loop(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same function, compiled on CPU as one native function. Not for code that is differentiated."""
    if jax.default_backend() != "cpu":
        return function
    inner = jax.jit(function)
    return lambda *args: set_xla_metadata(inner(*args), xla_cpu_small_call="true", inlineable="false")
