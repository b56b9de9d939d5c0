"""Random numbers as a function of a key and a counter: whoever asks for a number, in whatever order, gets the same one.

A simulation that draws in tiles, in threads or on several devices then has results that depend on none of these.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, UInt32

_ROUNDS = 13  # 13 rounds of Threefry-2x32 pass the BigCrush battery of tests; jax.random takes 20
_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
_PARITY = 0x1BD11BDA
_BELOW_ONE = 1 - 2**-24  # 1 itself, to which a word may round, would have an infinite quantile

Numbers = Float[Array, "..."]
Words = tuple[UInt32[Array, "..."], UInt32[Array, "..."]]


def threefry(key: Words, counter: Words, rounds: int = _ROUNDS) -> Words:
    """Two words of 32 random bits for each pair of words of a key and a counter; the axes of keys may be the last ones of counters.

    **Source:** Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (2011), Threefry-2x32.
    """
    u32 = jnp.uint32
    one, two = (jax.lax.broadcast_to_rank(word, counter[0].ndim) for word in key)
    keys = (one, two, one ^ two ^ u32(_PARITY))
    x, y = counter[0] + keys[0], counter[1] + keys[1]
    for r in range(rounds):
        by = _ROTATIONS[r // 4 % 2][r % 4]
        x = x + y
        y = ((y << u32(by)) | (y >> u32(32 - by))) ^ x
        if r % 4 == 3:
            added = r // 4 + 1
            x, y = x + keys[added % 3], y + keys[(added + 1) % 3] + u32(added)
    return x, y


def uniforms(key: Words, counter: Words) -> tuple[Numbers, Numbers]:
    """Two independent uniform numbers in (0, 1) for each counter, in single precision; close to 0 they are multiples of 2^-33."""
    below_one = jnp.float32(_BELOW_ONE)
    first, second = threefry(key, counter)
    as_number = lambda word: jnp.minimum((word.astype(jnp.float32) + 0.5) * jnp.float32(2**-32), below_one)
    return as_number(first), as_number(second)
