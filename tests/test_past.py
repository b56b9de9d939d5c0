"""What the way back reads in the past is what was read on the way forth."""

import jax.numpy as jnp
import numpy as np
import pytest

from dgdlb_jax.numerics import delay_line
from dgdlb_jax.numerics.delay_line import DelayLine
from dgdlb_jax.simulation.past import Past, past_offset

ROWS, WIDTH, STEPS = 5, 3, 12
LAGS = np.array([[0, 1, 3], [2, 0, 1]]).reshape(-1)
COLUMNS = np.array([[0, 1, 2], [2, 2, 0]]).reshape(-1)


@pytest.mark.parametrize("first", [0, 7])
def test_the_past_tells_what_was_read(rng, first):
    row = lambda: jnp.asarray(rng.normal(size=WIDTH))
    step = lambda k: jnp.asarray(k, jnp.int32)
    taps = delay_line.taps(jnp.asarray(LAGS, float), jnp.asarray(COLUMNS), WIDTH, ROWS)
    line, workload, earlier = DelayLine(jnp.asarray(rng.normal(size=ROWS * WIDTH)), ROWS), row(), jnp.ones((2, 3))
    past = Past(step(first), workload, line, earlier, STEPS)
    readings, predictions, workloads = [], [], [workload]
    for k in range(first, first + STEPS):
        predictions.append(row())
        line = delay_line.write(line, step(k), workloads[-1])
        line = delay_line.write(line, step(k + 1), predictions[-1])
        readings.append(delay_line.read(line, step(k + 1), taps.offset))
        workloads.append(row())
        past = past.add(step(k + 1), predictions[-1], workloads[-1])
    offset = past_offset(step(LAGS), step(COLUMNS), WIDTH)
    for n in range(STEPS):
        k = step(first + n)
        np.testing.assert_array_equal(past.read(k, offset).reshape(-1), readings[n])
        np.testing.assert_array_equal(past.workload(k), workloads[n])
        np.testing.assert_array_equal(past.predicted(k + 1), predictions[n])
    np.testing.assert_array_equal(past.workload(step(first + STEPS)), workloads[-1])
    np.testing.assert_array_equal(past.read(step(first - 1), offset), earlier)
