"""The largest eigenvalues of a matrix that is only known by what it does to vectors."""

from collections.abc import Callable

import numpy as np
from jaxtyping import Complex, Float


def largest_eigenvalues(
    advance: Callable[[Float[np.ndarray, "size columns"]], Float[np.ndarray, "size columns"]],
    size: int,
    count: int,
    *,
    basis: int,
    accuracy: float,
) -> Complex[np.ndarray, " found"]:
    """Those of the largest modulus, by Arnoldi iteration from a fixed start; all of them where it does not converge.

    **Arguments:** `advance`: the matrix times columns; `count`: how many at least; `basis`: vectors that the iteration keeps; `accuracy`,
    relative, of the eigenvalues.
    """
    from scipy.sparse.linalg import (  # late: a third of what this package takes to import
        ArpackError,
        LinearOperator,
        eigs,
    )

    apply = lambda vector: advance(np.asarray(vector).reshape(-1, 1))[:, 0]
    operator = LinearOperator((size, size), matvec=apply, dtype=float)  # pyright: ignore[reportCallIssue]
    start = np.random.default_rng(0).standard_normal(size)
    options = {"ncv": basis, "tol": accuracy, "maxiter": 500, "v0": start, "return_eigenvectors": False}
    try:
        return np.asarray(eigs(operator, count, **options))
    except ArpackError:
        return all_eigenvalues(advance, size)


def all_eigenvalues(
    advance: Callable[[Float[np.ndarray, "size columns"]], Float[np.ndarray, "size columns"]], size: int
) -> Complex[np.ndarray, " size"]:
    """All of them, by the matrix itself."""
    return np.linalg.eigvals(advance(np.eye(size))).astype(complex)
