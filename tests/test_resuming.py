"""Runs that go on where others ended, and long ones: to the bit and to rounding, compiled as a user compiles."""

import jax
import numpy as np
import pytest

from dgdlb_jax.fleets import load_fleet
from dgdlb_jax.model.demand import DailyCycle
from dgdlb_jax.numerics.results import InputError
from dgdlb_jax.policies.gradient import DGDLB
from dgdlb_jax.simulation.engine import simulate
from dgdlb_jax.simulation.trajectory import SaveAt
from helpers import (
    DT,
    HISTORY,
    MAX_LATENCY,
    POLICIES,
    ROUNDING,
    SETTINGS,
    STEPS,
    single_precision,
    small_network,
    some_start,
)


@pytest.mark.parametrize("policy", ["DGDLB", "LeastLatency", pytest.param("PeakEWMA", marks=pytest.mark.full)])
def test_one_long_run_is_two_short_ones_to_the_bit(rng, policy):
    network = small_network(rng, arrival_rate=DailyCycle([4.0, 6.0, 5.0], 0.4, [0.0, 0.4, 0.2], 3.0))
    policy, start = POLICIES[policy](network), some_start(rng, network)
    long = simulate(network, policy, initial=start, **SETTINGS)
    half = SETTINGS | {"duration": STEPS // 2 * DT}
    first = simulate(network, policy, initial=start, **half)
    second = simulate(network, policy, initial=first.final, **half)
    for field in ("time", *HISTORY):
        joined = np.concatenate([getattr(first, field), np.asarray(getattr(second, field))[1:]])
        np.testing.assert_array_equal(joined, getattr(long, field), err_msg=field)
    np.testing.assert_array_equal(second.statistics.peak_workload, long.statistics.peak_workload)
    for one, other in zip(jax.tree.leaves(long.final), jax.tree.leaves(second.final), strict=True):
        np.testing.assert_array_equal(one, other)


def test_what_the_first_run_saved_does_not_matter_to_the_second(rng):
    """`final` holds everything, also what the first run had no reason to count."""
    network = small_network(rng)
    policy, half = POLICIES["DGDLB"](network), SETTINGS | {"duration": STEPS // 2 * DT}
    ends = [simulate(network, policy, save=save, **half).final for save in (SaveAt(), SaveAt.final())]
    runs = [simulate(network, policy, initial=end, **half) for end in ends]
    for field in HISTORY:
        np.testing.assert_allclose(getattr(runs[1], field), getattr(runs[0], field), err_msg=field, **ROUNDING)
    assert np.isfinite(runs[1].in_flight).all()


@pytest.mark.parametrize("save", [SaveAt, SaveAt.statistics, SaveAt.final], ids=["all", "statistics", "final"])
def test_without_its_delay_lines_a_run_is_the_same_but_ends_for_good(rng, save):
    network = small_network(rng)
    policy, half = POLICIES["DGDLB"](network), SETTINGS | {"duration": STEPS // 2 * DT}
    whole, ended = (simulate(network, policy, save=save(resumable=keep), **half) for keep in (True, False))
    kept, left = (dict(jax.tree_util.tree_leaves_with_path(run)) for run in (whole, ended))
    missing = {jax.tree_util.keystr(path) for path in kept.keys() - left.keys()}
    assert missing == {".final.flow_line", ".final.workload_line"} | (
        {".final.in_flight"} if save is not SaveAt else set()
    )
    for path, value in left.items():
        np.testing.assert_allclose(value, kept[path], err_msg=str(path), **ROUNDING)
    with pytest.raises(InputError, match="resumable=False"):
        simulate(network, policy, initial=ended.final, **half)


def long_run(steps: int):
    """`two-by-two` at rest for so many steps, statistics only."""
    network = load_fleet("two-by-two")
    duration = steps * 0.01
    return simulate(network, DGDLB(0.05), duration=duration, dt=0.01, save=SaveAt.statistics(after=0.1 * duration))


@pytest.mark.parametrize("steps", [200_000, pytest.param(10_000_000, marks=pytest.mark.full)])
def test_single_precision_does_not_drift(steps):
    """Sums keep what rounding takes away, and time comes from integers: what remains is the rounding of one step, not of all."""
    with single_precision():
        rough = long_run(steps)
    exact = long_run(steps)
    assert float(rough.statistics.mean_latency) == pytest.approx(float(exact.statistics.mean_latency), rel=2e-6)
    assert float(rough.statistics.arrivals) == pytest.approx(float(exact.statistics.arrivals), rel=1e-6)
    np.testing.assert_allclose(rough.final.workload, exact.final.workload, rtol=1e-5)
    np.testing.assert_allclose(rough.final.routing, exact.final.routing, atol=1e-4)


def test_memory_does_not_grow_with_the_number_of_steps(rng):
    """What is compiled for a thousand and for a million steps needs the same memory when only statistics are kept."""
    network = small_network(rng).anonymous()

    def memory(steps):
        run = lambda rate: (
            simulate(
                network.with_arrival_rate(rate),
                DGDLB(0.1),
                duration=steps * DT,
                dt=DT,
                max_latency=MAX_LATENCY,
                save=SaveAt.statistics(),
            ).statistics.cost
        )
        return jax.jit(run).lower(network.arrival_rate).compile().memory_analysis().temp_size_in_bytes

    assert memory(1_000_000) == memory(1_000)
