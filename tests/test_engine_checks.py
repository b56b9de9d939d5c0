"""What the simulator says when something is wrong: one sentence, or a result code."""

import jax
import numpy as np
import pytest

from dgdlb_jax.model.network import stack
from dgdlb_jax.model.service import Hyperbolic, Tabulated
from dgdlb_jax.numerics.results import InputError, Result
from dgdlb_jax.policies.gradient import DGDLB
from dgdlb_jax.simulation.engine import simulate, simulate_batch
from dgdlb_jax.simulation.plan import Execution
from dgdlb_jax.simulation.requests.engine import simulate_requests
from dgdlb_jax.simulation.trajectory import SaveAt
from helpers import DT, SETTINGS, small_network


def test_a_latency_longer_than_the_buffer(rng):
    network = small_network(rng)
    settings = SETTINGS | {"max_latency": 0.2}
    with pytest.raises(InputError, match="max_latency"):
        simulate(network, DGDLB(0.1), **settings)
    assert int(simulate(network, DGDLB(0.1), throw=False, **settings).result) == Result.latency_overflow


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (
            {"execution": Execution(devices=3)},
            r"devices is 3: give a whole number from 1 to the \d that this process has",
        ),
        ({"execution": Execution(lanes=0)}, "lanes is 0: give a whole number from 1 on, or leave it out"),
        (
            {"save": SaveAt.statistics(after=1e9)},
            r"wanted after 1e\+09 s, but the run ends at .* s: begin earlier, or run longer",
        ),
    ],
)
def test_what_would_lose_networks_or_the_whole_window_is_refused(rng, more, said):
    with pytest.raises(InputError, match=said):
        simulate_batch(stack([small_network(rng)] * 4), DGDLB(0.1), **SETTINGS, **more)


def test_a_window_after_the_end_is_refused_with_whole_requests_as_well(rng):
    with pytest.raises(InputError, match=r"wanted after 1e\+09 s, but the run ends at"):
        simulate_requests(small_network(rng), DGDLB(0.1), jax.random.key(0), **SETTINGS, after=1e9)


def test_a_step_too_large_for_a_measured_curve():
    """In a batch of tables: dt times the slope of the whole mixture counts, 4 components of 0.7 / dt together."""
    weights, scales = np.full((4, 4), 0.7 / DT), np.ones((4, 4))
    network = small_network(np.random.default_rng(0), service=Tabulated(weights, scales))
    runs = simulate_batch(stack([network] * 3), DGDLB(0.1), throw=False, **SETTINGS)
    np.testing.assert_array_equal(runs.result, [Result.step_too_large] * 3)
    with pytest.raises(InputError, match="dt"):
        simulate(network, DGDLB(0.1), **SETTINGS)


def test_a_step_too_large_for_the_fastest_backend(rng):
    network = small_network(rng, service=Hyperbolic([8.0, 8.0, 8.0, 80.0], [5.0, 5.0, 5.0, 0.4]))  # dt * slope = 4
    with pytest.raises(InputError, match="dt"):
        simulate(network, DGDLB(0.1), **SETTINGS)
    assert int(simulate(network, DGDLB(0.1), throw=False, **SETTINGS).result) == Result.step_too_large


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"dt": 0.0}, "dt"),
        ({"dt": -0.1}, "dt"),
        ({"dt": float("nan")}, "dt"),
        ({"duration": -1.0}, "duration"),
        ({"duration": float("inf")}, "duration"),
        ({"initial": (np.full((2, 4), 0.25), np.ones(4))}, "initial"),
        ({"initial": (np.full((3, 4), 0.25), np.ones(3))}, "initial"),
        ({"initial": (np.full((3, 4), 0.25), -np.ones(4))}, "initial"),
        ({"initial": (np.full((3, 4), 0.3), np.ones(4))}, "initial"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_bad_settings_are_named(rng, change, words):
    network = small_network(rng, mask=np.ones((3, 4), bool))
    with pytest.raises(InputError, match=words):
        simulate(network, DGDLB(0.1), **(SETTINGS | change))


def test_a_traced_network_needs_a_stated_latency(rng):
    network = small_network(rng)
    with pytest.raises(InputError, match="max_latency"):
        jax.jit(lambda n: simulate(n, DGDLB(0.1), duration=1.0, dt=DT).workload)(network)


def test_single_and_batch_are_told_apart(rng):
    network = small_network(rng)
    with pytest.raises(InputError, match="simulate_batch"):
        simulate(stack([network]), DGDLB(0.1), **SETTINGS)
    with pytest.raises(InputError, match="stack"):
        simulate_batch(network, DGDLB(0.1), **SETTINGS)
