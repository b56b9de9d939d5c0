"""What constructors ask of the numbers and names they are given, and the words with which they refuse them."""

import math
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from dgdlb_jax.numerics.results import InputError, is_concrete
from dgdlb_jax.numerics.types import Matrices

Allowed = Callable[[np.ndarray], np.ndarray | np.bool]


def positive(values: np.ndarray) -> np.ndarray | np.bool:
    """Where values are finite and above 0."""
    return np.isfinite(values) & (values > 0)


def not_negative(values: np.ndarray) -> np.ndarray | np.bool:
    """Where values are finite and not below 0."""
    return np.isfinite(values) & (values >= 0)


def floating(name: str, value: Matrices, remedy: str) -> Float[Array, "..."]:
    """Lists and integers as an array of the default float dtype; floating arrays keep theirs.

    **Raises:** `InputError` for what is no array of numbers, with the remedy: what to give.
    """
    try:
        array = jnp.asarray(value)
    except (TypeError, ValueError) as error:
        raise InputError(f"{name} is not an array of numbers ({error}): {remedy}.") from error
    return array if jnp.issubdtype(array.dtype, jnp.floating) else array.astype(float)


def first_refused(value: Matrices, allowed: Allowed) -> tuple[tuple[int, ...], float, int] | None:
    """Index and value of the first entry that is not allowed, and how many there are; None without any, or where values are traced."""
    if not is_concrete(value):
        return None
    values = np.asarray(value)
    refused = np.argwhere(~np.asarray(allowed(values)))
    if not len(refused):  # a scalar has one place, of size 0
        return None
    at = tuple(int(index) for index in refused[0])
    return at, float(values[at]), len(refused)


def check_entries(value: Matrices, allowed: Allowed, sentence: Callable[[tuple[int, ...], float], str]) -> None:
    """Raise `InputError` with `sentence(index, value)` for the first entry that is not allowed; traced values are not looked at."""
    refused = first_refused(value, allowed)
    if refused is not None:
        raise InputError(sentence(*refused[:2]))


def check_positive(name: str, value: Matrices, remedy: str = "give a positive finite number") -> None:
    """Raise `InputError` for a number, or one of many, that is not positive and finite."""
    check_entries(value, positive, lambda _, found: f"{name} is {found:g}: {remedy}.")


def is_count(value: object) -> bool:
    """Whether it is a whole number from 1 on."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool) and int(value) >= 1


def in_range(number: float, minimum: float, above: bool = False) -> bool:
    """Whether a number is finite and at least `minimum`, or `above` it."""
    return math.isfinite(number) and (number > minimum if above else number >= minimum)
