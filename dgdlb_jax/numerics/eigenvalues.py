"""Eigenvalues of general complex matrices, by LAPACK on the host whatever the device: CUDA's own fail on batches."""

import jax
from jax.lax.linalg import EigImplementation
from jaxtyping import Array, Complex


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
