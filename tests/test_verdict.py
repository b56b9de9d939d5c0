"""Verdicts on series whose answer is known."""

import jax.numpy as jnp
import numpy as np
import pytest

from dgdlb_jax.experiments.verdict import Verdict, judge, moving_mean, shortage, time_to_settle
from dgdlb_jax.simulation.trajectory import Statistics

RATE = 10.0  # requests/s, all frontends together


def window_statistics(time, workload):
    """The statistics of a window from its series: the definitions, written out."""
    time, workload = np.asarray(time, float), np.asarray(workload, float)
    duration, middle = time[-1] - time[0], len(time) // 2
    mean = np.trapezoid(workload, time, axis=0) / duration
    halves = [
        (workload[middle] - workload[0]) / (time[middle] - time[0]),
        (workload[-1] - workload[middle]) / (time[-1] - time[middle]),
    ]
    numbers = {
        "duration": duration,
        "arrivals": RATE * duration,
        "cost": mean.sum() * duration,
        "network_cost": 0.0,
        "mean_workload": mean,
        "lowest_workload": workload.min(0),
        "highest_workload": workload.max(0),
        "mean_routing": np.ones((1, workload.shape[1])),
        "workload_growth": np.stack(halves),
        "distance": None,
        "peak_workload": workload.max(0),
    }
    return Statistics(**{name: None if value is None else jnp.asarray(value, float) for name, value in numbers.items()})


TIME = np.linspace(80.0, 100.0, 2001)


def wave(swing, mean=50.0, period=2.0):
    """A workload whose (max - min) / mean is `swing`."""
    return mean * (1 + swing / 2 * np.sin(2 * np.pi * TIME / period))


@pytest.mark.parametrize(
    ("workload", "expected"),
    [
        (50.0 + np.exp(-TIME / 10), Verdict.settled),  # swing (e^-8 - e^-10) / 50 = 6e-6
        (wave(0.019), Verdict.settled),
        (wave(0.021), Verdict.oscillating),
        (wave(0.5), Verdict.oscillating),
        (5 + 1.05e-3 * RATE * (TIME - 80), Verdict.diverging),
        (50 + 0.95e-3 * RATE * (TIME - 80), Verdict.settled),  # below the limit: 0.19 in 50 requests
        (5 + 0.95e-3 * RATE * (TIME - 80), Verdict.oscillating),  # 0.19 in 5 is more than 2 %
        (5 + 0.1 * np.maximum(TIME - 90, 0), Verdict.oscillating),  # grows in the second half only
        (np.full_like(TIME, np.nan), Verdict.failed),
        (np.zeros_like(TIME), Verdict.settled),  # an unused network
    ],
)
def test_verdicts(workload, expected):
    steady = np.full_like(TIME, 30.0)
    assert Verdict(int(judge(window_statistics(TIME, np.stack([steady, workload], axis=1))))) is expected


def test_growth_must_be_one_backends_in_both_halves():
    """Two backends that hand a queue to each other do not diverge: together they do not grow."""
    up_down = 50 + 5 - 0.5 * np.abs(TIME - 90)
    down_up = 50 + 0.5 * np.abs(TIME - 90)
    statistics = window_statistics(TIME, np.stack([up_down, down_up], axis=1))
    assert Verdict(int(judge(statistics))) is Verdict.oscillating
    np.testing.assert_array_equal(shortage(statistics), [0.0, 0.0])


def test_shortage_is_the_slope_of_the_growing_backends():
    growing = 100 + 0.8 * TIME + 3 * np.sin(2 * np.pi * TIME)  # whole periods in each half: the wobble cancels
    statistics = window_statistics(TIME, np.stack([growing, wave(0.3)], axis=1))
    np.testing.assert_allclose(shortage(statistics), [0.8, 0.0], rtol=1e-6)


def test_verdicts_of_a_batch():
    one = window_statistics(TIME, wave(0.1)[:, None])
    two = window_statistics(TIME, (5 + TIME)[:, None])
    batch = type(one)(**{name: jnp.stack([getattr(one, name), getattr(two, name)]) for name in vars(one)})
    np.testing.assert_array_equal(judge(batch), [Verdict.oscillating, Verdict.diverging])
    np.testing.assert_allclose(shortage(batch)[:, 0], [0.0, 1.0], rtol=1e-6)


def test_moving_mean_of_a_ramp():
    """The mean of a ramp over a trailing window is its value half a window ago; weights are arrivals."""
    time = np.linspace(0, 10, 501)
    smooth = moving_mean(time, RATE * time, np.full_like(time, RATE), 2.0)
    np.testing.assert_allclose(smooth[time >= 2], time[time >= 2] - 1.0, atol=1e-12)
    np.testing.assert_allclose(smooth[time < 2], time[time < 2] / 2, atol=1e-12)


def test_moving_mean_weighs_by_arrivals():
    time = np.linspace(0, 1, 101)
    rate = 1 + time
    smooth = moving_mean(time, 3.0 * rate, rate, 0.5)
    np.testing.assert_allclose(smooth, 3.0, rtol=1e-12)


def test_time_to_settle_of_an_exponential():
    """An excess of e^{-t} comes within 0.1 % at t = ln 1000 and within twice a final 5 % when e^{-t} = 0.05."""
    time = np.linspace(0, 20, 20001)
    optimum = 0.2
    found = time_to_settle(time, optimum * (1 + np.exp(-time)), optimum, optimum)
    assert found == pytest.approx(np.log(1000), abs=2e-3)
    found = time_to_settle(time, optimum * (1.05 + np.exp(-time)), optimum, 1.05 * optimum)
    assert found == pytest.approx(-np.log(0.05), abs=2e-3)


def test_time_to_settle_counts_from_below_as_well_and_needs_the_end():
    time = np.linspace(0, 10, 1001)
    below = 1 - 0.5 * (time < 3)
    assert time_to_settle(time, below, 1.0, 1.0) == pytest.approx(3.0)
    assert time_to_settle(time, np.ones_like(time), 1.0, 1.0) == 0.0
    assert np.isnan(time_to_settle(time, np.where(time > 9.9, 2.0, 1.0), 1.0, 1.0))
