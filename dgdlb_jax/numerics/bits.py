"""Truth values in an eighth of their memory: up to 32 rows in one row of words.

`jnp.packbits` puts eight rows into each row of bytes; of ten rows two of bytes would have to be put together again, byte by byte.
"""

import jax.numpy as jnp
from jaxtyping import Array, Bool, UInt

_LARGEST = 32  # rows


def pack(values: Bool[Array, "rows columns"]) -> UInt[Array, "words columns"]:
    """Many rows in one; the words are as short as they can be."""
    rows = len(values)
    word = next((word for size, word in ((8, jnp.uint8), (16, jnp.uint16)) if rows <= size), jnp.uint32)
    parts = [values[k : k + _LARGEST] for k in range(0, rows, _LARGEST)]
    return jnp.stack([jnp.where(part, _bits(len(part), word), word(0)).sum(0, dtype=word) for part in parts])


def unpack(packed: UInt[Array, "words columns"], rows: int) -> Bool[Array, "rows columns"]:
    """The way back from `pack`."""
    sizes = [min(_LARGEST, rows - k) for k in range(0, rows, _LARGEST)]
    parts = zip(sizes, packed, strict=True)
    return jnp.concatenate([(row[None] & _bits(size, row.dtype.type)) > 0 for size, row in parts])


def _bits(rows: int, word: type) -> UInt[Array, "rows 1"]:
    return (word(1) << jnp.arange(rows, dtype=word))[:, None]
