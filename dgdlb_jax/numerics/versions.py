"""Which versions computed a result: written into every file."""

import equinox
import jax
import jaxlib
import numpy

from dgdlb_jax import __version__


def versions() -> dict[str, str]:
    """Versions of this package and of the libraries that it computes with, by name; also where it is not installed but lies on the path."""
    libraries = {module.__name__: module.__version__ for module in (jax, jaxlib, equinox, numpy)}
    return {"dgdlb_jax": __version__} | libraries
