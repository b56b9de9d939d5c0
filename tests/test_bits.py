"""Truth values in few words, against NumPy's."""

import jax.numpy as jnp
import numpy as np
import pytest

from dgdlb_jax.numerics import bits


@pytest.mark.parametrize("rows", [1, 8, 9, 16, 17, 32, 33, 80, 200])
def test_packing_agrees_with_numpy(rng, rows):
    values = rng.random((rows, 5)) < 0.4
    packed = bits.pack(jnp.asarray(values))
    size = 8 * packed.dtype.itemsize
    assert size < 2 * max(rows, 8)
    padded = np.pad(values, ((0, -rows % size), (0, 0)))
    words = np.packbits(padded.T, axis=1, bitorder="little").copy().view(packed.dtype).T
    np.testing.assert_array_equal(packed, words)
    np.testing.assert_array_equal(bits.unpack(packed, rows), values)
