"""Sufficient step sizes: never above the exact limit, known values, counterexamples that fooled sampling."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dgdlb_jax as dgd
from dgdlb_jax import conditions
from helpers import SCALAR_CONDITIONS, hyperbolic_through

pytestmark = pytest.mark.usefixtures("quick_compilation")

RULES = (conditions.distributed, conditions.distributed_a, conditions.best_proven)
COUNT = 40


@pytest.fixture(scope="module", params=["complete", "heterogeneous_latencies", "equal_latencies", "near_critical"])
def sample(request):
    networks = dgd.topologies.FAMILIES[request.param](jax.random.key(11), frontends=4, backends=5, count=COUNT)
    optimum = dgd.solve_optimum(networks)
    return request.param, networks, optimum, dgd.critical_step_size(networks, optimum=optimum)


def test_sufficient_is_never_above_exact(sample):
    family, networks, optimum, limit = sample
    ratio = {}
    for condition in SCALAR_CONDITIONS:
        step = dgd.sufficient_step_size(networks, optimum, condition=condition)
        assert step.shape == (COUNT, 4)
        ratio[condition.__name__] = np.asarray(step[:, 0] / limit)
    for name, values in ratio.items():
        assert np.all((values > 0) & (values <= 1 + 1e-9)), name
    # weaker forms are weaker
    assert np.all(ratio["theorem_a_largest"] <= ratio["theorem_a"] * (1 + 1e-12))
    assert np.all(ratio["theorem_b_diagonal"] <= ratio["theorem_b"] * (1 + 1e-12))
    assert np.all(ratio["theorem_c_largest"] <= ratio["theorem_c"] * (1 + 1e-12))
    assert np.all(ratio["two_parameters"] >= ratio["theorem_b"] * (1 - 1e-9))
    if family == "equal_latencies":
        assert ratio["theorem_b"] == pytest.approx(1, rel=1e-9)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_rules_are_stable_vectors(sample, rule):
    _, networks, optimum, _ = sample
    step = dgd.sufficient_step_size(networks, optimum, condition=rule)
    factor = dgd.critical_step_size(networks, dgd.DGDLB(step), optimum)
    assert np.all(np.asarray(factor) >= 1 - 1e-9)


def test_conditions_are_monotone_in_directions(sample):
    _, networks, optimum, _ = sample
    direction = jnp.array([1.0, 0.2, 3.0, 0.7])
    for condition in (conditions.theorem_a, conditions.theorem_c_spectral, conditions.distributed):
        step = dgd.sufficient_step_size(networks, optimum, condition=condition, direction=direction)
        assert step / step[:, :1] == pytest.approx(np.broadcast_to(direction, step.shape), rel=1e-9)
        assert np.all(np.asarray(dgd.critical_step_size(networks, dgd.DGDLB(step), optimum)) >= 1 - 1e-9)


def from_slopes(slope, gain, latency, rate=5.0, size=51):
    """A frontend whose optimum uses its first backends equally, with these slopes and gains there: costs make the marginal latencies
    equal. More backends, so that all are compiled once, cost too much to be used."""
    used, fill = slope.size, lambda values: np.r_[values, np.full(size - slope.size, values[-1])]
    slope, gain, latency = fill(slope), fill(gain), fill(latency)
    cost = 1.0 + (1 / slope).max() - 1 / slope + np.where(np.arange(size) < used, 0.0, 1e4)
    service = hyperbolic_through(slope, gain, rate / used)
    return dgd.Network([rate], latency[None], service, cost_latency=cost[None])


def test_the_refuted_local_condition():
    """c_j sum lambda eta < K_c(a_j, tau_j) for every backend is not sufficient: 13 + 1 backends, 3 % beyond the limit."""
    from oracles import critical_gain

    slope = np.r_[np.full(13, 0.25554), 3.25054]
    gain = np.r_[np.full(13, 1.0), 0.77098]
    latency = (
        0.13314 + 1 / slope[0] - 1 / slope
    )  # 3.7387 for the last: the cost latency is the forward one up to a constant
    network = from_slopes(slope, gain, latency)
    optimum = dgd.solve_optimum(network)
    linear = dgd.linearise(network, optimum=optimum)
    assert np.asarray(linear.slope)[:14] == pytest.approx(slope, rel=1e-9)
    assert np.asarray(linear.gain)[:14] == pytest.approx(gain, rel=1e-9)
    refuted = min(critical_gain(a, 2 * tau) / (c * 5) for a, c, tau in zip(slope, gain, latency, strict=True))
    limit = float(dgd.critical_step_size(network, optimum=optimum))
    assert refuted / limit == pytest.approx(1.0310, abs=5e-4)
    assert dgd.count_unstable_roots(network, dgd.DGDLB(0.99 * refuted), optimum) == 2
    for condition in (*SCALAR_CONDITIONS, conditions.distributed):
        assert float(dgd.sufficient_step_size(network, optimum, condition=condition)[0]) <= limit * (1 + 1e-9)


def theorem_c_by_hand(slope, gain, latency, rate=5.0):
    """One frontend: 2 tau_j c_j lambda eta <= a_j."""
    return np.min(slope / (2 * gain * rate * latency))


def test_theorem_c_is_false_for_free_cost_latencies_and_refused():
    slope, latency = np.array([0.6846, 0.0326]), np.array([2.8774, 0.0328])
    gain = slope / latency  # theorem C is tight at both backends
    network = from_slopes(slope, gain, latency)
    optimum = dgd.solve_optimum(network)
    limit = float(dgd.critical_step_size(network, optimum=optimum))
    wrong = theorem_c_by_hand(slope, gain, latency)
    assert wrong / limit == pytest.approx(2.39, abs=0.02)
    with pytest.raises(dgd.InputError, match=r"distributed is not proven.*theorem_a"):
        dgd.sufficient_step_size(network)
    for condition in (conditions.theorem_c, conditions.theorem_b, conditions.best_proven):
        with pytest.raises(dgd.InputError, match="not proven for this network"):
            dgd.sufficient_step_size(network, condition=condition)
    for condition in (conditions.theorem_a, conditions.theorem_a_largest, conditions.distributed_a):
        assert 0 < float(dgd.sufficient_step_size(network, optimum, condition=condition)[0]) <= limit * (1 + 1e-9)


def test_theorem_c_is_false_for_round_trips_and_refused():
    slope = np.r_[np.full(50, 0.034473), 0.108915]
    latency = 0.037909 + (1 / slope[0] - 1 / slope) / 2  # cost = 2 tau up to a constant; 9.951107 for the last
    gain = slope / latency
    network = from_slopes(slope, gain, latency)
    optimum = dgd.solve_optimum(network)
    limit = float(dgd.critical_step_size(network, optimum=optimum))
    assert theorem_c_by_hand(slope, gain, latency) / limit == pytest.approx(1.149, abs=1e-3)
    with pytest.raises(dgd.InputError, match="theorem_c is not proven"):
        dgd.sufficient_step_size(network, optimum, condition=conditions.theorem_c)
    for condition in (
        conditions.theorem_a,
        conditions.theorem_b,
        conditions.theorem_b_diagonal,
        conditions.two_parameters,
    ):
        assert 0 < float(dgd.sufficient_step_size(network, optimum, condition=condition)[0]) <= limit * (1 + 1e-9)


def test_the_old_name_of_the_operating_point():
    with pytest.warns(DeprecationWarning, match=r"conditions\.Setting is now called OperatingPoint"):
        assert dgd.conditions.Setting is dgd.conditions.OperatingPoint
