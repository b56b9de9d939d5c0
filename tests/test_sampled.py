"""DGD-LB in which frontends update their weights every so often."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dgdlb_jax as dgd

pytestmark = pytest.mark.usefixtures("quick_compilation")


@pytest.fixture(scope="module")
def network():
    return dgd.Network([4.0, 2.0], [[0.1, 0.3], [0.2, 0.1]], dgd.Hyperbolic(jnp.full(2, 5.0), jnp.array([3.0, 4.0])))


START = (np.array([[0.5, 0.5], [0.5, 0.5]]), np.array([2.0, 1.0]))


def test_weights_move_at_updates_only_and_by_a_whole_step(network):
    dt, interval, step = 0.01, 0.2, 0.02
    policy = dgd.SampledDGDLB(step, interval)
    run = dgd.simulate(network, policy, duration=1.0, dt=dt, initial=START)
    moved = np.abs(np.diff(np.asarray(run.routing), axis=0)).max((1, 2)) > 1e-15
    # An update at step k is spread over the two time steps that meet there.
    expected = np.zeros(100, bool)
    for k in (20, 40, 60, 80, 100):
        expected[k - 1] = True
        expected[k : k + 1] = True
    assert np.array_equal(moved, expected)
    # The first one follows the start: workloads as they were 0.1 to 0.3 s before.
    k = 20
    seen = np.array(
        [
            [np.asarray(run.workload)[max(k - round(tau / dt), 0), j] for j, tau in enumerate(row)]
            for row in network.latency.tolist()
        ]
    )
    gradient = np.stack([np.asarray(network.service.marginal_latency(jnp.asarray(row))) for row in seen]) + np.asarray(
        network.latency
    )
    update = -interval * step * (gradient - gradient.mean(1, keepdims=True))
    assert np.asarray(run.routing)[k + 1] - START[0] == pytest.approx(update, rel=1e-9)


def test_an_interval_of_one_time_step_is_plain_dgdlb(network):
    settings = {"duration": 5.0, "dt": 0.01, "initial": START}
    sampled = dgd.simulate(network, dgd.SampledDGDLB(0.05, 0.01), **settings)
    plain = dgd.simulate(network, dgd.DGDLB(0.05), **settings)
    # The very first velocity differs: a sampled frontend has waited a whole step by then as well.
    assert np.asarray(sampled.routing) == pytest.approx(np.asarray(plain.routing), abs=1e-12)


def test_an_odd_interval_is_kept_on_average(network):
    run = dgd.simulate(network, dgd.SampledDGDLB(0.02, 0.025), duration=10.0, dt=0.01, initial=START)
    busy = np.abs(np.diff(np.asarray(run.routing), axis=0)).max((1, 2)) > 0
    assert busy.mean() == pytest.approx(0.8, abs=0.01)  # two updates in five steps, each spread over two of them
    same = dgd.simulate(network, dgd.DGDLB(0.02), duration=10.0, dt=0.01, initial=START)
    assert np.asarray(run.routing[-1]) == pytest.approx(np.asarray(same.routing[-1]), abs=2e-3)


def test_bad_values_are_named():
    with pytest.raises(dgd.InputError, match=r"SampledDGDLB\.interval is 0, "):
        dgd.SampledDGDLB(0.1, 0.0)
    with pytest.raises(dgd.InputError, match=r"SampledDGDLB\.step_size is -1"):
        dgd.SampledDGDLB(-1.0, 1.0)


def test_batches_and_gradients(network):
    def latency(step):
        run = dgd.simulate(
            network, dgd.SampledDGDLB(step, 0.2), duration=2.0, dt=0.01, initial=START, save=dgd.SaveAt.statistics()
        )
        return run.statistics.mean_latency

    slope = float(jax.grad(latency)(0.02))
    h = 1e-5
    assert slope == pytest.approx(float(latency(0.02 + h) - latency(0.02 - h)) / (2 * h), rel=1e-5)
