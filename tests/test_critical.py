"""The exact limit of local stability: closed forms, an independent count of roots, derivatives, many networks at once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dgdlb_jax as dgd
from dgdlb_jax.stability.loop_transfer import _late
from helpers import central_difference, single_precision
from oracles import critical_gain

pytestmark = pytest.mark.usefixtures("quick_compilation")

DECADES = (1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0)


def one(tree, k):
    return jax.tree.map(lambda leaf: leaf[k], tree)


def symmetric(latency):
    """Equal backends and latencies, so that the loop is s (s + a) + K exp(-2 tau s)."""
    service = dgd.Hyperbolic(max_rate=jnp.full(4, 10.0), half_load=jnp.full(4, 8.0))
    return dgd.Network([9.0, 7.0, 12.0], jnp.full((3, 4), latency), service)


def test_symmetric_closed_form_over_five_decades():
    networks = dgd.stack([symmetric(tau) for tau in DECADES])
    optimum = dgd.solve_optimum(networks)
    mode = dgd.critical_mode(networks, optimum=optimum)
    # ell = 10 N / (8 + N) serving 7: N = 56 / 3, a = 10 * 8 / (8 + N)^2, c = 2 (8 + N) / 80
    workload = 7 * 8 / 3
    a, c = 80 / (8 + workload) ** 2, 2 * (8 + workload) / 80
    for k, tau in enumerate(DECADES):
        gain = critical_gain(a, 2 * tau)
        assert float(mode.step_size[k]) == pytest.approx(gain / (c * 28), rel=1e-9)
        w = float(mode.frequency[k])
        assert w * np.hypot(w, a) == pytest.approx(gain, rel=1e-9)


def test_delays_are_exponentials(rng):
    # A tangent within an ulp is wrong by eps in angle; where it has a pole, at odd multiples of pi, its square is still finite.
    angles = np.concatenate([rng.normal(size=500) * np.geomspace(1e-9, 1e5, 500), np.pi * np.arange(-9, 10)])
    x = rng.uniform(-3, 3, angles.size) + 1j * angles
    late, along = jax.jvp(_late, (jnp.asarray(x),), (jnp.full(x.shape, 2 - 1j),))
    eps = np.finfo(float).eps
    np.testing.assert_array_less(np.abs(late - np.exp(-x)), 8 * eps * np.exp(-x.real))
    np.testing.assert_allclose(along, -(2 - 1j) * np.asarray(late), rtol=4 * eps)


def test_no_limit_without_latency_or_choice():
    still = symmetric(0.0)
    assert np.isinf(dgd.critical_step_size(still))
    assert dgd.critical_mode(still).frequency == 0
    assert np.isinf(dgd.critical_mode(still).period)
    mask = np.eye(3, 4, dtype=bool)
    lonely = dgd.Network([2.0, 2.0, 2.0], still.latency + 1, still.service, mask=mask)
    assert np.isinf(dgd.critical_step_size(lonely))


@pytest.mark.parametrize("family", ["complete", "heterogeneous_latencies", "equal_latencies", "near_critical"])
def test_no_crossing_is_missed(family):
    # Of the size that test_conditions uses: compiled once.
    networks = dgd.topologies.FAMILIES[family](jax.random.key(5), frontends=4, backends=5, count=40)
    optimum = dgd.solve_optimum(networks)
    limit = dgd.critical_step_size(networks, optimum=optimum)
    for k in range(6):
        below, above = (
            dgd.count_unstable_roots(networks[k], dgd.DGDLB(limit[k]), one(optimum, k), factor=factor)
            for factor in (1 - 1e-6, 1 + 1e-6)
        )
        assert (below, above % 2) == (0, 0)
        assert above >= 2


def many_identical_backends(rng):
    """Twelve equal backends and a thirteenth: a mode of multiplicity eleven, which takes part in nothing but crosses."""
    return dgd.Hyperbolic(jnp.r_[jnp.full(12, 4.0), 9.0], jnp.r_[jnp.full(12, 6.0), 5.0]), np.full((2, 13), 0.8), 20.0


def four_decades_of_latency(rng):
    """Arcs from a millisecond to ten seconds, all of them used since the same is charged for each."""
    return dgd.Hyperbolic(jnp.full(13, 4.0), jnp.full(13, 3.0)), 10.0 ** rng.uniform(-3, 1, (2, 13)), 32.0


def nearly_equal_latencies(rng):
    """Differences of 1e-9: crossings that all but coincide."""
    return dgd.Hyperbolic(jnp.full(5, 5.0), jnp.full(5, 6.0)), 1 + 1e-9 * rng.normal(size=(3, 5)), 15.0


@pytest.mark.parametrize(
    "case",
    [
        many_identical_backends,
        four_decades_of_latency,
        pytest.param(nearly_equal_latencies, marks=pytest.mark.full),
    ],
)
def test_no_crossing_is_missed_in_hard_cases(case, rng):
    service, latency, total = case(rng)
    rates = total * rng.dirichlet(np.full(latency.shape[0], 5.0))
    network = dgd.Network(rates, latency, service, cost_latency=np.full_like(latency, 0.8))
    optimum = dgd.solve_optimum(network)
    assert int((np.asarray(optimum.routing) > 1e-6).sum(1).max()) >= 5
    limit = dgd.critical_step_size(network, optimum=optimum)
    below, above = (
        dgd.count_unstable_roots(network, dgd.DGDLB(limit), optimum, factor=factor) for factor in (1 - 1e-6, 1 + 1e-6)
    )
    assert below == 0
    assert above >= 2


@pytest.mark.parametrize("forward", [False, pytest.param(True, marks=pytest.mark.full)], ids=["reverse", "forward"])
def test_gradient_is_that_of_differences(forward):
    network = dgd.topologies.complete(jax.random.key(3), frontends=3, backends=4)
    inputs = {"latency": network.latency, "rate": network.arrival_rate, "capacity": network.service.max_rate}

    def limit(values):
        service = dgd.Hyperbolic(values["capacity"], network.service.half_load)
        return dgd.critical_step_size(dgd.Network(values["rate"], values["latency"], service))

    both = jax.jit(jax.value_and_grad(limit))
    gradient = both(inputs)[1]
    slope = jax.jit(lambda direction: jax.jvp(limit, (inputs,), (direction,))[1])
    rng = np.random.default_rng(1)
    for name in inputs:
        direction = {key: jnp.zeros_like(value) for key, value in inputs.items()}
        direction[name] = inputs[name] * rng.normal(size=inputs[name].shape)
        found = float(jnp.vdot(gradient[name], direction[name]))
        if forward:
            assert float(slope(direction)) == pytest.approx(found, rel=1e-9)
        else:
            expected = central_difference(lambda values: both(values)[0], inputs, direction, h=1e-5)
            assert found == pytest.approx(float(expected), rel=1e-6)


def test_direction_scales_frontends():
    network = dgd.topologies.complete(jax.random.key(4), frontends=3, backends=4)
    direction = jnp.array([1.0, 0.3, 2.0])
    factor = dgd.critical_step_size(network, direction=direction)
    same = dgd.critical_step_size(network, dgd.DGDLB(direction))
    assert float(factor) == pytest.approx(float(same), rel=1e-12)
    assert float(dgd.critical_step_size(network, dgd.DGDLB(direction * factor))) == pytest.approx(1, rel=1e-9)


def test_single_precision_is_refused():
    with single_precision():
        network = dgd.Network([1.0, 1.0], [[0.1, 0.2], [0.2, 0.1]], dgd.Hyperbolic([2.0, 2.0], [1.0, 1.0]))
        with pytest.raises(dgd.InputError, match="jax_enable_x64"):
            dgd.critical_step_size(network)


def test_policies_that_jump_are_refused():
    with pytest.raises(dgd.InputError, match=r"LeastLatency.*softmin"):
        dgd.critical_step_size(symmetric(1.0), dgd.LeastLatency())


def test_sampled_limit_by_simulation():
    """Updates every T seconds: 1.5 % below the corrected limit a small deviation dies out, 1.5 % above it grows."""
    network = dgd.topologies.complete(jax.random.key(3), frontends=3, backends=4)
    optimum = dgd.solve_optimum(network)
    plain = float(dgd.critical_step_size(network, optimum=optimum))
    intervals, ratio = (2.0, 5.0), []
    for interval in intervals:
        limit = float(dgd.critical_step_size(network, dgd.SampledDGDLB(1.0, interval), optimum))
        ratio.append(limit / plain)
        for factor in (0.985, 1.015):
            rng = np.random.default_rng(0)
            start = optimum.routing, optimum.workload * (1 + 1e-6 * rng.normal(size=4))
            run = dgd.simulate(
                network, dgd.SampledDGDLB(factor * limit, interval), duration=4000.0, dt=0.1, initial=start,
                save=dgd.SaveAt(every=10, fields=("workload",)),
            )  # fmt: skip
            away = np.abs(np.asarray(run.workload) - np.asarray(optimum.workload)).max(1)
            early, late = away[1000:2000].max(), away[3000:].max()
            assert (late > 2 * early) == (factor > 1), (interval, factor, early, late)
    # A quarter of a period of the loop is where it matters: here it even helps, since an update leads by half an interval.
    assert 1.01 < ratio[0] < 1.05
    assert ratio[1] > 1.15


def test_sampled_limit_is_the_continuous_one_for_frequent_updates():
    """The correction is of second order in the interval: ten times as often, a hundredth of it (in the symmetric case)."""
    network = symmetric(1.0)
    plain = float(dgd.critical_step_size(network))
    change = [float(dgd.critical_step_size(network, dgd.SampledDGDLB(1.0, T))) / plain - 1 for T in (0.1, 0.01)]
    assert abs(change[0]) < 2e-3
    assert change[1] / change[0] == pytest.approx(1e-2, rel=0.05)


def test_limits_do_not_depend_on_threads(monkeypatch):
    """Seventeen networks in one part, and in two that overlap."""
    networks = dgd.topologies.complete(jax.random.key(3), frontends=2, backends=3, count=17)
    optimum, found = dgd.solve_optimum(networks), []
    for threads in ("1", "2"):
        monkeypatch.setenv("DGDLB_THREADS", threads)
        found.append(dgd.critical_step_size(networks, optimum))
    np.testing.assert_allclose(*found, rtol=1e-12)
