"""Limits of balancers that read reports and hold their weights: closed forms, rest points by hand, and simulations."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import brentq

import dgdlb_jax as dgd
from dgdlb_jax.cli import main
from dgdlb_jax.policies import EnvoyLoadAwareLocality, KvCacheScorer, OrcaWeights
from dgdlb_jax.reports import policy_limits
from dgdlb_jax.reports.held_text import held_report
from dgdlb_jax.stability.held import HeldLoop, equal_backends, held_loop
from dgdlb_jax.stability.ranges import stable_ranges
from dgdlb_jax.stability.rest_point import rest_point
from dgdlb_jax.studies.held import LOAD, case_at, deviations_grow, held_stability, limit, together
from dgdlb_jax.studies.relay import relay_cycle

pytestmark = pytest.mark.usefixtures("quick_compilation")


def equal_network(load, slope, delay, frontends=2, backends=3) -> dgd.Network:
    """Equal backends at equal distance with this slope at this load; a third of the delay is on the way there."""
    capacity = 10.0
    half = (1 - load) ** 2 / slope * capacity
    there = np.full((frontends, backends), delay / 3)
    service = dgd.Hyperbolic([capacity] * backends, [half] * backends)
    return dgd.Network([backends * load * capacity / frontends] * frontends, there, service, feedback_latency=2 * there)


def envoy(period=1.0, smoothing=5.0, **options) -> EnvoyLoadAwareLocality:
    return EnvoyLoadAwareLocality(period, smoothing, local="none", **options)


def by_slots(policy, **options):
    return policy(report="concurrency", max_concurrency=400.0, **options)


# --- closed forms -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("load", "slope", "period", "delay", "smoothing"),
    [(0.9, 1.0, 1.0, 0.5, 2.2), (0.8, 4.0, 1.0, 1.25, 3.4), (0.7, 45.0, 0.5, 0.2, 0.5), (0.93, 0.012, 2.0, 8.0, 9.0)],
)
@pytest.mark.parametrize("kind", ["headroom of throughput", "headroom of slots", "throughput over slots", "free cache"])
def test_multipliers_of_equal_backends_are_the_roots_of_one_polynomial(load, slope, period, delay, smoothing, kind):
    """Only the gain differs: u / (1 - u), that over the elasticity, and (1 - e) / e. Derivatives of the rule are exact, so is this."""
    network = equal_network(load, slope, delay)
    held = float(network.service.inverse(jnp.full(3, 10.0 * load))[0])
    e = 1 - load
    used, slots = 0.8, held / 8  # of ten hosts
    policy, gain = {
        "headroom of throughput": (envoy(period, smoothing), load / (1 - load)),
        "headroom of slots": (
            envoy(period, smoothing, report="concurrency", max_concurrency=slots),
            used / (1 - used) / e,
        ),
        "free cache": (
            KvCacheScorer(period, "weighted-random", max_concurrency=slots),
            used / (1 - used) / e,
        ),
        "throughput over slots": (by_slots(OrcaWeights, weight_update_period=period), (1 - e) / e),
    }[kind]
    loop = held_loop(network, policy)
    average = smoothing if kind.startswith("headroom") else 0.0
    expected = equal_backends(slope, gain, delay, period, average)
    found = loop.multipliers()
    for root in expected:
        assert np.abs(found - root).min() < 1e-6 * max(1.0, abs(root)) ** 2
    # What is no difference between backends follows itself alone: their sum, exp(-aT), and the average of it, which nobody reads.
    alone = np.exp(-period / np.array([1 / slope, average])) if average else np.exp(-period * slope)
    assert loop.radius() == pytest.approx(max(np.abs(expected).max(), np.max(alone)), rel=1e-9)
    assert loop.neutral() == 0


def at_gain(gain) -> tuple[float, HeldLoop]:
    """Without any delay, period 1: twice the slope at a load that gives this gain."""
    load = gain / (1 + gain)
    return 2.0, held_loop(equal_network(load, 2.0, 0.0), envoy())


def test_without_delays_the_limit_is_a_product_of_two_cotangents():
    """G < coth(aT / 2) coth(T / (2 t_s)), and beyond it every other update is the same."""
    for gain in (2.0, 5.0, 30.0):
        slope, loop = at_gain(gain)
        ((edge, _),) = stable_ranges(lambda t, loop=loop: loop.with_smoothing(t).radius(), 0.05, 100.0)
        expected = 0.5 / np.arctanh(1 / np.tanh(slope / 2) / gain)
        assert edge == pytest.approx(expected, rel=1e-6)
        assert loop.with_smoothing(0.999 * edge).swing() == pytest.approx(2.0, rel=1e-9)
    # Without smoothing, coth(aT / 2) alone.
    _, loop = at_gain(2.0)
    ((low, edge),) = stable_ranges(lambda period: loop.with_smoothing(0.0).with_period(period).radius(), 0.05, 10.0)
    assert (low, edge) == (0.05, pytest.approx(np.arctanh(0.5), rel=1e-6))


def test_for_short_periods_smoothing_can_hurt():
    """w d + atan(w / a) + atan(w t_s) = pi, G = |1 + jw/a| |1 + jw t_s|: stable without smoothing and with much, not between."""
    a, d, period, gain = 0.02, 4.0, 0.1, 18.0
    loop = held_loop(equal_network(gain / (1 + gain), a, d, 1, 2), envoy(period))
    (_, first), (second, _) = stable_ranges(lambda t: loop.with_smoothing(t).radius(), 0.1, 100.0, points=8)

    def least_gain(t):
        w = brentq(lambda w: w * d + np.arctan(w / a) + np.arctan(w * t) - np.pi, 1e-6, np.pi / d, xtol=1e-14)
        return np.hypot(1, w / a) * np.hypot(1, w * t)

    edges = [brentq(lambda t: least_gain(t) - gain, *bracket) for bracket in ((0.01, 4.9), (4.9, 100.0))]
    # A weight held lags T / 2 behind, an average with the newest report in it leads by as much: what is left is some
    # times (T / t_s)^2 / 12, 0.2 % at the first edge.
    assert [first, second] == pytest.approx(edges, rel=1e-2)


def test_frontends_out_of_step():
    """Limits of the gain at aT = 2, equal backends. In step the polynomial; out of step, with offsets spread evenly over the period, the
    loop of an even average over it. Smoothing, and offsets that are all the same, against in-step maps."""
    period, slope, count = 1.0, 2.0, 6

    def loop(gain, delay, offset, smoothing=0.0):
        arcs, one = np.full((count, 2), delay / 2), np.broadcast_to(np.eye(2), (count, 2, 2))
        answer = gain * slope * (0.5 - one)
        return HeldLoop(
            np.full(count, 1 / count),
            np.full(2, slope),
            arcs,
            arcs,
            one,
            answer,
            period,
            np.full(count, smoothing),
            offset,
        )

    def average(delay):
        """Where $1 + G (1 - e^{-s})/s \\, e^{-sd}/(1 + s/a)$ has its first root on the axis."""
        turn = lambda w: w / 2 + w * delay + np.arctan(w / slope) - np.pi
        w = brentq(turn, 1e-6, 2 * np.pi - 1e-6)
        return np.hypot(1, w / slope) * (w / 2) / np.sin(w / 2)

    spread = np.arange(count) / count
    edge = lambda delay, offset: brentq(lambda gain: loop(gain, delay, offset).radius() - 1, 0.5, 8, xtol=1e-4)
    for delay, in_step, apart in (
        (0.0, 1.31, 5.12),
        (0.25, 1.65, 2.57),
        (0.5, 2.84, 1.91),
        (1.0, 1.16, 1.45),
        (2.0, 1.08, 1.19),
    ):
        assert edge(delay, None) == pytest.approx(in_step, abs=6e-3)
        assert average(delay) == pytest.approx(apart, abs=6e-3)
        if delay in (0.25, 1.0):
            assert edge(delay, spread) == pytest.approx(
                average(delay), rel=2e-2
            )  # 1.4 and .8 %, a fourth of it with 12
            assert edge(delay, np.full(count, 0.3)) == pytest.approx(edge(delay, None), rel=1e-4)
    smoothed = [loop(3.0, 0.4, offset, smoothing=0.7).radius() for offset in (None, np.full(count, 0.5))]
    assert smoothed[1] == pytest.approx(smoothed[0], rel=1e-6)


def test_edges_that_slow_simulations_have_found():
    """Of the nonlinear fluid, by Runge and Kutta, to the digits given."""
    for (load, slope, period, delay), expected in (
        ((0.9, 1.0, 1.0, 0.5), [2.2794]),
        ((0.8, 4.0, 1.0, 1.25), [3.4311]),
        ((0.7, 45.0, 0.5, 0.2), [0.54568]),
        ((0.93, 0.01225, 2.0, 8.0), [3.6846, 15.930]),
    ):
        loop = held_loop(equal_network(load, slope, delay), envoy(period))
        found = stable_ranges(lambda t, loop=loop: loop.with_smoothing(t).radius(), 0.1, 50.0)
        edges = [edge for pair in found for edge in pair if 0.1 < edge < 50.0]
        assert edges == pytest.approx(expected, rel=5e-5)
    for (load, slope, delay), expected in (((0.75, 0.0041667, 19.576), 195.15), ((0.7, 0.036, 4.0175), 30.927)):
        loop = held_loop(equal_network(load, slope, delay), by_slots(OrcaWeights))
        ((_, edge),) = stable_ranges(lambda T, loop=loop: loop.with_period(T).radius(), delay / 4, 100 * delay)
        assert edge == pytest.approx(expected, rel=5e-5)


def test_load_has_two_stable_ranges():
    """Backends that serve twenty requests/s each when alone, no delay: half-full and nearly full are stable, what lies between is not."""
    network = dgd.Network([10.0], np.zeros((1, 2)), dgd.Hyperbolic([10.0, 10.0], [0.5, 0.5]))
    found = limit(network, envoy(1.0, 0.5), held_loop(network, envoy(1.0, 0.5)), LOAD, simulate=False)
    assert found.edges == pytest.approx([0.5827, 0.8404], abs=1e-4)
    assert found.stable
    assert found.periods == pytest.approx([2.0, 2.0])


# --- where they rest --------------------------------------------------------------------------------------------------


def test_rest_points_by_hand():
    """Spilling between a near locality of ten weak hosts and a far one of ten strong ones; and equal utilisations."""
    spill = dgd.Network([12.0], [[0.1, 0.2]], dgd.Hyperbolic([5.0, 20.0], [5.0, 20.0]))
    rest = rest_point(spill, EnvoyLoadAwareLocality(host_capacity=[[0.5, 2.0]]))
    assert bool(rest.found)
    x = float(rest.routing[0, 0])
    assert x == pytest.approx(0.3081, abs=5e-5)
    assert [12 * x / 5, 12 * (1 - x) / 20] == pytest.approx([0.7395, 0.4151], abs=5e-5)
    equal = rest_point(spill, by_slots(OrcaWeights, host_capacity=[[0.5, 2.0]]))
    assert np.asarray(equal.workload) == pytest.approx(np.asarray(equal.workload)[0] * np.array([1, 1]), rel=1e-9)


def test_what_has_no_rest_point_or_no_loop_is_one_sentence():
    """Envoy's preference for the local locality between two equal ones, with different callers: no split is at rest."""
    two = dgd.Network([0.8, 0.1], [[0.1, 0.4], [0.4, 0.1]], dgd.Hyperbolic([1.0, 1.0], [1.0, 1.0]))
    masked = dgd.Network([1.2, 0.1], two.latency, two.service, mask=[[True, False], [True, True]])
    assert "overloads 0" in held_stability(masked, OrcaWeights(), simulate=False).why_not
    with pytest.raises(dgd.InputError, match="relay"):
        held_loop(two, EnvoyLoadAwareLocality())
    with pytest.raises(dgd.InputError, match="DGDLB holds no weights"):
        rest_point(two, dgd.DGDLB(0.1))
    with pytest.raises(dgd.InputError, match="periods from 1 to 2 s"):
        held_loop(two, envoy([1.0, 2.0]))
    with pytest.raises(dgd.InputError, match=r"periods of 0\.001 s"):
        held_loop(two, envoy(0.001)).radius()


def test_the_cycle_of_a_relay():
    """Two equal localities, fast service, updates every second, news after 0.2 s: a slow simulation of its own has found 2.49 s."""
    latency = np.full((2, 2), 0.1)
    two = dgd.Network(
        [0.8, 0.1], latency, dgd.Hyperbolic([1.0, 1.0], [0.05, 0.05]), cost_latency=[[0.1, 0.2], [0.2, 0.1]]
    )
    assert relay_cycle(two, EnvoyLoadAwareLocality(weight_update_period=1e30)) is None, "nobody waits for that"
    cycle = relay_cycle(two, EnvoyLoadAwareLocality())
    assert (cycle.frontend, cycle.backend) == (0, 0)
    assert cycle.period == pytest.approx(2.49, abs=0.1)
    # Spilled or all local; at rest on the edge it would be (threshold C + 0.8 + 0.1) / (2 0.8) = 0.625.
    assert cycle.high == pytest.approx(0.97, rel=1e-9)
    assert cycle.low == pytest.approx(0.45, abs=0.05)
    assert cycle.mean == pytest.approx(0.625, abs=0.03)


def random_networks(count, seed=0) -> dgd.Network:
    """Three frontends, three backends; loads from 0.6 to 0.95, latencies from a fifteenth of a service time up."""
    key, other = jax.random.split(jax.random.key(seed))
    networks = dgd.topologies.complete(key, frontends=3, backends=3, count=count)
    return networks.with_load(jax.random.uniform(other, (count,), minval=0.6, maxval=0.95))


def edges_of(networks, policy, wanted) -> list[tuple[int, str, float]]:
    """(network, setting, first predicted edge) for as many networks as wanted; those without an edge are left out."""
    found: list = []
    for k in range(networks.batch):
        if len(found) == wanted:
            break
        loop = held_loop(jax.tree.map(lambda leaf, k=k: leaf[k], networks), policy)
        for setting, at in ((policy.smoothing_knob, loop.with_smoothing), (policy.period_knob, loop.with_period)):
            ranges = [] if setting is None else stable_ranges(lambda v, at=at: at(v).radius(), 0.5, 50.0, points=12)
            edges = [edge for pair in ranges for edge in pair if 0.5 < edge < 50.0]
            if edges:
                found.append((k, setting, edges[0]))
                break
    return found


def test_rest_points_in_a_batch_and_large_loops(rng):
    networks = random_networks(3)
    policy = envoy(2.0)
    together = rest_point(networks, policy)
    assert bool(together.found.all())
    alone = rest_point(jax.tree.map(lambda leaf: leaf[1], networks), policy)
    np.testing.assert_allclose(together.workload[1], alone.workload, rtol=1e-9)
    np.testing.assert_allclose(together.answer[1], alone.answer, rtol=1e-8, atol=1e-10)
    # More unknowns than are all computed: the largest multipliers are the same.
    loop = held_loop(jax.tree.map(lambda leaf: leaf[1], networks), policy).with_period(0.1)
    large = loop.multipliers()
    assert large.size < 10
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dgdlb_jax.stability.held._DENSE", 10_000)
        assert np.abs(large[0]) == pytest.approx(np.abs(loop.multipliers()[0]), rel=1e-8)


# --- against simulations ----------------------------------------------------------------------------------------------


def test_deviations_grow_where_they_should():
    """Random networks 2 % inside and outside of a predicted edge."""
    networks, policy = random_networks(8), envoy(8.0, 1.0)
    edges = edges_of(networks, policy, 4)
    assert len(edges) == 4
    assert check(networks, policy, edges).all()


def check(networks, policy, edges) -> np.ndarray:
    """Whether a simulation decays on the stable side of each edge, 2 % away, and grows on the other."""
    agree: list = []
    for k, setting, edge in edges:
        network = jax.tree.map(lambda leaf, k=k: leaf[k], networks)
        loop = held_loop(network, policy)
        cases = [case_at(network, policy, setting, part * edge) for part in (0.98, 1.02)]
        at = loop.with_smoothing if setting == policy.smoothing_knob else loop.with_period
        agree.append((cases, [at(part * edge).radius() > 1 for part in (0.98, 1.02)]))
    found = deviations_grow(*together([case for cases, _ in agree for case in cases]))
    return (found.reshape(-1, 2) == np.array([expected for _, expected in agree])).all(1)


@pytest.mark.full
@pytest.mark.parametrize(
    "policy",
    [
        envoy(8.0, 1.0),
        by_slots(OrcaWeights, weight_update_period=8.0),
        KvCacheScorer(8.0, "weighted-random", max_concurrency=40.0),
    ],
    ids=["envoy", "orca", "free cache"],
)
def test_two_hundred_random_networks(policy):
    networks = random_networks(400, seed=1)
    edges = edges_of(networks, policy, 200)
    agree = check(networks, policy, edges)
    print(
        f"{agree.sum()} of {len(agree)} agree; not: {[edge for edge, good in zip(edges, agree, strict=True) if not good]}"
    )
    assert agree.mean() >= 0.97


@pytest.mark.full
def test_below_half_every_utilisation_is_stable():
    """Proved for frontends out of step and for short periods; in step it has held in all that was tried."""
    networks = random_networks(100, seed=2)
    for load in (0.3, 0.45):
        for k in range(100):
            network = jax.tree.map(lambda leaf, k=k: leaf[k], networks).with_load(load)
            loop = held_loop(network, envoy())
            for period in (0.3, 1.0, 5.0):
                assert loop.with_period(period).radius() < 1


# --- the command line -------------------------------------------------------------------------------------------------


@pytest.fixture
def command(monkeypatch, capsys):
    """`dgdlb stability two-by-two --policy ...` in this process; edges are taken for simulated."""
    monkeypatch.setattr("dgdlb_jax.studies.held.simulated_edge", lambda *case: (0.99 * case[-1], 1.01 * case[-1]))

    def run(*options, fleet="two-by-two") -> tuple[int, str, str]:
        code = main(["stability", str(fleet), "--quiet", "--policy", *options])
        return code, *capsys.readouterr()

    return run


class Once:
    """A function that computes its first answer, and gives it again."""

    def __init__(self, function):
        self.function, self.answer = function, None

    def __call__(self, *arguments):
        self.answer = self.answer or self.function(*arguments)
        return self.answer


FLEET = """
name = "windows"
[frontends]
names = ["here"]
rate = [9.0]
[backends]
names = ["near", "far"]
curve = "fast"
[curves.fast]
kind = "hyperbolic"
max_rate = 10.0
half_load = 0.5
[latency]
one_way_s = [[0.0, 0.0]]
"""


def test_the_command_says_the_limit_in_the_operators_settings(command, tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    monkeypatch.setattr("dgdlb_jax.reports.held_plots._FINE", (6, 5))
    fleet, folder = tmp_path / "windows.toml", tmp_path / "out"
    fleet.write_text(FLEET)
    options = ("--set", "local=none", "--set", "smoothing_time_constant=0.5")
    monkeypatch.setattr("dgdlb_jax.reports.policy_limits.held_report", Once(held_report))
    code, text, _ = command("envoy-load-aware", *options, "--output", str(folder), fleet=fleet)
    assert code == 0
    assert text.startswith(
        "windows: Envoy load-aware locality, weight_update_period 1.00 s, smoothing_time_constant 500 ms\n"
    )
    assert (
        "load (now 45 %): stable below 58 %, and above 84 %; above 58 % it swings with a period of 2.00 s (simulated edge"
        in text
    )
    assert [path.name for path in folder.iterdir()] == ["stable.png"]
    code, text, _ = command("envoy-load-aware", *options, "--no-files", "--json", fleet=fleet)
    document = json.loads(text)
    assert document["settings"]["load"]["edges"][1]["at"] == pytest.approx(0.8404, abs=1e-4)
    assert document["stable"] is document["settings"]["load"]["stable"] is True


def test_the_command_names_relays_neutral_splits_and_rules_without_a_limit(command, tmp_path):
    folder = tmp_path / "out"
    code, text, _ = command("envoy-load-aware", "--output", str(folder))
    assert (code, "relay" in text, "and back every" in text, folder.exists()) == (0, True, True, False)
    _, text, _ = command("kv-cache-scorer", "--no-files")
    assert "it is a switch: until the next report" in text
    assert "stands still here, as backends report the same" in text
    unequal = dgd.Network([6.0], [[0.1, 0.1]], dgd.Hyperbolic([8.0, 5.0], [4.0, 6.0]))
    assert "to 100 % and back every 10.0 s" in held_report(unequal, KvCacheScorer(max_concurrency=9.0), "").text()
    code, text, _ = command("orca-weights", "--set", "report=saturated", "--no-files", "--json")
    assert "every split" in json.loads(text)["why_not"]
    assert "looks at no load" in command("dns-latency", "--no-files")[1]
    assert "times that" in command("log-dgd-lb", "--no-files")[1]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (("gmsr",), "GMSR jumps"),
        (("softmin", "--news", "interval=1"), "softmin does not rest at the optimum"),
        (("envoy",), "No balancer is called 'envoy'"),
        (("orca-weights", "--set", "period=3"), "OrcaWeights has no setting 'period'"),
        (("orca-weights", "--set", "weight_update_period=x"), "OrcaWeights.weight_update_period is 'x': give a number"),
        (("orca-weights", "--set", "weight_update_period"), "give NAME=VALUE"),
        (("orca-weights", "--set", "variant=nginx"), "choose from grpc, envoy"),
        (("orca-weights", "--set", "weight_update_period=-1"), "weight_update_period is -1, but must be positive"),
        (("dgd-lb", "--set", "interval=1"), "--set gives settings of another balancer"),
    ],
)
def test_what_the_command_does_not_take_is_one_sentence(command, options, expected, monkeypatch):
    """It is said at once: nothing is computed before."""
    monkeypatch.setattr(policy_limits, "solve_optimum", None)
    code, text, error = command(*options, "--no-files")
    assert (code, text) == (2, "")
    assert expected in error
    assert error.count("\n") == 1
