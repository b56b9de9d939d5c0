"""Truth values in an eighth of their memory.

`jnp.packbits` does the same, by a sum over an axis in the middle, which XLA does not vectorize; of many rows it is quicker to compile.
"""

import jax.numpy as jnp
from jaxtyping import Array, Bool, UInt8

_MANY = 128  # rows


def pack(values: Bool[Array, "rows columns"]) -> UInt8[Array, "bytes columns"]:
    """Eight rows in one."""
    if values.shape[0] > _MANY:
        return jnp.packbits(values, axis=0, bitorder="little")
    marks = jnp.where(values, _bit(values.shape[0]), jnp.uint8(0))
    return jnp.stack([marks[k : k + 8].sum(0, dtype=jnp.uint8) for k in range(0, len(marks), 8)])


def unpack(packed: UInt8[Array, "bytes columns"], rows: int) -> Bool[Array, "rows columns"]:
    """The way back from `pack`."""
    if rows > _MANY:
        return jnp.unpackbits(packed, axis=0, count=rows, bitorder="little").astype(bool)
    eight = [jnp.broadcast_to(row, (min(8, rows - 8 * k), row.shape[0])) for k, row in enumerate(packed)]
    return (jnp.concatenate(eight) & _bit(rows)) > 0


def _bit(rows: int) -> UInt8[Array, "rows 1"]:
    return (jnp.uint8(1) << (jnp.arange(rows, dtype=jnp.uint8) % 8))[:, None]
