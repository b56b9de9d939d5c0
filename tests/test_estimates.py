"""What frontends make of the news: averages against closed forms, in the linear analysis and in runs; learnt curves and regressions."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import brentq

import dgdlb_jax as dgd
from dgdlb_jax.numerics.results import InputError
from dgdlb_jax.policies.base import Observation
from dgdlb_jax.policies.estimates import ExponentialAverage, Lead, LearntCurve, MovingAverage, Regression, estimated
from helpers import central_difference

pytestmark = pytest.mark.usefixtures("quick_compilation")

RATE, MAX, HALF, LATENCY = 2.0, 3.0, 2.0, 0.5  # one frontend, two equal backends: each serves 1 request/s of at most 3
WORKLOAD = HALF * (RATE / 2) / (MAX - RATE / 2)
SLOPE, GAIN = MAX * HALF / (HALF + WORKLOAD) ** 2, 2 * (HALF + WORKLOAD) / (MAX * HALF)
TIMES = np.array([0.05, 0.5, 4.0])


@pytest.fixture(scope="module")
def groups(quick_compilation):
    network = dgd.Network([RATE], jnp.full((1, 2), LATENCY), dgd.Hyperbolic([MAX] * 2, [HALF] * 2))
    networks = dgd.stack([network] * TIMES.size)
    return networks, dgd.solve_optimum(networks)


class UserLead(dgd.AbstractFlowPolicy):
    r"""DGD-LB on $g + (\rho - 1)(g - z)$, z a lag of g: what a user writes, whose memory the package does not know."""

    step_size: jax.Array
    lag: jax.Array
    ratio: float

    def init(self, observation):
        return {"steps": jnp.zeros_like(observation.arrival_rate), "z": observation.marginal_latency}

    def velocity(self, t, routing, observation, state):
        part = -jnp.expm1(-observation.time_step / self.lag)
        z = state["z"] + part * (observation.marginal_latency - state["z"])
        ahead = observation.marginal_latency + (self.ratio - 1) * (observation.marginal_latency - z)
        return -self.step_size * (ahead + observation.cost_latency), {"steps": state["steps"] + 1, "z": z}


def lag(w, time):
    return np.arctan(w * time), np.sqrt(1 + (w * time) ** 2)


def window(w, time):
    return w * time / 2, (w * time / 2) / np.sin(w * time / 2)


def lead(w, time):
    return np.arctan(w * time) - np.arctan(2 * w * time), np.sqrt((1 + (w * time) ** 2) / (1 + (2 * w * time) ** 2))


def critical(of, time):
    """Where $2 w tau + arctan(w / a)$ and what the estimate adds make a quarter turn, and the step size there."""
    behind = lambda w: 2 * w * LATENCY + np.arctan(w / SLOPE) + of(w, time)[0] - np.pi / 2
    w = brentq(behind, 1e-9, np.pi, xtol=1e-14)
    return w * np.hypot(w, SLOPE) * of(w, time)[1] / (GAIN * RATE), w


@pytest.mark.parametrize(
    ("rule", "of"),
    [
        (lambda time: estimated(dgd.DGDLB(1.0), ExponentialAverage(time)), lag),
        (lambda time: estimated(dgd.DGDLB(1.0), MovingAverage(time)), window),
        (lambda time: UserLead(jnp.asarray(1.0), time, 2.0), lead),
    ],
    ids=["lag", "window", "a user's lead"],
)
def test_limits_in_closed_form(groups, rule, of):
    networks, optimum = groups
    mode = dgd.critical_mode(networks, rule(jnp.asarray(TIMES)[:, None]), optimum)
    for k, time in enumerate(TIMES):
        step, w = critical(of, time)
        assert float(mode.step_size[k]) == pytest.approx(step, rel=1e-9)
        assert float(mode.frequency[k]) == pytest.approx(w, rel=1e-9)


def test_an_average_counts_as_latency(groups):
    """Half a window, or a whole time constant, of feedback latency is on the safe side (sin x <= x, arctan x <= x), and not by far."""
    for of, delay in ((window, 0.5), (lag, 1.0)):
        for time in TIMES:
            total = 2 * LATENCY + delay * time
            w = brentq(lambda w, total=total: w * total + np.arctan(w / SLOPE) - np.pi / 2, 1e-9, np.pi / total)
            counted = w * np.hypot(w, SLOPE) / (GAIN * RATE)
            assert 0.4 * critical(of, time)[0] < counted <= critical(of, time)[0]

    networks, optimum = groups
    older = networks.latency + 0.5  # of news alone: half of it in the mean of both ways
    late = dgd.default_step_size(eqx.tree_at(lambda n: n.feedback_latency, networks, older), optimum)
    for estimate in (MovingAverage(1.0), ExponentialAverage(0.5)):
        found = dgd.default_step_size(networks, optimum, averaging=estimate.delay)
        np.testing.assert_allclose(found, late, rtol=1e-12)


def test_a_lead_makes_up_for_the_age_of_news(groups):
    """The filter $(1 + s \\rho T) / (1 + s T)$, at s = a the exponential of the age; bounded; nothing where news is too old."""
    networks, optimum = groups
    a, R, time = SLOPE, 2 * LATENCY, 4 * LATENCY
    ratio = ((1 + a * time) * np.exp(a * R) - 1) / (a * time)
    assert ratio > 2
    trips = R * jnp.array([1.0, 1.0, 1.6])[:, None]  # the last one is older than 1 / a
    lead = Lead(trips, jnp.array([2.0, 2.0, 2.0])[:, None], jnp.array([9.0, 2.0, 9.0])[:, None], oldest=1.0)
    linear = dgd.linearise(networks, estimated(dgd.LogDGDLB(1.0), lead), optimum)
    s = 0.3 + 1.1j
    for k, found in enumerate((ratio, 2.0, 1.0)):
        one = jax.tree.map(lambda leaf, k=k: leaf[k], linear)
        direct = -GAIN * (np.eye(2) - 0.5)
        for at, expected in (
            (s, (1 + s * found * time) / (1 + s * time)),
            (a + 0j, (1 + a * found * time) / (1 + a * time)),
        ):
            np.testing.assert_allclose(one.response_at(jnp.asarray(at))[0], expected * direct, rtol=1e-6)
    assert (1 + a * ratio * time) / (1 + a * time) == pytest.approx(np.exp(a * R))


def test_dgd_lb_with_a_lead_is_made_of_the_same_parts(groups):
    """By name, by default: news as old as here, a R = 2/3, is left alone, rightly; a tenth as old, the limit is 2.7 times as high, in
    closed form by the phase of the filter of the lead, $\\arctan w \\rho T - \\arctan w T$."""
    old, _ = groups
    young = old.with_latency_scale(0.1)
    trips = lambda networks: networks.latency + networks.feedback_latency
    of = lambda networks, rule: np.asarray(dgd.critical_step_size(networks, rule, dgd.solve_optimum(networks)))
    plain = of(old, dgd.DGDLB(1.0))
    np.testing.assert_allclose(of(old, dgd.LeadDGDLB(1.0, trips(old))), plain, rtol=1e-6)
    assert (of(old, dgd.LeadDGDLB(1.0, trips(old), oldest=1.0)) < plain).all()

    R = 2 * 0.1 * LATENCY
    ratio = ((1 + SLOPE * R) * np.exp(SLOPE * R) - 1) / (SLOPE * R)

    def limit(ratio):
        lag = lambda w: w * R + np.arctan(w / SLOPE) - np.arctan(w * ratio * R) + np.arctan(w * R) - np.pi / 2
        w = brentq(lag, 1e-6, np.pi / R)
        return w * np.hypot(w, SLOPE) * np.hypot(1, w * R) / np.hypot(1, w * ratio * R)

    found = of(young, dgd.LeadDGDLB(1.0, trips(young))) / of(young, dgd.DGDLB(1.0))
    np.testing.assert_allclose(found, limit(ratio) / limit(1.0), rtol=1e-6)
    assert limit(ratio) / limit(1.0) == pytest.approx(2.7, rel=1e-3)
    with pytest.raises(InputError, match=r"LeadDGDLB.step_size is -1"):
        dgd.LeadDGDLB(-1.0, trips(old))


def test_runs_grow_and_die_out_as_predicted(groups):
    """Both averages one after the other, 2 % below and above the limit, from close to the optimum: the rate of the rightmost roots
    within half of what 1 % of the step size makes of it."""
    networks, optimum = groups
    two, best = jax.tree.map(lambda leaf: leaf[:2], (networks, optimum))
    rule = lambda step: estimated(dgd.DGDLB(step), ExponentialAverage(0.5), MovingAverage(1.0))
    limit = dgd.critical_step_size(two, rule(1.0), best)
    policy = rule((limit * jnp.array([0.98, 1.02]))[:, None])
    expected = dgd.characteristic_roots(two, policy, best)
    start = best.routing + 1e-4 * jnp.array([1.0, -1.0]), best.workload
    run = dgd.simulate_batch(two, policy, duration=200.0, dt=0.02, initial=start, save=dgd.SaveAt(every=5))
    moved = np.asarray(run.workload[:, :, 0] - run.workload[:, :, 1])
    part = moved.shape[1] // 4
    size = lambda k, quarter: np.sqrt((moved[k, quarter * part : (quarter + 1) * part] ** 2).mean())
    assert float(expected.abscissa[0]) < 0 < float(expected.abscissa[1])
    for k in range(2):
        growth = np.log(size(k, 3) / size(k, 1)) / (2 * part * 0.1)
        one_percent = (float(expected.abscissa[1]) - float(expected.abscissa[0])) / 4
        assert growth == pytest.approx(float(expected.abscissa[k]), abs=one_percent / 2)


def observation(workload, rate, step=0.1):
    one = jnp.ones_like(workload)
    return Observation(
        workload=workload, service_rate=rate, marginal_latency=2 * workload, average_latency=workload / rate, cost_latency=one,
        outstanding=one, nominal_capacity=one, mask=one > 0, arrival_rate=jnp.ones(workload.shape[1:]),
        time_step=jnp.full(workload.shape[1:], step),
    )  # fmt: skip


def reports(estimate, times, signal):
    """What an estimate makes of a signal that was constant before, at every time."""
    seen = lambda t, step: observation(signal(t), 1 + signal(t), step)
    step = times[1] - times[0]

    def follow(state, t):
        found, state = estimate.estimate(seen(t, step), state)
        return state, found.marginal_latency[0]

    return np.asarray(jax.lax.scan(follow, estimate.init(seen(times[0], step)), jnp.asarray(times)[1:])[1])


@pytest.mark.parametrize("estimate", [ExponentialAverage(0.7), MovingAverage(0.7, bins=64)], ids=["lag", "window"])
def test_averages_are_of_second_order(estimate):
    """Of $2 (3 + t - \\sin t)$ from rest, which begins with a square."""
    errors = []
    for steps in (40, 80):
        times = np.linspace(0, 4, steps + 1)
        found = reports(estimate, times, lambda t: jnp.array([3.0 + t - jnp.sin(t), 1.0]))
        fine = np.linspace(0, 4, 64_001)
        whole = 2 * (3 + fine - np.sin(fine))
        if isinstance(estimate, MovingAverage):
            total = np.concatenate([[0], np.cumsum((whole[1:] + whole[:-1]) / 2) * (fine[1] - fine[0])])
            before = np.where(fine > 0.7, np.interp(fine - 0.7, fine, total), 6 * (fine - 0.7))
            exact = (total - before) / 0.7
        else:  # y = u - T u' + T^2 u'' - ..., by its equation
            a, b = 0.7, 1 / (1 + 0.7**2)
            part = 3 + fine - a - b * (np.sin(fine) - a * np.cos(fine))
            exact = 2 * (part + (3 - part[0]) * np.exp(-fine / a))
        errors.append(np.abs(found - np.interp(times[1:], fine, exact)).max())
    assert errors[0] < 0.01
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.3)


def test_a_regression_finds_the_slope_of_what_moves_and_the_ratio_of_what_rests():
    curve = lambda n: 3 * n / (2 + n)
    rule = Regression(2.0)

    def last(swing):
        state = rule.init(observation(jnp.array([1.0]), curve(jnp.array([1.0]))))
        for k in range(200):
            n = jnp.array([1.0 + swing * np.sin(0.3 * k)])
            found, state = rule.estimate(observation(n, curve(n)), state)
        return float(found.marginal_latency[0])

    assert last(0.1) == pytest.approx(9 / 6, rel=0.05)  # 1 / ell'(1) = (2 + 1)^2 / 6
    assert last(0.0) == pytest.approx(1.0, rel=1e-12)  # N / ell(1)


def test_a_true_curve_changes_nothing_and_a_slow_one_is_corrected(groups):
    networks, optimum = groups
    run = lambda policy: dgd.simulate_batch(
        networks, policy, duration=20.0, dt=0.05, initial=(optimum.routing * jnp.array([1.4, 0.6]), optimum.workload)
    )
    plain = run(dgd.DGDLB(0.05)).workload
    slow = eqx.tree_at(lambda c: c.max_rate, networks.service, 0.8 * networks.service.max_rate)
    for curve in (LearntCurve(networks.service, 5.0), LearntCurve(slow, 5.0)):
        np.testing.assert_allclose(run(estimated(dgd.DGDLB(0.05), curve)).workload, plain, rtol=1e-12)


def test_without_estimates_it_is_the_policy():
    policy = dgd.LeastLatency()
    assert estimated(policy) is policy


def test_what_is_refused(groups):
    networks, optimum = groups
    with pytest.raises(
        InputError, match=r"ExponentialAverage.time_constant is 0, but must be positive and finite, seconds"
    ):
        ExponentialAverage(0.0)
    with pytest.raises(InputError, match=r"MovingAverage.window\[1\] is inf"):
        MovingAverage([1.0, np.inf])
    with pytest.raises(InputError, match=r"Lead.largest is 0.5, but must be at least 1"):
        Lead(1.0, largest=0.5)
    with pytest.raises(InputError, match=r"MovingAverage.bins is 0"):
        MovingAverage(1.0, bins=0)
    with pytest.raises(InputError, match=r"EstimatedInstant jumps, so it has no linearisation"):
        dgd.linearise(networks, estimated(dgd.LeastLatency(), MovingAverage(1.0)), optimum)
    with pytest.raises(InputError, match=r"The memory of SampledDGDLB drifts or jumps"):
        dgd.linearise(networks, dgd.SampledDGDLB(0.1, 1.0), optimum)


@pytest.mark.full
def test_jitter_behind_averages_against_whole_requests(groups):
    """Scale 100, half of each limit: within four standard errors, of 24 runs."""
    from dgdlb_jax.studies.noise import stationary_latency

    network, best = jax.tree.map(lambda leaf: leaf[0], groups)
    for average, of in ((ExponentialAverage(0.5), lag), (MovingAverage(1.0), window)):
        policy = estimated(dgd.DGDLB(0.5 * critical(of, 0.5 if of is lag else 1.0)[0]), average)
        predicted = dgd.noise(network, policy, best, scale=100.0)
        assert float(predicted.limit) == pytest.approx(2, rel=1e-9)
        run = dgd.simulate_requests_batch(
            network, policy, jax.random.split(jax.random.key(3), 24), duration=2000.0, dt=0.05, scale=100.0, after=100.0
        )
        excess = np.asarray(stationary_latency(run, network, best, 100.0)) - float(best.mean_latency)
        error = excess.std(ddof=1) / np.sqrt(24)
        assert abs(excess.mean() - float(predicted.excess)) < 4 * error + 0.01 * float(predicted.excess)


@pytest.mark.full
@pytest.mark.parametrize("rule", [ExponentialAverage, MovingAverage, Regression])
def test_gradients_of_runs_are_those_of_differences(groups, rule):
    network, best = jax.tree.map(lambda leaf: leaf[0], groups)
    start = best.routing * jnp.array([1.4, 0.6]), best.workload

    def latency(time):
        policy = estimated(dgd.DGDLB(0.05), rule(time))
        run = dgd.simulate(network, policy, duration=5.0, dt=0.03, initial=start, save=dgd.SaveAt.statistics())
        return run.statistics.mean_latency

    # Incommensurate with the step: where a bin ends at a step, the derivative of a window is one-sided.
    assert float(jax.grad(latency)(0.8137)) == pytest.approx(central_difference(latency, 0.8137, 1.0), rel=1e-5)
