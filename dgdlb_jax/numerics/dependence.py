"""Which inputs of a function its outputs are computed from."""

from collections.abc import Callable
from typing import Any

import jax
from jax.interpreters.partial_eval import dce_jaxpr


def needed_inputs(function: Callable[..., Any], *arguments: Any) -> list[bool]:
    """Whether any output of a function is computed from an input at all (it may still come out constant).

    The function is traced, and operations that no output needs are dropped, inside loops and branches as well.

    **Arguments:** `arguments`: pytrees of arrays, or of their shapes.

    **Returns:** one entry for every leaf of the arguments, in the order of `jax.tree.leaves`.
    """
    traced = jax.make_jaxpr(function)(*arguments).jaxpr
    return dce_jaxpr(traced, [True] * len(traced.outvars))[1]


def dependence(function: Callable[..., Any], *arguments: Any) -> list[list[bool]]:
    """`needed_inputs` for every output by itself: one row for each, in the order of `jax.tree.leaves`."""
    traced = jax.make_jaxpr(function)(*arguments).jaxpr
    outputs = range(len(traced.outvars))
    return [dce_jaxpr(traced, [other == output for other in outputs])[1] for output in outputs]


def depends_on(function: Callable[..., Any], *arguments: Any) -> bool:
    """Whether the outputs of a function are computed from its arguments at all."""
    return any(needed_inputs(function, *arguments))
