"""How long what nobody has asked the length of may compute."""

import math
import os

from dgdlb_jax.numerics.results import InputError

VARIABLE = "DGDLB_PATIENCE"


def patience(seconds: float) -> float:
    """So many seconds, or that times the environment variable DGDLB_PATIENCE: what a command may compute before it takes shorter runs or
    leaves something out.

    **Raises:** `InputError` for anything but a positive finite factor.
    """
    given = os.getenv(VARIABLE) or "1"
    try:
        factor = float(given)
    except ValueError:
        factor = math.nan
    if not (factor > 0 and math.isfinite(factor)):
        raise InputError(
            f"{VARIABLE} is {given!r}: give a positive finite factor on what runs may take, or leave it out for 1."
        )
    return seconds * factor


def within_patience(seconds: float) -> bool:
    """Whether a computation takes at most a quarter of an hour on one core, or what the environment variable makes of that."""
    return seconds <= patience(900)


def require_patience(what: str, seconds: float, remedy: str) -> None:
    """Raise `InputError` for a computation that is not `within_patience`."""
    if not within_patience(seconds):
        raise InputError(f"{what}, about {seconds / 60:,.0f} minutes on one core: {remedy}.")
