"""Noise of single requests near the optimum: against closed forms of a symmetric group, and against the integrals written out in NumPy."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import minimize_scalar

import dgdlb_jax as dgd
from dgdlb_jax.equilibrium.operating_point import OperatingPoint
from dgdlb_jax.numerics.results import ConvergenceError, InputError, Result
from dgdlb_jax.stability.noise_step_size import first_order
from helpers import single_precision
from oracles import critical_gain

pytestmark = pytest.mark.usefixtures("quick_compilation")

RATE, MAX, HALF = 2.0, 3.0, 2.0  # one frontend, two equal backends: each serves 1 request/s of at most 3


def group(latency=0.5, backends=2):
    return dgd.Network(
        [RATE * backends / 2], jnp.full((1, backends), latency), dgd.Hyperbolic([MAX] * backends, [HALF] * backends)
    )


def slope_and_gain():
    """Of a hyperbolic backend, by hand: N = half r / (max - r), slope = max half / (half + N)^2, gain = 2 (half + N) / (max half)."""
    workload = HALF * (RATE / 2) / (MAX - RATE / 2)
    return MAX * HALF / (HALF + workload) ** 2, 2 * (HALF + workload) / (MAX * HALF)


def closed_form(step, latency):
    r"""Variances and cost of jitter, requests, of two equal backends: $w \sqrt{w^2 + a^2} = K = \eta c \Lambda$, and so on."""
    a, c = slope_and_gain()
    K, r = step * c * RATE, RATE / 2
    w = np.sqrt((np.sqrt(a**4 + 4 * K**2) - a**2) / 2)
    p, psi, phi = np.hypot(w, a), np.arcsinh(a / w) / 2, np.arctan(a / w) / 2
    T, Q = np.tanh(p * latency + psi), 1 / np.tan(phi - w * latency)
    v = (p * T + w * Q) / (2 * (p**2 + w**2))
    z = (Q / w - T / p) / (2 * (p**2 + w**2))
    return r / a / 2 + r * v, (step * c) ** 2 * r * z, a * c / 2 * (2 * r * v - r / a), {"T": T, "Q": Q, "p": p, "w": w}


@pytest.mark.parametrize("part", [0.02, 0.5, 0.95])
def test_two_equal_backends_against_the_closed_form(part):
    a, c = slope_and_gain()
    limit = critical_gain(a, 1.0) / (c * RATE)
    found = dgd.noise(group(), dgd.DGDLB(part * limit), scale=10.0)
    workload, routing, jitter, _ = closed_form(part * limit, 0.5)
    assert float(found.limit) == pytest.approx(1 / part, rel=1e-6)
    np.testing.assert_allclose(found.workload_variance, 10 * workload, rtol=1e-5)
    np.testing.assert_allclose(found.routing_variance, routing / 10, rtol=1e-5)
    # The jitter is what is left of parts that cancel: 2 % of them at a fiftieth of the limit.
    assert float(found.jitter) == pytest.approx(jitter / (10 * RATE), rel=1e-3)
    assert float(found.static) == pytest.approx(c * (RATE / 2) / (10 * RATE), rel=1e-9)
    assert float(found.excess) == pytest.approx(float(found.static + found.jitter))


def test_many_equal_backends_against_the_closed_form():
    """Each with the demand of one of two; their difference modes move at a step size that is smaller by as much as there is more demand."""
    many, part = 24, 0.5
    a, c = slope_and_gain()
    step = part * critical_gain(a, 1.0) / (c * RATE)
    two, *_ = closed_form(step, 0.5)
    still = RATE / 2 / a
    found = dgd.noise(group(backends=many), dgd.DGDLB(step * 2 / many), scale=10.0)
    np.testing.assert_allclose(
        found.workload_variance, 10 * (still / many + (1 - 1 / many) * (2 * two - still)), rtol=1e-5
    )


def test_without_latency_jitter_is_free():
    found = dgd.noise(group(0.0), dgd.DGDLB(3.0))
    assert np.isinf(found.limit)
    assert abs(float(found.jitter)) < 1e-5 * float(found.static)


@pytest.fixture(scope="module")
def random_networks(quick_compilation):
    """Frontends with two and three arcs in use."""
    networks = dgd.topologies.complete(jax.random.key(4), frontends=2, backends=3, count=6, load=0.6)
    optimum = dgd.solve_optimum(networks)
    step = 0.3 * dgd.critical_step_size(networks, optimum)[:, None] * jnp.ones(2)
    return networks, optimum, step, dgd.noise(networks, dgd.DGDLB(step), optimum)


def integrals(linear, rate, step):
    r"""$\mathrm{Var} N$, and the jitter as the work that latency does, by an even rule in frequency that needs no logarithm.

    $J = -\frac12 \int \frac{dw}{2 \pi} \frac1w \mathrm{Im}\, \mathrm{tr} [Z(jw) C S_N C]$,
    $Z = \sum_i \lambda_i \eta_i D_i P_i D_i$: an expression without small differences.
    """
    a, c, lam, tau, on = (
        np.asarray(v, float) for v in (linear.slope, linear.gain, linear.arrival_rate, linear.latency, linear.support)
    )
    eta = np.broadcast_to(np.asarray(step, float), lam.shape)
    w = np.concatenate([(np.arange(60_000) + 0.5) * 2e-3, 120 + (np.arange(20_000) + 0.5) * 0.1])
    width = np.concatenate([np.full(60_000, 2e-3), np.full(20_000, 0.1)])
    Z = np.zeros((w.size, a.size, a.size), complex)
    for i in range(lam.size):
        k = on[i].sum()
        if k > 1:
            late = np.exp(-1j * w[:, None] * tau[i]) * on[i]
            P = np.diag(on[i]) - np.outer(on[i], on[i]) / k
            Z += lam[i] * eta[i] * late[:, :, None] * P * late[:, None, :]
    jw = 1j * w[:, None]
    H = np.linalg.inv(np.einsum("wj,jk->wjk", jw + a, np.eye(a.size)) + Z * c / jw[:, :, None])
    S = np.einsum("wij,j,wkj->wik", H, 2 * rate, H.conj())
    still = 2 * rate / (w[:, None] ** 2 + a**2)
    variance = rate / a + ((np.einsum("wjj->wj", S).real - still) * width[:, None]).sum(0) / np.pi
    work = np.einsum("wij,j,wjk,k,ki->w", Z, c, S, c, np.eye(a.size)).imag / w
    return variance, -(work * width).sum() / (2 * np.pi)


def test_random_networks_against_plain_integrals(random_networks):
    networks, optimum, step, found = random_networks
    linear = dgd.linearise(networks, dgd.DGDLB(step), optimum)
    for k in range(3):
        one = jax.tree.map(lambda leaf, k=k: leaf[k], linear)
        lam, x = np.asarray(networks.arrival_rate[k]), np.asarray(optimum.routing[k])
        variance, jitter = integrals(one, lam @ x, step[k])
        np.testing.assert_allclose(found.workload_variance[k], variance, rtol=2e-4)
        assert float(found.jitter[k]) == pytest.approx(jitter / lam.sum(), rel=2e-3)


def test_a_batch_is_its_networks_and_theorem_a_bounds_the_jitter(random_networks):
    networks, optimum, step, found = random_networks
    one = dgd.noise(networks[2], dgd.DGDLB(step[2]), jax.tree.map(lambda leaf: leaf[2], optimum))
    np.testing.assert_allclose(found.workload_variance[2], one.workload_variance, rtol=1e-9)
    np.testing.assert_allclose(found.jitter[2], one.jitter, rtol=1e-7)
    assert one.result == Result.successful
    proven = dgd.sufficient_step_size(networks, optimum, condition=dgd.conditions.theorem_a)[:, 0]
    part = np.asarray(step[:, 0] / proven)
    assert (part < 1).any()
    ratio = np.asarray(found.jitter / found.static)[part < 1]
    assert (ratio <= part[part < 1] / (1 - part[part < 1])).all()
    assert (ratio > 0).all()


def test_small_step_sizes_against_the_first_order(random_networks):
    networks, optimum, step, _ = random_networks
    small = step / 60  # 0.005 of critical, where the next order is a few thousandths
    found = dgd.noise(networks, dgd.DGDLB(small), optimum)
    points = jax.vmap(OperatingPoint)(networks.anonymous(), optimum)
    expected = jax.vmap(first_order)(points, optimum, small) / networks.arrival_rate.sum(1)
    np.testing.assert_allclose(found.jitter, expected, rtol=0.02)


def test_gradient_in_a_latency_against_differences():
    a, c = slope_and_gain()
    step = 0.4 * critical_gain(a, 1.0) / (c * RATE)
    slope = jax.grad(lambda latency: dgd.noise(group(latency), dgd.DGDLB(step), throw=False).jitter)(0.5)
    differences = (closed_form(step, 0.5 + 1e-4)[2] - closed_form(step, 0.5 - 1e-4)[2]) / 2e-4 / RATE
    assert float(slope) == pytest.approx(differences, rel=1e-3)


def test_what_cannot_be_answered_is_said():
    with pytest.raises(InputError, match="oscillates by itself: make it slower"):
        dgd.noise(group(), dgd.DGDLB(50.0))
    found = dgd.noise(group(), dgd.DGDLB(50.0), throw=False)
    assert found.result == Result.unstable
    assert np.isnan(found.jitter)
    assert not bool(found.holds)
    with pytest.raises(InputError, match="scale is -1: give a positive finite number"):
        dgd.noise(group(), scale=-1)
    with pytest.raises(InputError, match="jumps, so it has no linearisation"):
        dgd.noise(group(), dgd.LeastLatency())
    with pytest.raises(InputError, match="horizon is 0"):
        dgd.suggest_step_size(group(), horizon=0)
    with pytest.raises(InputError, match=r"200 frontends and 200 backends .* minutes on one core"):
        dgd.noise(dgd.Network(np.ones(200), np.ones((200, 200)), dgd.Hyperbolic([MAX] * 200, [HALF] * 200)))
    with single_precision(), pytest.raises(InputError, match="needs double precision"):
        dgd.noise(group())


def test_a_resonance_too_sharp_for_the_frequencies_is_told():
    """At 99.9999 % of capacity service hardly damps anything: without latency, jitter costs nothing in truth."""
    saturated = dgd.Network([2 * MAX * (1 - 1e-6)], jnp.zeros((1, 2)), dgd.Hyperbolic([MAX] * 2, [HALF] * 2))
    with pytest.raises(ConvergenceError, match="stopped before it reached its tolerance"):
        dgd.noise(saturated, dgd.DGDLB(1.0))
    slow = dgd.noise(saturated, dgd.DGDLB(1e-31))
    assert abs(float(slow.jitter)) < 1e-3 * float(slow.static)


def test_idle_arcs_within_reach_are_told():
    """Where an arc loses by a hair, noise brings it into use at once, and the linear theory does not hold."""
    near = dgd.Network([RATE], [[0.5, 0.5, 3.0]], dgd.Hyperbolic([MAX] * 3, [HALF] * 3))
    best = dgd.solve_optimum(near)
    marginal = 1 / near.mean_service.slope(best.workload) + near.cost_latency[0]
    assert float(best.routing[0, 2]) < 1e-6
    tie = near.with_latency(near.latency.at[0, 2].add(float(best.multiplier[0] - marginal[2]) + 1e-3))
    step = dgd.default_step_size(tie)
    assert float(dgd.noise(tie, dgd.DGDLB(step), scale=1e4).distance) < 1
    assert bool(dgd.noise(near, dgd.DGDLB(step), scale=1e4).holds)


@pytest.mark.parametrize("horizon", [1.0, 100.0, 1e4])
def test_the_step_size_that_costs_least(horizon):
    """Settling and jitter of two equal backends in closed form; the suggestion costs at most 2 % more than the best."""
    a, c = slope_and_gain()
    limit, moved, scale = critical_gain(a, 1.0) / (c * RATE), 0.05, 100.0
    start = np.array([[0.5 + moved, 0.5 - moved]]), np.full(2, HALF * (RATE / 2) / (MAX - RATE / 2))
    gap = RATE * moved / a * np.array([1, -1])

    def total(step):
        *_, jitter, q = closed_form(step, 0.5)
        settle = (q["w"] ** 2 / q["p"] * q["T"] + q["p"] ** 2 / q["w"] * q["Q"]) / (
            2 * (q["p"] ** 2 + q["w"] ** 2)
        ) - 0.5
        return scale * a * c / 2 * (gap @ gap) * settle + horizon * jitter

    best = minimize_scalar(total, bounds=(1e-4 * limit, 0.9 * limit), method="bounded", options={"xatol": 1e-6 * limit})
    found = dgd.suggest_step_size(
        group(), horizon=horizon, scale=scale, start=(start[0], start[1] + gap), direction=1.0
    )
    assert total(float(found[0])) <= 1.02 * best.fun
    assert float(found[0]) <= 0.5 * limit


def test_nothing_to_settle_needs_no_step_size_and_nothing_limits_without_latency():
    best = dgd.solve_optimum(group())
    assert float(dgd.suggest_step_size(group(), best, horizon=10.0, start=(best.routing, best.workload))[0]) == 0
    away = np.array([[0.6, 0.4]]), best.workload
    assert np.isinf(dgd.suggest_step_size(group(0.0), horizon=10.0, start=away)[0])


def test_a_way_along_optimal_routings_costs_nothing():
    """Two frontends on two backends of equal latencies: traffic that changes places leaves every flow as it is."""
    network = dgd.Network([1.0, 1.0], np.full((2, 2), 0.5), dgd.Hyperbolic([MAX] * 2, [HALF] * 2))
    best = dgd.solve_optimum(network)
    turned = best.routing + np.array([[0.2, -0.2], [-0.2, 0.2]])
    suggest = partial(dgd.suggest_step_size, network, best, horizon=10.0, direction=1.0)
    along = np.array([[0.1, -0.1], [0.1, -0.1]])
    assert float(suggest(start=(turned, best.workload))[0]) < 1e-6
    np.testing.assert_allclose(
        suggest(start=(turned + along, best.workload)), suggest(start=(best.routing + along, best.workload)), rtol=1e-6
    )


@pytest.mark.full
def test_legal_extremes():
    """Rates and capacities over 600 decades, dead and tiny backends: sums written out in NumPy, or said not to be resolved."""
    from test_every_function import ALL, NAMES

    batch = dgd.stack([case[0] for case in ALL.values()])
    best = dgd.solve_optimum(batch)
    found = dgd.noise(batch, dgd.DGDLB(dgd.default_step_size(batch, best)), best, throw=False)
    failed = [name for name, result in zip(NAMES, found.result, strict=True) if result != Result.successful]
    assert failed == ["saturated"]
    for n, name in enumerate(NAMES):
        if name in failed:
            continue
        rate, shares = (np.asarray(v[n], float) for v in (batch.arrival_rate, best.routing))
        service = batch[n].mean_service
        slope, curvature = (np.asarray(v(best.workload[n]), float) for v in (service.slope, service.curvature))
        gain = -curvature / slope / slope
        served, variance = rate @ shares, np.asarray(found.workload_variance[n])
        total = rate.sum() or 1.0
        assert float(found.static[n]) == pytest.approx((gain * served).sum() / 2 / total, rel=1e-9)
        excess = (slope * gain * variance).sum() / 2 / total
        assert float(found.excess[n]) == pytest.approx(excess, rel=1e-6)
        assert float(found.jitter[n]) >= -1e-9 * float(found.static[n])
        assert (variance >= 0).all()
        assert (np.asarray(found.routing_variance[n]) >= 0).all()


@pytest.mark.full
def test_predicted_variances_and_cost_against_whole_requests():
    """Scale 100, a quarter and half of the limit: each within four standard errors, of 24 runs."""
    network = group()
    a, c = slope_and_gain()
    limit = critical_gain(a, 1.0) / (c * RATE)
    best = dgd.solve_optimum(network)
    from dgdlb_jax.studies.noise import stationary_latency

    for part in (0.25, 0.5):
        policy = dgd.DGDLB(part * limit)
        predicted = dgd.noise(network, policy, scale=100.0)
        run = dgd.simulate_requests_batch(
            network, policy, jax.random.split(jax.random.key(3), 24), duration=2000.0, dt=0.05, scale=100.0, after=100.0
        )
        excess = np.asarray(stationary_latency(run, network, best, 100.0)) - float(best.mean_latency)
        error = excess.std(ddof=1) / np.sqrt(24)
        assert abs(excess.mean() - float(predicted.excess)) < 4 * error + 0.01 * float(predicted.excess)
