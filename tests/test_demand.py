"""Demand over time: counts preserved, continuity, jumps, cycles, scaling, padding, layouts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dgdlb_jax.model.demand import Constant, DailyCycle, Jumps, Trace
from dgdlb_jax.numerics.results import InputError

pytestmark = pytest.mark.usefixtures("quick_compilation")

COUNTS = np.array([[3, 0], [0, 0], [7, 1], [40, 0], [2, 5], [0, 9]], float)
DEMANDS = {
    "Constant": Constant([3.0, 0.5]),
    "Trace": Trace.from_counts([10.0, 20.0], COUNTS),
    "Jumps": Jumps([[5.0, 6.0], [9.0, 30.0]], [[1.0, 2.0], [0.0, 3.0], [4.0, 1.0]]),
    "DailyCycle": DailyCycle([3.0, 2.0], [0.4, 1.0], [0.0, 30.0], 100.0),
}
TIMES = np.concatenate([np.linspace(-3, 150, 52), [5.0, 9.0, 10.0, 30.0]])


@pytest.fixture(params=DEMANDS)
def demand(request):
    return DEMANDS[request.param]


def over_time(demand, times):
    return np.asarray(jax.vmap(demand.rate)(jnp.asarray(times, float)))


def test_constant():
    np.testing.assert_array_equal(DEMANDS["Constant"].rate(17.0), [3.0, 0.5])


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 1000), min_size=7, max_size=7), st.floats(0.1, 1e4))
def test_trace_keeps_the_count_of_every_bin(counts, width):
    """Trapezoids between bin edges and middles integrate a piecewise linear rate exactly; nothing is negative."""
    trace = Trace.from_counts(width, np.array(counts, float)[:, None])
    knots = np.arange(2 * 7 + 1) / 2 * width
    rates = over_time(trace, knots)[:, 0]
    areas = width / 4 * (rates[:-1] + rates[1:])
    np.testing.assert_allclose(areas[::2] + areas[1::2], counts, rtol=1e-12, atol=1e-12 * max(counts))
    assert rates.min() >= -1e-12 * max(counts) / width
    assert trace.mean_rate[0] == pytest.approx(sum(counts) / (7 * width), rel=1e-14)


def test_trace_is_linear_between_knots_and_holds_its_ends():
    trace = Trace(1.0, [[2.0], [4.0], [3.0]])
    # Edges: 2, min(3, 4, 8) = 3, min(3.5, 8, 6) = 3.5, 3; middles: 2 r minus the mean of both edges.
    knots = [2.0, 1.5, 3.0, 4.75, 3.5, 2.75, 3.0]
    times = np.linspace(0, 3, 61)
    np.testing.assert_allclose(over_time(trace, times)[:, 0], np.interp(times, np.arange(7) / 2, knots), rtol=1e-13)
    np.testing.assert_array_equal(over_time(trace, [-5.0, 3.0, 1e7])[:, 0], [2.0, 3.0, 3.0])


def test_trace_is_continuous_where_bins_meet():
    trace = DEMANDS["Trace"]
    for edge in np.arange(1, 6):
        before, after = over_time(trace, [10 * edge * (1 - 1e-12), 10 * edge * (1 + 1e-12)])
        np.testing.assert_allclose(before, after, atol=1e-9)


def test_trace_bins_without_requests_are_silent():
    trace = Trace.from_counts(10.0, COUNTS)
    np.testing.assert_allclose(over_time(trace, np.linspace(10, 20, 11)), 0.0, atol=1e-15)


def test_trace_in_single_precision():
    trace = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), DEMANDS["Trace"])
    assert trace.rate(jnp.float32(17.0)).dtype == jnp.float32
    # float32 resolves the place inside a bin to 1e-6 at worst: six bins, rates up to 8 requests/s.
    np.testing.assert_allclose(over_time(trace, TIMES), over_time(DEMANDS["Trace"], TIMES), atol=5e-5)


def test_jumps_hold_from_their_time_on():
    jumps = DEMANDS["Jumps"]
    np.testing.assert_array_equal(
        over_time(jumps, [0.0, 4.999, 5.0, 6.0, 9.0, 30.0]), [[1, 2], [1, 2], [0, 2], [0, 3], [4, 3], [4, 1]]
    )
    np.testing.assert_array_equal(jumps.mean_rate, [4.0, 1.0])
    shared = Jumps([2.0], [[1.0, 2.0], [3.0, 4.0]])
    np.testing.assert_array_equal(over_time(shared, [1.9, 2.0]), [[1, 2], [3, 4]])


def test_daily_cycle():
    cycle = DailyCycle([3.0], 0.5, 3600.0)
    np.testing.assert_allclose(cycle.rate(3600.0), [4.5])
    np.testing.assert_allclose(cycle.rate(3600.0 + 43200), [1.5])
    np.testing.assert_allclose(cycle.rate(3600.0 + 21600), [3.0])
    np.testing.assert_allclose(cycle.rate(3600.0 + 7 * 86400), [4.5])
    assert over_time(cycle, np.arange(0, 86400, 600.0)).mean() == pytest.approx(3.0, rel=1e-12)


def test_the_largest_rate_is_reached_and_never_passed(demand):
    """At knots: half bins of the trace, and the peak of the cycle."""
    rates = over_time(demand, np.concatenate([np.arange(0, 150, 5.0), np.arange(0, 150, 0.37)]))
    np.testing.assert_allclose(rates.max(0), demand.largest_rate, rtol=1e-12)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 1000), min_size=4, max_size=4))
def test_a_trace_never_rises_above_twice_its_busiest_bin(counts):
    """A peak of r between a and b reaches r + (r - (a + b) / 2) / 2 where neither is below r / 3."""
    trace = Trace(1.0, np.array(counts, float)[:, None])
    assert trace.knots.shape == (9, 1)
    np.testing.assert_allclose(trace.knots[:, 0], over_time(trace, np.arange(9) / 2)[:, 0], rtol=1e-12, atol=1e-9)
    assert float(trace.largest_rate[0]) <= 2 * max(counts) * (1 + 1e-12)
    assert float(Trace(1.0, [[6.0], [8.0], [5.0]]).largest_rate[0]) == 8 + (8 - 5.5) / 2


def test_jumps_know_their_means_and_where_they_are():
    """Against sums over pieces by hand; without a length the mean is the rate, and a jump at an end counts."""
    jumps = DEMANDS["Jumps"]
    np.testing.assert_allclose(jumps.mean_over(4.0, 8.0), [(1 + 4 * 0 + 3 * 4) / 8, (2 * 2 + 6 * 3) / 8], rtol=1e-14)
    np.testing.assert_array_equal(jumps.mean_over(jnp.array([5.0, 7.0]), jnp.array([4.0, 2.0])), [0.0, 3.0])
    for t in TIMES:
        np.testing.assert_array_equal(jumps.mean_over(t, 0.0), jumps.rate(t))
    count, place = jumps.jumps_within(4.0, 8.0)
    np.testing.assert_array_equal(count, [2, 1])
    np.testing.assert_allclose(place, [(1 + 5) / 2 / 8, 2 / 8], rtol=1e-14)
    for start, expected in ((5.0, [0.0, 0.25]), (1.0, [1.0, 0.0])):
        np.testing.assert_array_equal(
            jumps.jumps_within(start, 4.0)[1], [expected[0] if start == 1 else 0.5, expected[1]]
        )
    np.testing.assert_array_equal(jumps.jumps_within(10.0, 15.0), np.zeros((2, 2)))
    np.testing.assert_array_equal(jumps.jumps_within(5.0, 0.0)[0], [0, 0])


def test_many_jumps_are_looked_up_one_after_the_other():
    """More than are written out in compiled code."""
    rates = np.arange(13.0)[:, None] ** 2
    jumps = Jumps(np.arange(12.0), rates)
    for t in (0.0, 2.5, 11.0, 20.0):
        np.testing.assert_array_equal(jumps.rate(t), rates[min(int(t) + 1, 12)])
    np.testing.assert_allclose(jumps.mean_over(2.5, 7.0), [(9 / 2 + sum(k**2 for k in range(4, 10)) + 100 / 2) / 7])
    np.testing.assert_allclose(jumps.jumps_within(2.5, 7.0), [[7.0], [3.5 / 7]], rtol=1e-14)


def test_jumps_that_never_come_are_rates_to_the_bit():
    rates = [[0.1, 1 / 3], [7.7, 0.9], [0.0, 0.0]]
    jumps = Jumps([1e3, 2e3], rates)
    for start, row in ((0.0, 0), (1.5e3, 1), (3e3, 2)):
        np.testing.assert_array_equal(jumps.rate(start), rates[row])
        np.testing.assert_array_equal(jumps.mean_over(start, 0.3), rates[row])


def test_scaled(demand):
    for factor in (2.0, [3.0, 0.5]):
        scaled = demand.scaled(factor)
        np.testing.assert_allclose(over_time(scaled, TIMES), over_time(demand, TIMES) * factor, rtol=1e-14)
        np.testing.assert_allclose(scaled.mean_rate, demand.mean_rate * jnp.asarray(factor), rtol=1e-14)


def test_scaled_to(demand):
    scaled = demand.scaled_to([6.0, 0.0])
    np.testing.assert_allclose(scaled.mean_rate, [6.0, 0.0], rtol=1e-14)
    expected = over_time(demand, TIMES)[:, 0] * 6 / demand.mean_rate[0]
    np.testing.assert_allclose(over_time(scaled, TIMES)[:, 0], expected, rtol=1e-13)


def test_pad(demand):
    for fill in (0.0, 1.0):
        padded = demand.pad(4, fill)
        rates = over_time(padded, TIMES)
        np.testing.assert_array_equal(rates[:, :2], over_time(demand, TIMES))
        np.testing.assert_array_equal(rates[:, 2:], fill)
        np.testing.assert_array_equal(padded.mean_rate[2:], fill)


def test_layouts_agree(demand):
    """A batch under vmap, and its lanes side by side on the frontend axis with a time each, give the same rates."""
    batch = jax.tree.map(lambda leaf: jnp.stack([leaf, 2 * leaf, 0.5 * leaf]), demand)
    times = jnp.array([3.0, 17.0, 41.0])
    expected = jax.vmap(lambda d, t: d.rate(t))(batch, times)

    def side_by_side(leaf):
        return jnp.moveaxis(leaf, 0, -1).reshape(*leaf.shape[1:-1], -1)

    lanes = jax.tree.map(side_by_side, batch)
    np.testing.assert_allclose(lanes.rate(jnp.tile(times, 2)), side_by_side(expected), rtol=1e-14)
    trailing = jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 0, -1), batch)
    np.testing.assert_allclose(trailing.rate(jnp.broadcast_to(times, (2, 3))), expected.T, rtol=1e-14)
    np.testing.assert_allclose(batch.mean_rate, jax.vmap(lambda d: d.mean_rate)(batch), rtol=1e-14)
    factors = jnp.array([[2.0], [3.0], [4.0]])
    np.testing.assert_allclose(batch.scaled(factors).mean_rate, batch.mean_rate * factors, rtol=1e-14)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Constant([1.0, -2.0]), r"Constant.rates\[1\] \(frontend 1\) is -2"),
        (lambda: Constant([1.0, np.nan]), "Constant.rates.*is nan"),
        (lambda: Constant(np.array(["a"])), "Constant.rates is not an array of numbers"),
        (lambda: Trace(10.0, np.array([1.0, 2.0])), "one column per frontend"),
        (lambda: Trace(0.0, [[1.0]]), "Trace.bin_width is 0"),
        (lambda: Trace.from_counts(0.0, [[1.0]]), "Trace.bin_width is 0"),
        (lambda: Trace(1.0, [[1.0], [-1.0]]), r"Trace.rates\[1, 0\] \(frontend 0\) is -1"),
        (lambda: Trace([1.0, 2.0, 3.0], [[1.0, 2.0]]), "Trace.bin_width has shape"),
        (lambda: Jumps([1.0], [[1.0]]), "one row of rates more than jumps"),
        (lambda: Jumps([2.0, 1.0], [[1.0], [2.0], [3.0]]), "not in rising order"),
        (lambda: Jumps([np.inf], [[1.0], [2.0]]), "Jumps.times"),
        (lambda: DailyCycle([1.0], 1.5), "DailyCycle.amplitude is 1.5"),
        (lambda: DailyCycle([1.0, 2.0], [0.1, 0.2, 0.3]), "DailyCycle.amplitude has shape"),
        (lambda: DailyCycle([1.0], 0.5, period=0.0), "DailyCycle.period is 0"),
        (lambda: Trace(1.0, [[0.0, 1.0]]).scaled_to([1.0, 1.0]), "frontend 0 never sends a request"),
        (lambda: Constant([1.0]).scaled_to([-1.0]), "Constant.mean_rate"),
    ],
)
def test_bad_parameters(build, message):
    with pytest.raises(InputError, match=message):
        build()
