"""Eigenvalues of general complex matrices, by LAPACK on the host whatever the device: CUDA's own fail on batches.

Two calls of LAPACK side by side in one program, each with a batch of matrices, can wait for threads that the other one holds, for
ever (jaxlib 0.10.2, as many threads as calls). So they have to come one after the other: see `in_turn`.
"""

import jax
import jax.numpy as jnp
from jax.lax.linalg import EigImplementation
from jaxtyping import Array, Complex, Inexact, Shaped


def eig(matrix: Complex[Array, "*batch n n"]) -> tuple[Complex[Array, "*batch n"], Complex[Array, "*batch n n"]]:
    """Eigenvalues, and right eigenvectors as columns."""
    values, vectors = jax.lax.linalg.eig(
        matrix, compute_left_eigenvectors=False, implementation=EigImplementation.LAPACK
    )
    return values, vectors


def eigvals(matrix: Complex[Array, "*batch n n"]) -> Complex[Array, "*batch n"]:
    """Eigenvalues alone."""
    (values,) = jax.lax.linalg.eig(
        matrix,
        compute_left_eigenvectors=False,
        compute_right_eigenvectors=False,
        implementation=EigImplementation.LAPACK,
    )
    return values


def in_turn(before: Shaped[Array, "*any"], value: Inexact[Array, "*shape"]) -> Inexact[Array, "*shape"]:
    """`value`, not to be used before the other is known; NaN if that has one."""
    return value + jnp.where(jnp.isnan(before).any(), jnp.nan, 0.0)
