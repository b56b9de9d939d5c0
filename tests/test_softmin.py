"""Limits of `Softmin` where it rests: closed form, another analysis, and simulations."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import brentq

import dgdlb_jax as dgd
from dgdlb_jax.reports.policy_limits import policy_report, save_pictures
from dgdlb_jax.stability.critical import critical_mode
from dgdlb_jax.stability.rest_point import rest_of_softmin
from dgdlb_jax.stability.softmin import softmin_loop
from dgdlb_jax.studies import softmin as study
from dgdlb_jax.studies.balancers import calm_softmin
from dgdlb_jax.studies.onset import deviations_grow
from helpers import hyperbolic_through

pytestmark = pytest.mark.usefixtures("quick_compilation")


def test_the_limit_between_two_equal_backends():
    """atan(w/r) + atan(w/a) + 2 w tau = pi and lambda c / (2 T) = |1 + jw/r| |jw + a|: the target moves by 1 / (4 T) per second."""
    slope, gain, flow, tau, rate = 0.5, 0.8, 3.0, 0.7, 0.9
    w = brentq(lambda w: np.arctan(w / rate) + np.arctan(w / slope) + 2 * w * tau - np.pi, 1e-6, np.pi / (2 * tau))
    temperature = 2 * flow * gain / (2 * np.hypot(1, w / rate) * np.hypot(w, slope))
    curve = hyperbolic_through(np.full(2, slope), np.full(2, gain), np.full(2, flow))
    network = dgd.Network([2 * flow], np.full((1, 2), tau), curve)
    found = softmin_loop(network, dgd.Softmin(temperature, 1.0)).critical()
    assert found == pytest.approx((rate, w), rel=1e-8)
    # Nothing swings without delays: two lags in a row turn by less than half a circle.
    at_once = dgd.Network([2 * flow], np.zeros((1, 2)), curve)
    assert softmin_loop(at_once, dgd.Softmin(temperature, 1.0)).critical() == (np.inf, 0.0)


def cases(count, seed=0):
    """Random networks that rest, and a colder softmin for each, which swings when it is fast."""
    networks = dgd.topologies.complete(jax.random.key(seed), frontends=3, backends=3, count=count)
    networks = networks.with_load(jax.random.uniform(jax.random.key(seed + 1), (count,), minval=0.5, maxval=0.9))
    for k in range(count):
        network = jax.tree.map(lambda leaf, k=k: leaf[k], networks)
        calm = calm_softmin(network)
        policy = dgd.Softmin(0.1 * calm.temperature, calm.rate)
        rest = rest_of_softmin(network, policy)
        if bool(rest.found):
            yield network, policy, rest


@pytest.mark.full
def test_rest_point_and_limit_are_those_of_the_general_analysis():
    """The rest point by its definition; the limit from the loop over arcs, of which only the first two numbers of an optimum are read."""
    optimum = None
    for network, policy, rest in cases(4):
        price = np.asarray(1 / network.service.slope(rest.workload)) + np.asarray(network.cost_latency)
        weight = np.exp(-price / float(policy.temperature))
        np.testing.assert_allclose(rest.routing, weight / weight.sum(1, keepdims=True), rtol=1e-9)
        served = np.asarray(network.service.rate(rest.workload))
        np.testing.assert_allclose(network.arrival_rate @ rest.routing, served, rtol=1e-9)
        optimum = optimum or dgd.solve_optimum(network)
        there = type(optimum)(rest.routing, rest.workload, *jax.tree.leaves(optimum)[2:])
        mode = critical_mode(network, policy, there)
        expected = float(mode.step_size) * float(policy.rate), float(mode.frequency)
        assert softmin_loop(network, policy, rest).critical() == pytest.approx(expected, rel=1e-7)


def agreement(count, seed) -> np.ndarray:
    """Whether runs at 0.98 and 1.02 of each limit die out and grow."""
    found = [
        (network, policy, rest, softmin_loop(network, policy, rest).critical())
        for network, policy, rest in cases(count, seed)
    ]
    found = [case for case in found if np.isfinite(case[-1][0])]
    twice = [case for case in found for _ in "ab"]
    rates = np.array([part * limit for *_, (limit, _) in found for part in (0.98, 1.02)])
    each = lambda values: jnp.stack([jnp.asarray(value) for value in values])
    rule = dgd.Softmin(each([policy.temperature for _, policy, *_ in twice])[:, None], rates[:, None])
    looks = np.array([2 * np.pi / frequency for *_, (_, frequency) in twice]) / 4
    every = 200
    grows = deviations_grow(
        dgd.stack([network for network, *_ in twice]), rule, each([rest.routing for *_, rest, _ in twice]),
        each([rest.workload for *_, rest, _ in twice]), looks / every, every,
    )  # fmt: skip
    return (grows.reshape(-1, 2) == [False, True]).all(1)


def test_deviations_grow_beyond_the_limit():
    agree = agreement(5, 0)
    assert len(agree) >= 4
    assert agree.all()


@pytest.mark.full
def test_deviations_grow_beyond_the_limit_in_two_hundred_networks():
    agree = agreement(220, 3)
    print(f"{agree.sum()} of {len(agree)} agree")
    assert agree.mean() >= 0.98


def test_the_report_says_both_limits(monkeypatch, tmp_path):
    """Of a fleet whose default is stable: a temperature below which it swings."""
    monkeypatch.setattr(study, "simulated_edge", lambda *case: (0.99 * case[-2], 1.01 * case[-2]))
    report = policy_report(dgd.load_fleet("two-by-two"), "softmin", {"temperature": "0.05"})
    text, document = report.text(), report.document()
    assert text.startswith("two-by-two: softmin\nat rest ")
    assert "unstable" in text
    assert document["stable"] is document["settings"]["rate"]["stable"] is False
    (edge,) = document["settings"]["temperature"]["edges"]
    # At its own edge the rate is just critical.
    there = dgd.Softmin(edge["at"], calm_softmin(dgd.load_fleet("two-by-two")).rate)
    limit, frequency = softmin_loop(dgd.load_fleet("two-by-two"), there).critical()
    assert limit == pytest.approx(float(there.rate), rel=1e-6)
    assert edge["swing_period"] == pytest.approx(2 * np.pi / frequency, rel=1e-6)
    assert "temperature (now 50.0 ms): stable above" in text
    pytest.importorskip("matplotlib")
    assert [path.name for path in save_pictures(report, tmp_path)] == ["stable.png"]
    assert (tmp_path / "stable.png").stat().st_size > 10_000


def test_what_has_no_limit_is_one_sentence():
    network = dgd.load_fleet("two-by-two")
    with pytest.raises(dgd.InputError, match=r"Softmin\.rate is from 1 to 2 1/s"):
        softmin_loop(network, dgd.Softmin(0.1, [1.0, 2.0]))
    nowhere = eqx.tree_at(lambda rest: rest.found, rest_of_softmin(network, dgd.Softmin(0.1, 1.0)), jnp.asarray(False))
    with pytest.raises(dgd.InputError, match=r"no rest point was found"):
        softmin_loop(network, dgd.Softmin(0.1, 1.0), nowhere)
    with pytest.raises(dgd.InputError, match=r"Softmin\.temperature is from 1 to 2 s"):
        study.softmin_stability(network, dgd.Softmin([1.0, 2.0], 1.0), dgd.solve_optimum(network))
