"""Two values side by side, the last one and the one before."""

import re

import jax
import jax.numpy as jnp
import numpy as np

from dgdlb_jax.numerics.delay.double_buffer import DoubleBuffer


def test_it_remembers_the_last_two(rng):
    values = rng.normal(size=(7, 3, 4))
    two = DoubleBuffer.zeros(values[0].shape, values.dtype)
    for k, value in enumerate(values):
        two = two.write(jnp.asarray(k, jnp.int32), jnp.asarray(value))
        np.testing.assert_array_equal(two.at(jnp.asarray(k, jnp.int32)), value)
        before = values[k - 1] if k else np.zeros((3, 4))
        np.testing.assert_array_equal(two.at(jnp.asarray(k - 1, jnp.int32)), before)


def test_a_loop_copies_neither():
    """Why there is such a thing: XLA copies what a loop carries as two arrays, and not as one that is written first and read then."""
    x = jnp.ones((16, 32))

    def as_arrays(k, state):
        last, total = state
        new = jnp.sin(total)
        return new, total + new - last

    def as_one(k, state):
        two, total = state
        two = two.write(k, jnp.sin(total))
        return two, total + two.at(k) - two.at(k - 1)

    def copies(step, state):
        loop = jax.jit(lambda state: jax.lax.fori_loop(0, 100, step, state))
        return len(re.findall(r",32\]\S* copy\(", loop.lower(state).compile().as_text()))

    given = 2  # copied before the loop, which must not overwrite it
    assert copies(as_one, (DoubleBuffer.zeros(x.shape, x.dtype), x)) == given < copies(as_arrays, (x, x))
