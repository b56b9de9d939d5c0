"""The delay line runs backwards: what is read of it in the reverse pass is what was read forwards."""

import jax.numpy as jnp
import numpy as np
import pytest

from dgdlb_jax.numerics.delay import line as delay_line
from dgdlb_jax.numerics.delay.history import HistoryTape
from dgdlb_jax.numerics.delay.line import DelayLine

ROWS, WIDTH, STEPS = 5, 3, 12
LAGS = np.array([0, 1, 3, 2, 0, 1])
COLUMNS = np.array([0, 1, 2, 2, 2, 0])


@pytest.mark.parametrize("first", [0, 7])
def test_the_history_has_what_was_read(rng, first):
    row = lambda: jnp.asarray(rng.normal(size=WIDTH))
    step = lambda k: jnp.asarray(k, jnp.int32)
    offset = delay_line.taps(jnp.asarray(LAGS, float), jnp.asarray(COLUMNS), WIDTH, ROWS).offset
    line, earlier = DelayLine(jnp.asarray(rng.normal(size=ROWS * WIDTH)), ROWS), jnp.ones((2, 3))
    history = HistoryTape(step(first), line, earlier, STEPS)
    readings, predictions, rows = {first: earlier.reshape(-1)}, {}, {first: row()}
    for k in range(first, first + STEPS):
        predictions[k + 1] = row()
        line = delay_line.write(line, step(k), rows[k])
        line = delay_line.write(line, step(k + 1), predictions[k + 1])
        history = history.add(step(k), rows[k], predictions[k + 1])
        readings[k + 1] = delay_line.read(line, step(k + 1), offset)
        rows[k + 1] = row()
    history = history.write(step(first + STEPS), rows[first + STEPS])
    line = history.line(step(first + STEPS))
    for k in range(first + STEPS, first - 1, -1):
        line = history.back(line, step(k))
        np.testing.assert_array_equal(history.read(line, step(k), offset).reshape(-1), readings[k])
        np.testing.assert_array_equal(history.row(step(k)), rows[k])
        if k > first:
            np.testing.assert_array_equal(history.predicted(step(k)), predictions[k])
