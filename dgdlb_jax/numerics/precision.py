"""One floating-point type for everything that is computed with together."""

from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Complex, Float, PyTree

_Tree = TypeVar("_Tree", bound=PyTree)


def float_type(tree: PyTree) -> np.dtype:
    """The smallest floating-point type that holds all floating-point arrays of a tree."""
    return np.result_type(*{leaf.dtype for leaf in jax.tree.leaves(tree) if _is_float(leaf)})


def with_float_type(tree: _Tree, dtype: np.dtype) -> _Tree:
    """The same tree, all of its floating-point arrays in one type."""
    return jax.tree.map(lambda leaf: leaf.astype(dtype) if _is_float(leaf) and leaf.dtype != dtype else leaf, tree)


def as_complex(values: Float[Array, "..."]) -> Complex[Array, "..."]:
    """Real numbers as complex ones, in the precision that they have."""
    return values.astype(np.result_type(values.dtype, np.complex64))


def imaginary(values: Float[Array, "..."]) -> Complex[Array, "..."]:
    """$j w$ of real numbers $w$."""
    return 1j * as_complex(values)


def _is_float(leaf: object) -> bool:
    dtype = getattr(leaf, "dtype", None)
    return dtype is not None and jnp.issubdtype(dtype, jnp.floating)
