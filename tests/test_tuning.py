"""Tuning by gradients through runs."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dgdlb_jax.gradients.tuning import transient_latency, tune
from dgdlb_jax.model.network import stack
from dgdlb_jax.numerics.results import InputError
from dgdlb_jax.policies.gradient import DGDLB
from dgdlb_jax.policies.greedy import LeastWorkload
from dgdlb_jax.simulation.engine import simulate
from dgdlb_jax.simulation.trajectory import SaveAt
from helpers import DT, SETTINGS, small_network, some_start

pytestmark = pytest.mark.usefixtures("quick_compilation")

RUN = {"duration": SETTINGS["duration"], "dt": DT}


def mean_latency(network, step_size, start) -> float:
    run = simulate(network, DGDLB(jnp.asarray(step_size)), initial=start, save=SaveAt.statistics(), **SETTINGS)
    return float(run.statistics.mean_latency)


def test_the_best_uniform_step_size_is_that_of_a_scan(rng):
    """A scan over step sizes brackets what the optimizer finds."""
    network, start = small_network(rng), some_start(rng, small_network(rng))
    found = tune(network, DGDLB(jnp.asarray(0.05)), optax.adam(0.2), initial=start, iterations=60, **RUN)
    scan = 0.05 * 2.0 ** np.arange(-2, 8)
    values = [mean_latency(network, np.full(3, step), start) for step in scan]
    assert float(found.value) <= min(values) * (1 + 1e-6)
    assert found.history[0] == pytest.approx(values[2], rel=1e-12)
    assert mean_latency(network, np.full(3, float(found.policy.step_size)), start) == pytest.approx(
        float(found.value), rel=1e-12
    )


@pytest.mark.full
def test_one_step_size_per_frontend_is_at_least_as_good_and_zeros_stay(rng):
    network, start = small_network(rng), some_start(rng, small_network(rng))
    uniform = tune(network, DGDLB(jnp.asarray(0.1)), optax.adam(0.2), initial=start, iterations=30, **RUN)
    begin = DGDLB(jnp.full(3, uniform.policy.step_size))
    each = tune(network, begin, optax.adam(0.1), initial=start, iterations=30, **RUN)
    assert float(each.value) < float(uniform.value)
    assert (np.asarray(each.policy.step_size) > 0).all()
    still = tune(network, DGDLB(jnp.array([0.1, 0.0, 0.1])), optax.adam(0.1), initial=start, iterations=2, **RUN)
    assert float(still.policy.step_size[1]) == 0


def test_a_batch_is_tuned_for_its_mean(rng):
    networks = [small_network(rng), small_network(rng, arrival_rate=[5.0, 4.0, 6.0])]
    starts = [some_start(rng, network) for network in networks]
    step = jnp.array([0.1, 0.2, 0.15])
    batch, start = stack(networks), tuple(np.stack(values) for values in zip(*starts, strict=True))
    found = tune(batch, DGDLB(step), optax.sgd(0.1), initial=start, iterations=1, **RUN)
    each = [mean_latency(network, step, start) for network, start in zip(networks, starts, strict=True)]
    assert found.history[0] == pytest.approx(np.mean(each), rel=1e-12)
    assert found.history[1] < found.history[0]


def test_another_objective_is_used(rng):
    """The highest workload at the end: what it is does not matter, that it is minimised does."""
    network, start = small_network(rng), some_start(rng, small_network(rng))
    objective = lambda runs: jnp.max(runs.final.workload, axis=-1)
    found = tune(network, DGDLB(jnp.full(3, 0.1)), optax.adam(0.1), objective, initial=start, iterations=3, **RUN)
    run = simulate(network, found.policy, initial=start, save=SaveAt.statistics(), **SETTINGS)
    assert float(found.value) == pytest.approx(float(jnp.max(run.final.workload)), rel=1e-12)
    assert found.value < found.history[0]


def test_what_cannot_be_tuned_is_named(rng):
    network = small_network(rng)
    with pytest.raises(InputError, match="LeastWorkload jumps"):
        tune(network, LeastWorkload(), optax.adam(0.1), **RUN)
    with pytest.raises(InputError, match="nan at the start"):
        tune(network, DGDLB(jnp.full(3, 0.1)), optax.adam(0.1), lambda runs: transient_latency(runs) * jnp.nan, **RUN)
