"""Turns of series whose turns are known."""

import numpy as np
import pytest

from dgdlb_jax.studies.turns import one_way, turns

TIME = np.linspace(0, 1, 401)


def series(*columns):
    return np.stack(columns, 1)


def test_waves_have_a_peak_and_a_trough_a_period():
    found = turns(series(*(np.sin(2 * np.pi * periods * TIME) for periods in (0.2, 1, 2.5, 20))), np.zeros(4))
    np.testing.assert_array_equal(found.peaks, [0, 1, 3, 20])
    # The last trough is followed by a quarter of a period, half of a leg; of 2.5 periods, by three quarters.
    np.testing.assert_array_equal(found.troughs, [0, 1, 2, 20])
    np.testing.assert_allclose(
        found.largest[1:], 2, rtol=0.02
    )  # 20 instants a period miss an extreme by 1 - cos(pi / 20)
    np.testing.assert_allclose(found.shrinkage[2:], 1, atol=0.01)


@pytest.mark.parametrize("factor", [0.5, 0.94, 0.96, 1.0, 1.1])
def test_shrinkage_is_the_factor_of_a_period(factor):
    """A wave that changes by the same factor in every period turns to its end, however small it gets."""
    wave = factor ** (10 * TIME) * np.cos(2 * np.pi * 10 * TIME)
    found = turns(wave[:, None], np.zeros(1))
    assert found.shrinkage[0] == pytest.approx(factor, abs=0.005)
    if factor <= 1:
        assert found.troughs[0] == 10


def test_small_turns_do_not_count():
    """Chatter of 0.05 on a slow half wave of 1, and chatter below what is asked for."""
    slow, chatter = np.sin(np.pi * TIME), 0.025 * np.sin(2 * np.pi * 30 * TIME)
    found = turns(series(slow + chatter, 50 + chatter), np.array([0.5, 0.1]))
    np.testing.assert_array_equal(found.peaks, [1, 0])
    np.testing.assert_array_equal(found.troughs, [0, 0])


def test_one_way_allows_a_quarter_back():
    ramp, wave = TIME, np.sin(2 * np.pi * TIME)
    overshoot = np.interp(TIME, [0, 0.5, 1], [0, 1, 0.76]), np.interp(TIME, [0, 0.5, 1], [0, 1, 0.74])
    found = one_way(series(ramp, -ramp, wave, *overshoot, np.ones_like(TIME)))
    np.testing.assert_array_equal(found, [True, True, False, True, False, True])
