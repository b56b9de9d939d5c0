"""The delay line against a plain Python list."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dgdlb_jax.numerics.delay import line as delay_line


class ListLine:
    """The same line as a list that only ever grows: what was written when, and constant before."""

    def __init__(self, row):
        self.before, self.rows = np.array(row), []

    def write(self, row):
        self.rows.append(np.array(row))

    def at(self, k):
        return self.rows[k] if k >= 0 else self.before

    def read(self, k, lags, columns):
        return np.array([self.at(k - lag)[column] for lag, column in zip(lags, columns, strict=True)])


_write, _read = jax.jit(delay_line.write), jax.jit(delay_line.read)


def write(line, k, row):
    return _write(line, jnp.int32(k), jnp.asarray(row))


def read(line, k, offset):
    return _read(line, jnp.int32(k), offset)


@pytest.mark.parametrize("seed", range(8))
def test_random_commands_agree_with_a_list(seed):
    rng = np.random.default_rng(seed)
    width, rows, taps = [(1, 3, 2), (3, 5, 7), (4, 17, 9), (2, 40, 5)][seed % 4]
    first = rng.normal(size=width)
    line, oracle = delay_line.filled(jnp.asarray(first), rows), ListLine(first)
    assert (line.rows, line.width) == (rows, width)
    delays = rng.uniform(0, rows - 1.001, taps)
    delays[0] = rows - 2  # the longest one in whole rows
    columns = rng.integers(width, size=taps)
    places = delay_line.taps(jnp.asarray(delays), jnp.asarray(columns), width, rows)
    assert not places.overflow.any()
    lags = np.floor(delays).astype(int)
    np.testing.assert_array_equal(places.fraction, delays - lags)
    k, present = -1, np.array(first)
    for command in rng.choice(["write", "overwrite", "read"], p=[0.6, 0.1, 0.3], size=5 * rows):
        if command == "write":
            k, present = k + 1, rng.normal(size=width)
            line = write(line, k, present)
            oracle.write(present)
        elif command == "overwrite" and k >= 0:
            present = rng.normal(size=width)
            line = write(line, k, present)
            oracle.rows[k] = present
        elif k >= 0:
            np.testing.assert_array_equal(read(line, k, places.offset), oracle.read(k, lags, columns))


def test_two_dimensional_rows_are_their_flattening(rng):
    row = rng.normal(size=(3, 4))
    line = delay_line.filled(jnp.zeros(12), 6)
    flat, sliced = write(line, 4, row.ravel()), write(line, 4, row)
    np.testing.assert_array_equal(flat.ring, sliced.ring)


def test_interpolation_is_the_straight_line_between_rows(rng):
    """On a signal that is linear in time readings are exact at every real delay; before the start it is constant."""
    rows, slope = 12, np.array([0.7, -1.3])
    delays = np.array([0.0, 0.25, 1.0, 3.7, 9.999, 10.0])
    places = delay_line.taps(jnp.asarray(delays), jnp.asarray([0, 1, 0, 1, 0, 1]), 2, rows)
    line = delay_line.filled(jnp.zeros(2), rows)
    before = read(line, 0, places.offset)
    for k in range(40):
        line = write(line, k, k * slope)
        now = read(line, k, places.offset)
        seen = delay_line.interpolate(now, before, places.fraction)
        np.testing.assert_allclose(seen, np.maximum(k - delays, 0) * slope[[0, 1, 0, 1, 0, 1]], rtol=1e-14, atol=1e-13)
        before = now


@pytest.mark.parametrize(
    ("delay", "dt"), [(0.0, 0.1), (0.05, 0.1), (0.3, 0.1), (0.3000001, 0.1), (1.0, 0.125), (7.3, 0.011)]
)
def test_rows_for_holds_the_delay_and_little_more(delay, dt):
    rows = delay_line.rows_for(delay, dt)
    assert not delay_line.taps(jnp.asarray([delay / dt]), jnp.asarray([0]), 1, rows).overflow.any()
    assert rows <= math.ceil(delay / dt) + 3
    assert rows == delay_line.rows_for(max(delay_line.delay_for(rows, dt), 0.0), dt)


@pytest.mark.parametrize("delay", [5.0, 5.5, 1e9, np.inf, np.nan])
def test_a_delay_that_does_not_fit_is_reported_and_stays_inside(delay):
    rows, width = 6, 2
    places = delay_line.taps(jnp.asarray([1.5, delay]), jnp.asarray([0, 1]), width, rows)
    np.testing.assert_array_equal(places.overflow, [False, True])
    line = delay_line.filled(jnp.arange(2.0), rows)
    for k in range(2 * rows):
        index = k % rows * width + np.asarray(places.offset)
        assert ((-rows * width <= index) & (index < rows * width)).all()
        assert np.isfinite(read(line, k, places.offset)).all()


def test_derivative_with_respect_to_the_delay_is_minus_the_slope():
    """2.3 steps before k = 6 the signal k^2 / 2 lies between its rows 3 and 4 and rises by 3.5 per step."""

    def seen(delay):
        places = delay_line.taps(delay[None], jnp.asarray([0]), 1, 8)
        line = delay_line.filled(jnp.zeros(1), 8)
        for k in range(7):
            before = delay_line.read(line, jnp.int32(k - 1), places.offset) if k else jnp.zeros(1)
            line = delay_line.write(line, jnp.int32(k), jnp.asarray([k**2 / 2.0]))
        return delay_line.interpolate(delay_line.read(line, jnp.int32(6), places.offset), before, places.fraction)[0]

    value, slope = jax.value_and_grad(seen)(jnp.asarray(2.3))
    assert value == pytest.approx(0.7 * 8.0 + 0.3 * 4.5, rel=1e-14)
    assert slope == pytest.approx(4.5 - 8.0, rel=1e-14)
