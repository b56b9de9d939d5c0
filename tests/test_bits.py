"""Truth values in an eighth of their memory: NumPy packs them the same way."""

import jax.numpy as jnp
import numpy as np
import pytest

from dgdlb_jax.numerics import bits


@pytest.mark.parametrize("rows", [1, 3, 8, 10, 32, 130])
def test_packed_bits_are_those_of_numpy(rng, rows):
    values = rng.uniform(size=(rows, 5)) < 0.5
    packed = bits.pack(jnp.asarray(values))
    np.testing.assert_array_equal(packed, np.packbits(values, axis=0, bitorder="little"))
    np.testing.assert_array_equal(bits.unpack(packed, rows), values)
