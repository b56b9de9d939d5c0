"""Projections onto the simplex and onto its tangent cone: formula, quadratic program, finite differences, extremes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dgdlb_jax.numerics.simplex import project_simplex, project_tangent_cone
from oracles import project_simplex as simplex_formula
from oracles import project_tangent_cone as cone_by_trial

project = jax.jit(project_simplex)
project_cone = jax.jit(project_tangent_cone)
SHAPE = (6, 40)  # entries, columns: shared by the tests, so that they share compiled code


def draw(rng, scale=1.0):
    """Random columns, a random mask with at least one entry per column, and a random guess of the support."""
    values = scale * rng.normal(size=SHAPE) * 10.0 ** rng.uniform(-2, 2, SHAPE[1])
    mask = rng.random(SHAPE) < 0.7
    mask[rng.integers(SHAPE[0], size=SHAPE[1]), np.arange(SHAPE[1])] = True
    return values, mask, rng.random(SHAPE) < 0.5


def by_column(function, *arrays):
    return np.stack([function(*(array[:, n] for array in arrays)) for n in range(arrays[0].shape[1])], axis=1)


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6, 1e12])
def test_projection_is_the_formula(rng, scale):
    values, mask, guess = draw(rng, scale)
    expected = by_column(simplex_formula, values, mask)
    np.testing.assert_allclose(project(values, mask, guess), expected, rtol=0, atol=1e-14)
    np.testing.assert_allclose(project(values, mask), expected, rtol=0, atol=1e-14)


def test_any_guess_gives_the_same_point(rng):
    values, mask, _ = draw(rng)
    expected = project(values, mask)
    support = np.asarray(expected) > 0
    for guess in (
        support,
        ~support,
        mask,
        np.zeros(SHAPE, bool),
        ~mask,
        *(rng.random(SHAPE) < p for p in (0.1, 0.5, 0.9)),
    ):
        np.testing.assert_allclose(project(values, mask, guess), expected, rtol=0, atol=1e-15)


@pytest.mark.parametrize("scale", [1.0, 1e30, 1e300])
def test_huge_entries_are_exact(rng, scale):
    """The largest entry wins by far: the answer is a vertex, or shared among equals, to the bit."""
    values = scale * np.where(rng.random(SHAPE) < 0.5, -1.0, -2.0)
    values[0] = -scale
    values[1] = -scale + 0.25 if scale == 1.0 else -scale
    expected = by_column(simplex_formula, values)
    point = np.asarray(project(values, np.ones(SHAPE, bool)))
    np.testing.assert_allclose(point, expected, rtol=0, atol=1e-15)
    np.testing.assert_allclose(point.sum(0), 1, rtol=0, atol=1e-15)


def test_projection_solves_the_quadratic_program(rng):
    cvxpy = pytest.importorskip("cvxpy")
    values, mask, _ = draw(rng)
    values = values[:, :6] / np.abs(values[:, :6]).max(0) * 2
    for n in range(values.shape[1]):
        x = cvxpy.Variable(SHAPE[0], nonneg=True)
        constraints = [cvxpy.sum(x) == 1] + [x[j] == 0 for j in range(SHAPE[0]) if not mask[j, n]]
        cvxpy.Problem(cvxpy.Minimize(cvxpy.sum_squares(x - values[:, n])), constraints).solve(
            solver="CLARABEL", tol_gap_abs=1e-13, tol_gap_rel=1e-13, tol_feas=1e-13
        )
        # An interior-point solver leaves sqrt(gap) on entries that vanish.
        np.testing.assert_allclose(project_simplex(values[:, n], mask[:, n]), x.value, rtol=0, atol=2e-6)


def test_derivative_is_that_of_finite_differences(rng):
    values, mask, guess = draw(rng)
    values = np.where(mask, values / np.abs(values).max(0), 0)
    point = np.asarray(project(values, mask, guess))
    # Away from a change of support by much more than the step of the difference quotient.
    gap = np.where(mask, np.abs(values - point - np.max(np.where(point > 0, values - point, -np.inf), axis=0)), np.inf)
    smooth = (np.where(point > 0, point, np.where(gap > 0, gap, 0)) > 1e-4).all(0)
    assert smooth.sum() > SHAPE[1] // 2
    direction, h = rng.normal(size=SHAPE), 1e-6
    quotient = (
        np.asarray(project(values + h * direction, mask, guess)) - project(values - h * direction, mask, guess)
    ) / (2 * h)
    _, forward = jax.jvp(lambda y: project(y, mask, guess), (values,), (direction,))
    np.testing.assert_allclose(np.asarray(forward)[:, smooth], np.asarray(quotient)[:, smooth], rtol=0, atol=1e-9)
    weights = rng.normal(size=SHAPE)
    backward = jax.grad(lambda y: jnp.sum(weights * project(y, mask, guess)))(values)
    assert np.sum(backward * direction) == pytest.approx(float(np.sum(weights * forward)), rel=1e-12)


def test_derivative_through_scan_and_vmap(rng):
    """The rule composes: d/dy of repeated projections equals the product of projectors on the support."""
    values, target = rng.normal(size=4) * 0.1, rng.normal(size=4) * 0.01

    def end(y):
        return jax.lax.scan(lambda x, _: (project_simplex(x + target), None), y, length=3)[0]

    support = np.asarray(end(values)) > 0
    assert support.all()
    projector = np.eye(4) - np.ones((4, 4)) / 4
    np.testing.assert_allclose(jax.jacfwd(end)(values), projector, rtol=0, atol=1e-15)
    np.testing.assert_allclose(jax.jacrev(end)(values), projector, rtol=0, atol=1e-15)
    lanes = rng.normal(size=(5, 4)) * 0.1
    np.testing.assert_array_equal(jax.vmap(project_simplex)(lanes), project_simplex(lanes.T).T)


def test_masked_columns_single_entries_and_nan():
    values = jnp.asarray([[3.0, 7.0, jnp.nan], [1e9, -5.0, 0.0]])
    mask = jnp.asarray([[True, False, True], [False, False, True]])
    point = np.asarray(project_simplex(values, mask))
    np.testing.assert_array_equal(point[:, :2], [[1, 0], [0, 0]])
    assert np.isnan(point[:, 2]).any()


def test_points_of_the_simplex_stay(rng):
    point = rng.dirichlet(np.ones(SHAPE[0]), SHAPE[1]).T
    np.testing.assert_allclose(project(point, np.ones(SHAPE, bool)), point, rtol=0, atol=3e-16)


def test_single_precision(rng):
    values, mask, guess = draw(rng)
    values = values.astype(np.float32)
    point = np.asarray(project(values, mask, guess))
    assert point.dtype == np.float32
    # One rounding of entries between -1 and 0 per sum of six.
    np.testing.assert_allclose(point, by_column(simplex_formula, values, mask), rtol=0, atol=5e-7)


# --- the tangent cone -------------------------------------------------------------------------------------------------


def points(rng, mask):
    """Points of the simplex with many zeros, on the mask."""
    raw = np.where(mask & (rng.random(SHAPE) < 0.5), rng.random(SHAPE), 0)
    first = np.argmax(mask, axis=0)
    raw[first, np.arange(SHAPE[1])] += raw.sum(0) == 0
    return raw / raw.sum(0)


def test_cone_is_the_best_of_all_trials(rng):
    velocity, mask, _ = draw(rng)
    point = points(rng, mask)
    expected = by_column(cone_by_trial, velocity, point, mask)
    scale = np.abs(velocity).max()
    np.testing.assert_allclose(project_cone(velocity, point, mask), expected, rtol=0, atol=1e-14 * scale)


def test_cone_is_the_limit_of_projections(rng):
    velocity, mask, _ = draw(rng)
    velocity = velocity / np.abs(velocity).max(0)
    point = points(rng, mask)
    h = 1e-7
    far = np.where(point > 0, point, 1).min(0) > 1e-5  # no entry may reach zero within h
    quotient = (np.asarray(project(point + h * velocity, mask)) - point) / h
    cone = np.asarray(project_cone(velocity, point, mask))
    np.testing.assert_allclose(cone[:, far], quotient[:, far], rtol=0, atol=1e-8)
    np.testing.assert_allclose(cone.sum(0), 0, atol=1e-14)
    assert (cone[(point == 0)] >= 0).all()
    assert (cone[~mask] == 0).all()


def test_cone_derivative_is_that_of_finite_differences(rng):
    velocity, mask, _ = draw(rng)
    velocity = velocity / np.abs(velocity).max(0)
    point = points(rng, mask)
    direction, h = rng.normal(size=SHAPE), 1e-7
    quotient = (
        np.asarray(project_cone(velocity + h * direction, point, mask))
        - project_cone(velocity - h * direction, point, mask)
    ) / (2 * h)
    _, forward = jax.jvp(lambda v: project_cone(v, point, mask), (velocity,), (direction,))
    # The cone is piecewise linear in the velocity: equal but where the difference crosses a kink, rarely.
    agree = np.abs(np.asarray(forward) - np.asarray(quotient)).max(0) < 1e-7
    assert agree.mean() > 0.95
