"""Which versions computed a result: written into every file."""

import equinox
import jax
import jaxlib
import numpy

import dgdlb_jax


def versions() -> dict[str, str]:
    """Versions of this package and of the libraries that it computes with, by name; also where it is not installed but lies on the path."""
    return {module.__name__: module.__version__ for module in (dgdlb_jax, jax, jaxlib, equinox, numpy)}
