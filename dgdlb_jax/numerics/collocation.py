r"""Characteristic roots of linear delay equations $\dot z = \sum_d A_d z(t - \tau_d)$ by pseudospectral collocation.

The state at time t is the function $\theta \mapsto z(t + \theta)$ on $[-\tau_{\max}, 0]$; on Chebyshev points it is a polynomial, and the
infinitesimal generator a matrix: differentiation at all points but 0, the equation itself at 0.

**Source:** Breda, Maset, Vermiglio (2005), "Pseudospectral differencing methods for characteristic roots of delay differential
equations".
"""

import numpy as np


def generator(matrices: np.ndarray, delays: np.ndarray, degree: int) -> np.ndarray:
    """The collocation matrix, `(degree + 1) * n` square, of a delay equation.

    **Arguments:** `matrices` `(terms, n, n)`, `delays` `(terms,)` not negative, `degree` of the polynomial.
    """
    n = matrices.shape[1]
    longest = float(delays.max(initial=0.0))
    if longest == 0:
        return matrices.sum(0)
    points = np.cos(np.pi * np.arange(degree + 1) / degree)  # from 1 (theta = 0) to -1 (theta = -longest)
    weights = (-1.0) ** np.arange(degree + 1)
    weights[[0, -1]] /= 2
    first = np.einsum("dij,dm->imj", matrices, _interpolation(points, weights, 1 - 2 * delays / longest))
    rest = np.kron(_differentiation(points, weights)[1:] * (2 / longest), np.eye(n))
    return np.concatenate([first.reshape(n, -1), rest])


def _differentiation(points: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Values at the points to derivatives there, by the barycentric formula."""
    distance = points[:, None] - points[None] + np.eye(points.size)
    matrix = weights[None] / weights[:, None] / distance
    np.fill_diagonal(matrix, 0)
    np.fill_diagonal(matrix, -matrix.sum(1))
    return matrix


def _interpolation(points: np.ndarray, weights: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Values at the points to values elsewhere, `(elsewhere, points)`."""
    distance = at[:, None] - points[None]
    hit = np.abs(distance) < 1e-14
    quotient = weights / np.where(hit, 1, distance)
    rows = quotient / quotient.sum(1, keepdims=True)
    return np.where(hit.any(1, keepdims=True), hit.astype(float), rows)
