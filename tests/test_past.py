"""The delay line runs backwards: what is read of it on the way back is what was read on the way forth."""

import jax.numpy as jnp
import numpy as np
import pytest

from dgdlb_jax.numerics import delay_line
from dgdlb_jax.numerics.delay_line import DelayLine
from dgdlb_jax.simulation.past import Past

ROWS, WIDTH, STEPS = 5, 3, 12
LAGS = np.array([0, 1, 3, 2, 0, 1])
COLUMNS = np.array([0, 1, 2, 2, 2, 0])


@pytest.mark.parametrize("first", [0, 7])
def test_the_past_tells_what_was_read(rng, first):
    row = lambda: jnp.asarray(rng.normal(size=WIDTH))
    step = lambda k: jnp.asarray(k, jnp.int32)
    offset = delay_line.taps(jnp.asarray(LAGS, float), jnp.asarray(COLUMNS), WIDTH, ROWS).offset
    line, workload, earlier = DelayLine(jnp.asarray(rng.normal(size=ROWS * WIDTH)), ROWS), row(), jnp.ones((2, 3))
    past = Past(step(first), workload, line, earlier, STEPS)
    readings, predictions, workloads = {first: earlier.reshape(-1)}, {}, {first: workload}
    for k in range(first, first + STEPS):
        predictions[k + 1] = row()
        line = delay_line.write(line, step(k), workloads[k])
        line = delay_line.write(line, step(k + 1), predictions[k + 1])
        readings[k + 1] = delay_line.read(line, step(k + 1), offset)
        workloads[k + 1] = row()
        past = past.add(step(k + 1), predictions[k + 1], workloads[k + 1])
    line = past.line(step(first + STEPS))
    for k in range(first + STEPS, first - 1, -1):
        line = past.back(line, step(k))
        np.testing.assert_array_equal(past.read(line, step(k), offset).reshape(-1), readings[k])
        np.testing.assert_array_equal(past.workload(step(k)), workloads[k])
        if k > first:
            np.testing.assert_array_equal(past.predicted(step(k)), predictions[k])
