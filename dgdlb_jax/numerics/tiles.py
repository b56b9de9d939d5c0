"""A batch in tiles: spread over devices, on each one tile after the other."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, PyTree


def map_tiles(function: Callable[..., PyTree], batch: PyTree, shared: PyTree, *, lanes: int, devices: int) -> PyTree:
    """`function(tile, shared)` for tiles of `lanes` items of the leading axis, put together again.

    The last tiles are filled up with copies of the last item. Devices do not talk to each other.

    **Arguments:** `batch`, arrays with one leading axis; `shared`, arrays that every tile gets whole; `devices`, how many of the
    local ones.
    """
    size = jax.tree.leaves(batch)[0].shape[0]
    tiles = devices * math.ceil(size / (lanes * devices))

    def cut(leaf):
        filled = jnp.concatenate([leaf, jnp.repeat(leaf[-1:], tiles * lanes - size, axis=0)])
        return filled.reshape(tiles, lanes, *leaf.shape[1:])

    def run(batch, shared):
        if tiles == devices:
            return jax.tree.map(lambda leaf: leaf[None], function(jax.tree.map(lambda leaf: leaf[0], batch), shared))
        return jax.lax.map(lambda tile: function(tile, shared), batch)

    if devices > 1:
        mesh = Mesh(np.array(jax.local_devices()[:devices]), ("batch",))
        split, whole = PartitionSpec("batch"), PartitionSpec()
        run = jax.shard_map(run, mesh=mesh, in_specs=(split, whole), out_specs=split, check_vma=False)
    done = run(jax.tree.map(cut, batch), shared)
    return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:])[:size], done)


def one_by_one(function: Callable[..., PyTree]) -> Callable[..., PyTree]:
    """The same function of tiles, whose items are tiles of one to it, side by side."""

    def run(tile, shared):
        def one(item):
            done = function(jax.tree.map(lambda leaf: leaf[None], item), shared)
            return jax.tree.map(lambda leaf: leaf[0], done)

        return jax.vmap(one)(tile)

    return run


def has_a_mesh(batch: Array) -> bool:
    """Whether the user has spread the work already: by a mesh that is set, or by an array with explicit axes."""
    return not jax.sharding.get_abstract_mesh().empty or _explicit(batch)


def with_automatic_axes(function: Callable[..., PyTree], batch: Array) -> Callable[..., PyTree]:
    """The same function of batches, in which the explicit axes of a mesh are XLA's to use: tiles are cut across them.

    What it returns lies along its leading axis as `batch` does. Without such axes the function is left as it is.
    """
    if not _explicit(batch):
        return function
    sharding = jax.typeof(batch).sharding
    along = PartitionSpec(*sharding.spec[:1])
    return jax.sharding.auto_axes(function, out_sharding=NamedSharding(sharding.mesh, along))


def _explicit(batch: Array) -> bool:
    return AxisType.Explicit in jax.typeof(batch).sharding.mesh.axis_types
