"""What a value is, in words that are the same in every process: no addresses, no order of hashing."""

import dataclasses
import enum
import functools
import hashlib
import inspect
import types
from pathlib import Path
from typing import Any

import jax
import numpy as np

# Whose source or version decides what a name of theirs means; see `programs`.
_KNOWN = frozenset((
    "builtins", "dgdlb_jax", "equinox", "functools", "itertools", "jax", "jaxlib", "jaxtyping", "math", "numpy", "operator", "typing",
))  # fmt: skip
_PLAIN = type(None) | bool | int | float | complex | str | bytes | type(...) | range | slice | np.dtype


class Unnamed(Exception):
    """The value has something in it that says nothing lasting about itself, or belongs to somebody else's code."""


def canonical(value: Any, within: tuple[int, ...] = ()) -> Any:
    """Nested tuples of words: equal in two processes exactly where the values mean the same to a program.

    Functions are told by their name, their code, their defaults and what they close over, objects by their class and fields, arrays by
    their numbers.

    **Raises:** `Unnamed`.
    """
    if id(value) in within:  # a function that closes over itself
        return "within", within.index(id(value))
    inner = functools.partial(canonical, within=(*within, id(value)))
    match value:
        case enum.Enum():
            return _name(type(value)), value.name
        case _ if isinstance(value, _PLAIN) and type(value).__module__.partition(".")[0] in _KNOWN:
            return type(value).__name__, repr(value)
        case np.ndarray() | np.generic() | jax.Array():
            numbers = np.asarray(value)
            if numbers.dtype.hasobject:
                raise Unnamed
            return "array", numbers.shape, str(numbers.dtype), hashlib.sha256(numbers.tobytes()).hexdigest()
        case type() | types.BuiltinFunctionType() | np.ufunc():
            return "name", _name(value)
        case types.FunctionType():
            return inner(inspect.unwrap(value)) if _only_checks(value) else _function(value, inner)
        case types.MethodType():
            return "method", inner(value.__func__), inner(value.__self__)
        case functools.partial():
            return _name(type(value)), inner(value.func), inner(value.args), inner(value.keywords)
        case dict():
            return _name(type(value)), *((inner(key), inner(each)) for key, each in value.items())
        case set() | frozenset():
            return _name(type(value)), *sorted(map(repr, map(inner, value)))
        case tuple() | list():
            return _name(type(value)), *map(inner, value)
        case _ if dataclasses.is_dataclass(value):
            fields = [field.name for field in dataclasses.fields(value)]
            return _name(type(value)), *((field, inner(getattr(value, field))) for field in fields)
        case _ if type(value) is type(jax.jit(abs)):
            return "jit", inner(inspect.unwrap(value))
    raise Unnamed


def _function(function: types.FunctionType, inner: Any) -> tuple[Any, ...]:
    try:
        closed = tuple(cell.cell_contents for cell in function.__closure__ or ())
    except ValueError as error:  # what it closes over is not there yet
        raise Unnamed from error
    kept = function.__defaults__, function.__kwdefaults__, closed
    return "function", _name(function), _code(function.__code__), *map(inner, kept)


def _only_checks(function: types.FunctionType) -> bool:
    """Whether it is another one behind jaxtyping's check of its arguments, which no program has anything of."""
    return "jaxtyping" in Path(function.__code__.co_filename).parts and hasattr(function, "__wrapped__")


def _code(code: types.CodeType) -> tuple[Any, ...]:
    constants = [_code(each) if isinstance(each, types.CodeType) else repr(each) for each in code.co_consts]
    return code.co_qualname, code.co_firstlineno, code.co_code.hex(), code.co_names, code.co_freevars, *constants


def _name(named: Any) -> str:
    module = getattr(named, "__module__", None) or "numpy"  # which has functions that say nothing
    if module.partition(".")[0] not in _KNOWN:
        raise Unnamed
    return f"{module}.{getattr(named, '__qualname__', None) or named.__name__}"
