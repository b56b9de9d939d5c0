"""Connected parts of bipartite graphs."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int


def connected(arcs: Bool[Array, "left right"]) -> Bool[Array, "right right"]:
    """Which nodes of the right side hang together: `out[j, k]` when a path of arcs leads from j to k.

    A node without arcs is connected to nothing, not even to itself.
    """
    reach = jnp.any(arcs[:, :, None] & arcs[:, None, :], axis=0)
    for _ in range(max(arcs.shape[1] - 1, 1).bit_length()):
        reach = jnp.any(reach[:, :, None] & reach[None], axis=1)
    return reach


def count_parts(reach: Bool[Array, "nodes nodes"]) -> Int[Array, ""]:
    """How many parts `connected` found: nodes that are the first of their part."""
    first = jnp.argmax(reach, axis=1)
    return jnp.sum(reach.any(1) & (first == jnp.arange(reach.shape[0])))
