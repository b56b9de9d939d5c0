"""Linear algebra by LAPACK, a batch one matrix after the other, on the host whatever the device: CUDA's own eigenvalues fail on batches.

What LAPACK gets as a batch jaxlib spreads over the threads of the device, and waits there. Two such calls at the same time, from two
threads or side by side in one program, can wait for threads that the other one holds, for ever (seen with jaxlib 0.10.2 and 16 x 16).
A call with one matrix waits for nobody; where matrices are small it takes somewhat longer.
"""

import jax
import jax.numpy as jnp
from jax.custom_batching import sequential_vmap
from jax.lax.linalg import EigImplementation
from jaxtyping import Array, Complex, Float, Inexact, Int

Matrix = Inexact[Array, "n n"]
Factors = tuple[Inexact[Array, "n n"], Int[Array, " n"]]


@sequential_vmap
def eig(matrix: Complex[Array, "n n"]) -> tuple[Complex[Array, " n"], Complex[Array, "n n"]]:
    """Eigenvalues, and right eigenvectors as columns. Without a derivative."""
    values, vectors = jax.lax.linalg.eig(
        matrix, compute_left_eigenvectors=False, implementation=EigImplementation.LAPACK
    )
    return values, vectors


@sequential_vmap
def eigvals(matrix: Complex[Array, "n n"]) -> Complex[Array, " n"]:
    """Eigenvalues alone. Without a derivative."""
    (values,) = jax.lax.linalg.eig(
        matrix,
        compute_left_eigenvectors=False,
        compute_right_eigenvectors=False,
        implementation=EigImplementation.LAPACK,
    )
    return values


@sequential_vmap
def eigh(matrix: Matrix) -> tuple[Float[Array, " n"], Matrix]:
    """Eigenvalues of a Hermitian matrix in ascending order, and eigenvectors as columns. Without a derivative."""
    values, vectors = jnp.linalg.eigh(matrix)
    return values, vectors


@jax.custom_jvp
def eigvalsh(matrix: Matrix) -> Float[Array, " n"]:
    """Eigenvalues of a Hermitian matrix in ascending order."""
    return _eigvalsh(matrix)


@eigvalsh.defjvp
def _(primals, tangents):
    values, vectors = eigh(*primals)
    return values, jnp.einsum("ik,ij,jk->k", vectors.conj(), tangents[0], vectors).real


@sequential_vmap
def singular_values(matrix: Matrix) -> Float[Array, " n"]:
    """In descending order. Without a derivative."""
    return jnp.linalg.svd(matrix, compute_uv=False)


@sequential_vmap
def pseudo_inverse(matrix: Matrix) -> Matrix:
    """Of a Hermitian matrix. Without a derivative."""
    return jnp.linalg.pinv(matrix, hermitian=True)


@sequential_vmap
def slogdet(matrix: Matrix) -> tuple[Inexact[Array, ""], Float[Array, ""]]:
    """Sign and logarithm of the size of the determinant. Without a derivative."""
    sign, logarithm = jnp.linalg.slogdet(matrix)
    return sign, logarithm


@sequential_vmap
def lu_factor(matrix: Matrix) -> Factors:
    """As SciPy has it. Without a derivative."""
    return jax.scipy.linalg.lu_factor(matrix)


@sequential_vmap
def lu_solve(factors: Factors, right: Inexact[Array, "n *m"]) -> Inexact[Array, "n *m"]:
    """$A^{-1} b$ from the factors of A. Without a derivative."""
    return jax.scipy.linalg.lu_solve(factors, right)


@sequential_vmap
def lu_solve_adjoint(factors: Factors, right: Inexact[Array, "n *m"]) -> Inexact[Array, "n *m"]:
    """$A^{-H} b$ from the factors of A. Without a derivative."""
    return jax.scipy.linalg.lu_solve(factors, right, trans=2)


def solve(matrix: Matrix, right: Inexact[Array, "n *m"], factors: Factors | None = None) -> Inexact[Array, "n *m"]:
    """$A^{-1} b$, with derivatives; `factors`: those of A, if they are known."""
    known = lu_factor(jax.lax.stop_gradient(matrix)) if factors is None else factors
    return jax.lax.custom_linear_solve(
        lambda x: matrix @ x,
        right,
        solve=lambda _, b: lu_solve(known, b),
        # The transpose, not the adjoint: JAX's transposes are without conjugation.
        transpose_solve=lambda _, b: lu_solve_adjoint(known, b.conj()).conj(),
    )


@sequential_vmap
def _eigvalsh(matrix: Matrix) -> Float[Array, " n"]:
    return jnp.linalg.eigvalsh(matrix)
