"""llm-d's scorer by observed latencies: its worked example, probes, whole requests, and the limit of its slow loop."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import brentq, fsolve

import dgdlb_jax as dgd
from dgdlb_jax.policies.observed import Anchor, predicted_latency
from dgdlb_jax.reports.observed_text import SlidingReport
from dgdlb_jax.reports.policy_limits import policy_report
from dgdlb_jax.stability.observed import critical_gain, slow_loop
from dgdlb_jax.stability.rest_point import rest_of_latencies
from test_operations import first, seen

pytestmark = pytest.mark.usefixtures("quick_compilation")


def predicted(in_flight, low=(4.0, 0.5), typical=(10.0, 1.1), floor=0.2, gap=2.0) -> float:
    low, typical = (Anchor(*map(jnp.asarray, anchor)) for anchor in (low, typical))
    return float(predicted_latency(jnp.asarray(in_flight), jnp.asarray(floor), low, typical, jnp.asarray(gap)))


def test_the_worked_example_of_a_curve():
    """Empty 0.2 s, 0.5 s at 4 requests, 1.1 s at 10: on both segments, and beyond the last point."""
    assert [predicted(n) for n in (0.0, 2.0, 4.0, 7.0, 10.0, 12.0)] == pytest.approx([0.2, 0.35, 0.5, 0.8, 1.1, 1.3])
    # One line where the low anchor is no use: too near, faster than empty, slower than typical, at no load.
    for low in ((8.5, 0.9), (4.0, 0.1), (4.0, 1.2), (0.0, 0.5)):
        assert predicted(5.0, low) == pytest.approx(0.65)
    assert predicted(8.0, (8.5, 0.9), gap=1.0) == pytest.approx(0.2 + 8 / 8.5 * 0.7)
    assert predicted(5.0, typical=(10.0, 0.1)) == 0.2  # never below the floor


def test_probes_of_those_that_hardly_anything_is_known_of():
    """With a coin for each of them and request, heads win; the best of the others shares with them if nobody is faster by its floor."""
    policy = dgd.LatencyObservationScorer(min_requests=10.0)
    quiet = {"outstanding": [5.0, 0.001, 5.0], "average_latency": [1.0, 1.0, 1.2]}
    # One request takes a second: 900 answers in three minutes of the first and of the third, 0.2 of the second.
    alone = first(policy, **quiet | {"cost_latency": [0.001, 0.0, 0.03]})
    assert alone == pytest.approx([0.9, 0.1, 0])
    sharing = first(policy, **quiet | {"cost_latency": [0.0, 3.0, 0.03]})
    assert sharing == pytest.approx([0.95, 0.05, 0])
    both = first(policy, **quiet | {"outstanding": [5.0, 0.001, 0.001], "cost_latency": [0.0, 3.0, 3.0]})
    assert both == pytest.approx([0.81 + 2 * 0.09 / 2 + 0.01 / 3, *[0.09 / 2 + 0.01 / 3] * 2])
    assert first(dgd.LatencyObservationScorer(exploration_rate=0.0), **quiet) == pytest.approx([1, 0, 0])


def test_a_window_holds_so_many_answers_or_so_many_seconds():
    """Answers come at the rate of requests under way over latency; a change is seen by the part of the window that is newer."""
    for most, oldest, window in ((40.0, 1e6, 8.0), (1e6, 6.0, 6.0)):
        policy = dgd.LatencyObservationScorer(
            0.0, max_requests=most, max_observation_age=oldest, interval_duration=0.01
        )
        before = seen(outstanding=[1.0] * 3, average_latency=[0.2] * 3, cost_latency=np.zeros(3), time_step=0.01)
        after = seen(outstanding=[2.0] * 3, average_latency=[0.4] * 3, cost_latency=np.zeros(3), time_step=0.01)

        def step(state, t, policy=policy, after=after):
            return policy.route(t, after, state)[1], state.snapshot.typical

        _, typical = jax.lax.scan(step, policy.init(before), 0.01 * jnp.arange(1000))
        # The change is half seen after half a window and a latency, all of it after a window and some latencies.
        half = np.argmax(np.asarray(typical.latency[:, 0]) >= 0.3) * 0.01
        assert half == pytest.approx(window / 2 + 0.4, abs=0.15)
        np.testing.assert_allclose(typical.in_flight[-1], 2, rtol=1e-3)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"floor_latency": -1.0}, "floor_latency is -1, but must be finite and not negative"),
        ({"exploration_rate": 1.5}, "exploration_rate is 1.5, but must be between 0 and 1"),
        ({"min_inflight_gap": 0.0}, "min_inflight_gap is 0"),
        ({"interval_duration": 0.0}, "interval_duration is 0"),
        ({"max_requests": np.inf}, "max_requests is inf"),
    ],
)
def test_what_is_not_allowed_is_one_sentence(arguments, expected):
    with pytest.raises(dgd.InputError, match=expected):
        dgd.LatencyObservationScorer(**arguments)


PAIR = dgd.Network([16.0], np.zeros((1, 2)), dgd.Hyperbolic([10.0, 10.0], [2.0, 2.0]))


def test_whole_requests_go_to_the_least_prediction():
    """Two equal backends share evenly. Sent by chance their workloads differ by 9 on average (each has a variance of 12 / 0.2)."""
    save = dgd.SaveAt(20, fields=("workload",))
    run = dgd.simulate_requests(
        PAIR, dgd.LatencyObservationScorer(0.2), jax.random.key(0), duration=100.0, dt=0.05, follow=False, save=save
    )
    workload = np.asarray(run.workload)[20:]
    assert workload[:, 0].mean() == pytest.approx(workload[:, 1].mean(), rel=0.1)
    assert np.abs(workload[:, 0] - workload[:, 1]).mean() < 3


def test_the_limit_of_the_slow_loop():
    """x(t) = -g times the mean of x over the window that ended a delay ago, as a recursion: its largest root against the closed form."""
    steps = 60
    for delay in (0.05, 0.5, 2.0):
        lag = round(delay * steps)

        def radius(gain, lag=lag):
            polynomial = np.zeros(lag + steps + 1)
            polynomial[0] = 1
            polynomial[lag + 1 :] += gain / steps
            polynomial[lag] += gain / steps / 2  # by the trapezoidal rule
            polynomial[-1] -= gain / steps / 2
            return np.abs(np.roots(polynomial)).max()

        found = brentq(lambda gain: radius(gain) - 1, 0.9, 30.0, xtol=1e-5)
        assert float(critical_gain(1.0, delay)) == pytest.approx(found, rel=2e-3)
    assert float(critical_gain(2.0, 1.0)) == pytest.approx(np.pi / 2)
    assert np.isinf(critical_gain(1.0, 0.0))


@pytest.mark.full
def test_the_gain_of_the_slow_loop():
    """By differences of the latency at equal load; 0 for hyperbolic service that a request alone takes as long as its floor says."""
    straight = slow_loop(PAIR, dgd.LatencyObservationScorer(0.2))
    np.testing.assert_allclose(straight.gain, 0, atol=1e-9)
    np.testing.assert_allclose(straight.window, 100 / 8)
    np.testing.assert_allclose(straight.delay, 1 + 0.5)  # (2 + 8) / 10, and half of the time between publications
    curve = dgd.ManyServer([10.0, 10.0], [1.0, 1.0])
    network = dgd.Network([16.0], np.full((1, 2), 0.3), curve)
    held = curve.inverse(jnp.array([8.0, 8.0]))

    def at(change):
        """Latency at the backend and own count, when the workload is so many times as large: flows follow as the curve says."""
        more = held * (1 + change)
        return float(curve.average_latency(more)[0]), float(
            curve.rate(more)[0] * (0.6 + curve.average_latency(more)[0])
        )

    (low, few), (high, many) = at(-1e-5), at(1e-5)
    floor = 0.7
    expected = (high - low) / np.log(many / few) / (at(0.0)[0] - floor) - 1
    np.testing.assert_allclose(slow_loop(network, dgd.LatencyObservationScorer(floor)).gain, expected, rtol=1e-5)


@pytest.mark.full
def test_latencies_are_equal_where_it_rests():
    network = dgd.load_fleet("two-by-two")
    routing, workload = rest_of_latencies(network)
    latency = np.asarray(network.cost_latency + network.service.average_latency(workload))
    used = np.asarray(routing) > 1e-3
    for i in range(2):
        assert np.ptp(latency[i][used[i]]) < 0.01 * latency[i].min()
        assert np.all(latency[i][~used[i]] > latency[i][used[i]].min() * 0.999)


@pytest.mark.full
def test_a_slow_swing_dies_out_as_predicted():
    """Between the equal backends above with a floor that makes the gain 0.7 of critical: period and decay, with a lag of a latency."""
    window, hold = 25.0, 0.1
    loop = lambda s, gain: 1 + gain * np.exp(-s * hold / 2) * (1 - np.exp(-s * window)) / (s * window) / (1 + s)
    gain = 8.8
    root = fsolve(lambda z: (lambda v: [v.real, v.imag])(loop(complex(*z), gain)), [-0.002, 0.225])
    rule = dgd.LatencyObservationScorer(1 - 0.8 / (1 + gain), max_requests=8 * window, interval_duration=hold)
    assert float(slow_loop(PAIR, rule).gain[0, 0]) == pytest.approx(gain, rel=1e-6)
    start = np.array([[0.5, 0.5]]), np.array([8.25, 7.75])
    run = dgd.simulate(PAIR, rule, duration=800.0, dt=0.002, initial=start, save=dgd.SaveAt(50, fields=("workload",)))
    apart = np.asarray(run.workload)[:, 0] - np.asarray(run.workload)[:, 1]
    smooth = np.convolve(apart, np.ones(30) / 30, "valid")
    rises = np.flatnonzero((smooth[1:] > 0) & (smooth[:-1] <= 0)) * hold
    period = 2 * np.pi / root[1]
    assert np.diff(rises)[5:].mean() == pytest.approx(period, rel=0.02)
    first_part, last_part = smooth[3000:5000], smooth[5800:7800]
    assert np.ptp(last_part) / np.ptp(first_part) == pytest.approx(np.exp(root[0] * 280), abs=0.05)


def test_the_report_says_what_it_is_and_where_the_slow_loop_stands():
    report = policy_report(dgd.load_fleet("two-by-two"), "latency-observation-scorer", {})
    assert isinstance(report, SlidingReport)
    said = " ".join(report.text().split())
    assert "its own requests that are under way" in said
    assert "no linear limit" in said
    assert "errors die out. Beyond the limit it swings with a period of" in said
    growing = replace(report, slow=report.slow._replace(limit=0.5 * report.slow.gain))
    assert "errors grow, it swings with a period of" in " ".join(growing.text().split())
    document = report.document()
    assert document["stable"] is True
    assert document["slow_loop"]["gain"] < document["slow_loop"]["limit"]
    one_way = dgd.Network([4.0], [[0.1]], dgd.Hyperbolic([8.0], [4.0]))
    assert "No frontend uses two backends or more" in policy_report(one_way, "latency-observation-scorer", {}).text()
