"""A capacity that changes in time, and everybody who has to know: checks, starts, suggestions, rules, figures."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dgdlb_jax.equilibrium.operating_point import slope_and_gain
from dgdlb_jax.equilibrium.optimum import solve_optimum
from dgdlb_jax.gradients import marginal as gradients
from dgdlb_jax.model.demand import Constant, Jumps
from dgdlb_jax.model.network import Network, stack
from dgdlb_jax.model.service import Hyperbolic, Scaled
from dgdlb_jax.numerics.results import InputError, Result
from dgdlb_jax.policies.gradient import DGDLB
from dgdlb_jax.policies.static import spillover
from dgdlb_jax.simulation.engine import simulate, simulate_batch
from dgdlb_jax.simulation.start import default_start
from dgdlb_jax.stability.defaults import default_step_size, suggest_dt, suggest_duration
from dgdlb_jax.studies.balancers import calm_softmin, follow_curvature
from dgdlb_jax.studies.compare import Comparison
from dgdlb_jax.studies.stability import coarsest_step
from dgdlb_jax.studies.starts import STARTS, start_state
from dgdlb_jax.studies.sweep.gradient_error import largest_gradient_error
from helpers import CURVES

pytestmark = pytest.mark.usefixtures("quick_compilation")

MAX_RATE, HALF_LOAD, FACTOR = np.array([8.0, 6.0]), np.array([2.0, 1.0]), np.array([0.7, 8.0])
LATENCY = [[0.02, 0.15], [0.15, 0.02]]


def network(max_rate=MAX_RATE, **changes) -> Network:
    return Network([5.0, 2.0], LATENCY, Hyperbolic(max_rate, HALF_LOAD), **changes)


WITH_FACTOR = network(capacity=Constant(FACTOR))
WITH_CURVE = network(FACTOR * MAX_RATE)
SAME_NOMINAL = Network([5.0, 2.0], LATENCY, Hyperbolic(FACTOR * MAX_RATE, HALF_LOAD, capacity=MAX_RATE / 2))
WORKLOADS = jnp.array([[1.0, 2.0], [4.0, 3.0], [2.0, 6.0], [5.0, 1.0]])  # over time
ASKED = {
    "slope_and_gain": lambda n: slope_and_gain(n, jnp.array([3.0, 4.0])),
    "default_step_size": default_step_size,
    "suggest_dt": suggest_dt,
    "suggest_duration": suggest_duration,
    "default_start": lambda n: default_start(stack([n])),
    **{f"start_state {start}": functools.partial(lambda start, n: start_state(n, start), start) for start in STARTS},
    "calm_softmin": calm_softmin,
    "follow_curvature": lambda n: follow_curvature(n, solve_optimum(n), default_step_size(n)),
    "spillover": spillover,
    "coarsest_step": lambda n: coarsest_step(stack([n])),
    "steepest_latency": lambda n: Comparison(n, solve_optimum(n), jnp.ones(2), 1.0, 1.0, "given", {}).steepest_latency,
    "the approximate gradient": lambda n: gradients._seen(n, jnp.arange(1.0, 3.0), WORKLOADS, jnp.asarray(0), 1.0),
    "largest_gradient_error": lambda n: largest_gradient_error(n, np.arange(4.0), np.asarray(WORKLOADS)),
}


@pytest.mark.parametrize("asked", ASKED)
def test_a_constant_factor_is_another_curve(asked):
    """Whoever asks gets the same from a factor as from curves that have it inside.

    Routing in proportion to nominal capacity refers to the curve without the factor; spillover fills what there is with it.
    """
    other = SAME_NOMINAL if "start" in asked else WITH_CURVE
    plain, found, expected = (jax.tree.leaves(ASKED[asked](n)) for n in (network(), WITH_FACTOR, other))
    for one, two in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-9)
    assert any(not np.allclose(a, b, rtol=1e-3) for a, b in zip(found, plain, strict=True)), "the factor matters"


LATER = network(capacity=Jumps([1.0], [[1.0, 1.0], [30.0, 30.0]]))  # service times of 1/120 and 1/180 s after a second


def test_a_step_too_large_for_the_largest_capacity_is_refused():
    """dt = 0.02 s is 2.4 and 3.6 service times after the jump, when it would be too late to say so; 0.08 and 0.12 before."""
    with pytest.raises(
        InputError, match=r"lone request in 0\.008333 s when its capacity is largest: use a dt of at most"
    ):
        simulate(LATER, DGDLB(0.05), duration=0.5, dt=0.02)
    runs = simulate_batch(stack([LATER] * 2), DGDLB(0.05), duration=0.5, dt=np.array([0.02, 0.004]), throw=False)
    np.testing.assert_array_equal(runs.result, [Result.step_too_large, Result.successful])
    assert suggest_dt(LATER) <= 0.1 / (30 * 6)


def test_runs_start_from_the_capacity_at_time_0_and_end_at_that_of_the_optimum():
    """Before the jump the curve alone carries the start; the optimum and its step sizes are those of the last factor."""
    for asked in ("default_start", "start_state nearest"):
        for one, other in zip(ASKED[asked](LATER), ASKED[asked](network()), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-12)
    last = network(30 * MAX_RATE)
    np.testing.assert_allclose(solve_optimum(LATER).workload, solve_optimum(last).workload, rtol=1e-9)
    np.testing.assert_allclose(default_step_size(LATER), default_step_size(last), rtol=1e-9)


def test_a_backend_that_stands_still_carries_nothing():
    still = Scaled(Hyperbolic(MAX_RATE, HALF_LOAD), jnp.array([0.0, 2.0]))
    np.testing.assert_array_equal(still.inverse(jnp.array([1.0, 0.0])), [np.inf, 0.0])
    np.testing.assert_array_equal(still.inverse(jnp.zeros(2)), 0.0)
    np.testing.assert_array_equal(still.supremum, [0.0, 12.0])
    assert still.rate(jnp.ones(2))[0] == 0
    assert np.isfinite(still.marginal_latency(jnp.ones(2))).all()
    closed = network(capacity=Jumps([1.0], [[0.0, 1.0], [1.0, 1.0]]))
    assert default_start(stack([closed]))[1][0, 0] == 0


@pytest.mark.parametrize("curve", ["Hyperbolic", "Power"])
def test_a_scaled_curve_is_a_curve(rng, curve):
    """Derivatives by differences, the inverse by what it inverts."""
    plain, factor, workload = CURVES[curve](rng, 3), jnp.array([0.5, 1.0, 4.0]), jnp.array([0.3, 2.0, 7.0])
    scaled, h = Scaled(plain, factor), 1e-5
    np.testing.assert_allclose(scaled.rate(workload), factor * plain.rate(workload), rtol=1e-15)
    for value, derivative in ((scaled.rate, scaled.slope), (scaled.slope, scaled.curvature)):
        difference = (value(workload + h) - value(workload - h)) / (2 * h)
        np.testing.assert_allclose(derivative(workload), difference, rtol=1e-7)
    np.testing.assert_allclose(scaled.inverse(scaled.rate(workload)), workload, rtol=1e-12)
    np.testing.assert_allclose(scaled.initial_slope, scaled.slope(jnp.zeros(3)), rtol=1e-14)
