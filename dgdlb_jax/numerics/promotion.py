"""Arithmetic between arrays of other ranks and types: what the user has forbidden in their own code is their own matter.

Nothing in this package needs it. Its tests trace it `strictly`; what a user brings along, such as a policy, may rely on it.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import ParamSpec, TypeVar

import jax

_P = ParamSpec("_P")
_T = TypeVar("_T")

_RULES: ContextVar[tuple[str, str]] = ContextVar("rules", default=("allow", "standard"))


def standard_promotion(function: Callable[_P, _T]) -> Callable[_P, _T]:
    """The same function under JAX's usual rules of promotion, whatever `jax_numpy_rank_promotion` and `jax_numpy_dtype_promotion` say."""

    @functools.wraps(function)
    def call(*args: _P.args, **options: _P.kwargs) -> _T:
        with _ruled_by(*_RULES.get()):
            return function(*args, **options)

    return call


@contextlib.contextmanager
def strictly() -> Iterator[None]:
    """Within it nothing is promoted, neither ranks nor types, in the functions of this package as little as in the caller's."""
    rules = "raise", "strict"
    before = _RULES.set(rules)
    try:
        with _ruled_by(*rules):
            yield
    finally:
        _RULES.reset(before)


@contextlib.contextmanager
def _ruled_by(ranks: str, types: str) -> Iterator[None]:
    with jax.numpy_rank_promotion(ranks), jax.numpy_dtype_promotion(types):
        yield
