"""Legal extremes of size: the optimum against the optimality conditions worked out in NumPy from the curve's own formula, limits of
stability against closed forms."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dgdlb_jax as dgd
from dgdlb_jax import events
from dgdlb_jax.numerics.results import InputError
from oracles import critical_gain, rightmost_root


def check_optimal(network, optimum):
    """Rows on the simplex, flows that are served, equal marginal latencies where something is sent, none lower elsewhere."""
    mu, kappa = (np.asarray(values) for values in (network.service.max_rate, network.service.half_load))
    routing, workload, rate = (
        np.asarray(values) for values in (optimum.routing, optimum.workload, network.arrival_rate)
    )
    mask = np.asarray(network.mask)
    np.testing.assert_allclose(routing.sum(1), 1, atol=1e-9)
    assert (routing >= 0).all()
    assert (routing[~mask] == 0).all()
    served = mu * workload / (kappa + workload)
    np.testing.assert_allclose(rate @ routing, served, rtol=1e-6, atol=1e-9 * rate.sum())
    marginal = np.where(mask, (kappa + workload) ** 2 / (mu * kappa) + np.asarray(network.cost_latency), np.inf)
    lowest = marginal.min(1)
    # The gap bounds the sum of flow times what an arc is dearer than the cheapest of its frontend, in units of the cost.
    excess = (rate[:, None] * routing * np.where(mask, marginal - lowest[:, None], 0)).sum()
    cost = workload.sum() + (rate[:, None] * routing * np.asarray(network.cost_latency)).sum()
    assert excess <= 1e-7 * cost
    assert int(optimum.result) == 0


def network_of(frontends, backends, *, identical=False, lonely=False):
    rng = np.random.default_rng(frontends * 1000 + backends)
    mu = np.full(backends, 10.0) if identical else rng.uniform(1, 20, backends)
    kappa = np.full(backends, 5.0) if identical else rng.uniform(1, 20, backends)
    latency = np.full((frontends, backends), 0.1) if identical else rng.uniform(0.001, 1, (frontends, backends))
    mask = np.ones((frontends, backends), bool)
    if lonely:  # each frontend reaches one backend only
        mask = np.arange(backends) == (np.arange(frontends) % backends)[:, None]
        mu = np.maximum(mu, 5 * frontends / backends)
    rate = np.full(frontends, 0.7 * mu.sum() / frontends) if not lonely else np.full(frontends, 1.0)
    return dgd.Network(dgd.Constant(jnp.asarray(rate)), jnp.asarray(latency), dgd.Hyperbolic(mu, kappa), mask=mask)


LARGE = [(1, 1), (12, 1), (1, 200), (200, 1), (200, 2), (150, 150), (200, 200)]


@pytest.mark.parametrize("shape", [(1, 12), *(pytest.param(one, marks=pytest.mark.full) for one in LARGE)])
@pytest.mark.parametrize("kind", ["plain", "identical", "lonely"])
def test_the_optimum_of_all_sizes(shape, kind):
    network = network_of(*shape, identical=kind == "identical", lonely=kind == "lonely")
    optimum = dgd.solve_optimum(network, throw=False)
    check_optimal(network, optimum)


@pytest.mark.parametrize("shape", [(1, 12), *(pytest.param(one, marks=pytest.mark.full) for one in LARGE)])
def test_events_of_all_sizes_conserve_requests(shape):
    """A failure, a slower link and more demand: what was sent is at the backends, on the way, served or lost. Nothing is served here."""
    network = network_of(*shape, identical=True)
    bottomless = eqx.tree_at(lambda each: each.service.max_rate, network, jnp.full(shape[1], 1e-15))
    rate = 7.0 * shape[1] / shape[0]
    happens = [events.Latency(0.3, 2.0, 0), events.Demand(0.4, 1.3, 0)]
    if shape[1] > 1:
        happens += [events.Fails(0.2, 0), events.Recovers(1.0, 0)]
    routing, workload = np.full(shape, 1 / shape[1]), np.zeros(shape[1])
    run = dgd.simulate(
        bottomless,
        dgd.FixedRouting(routing),
        duration=2.0,
        dt=0.05,
        initial=(routing, workload),
        events=happens,
        save=dgd.SaveAt(every=10, fields=("workload", "in_flight", "routing")),
    )
    time = np.asarray(run.time)
    sent = rate * shape[0] * (0.1 + time) + 0.3 * rate * np.maximum(time - 0.4, 0)
    held = np.asarray(run.workload).sum(-1) + np.asarray(run.lost).sum(-1) + np.asarray(run.in_flight)
    np.testing.assert_allclose(held, sent, rtol=1e-9)
    # The first backend loses what was on the way to it, and what is sent there until the news of the failure is in.
    expected = rate * shape[0] / shape[1] * (0.1 + 0.2 + 0.1) if shape[1] > 1 else 0
    np.testing.assert_allclose(np.asarray(run.lost).sum(-1)[-1], expected, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(np.asarray(run.routing).sum(-1), 1, atol=1e-9)


@pytest.mark.parametrize("shape", [(1, 12), *(pytest.param(one, marks=pytest.mark.full) for one in LARGE)])
def test_own_requests_of_all_sizes_obey_littles_law(shape):
    """Identical backends at rest under equal shares: every frontend counts its flow times the time until the answer is back."""
    network = network_of(*shape, identical=True)
    rest = 5.0 * 0.7 / 0.3
    routing = np.full(shape, 1 / shape[1])
    run = dgd.simulate(
        network,
        dgd.WeightedLeastRequest(),
        duration=1.0,
        dt=0.05,
        initial=(routing, np.full(shape[1], rest)),
        save=dgd.SaveAt.final(),
    )
    each = 7.0 / shape[0]
    np.testing.assert_allclose(run.final.own.count, np.full(shape, each * (0.1 + rest / 7.0 + 0.1)), rtol=1e-9)
    np.testing.assert_allclose(run.final.routing, routing, atol=1e-9)


@pytest.mark.full
@pytest.mark.parametrize("shape", [(1, 200), (64, 64)])
def test_the_noise_of_large_symmetric_networks(shape):
    """Of B equal backends the difference modes move as those of two, the sum does not: Var N = r / a / B + (1 - 1 / B) 2 r v, with v of two
    backends at the same gain of the loop."""
    backends = shape[1]
    network, two = network_of(*shape, identical=True), network_of(1, 2, identical=True)
    step = 0.3 * dgd.critical_step_size(two)
    pair = dgd.noise(two, dgd.DGDLB(step)).workload_variance
    still = 7.0 * (5 + 5.0 * 0.7 / 0.3) ** 2 / 50
    expected = still / backends + (1 - 1 / backends) * (2 * pair[0] - still)
    found = dgd.noise(network, dgd.DGDLB(step * 2 / backends))
    np.testing.assert_allclose(found.workload_variance, np.full(backends, float(expected)), rtol=1e-5)


@pytest.mark.full
def test_random_networks_of_150_x_150():
    for seed in range(5):
        network = dgd.topologies.complete(
            jax.random.key(seed), frontends=150, backends=150, load=(0.3, 0.6, 0.8, 0.9, 0.95)[seed]
        )
        optimum = dgd.solve_optimum(network, throw=False)
        assert int(optimum.result) == 0
        assert float(optimum.gap) <= 1e-9


@pytest.mark.full
@pytest.mark.parametrize("shape", [(1, 200), (50, 50), (200, 200)])
def test_the_stability_of_large_symmetric_networks(shape):
    """Identical backends: every mode obeys s (s + a) + eta c Lambda exp(-2 tau s) = 0, all of them cross together."""
    network = network_of(*shape, identical=True)
    frontends, backends = shape
    optimum = dgd.solve_optimum(network)
    workload = 5.0 * 0.7 / 0.3
    slope, gain, total, delay = 50 / (5 + workload) ** 2, 2 * (5 + workload) / 50, 7.0 * backends, 0.2
    limit = critical_gain(slope, delay) / (gain * total)
    assert float(dgd.critical_step_size(network, optimum)) == pytest.approx(limit, rel=1e-6)
    policy = dgd.DGDLB(0.5 * limit)
    equations = backends + frontends * (backends - 1)
    if equations <= 1500:
        found = dgd.characteristic_roots(network, policy, optimum)
        expected = rightmost_root(slope, 0.5 * limit * gain * total, delay)
        assert complex(found.dominant) == pytest.approx(expected, rel=1e-6)
    else:
        with pytest.raises(InputError, match=r"collocation of .* equations|would take hours: count_unstable_roots"):
            dgd.characteristic_roots(network, policy, optimum)
    if frontends * backends <= 2500:
        counts = [dgd.count_unstable_roots(network, policy, optimum, factor=factor) for factor in (1.99, 2.01)]
        assert counts == [0, 2 * (backends - 1)]
        report = dgd.stability_report(network, from_start=False)
        assert "how fast small deviations die out is not known: The c" in report.text()
        assert report.document()["null_because"]["abscissa"] == report.no_spectrum != ""
    with pytest.raises(
        InputError,
        match=f"roots of {equations:,} equations some 40 times, about .* minutes on one core: take a part of",
    ):
        dgd.best_step_size(network, optimum)


@pytest.mark.full
def test_the_stability_of_many_frontends_with_one_backend():
    """Nobody has a choice, so nothing moves but the workload of the backend, at its own rate."""
    network = network_of(200, 1)
    optimum = dgd.solve_optimum(network)
    mu, kappa = float(network.service.max_rate[0]), float(network.service.half_load[0])
    slope = mu * kappa / (kappa + float(optimum.workload[0])) ** 2
    assert np.isinf(dgd.critical_step_size(network, optimum))
    assert dgd.count_unstable_roots(network, dgd.DGDLB(1.0), optimum) == 0
    assert float(dgd.characteristic_roots(network, optimum).abscissa) == pytest.approx(-slope, rel=1e-6)
    with pytest.raises(InputError, match="Nothing limits the step size"):
        dgd.best_step_size(network, optimum)


def test_a_fleet_that_settles_slowly_is_not_followed_for_hours_without_being_asked():
    network = network_of(1, 60)
    with pytest.raises(InputError, match=r"reactions die out within about .* minutes on one core: pass run_on="):
        dgd.marginal_latency(network, dgd.DGDLB(1e-9), duration=2.0, dt=0.0001)
