"""Curves fitted to measured tables: within the measured range, past its highest throughput, and on either side of it."""

import cvxpy
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, reject, settings
from hypothesis import strategies as st

from dgdlb_jax.model.service import ServiceFit, Tabulated, fit_service
from dgdlb_jax.numerics.results import InputError

pytestmark = pytest.mark.usefixtures("quick_compilation")

# Throughput in requests/s against concurrency, 512 tokens in, 128 out, for one server.
# Source: splitwise-sim data/perf_model.csv (Mutinifni/splitwise-sim), MIT licence; batch over median end-to-end time.
CONCURRENCY = [1, 2, 4, 8, 16, 32, 64]
SPLITWISE = {
    "bloom-176b, 8 A100": [0.156988, 0.301215, 0.570077, 0.994195, 1.472671, 2.246940, 2.716962],
    "bloom-176b, 8 H100": [0.214264, 0.414603, 0.787658, 1.4618, 2.462657, 3.816565, 4.853823],
    "llama2-70b, 2 A100": [0.139562, 0.249091, 0.468500, 0.847512, 1.382200, 1.731385],
    "llama2-70b, 4 A100": [0.171121, 0.3348, 0.634697, 1.132564, 1.76969, 2.711265, 3.165636],
    "llama2-70b, 8 A100": [0.172324, 0.343135, 0.654427, 1.198072, 1.885831, 3.108269, 3.879784],
    "llama2-70b, 2 H100": [0.208957, 0.407475, 0.743319, 1.392872, 2.448515, 3.537644],
    "llama2-70b, 4 H100": [0.260635, 0.510883, 0.999936, 1.803688, 3.148119, 4.972119, 6.28635],
    "llama2-70b, 8 H100": [0.260575, 0.509550, 0.958236, 1.773001, 3.111297, 4.940801, 6.853935],
}
TABLES = {name: (CONCURRENCY[: len(rates)], rates) for name, rates in SPLITWISE.items()}
LLAMA_8_H100, LLAMA_2_A100 = SPLITWISE["llama2-70b, 8 H100"], SPLITWISE["llama2-70b, 2 A100"]

# Source: dstackai/benchmarks: Llama-3.1-405B on 4 MI300X, which falls past 64; short prompts on 8 MI300X, which is not concave.
FALLING = (
    [4, 8, 16, 32, 64, 128, 256],
    [0.041170997, 0.077519793, 0.13948587, 0.231193874, 0.344895323, 0.289189565, 0.324027254],
)
ROUGH = (
    [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048],
    [0.39, 0.43, 1.08, 2.05, 3.22, 3.95, 6.38, 8.86, 11.60, 13.27, 14.27, 14.77],
)
# Made up: a peak, and next to nothing.
PEAKED = ([1, 2, 4, 8, 16, 32, 64, 128, 256], [0.207, 0.41, 0.79, 1.5, 2.6, 3.82, 4.61, 3.9, 3.2])
TWO_POINTS = ([1, 256], [0.207, 4.58])


def rates_of(service: Tabulated, workloads) -> np.ndarray:
    """The curve by its formula, in NumPy."""
    weights, scales = (np.asarray(leaf)[:, 0] for leaf in (service.weights, service.scales))
    return -np.expm1(-np.asarray(workloads, float)[:, None] / scales) @ weights


@jax.jit
def nearly_full(service: Tabulated):
    """The workload that carries 99 % of the capacity."""
    return service.inverse(0.99 * service.nominal_capacity)


def lone_factor(fit: ServiceFit) -> float:
    """How much faster a lone request is than at the smallest measured workload."""
    return fit.smallest[0] / fit.smallest[1] / fit.lone_request


# The measured range


@pytest.mark.parametrize(
    ("name", "misfit"),
    [
        ("bloom-176b, 8 A100", 0.042),
        ("bloom-176b, 8 H100", 0.010),
        ("llama2-70b, 2 A100", 0.044),
        ("llama2-70b, 4 A100", 0.034),
        ("llama2-70b, 8 A100", 0.048),
        ("llama2-70b, 2 H100", 0.028),
        ("llama2-70b, 4 H100", 0.017),
        ("llama2-70b, 8 H100", 0.006),
    ],
)
def test_measured_servers(name, misfit):
    points, rates = TABLES[name]
    fit = fit_service(points, rates)
    assert fit.misfit == pytest.approx(misfit, abs=6e-4)  # the expected figures are rounded to 0.1 %
    assert np.max(np.abs(rates_of(fit.service, points) / rates - 1)) == pytest.approx(fit.misfit, rel=1e-9)
    assert float(fit.service.nominal_capacity[0]) == pytest.approx(max(rates), rel=3e-4)  # no fit ends lower than that
    assert float(fit.service.measured_workload[0]) == max(points)
    assert fit.left_out == fit.falls_at == ()
    # Between the exponential and the hyperbola through the same points, whose limits are 1.04 to 2.02 times the highest rate.
    assert 1.04 < fit.asymptote / fit.highest < 1.5
    assert 1 < lone_factor(fit) < 1.1


@pytest.mark.parametrize(("points", "rates"), [*TABLES.values(), PEAKED, FALLING, ROUGH])
def test_least_squares_by_another_solver(points, rates):
    """An interior-point method on a grid of scales eight times as fine finds the same curve, and no much better one."""
    fit = fit_service(points, rates)
    fitted = np.asarray(points) <= float(fit.service.measured_workload[0])
    x, y = np.asarray(points, float)[fitted], np.asarray(rates)[fitted]
    scales = np.geomspace(0.6276 * x[0], x[-1] / np.log(4 / 3), 500)
    basis, above = -np.expm1(-x[:, None] / scales) / y[:, None], 0.3 if fit.left_out else 0.003

    def objective(weights, scales, basis):
        lone, most = (1 / scales) @ weights * x[0] / y[0], weights.sum() / y[-1]
        return ((basis @ weights - 1) ** 2).sum() + (0.003 * (lone - 1)) ** 2 + (above * (most - 1)) ** 2

    weights = cvxpy.Variable(scales.size, nonneg=True)
    cvxpy.Problem(cvxpy.Minimize(objective(weights, scales, basis))).solve(cvxpy.CLARABEL)
    mine = [np.asarray(leaf)[:, 0] for leaf in (fit.service.weights, fit.service.scales)]
    value = objective(*mine, -np.expm1(-x[:, None] / mine[1]) / y[:, None])
    best = objective(np.maximum(weights.value, 0), scales, basis)
    assert best * (1 - 1e-4) < value < best * 1.02  # 20 scales per decade are within 2 % of all scales
    # At a minimum sum((ours - best)^2) <= value - best: 2 % of the squares, as the objective is strongly convex in the rates.
    assert np.sum((rates_of(fit.service, x) / y - basis @ weights.value) ** 2) < 0.02 * best + 1e-9


def test_what_is_not_fitted_is_not_concave():
    """The best of all increasing concave curves, smooth or not, does not meet the rough table much better."""
    x, y = np.asarray(ROUGH[0], float), np.asarray(ROUGH[1])
    rates = cvxpy.Variable(x.size)
    slopes = cvxpy.multiply(cvxpy.diff(cvxpy.hstack([0, rates])), 1 / np.diff(x, prepend=0))
    problem = cvxpy.Problem(
        cvxpy.Minimize(cvxpy.sum_squares(cvxpy.multiply(1 / y, rates) - 1)), [slopes >= 0, cvxpy.diff(slopes) <= 0]
    )
    best = problem.solve(cvxpy.CLARABEL)
    found = np.sum((rates_of(fit_service(*ROUGH).service, x) / y - 1) ** 2)
    assert best < found < 1.6 * best


def test_order_and_units_do_not_matter():
    fit = fit_service(CONCURRENCY, LLAMA_8_H100)
    turned = fit_service(CONCURRENCY[::-1], LLAMA_8_H100[::-1])
    scaled = fit_service(CONCURRENCY, 60 * np.array(LLAMA_8_H100))
    np.testing.assert_allclose(rates_of(turned.service, [10.0]), rates_of(fit.service, [10.0]), rtol=1e-9)
    np.testing.assert_allclose(rates_of(scaled.service, [10.0]), 60 * rates_of(fit.service, [10.0]), rtol=1e-6)


def test_a_mixture_of_its_own_kind_is_recovered():
    """But for the pull of the guesses: no squared misfit can exceed what the true curve itself is charged for them."""
    truth = Tabulated([[2.0], [3.0]], [[3.0], [30.0]])
    points = np.array([1.0, 2, 4, 8, 16, 32, 64, 128])
    rates = rates_of(truth, points)
    lone, most = float(truth.initial_slope[0]) * points[0] / rates[0], 5 / rates[-1]
    fit = fit_service(points, rates, candidates=[1.0, 3.0, 10.0, 30.0, 100.0])
    assert fit.misfit < 0.003 * np.hypot(lone - 1, most - 1)
    assert fit_service(points, rates).misfit < 1e-3  # the default grid lies beside the true scales


# Past the highest throughput


def test_the_falling_part_is_left_out():
    points, rates = PEAKED
    fit = fit_service(points, rates, name="peaked.csv")
    assert fit.left_out == fit.falls_at == (128.0, 256.0)
    assert float(fit.service.measured_workload[0]) == 64
    assert float(fit.service.nominal_capacity[0]) == fit.highest == 4.61
    assert fit.misfit == pytest.approx(np.max(np.abs(rates_of(fit.service, points[:7]) / rates[:7] - 1)), rel=1e-9)
    assert fit.misfit < 0.04
    assert 4.61 < fit.asymptote < 1.1 * 4.61  # the fall says that more is not to be had
    assert "peaked.csv: 4.61 requests/s, measured up to 64 requests" in str(fit)
    assert "throughput falls from workload 128 on, 2 points left out of the fit" in str(fit)
    # Without the fall the table says less of what would come.
    assert fit_service(points[:7], rates[:7]).asymptote > fit.asymptote


def test_capacity_is_what_the_fit_reaches():
    """A sharp corner, which no mixture has: the curve ends below the highest measured throughput, and so does the capacity."""
    fit = fit_service(*FALLING)
    capacity = float(fit.service.nominal_capacity[0])
    assert capacity == pytest.approx(rates_of(fit.service, [64.0])[0], rel=1e-12)
    assert (1 - fit.misfit) * (1 - 1e-12) <= capacity / fit.highest < 1
    assert fit.misfit < 0.05
    assert fit.highest < fit.asymptote < 1.2 * fit.highest


def test_dips_before_the_highest_throughput_are_fitted():
    fit = fit_service([1, 4, 16, 64, 256, 512], [0.2, 0.78, 2.6, 4.5, 4.45, 4.6])
    assert fit.left_out == ()
    assert fit.falls_at == (256.0,)
    assert "throughput falls at workload 256, the fitted curve does not" in str(fit)


def test_a_plateau_is_measured_to_its_end():
    fit = fit_service([1, 2, 4, 8, 16], [1.0, 1.8, 2.5, 2.5, 2.4])
    assert fit.left_out == (16.0,)
    assert float(fit.service.measured_workload[0]) == 8


# Outside the measured range


def test_extrapolation_is_named_below_and_above():
    fit = fit_service(*TWO_POINTS)
    assert fit.lone_request == pytest.approx(1 / 0.207, rel=0.03)  # 4.83 s; one exponential through both points: 4.72 s
    assert fit.asymptote == pytest.approx(4.58, rel=1e-3)
    assert "extrapolated below workload 1, to 4.72 s for a lone request (4.83 s were measured)" in str(fit)
    assert "above 256, to at most 4.58 requests/s (4.58 were measured)" in str(fit)
    assert not fit.is_doubtful


@pytest.mark.parametrize(("points", "most"), [(CONCURRENCY[:4], 4.0), (CONCURRENCY[:6], 1.6)])
def test_a_table_cut_off_goes_on_as_the_server_did(points, most):
    """The more a table still rises, the further it is extrapolated: at least to what was measured there, and boundedly."""
    fit = fit_service(points, LLAMA_8_H100[: len(points)])
    later = LLAMA_8_H100[-1] / fit.highest
    assert 0.9 * later < fit.asymptote / fit.highest < most
    assert fit.is_doubtful == (fit.asymptote > 2 * fit.highest)


def test_bounds_are_met_where_a_table_asks_for_more():
    """Proportional throughput has no limit, and throughput that hardly changes no slope at 0: both stop at the bounds."""
    straight = fit_service(CONCURRENCY, 0.2 * np.array(CONCURRENCY))
    assert 3.9 < straight.asymptote / rates_of(straight.service, [64.0])[0] <= 4 * (1 + 1e-12)
    flat = fit_service([64, 128, 256], [4.5, 4.55, 4.58])
    assert 1.95 < 64 / flat.lone_request / rates_of(flat.service, [64.0])[0] <= 2 * (1 + 1e-12)
    assert straight.is_doubtful
    assert flat.is_doubtful


@st.composite
def tables(draw):
    """Concave, bent upwards or peaked, smooth or noisy, over few or many decades."""
    size = draw(st.integers(2, 9))
    steps = draw(st.lists(st.floats(1.02, 6.0), min_size=size - 1, max_size=size - 1))
    points = draw(st.floats(0.1, 100.0)) * np.cumprod([1.0, *steps])
    rates = points ** draw(st.floats(0.1, 1.1)) / (1 + points / draw(st.floats(1.0, 1e4))) ** draw(st.floats(0.0, 1.5))
    noise = draw(st.lists(st.floats(-1, 1), min_size=size, max_size=size))
    return points, rates * np.exp(draw(st.sampled_from([0.0, 0.02, 0.2])) * np.array(noise))


@given(tables())
@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_every_table_gives_a_consistent_curve(table):
    points, rates = table
    try:
        fit = fit_service(points, rates)
    except InputError:
        reject()  # no service curve at all
    service, fitted = fit.service, points <= float(fit.service.measured_workload[0])
    last = points[fitted][-1]
    # Capacity, supremum and range agree: what the fit reaches at the end of the range, at most what was measured.
    capacity, reached = float(service.nominal_capacity[0]), rates_of(service, [last])[0]
    assert capacity <= fit.asymptote
    assert capacity == pytest.approx(min(rates.max(), reached), rel=1e-12)
    assert rates[fitted][-1] == rates.max() == fit.highest
    assert fit.left_out == tuple(points[~fitted])
    assert capacity >= fit.highest * (1 - fit.misfit) * (1 - 1e-12)
    carried = float(nearly_full(service)[0])
    assert carried <= last
    assert rates_of(service, [carried])[0] == pytest.approx(0.99 * capacity, rel=1e-9)
    # The misfit is that of the points that were fitted.
    assert fit.misfit == pytest.approx(np.max(np.abs(rates_of(service, points[fitted]) / rates[fitted] - 1)), abs=1e-12)
    # Increasing and concave, far outside the range as well; bounded on either side.
    workloads = np.concatenate([[0.0], np.geomspace(1e-3 * points[0], 5 * last, 200)])
    slopes = np.diff(rates_of(service, workloads)) / np.diff(workloads)
    rounding = 1e-9 * slopes[0]
    assert (slopes > -rounding).all()
    assert (np.diff(slopes) < rounding).all()
    assert 1 / fit.lone_request <= 2 * rates_of(service, points[:1])[0] / points[0] * (1 + 1e-12)
    assert fit.asymptote <= 4 * reached * (1 + 1e-12)


def test_single_precision_agrees_with_itself():
    with jax.enable_x64(False):
        for points, rates in (*TABLES.values(), PEAKED, FALLING, ROUGH, TWO_POINTS):
            service = fit_service(points, rates).service
            assert service.weights.dtype == service.nominal_capacity.dtype == jnp.float32
            assert (service.nominal_capacity <= service.supremum).all()
            assert np.isfinite(nearly_full(service)).all()


# Messages


def test_tables_that_are_not_concave_are_named():
    convex = fit_service(CONCURRENCY[:6], LLAMA_2_A100, name="llama2 on 2 A100")
    assert convex.convex_at == (2.0,)
    assert "llama2 on 2 A100" in str(convex)
    assert "not concave at workload 2" in str(convex)
    assert convex.is_doubtful
    plain = fit_service(CONCURRENCY, LLAMA_8_H100)
    assert not plain.is_doubtful
    assert "falls" not in str(plain)
    assert "concave" not in str(plain)


def test_fits_of_short_tables_share_their_shape():
    """So that networks with different measured servers stack, and compile once."""
    assert {fit_service(*table).service.weights.shape for table in TABLES.values()} == {(6, 1)}


@pytest.mark.parametrize(
    ("points", "rates", "message"),
    [
        ([1.0], [1.0], "at least two points"),
        ([1.0, 2.0], [1.0], "equal length"),
        ([1, 2, 2], [1, 2, 2], "workload 2 occurs twice"),
        ([0, 1, 2], [0, 1, 2], "workload of row 0 is 0"),
        ([1, 2, 3], [1, -2, 3], "throughput of row 1 is -2"),
        ([1, 2, 3], [1, np.nan, 3], "throughput of row 1 is nan"),
        ([1, 2, 4, 8], [1000, 1, 0.1, 0.01], "not a service curve: throughput is highest at the smallest workload, 1;"),
        (
            [1, 2, 4, 8],
            [0.001, 0.01, 1, 1000],
            "not a service curve: the best increasing and concave curve misses it by",
        ),
    ],
)
def test_bad_tables(points, rates, message):
    with pytest.raises(InputError, match=message):
        fit_service(points, rates)
