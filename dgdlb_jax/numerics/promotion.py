"""Arithmetic between arrays of other ranks and types: what the user has forbidden in their own code is allowed in this one."""

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import jax

_P = ParamSpec("_P")
_T = TypeVar("_T")


def standard_promotion(function: Callable[_P, _T]) -> Callable[_P, _T]:
    """The same function under JAX's usual rules of promotion, whatever `jax_numpy_rank_promotion` and `jax_numpy_dtype_promotion` say:
    one number per frontend meets arrays over arcs, and counts meet rates, in most of the lines here."""

    @functools.wraps(function)
    def call(*args: _P.args, **options: _P.kwargs) -> _T:
        with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
            return function(*args, **options)

    return call
