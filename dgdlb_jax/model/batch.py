"""An analysis written for one network, applied to one or to many: in chunks of bounded memory."""

import itertools
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from dgdlb_jax.model.network import Network
from dgdlb_jax.numerics import device
from dgdlb_jax.numerics.results import InputError, is_concrete

_LANES = 4  # networks side by side on a CPU; they wait for the slowest of them, and few are faster there
_CHUNK = 512  # networks per call: what memory depends on


def each_network(
    function: Callable[..., Any], network: Network, *arguments: Any, effort: Callable[..., Array] | None = None
) -> Any:
    """`function(network, *arguments)`, for a batch mapped over its leading axis; scalars and functions among them are shared.

    **Arguments:** `effort(network, *arguments)`: a guess of the work, so that networks of equal effort run side by side.
    """
    if network.batch is None:
        return _one(function, (network, *arguments))
    if not is_concrete(network, arguments):
        return _many(function, effort, (network, *arguments))
    chunks = -(-network.batch // _CHUNK)
    if chunks == 1:
        return _many(function, effort, (network, *arguments))
    # One after the other: eigenvalues from several threads at once can block each other for ever (seen with jaxlib 0.10.2).
    edges = np.linspace(0, network.batch, chunks + 1).astype(int)
    shared, batched = eqx.partition((network, *arguments), _is_shared)
    parts = []
    for begin, end in itertools.pairwise(edges):
        part = jax.tree.map(lambda leaf, begin=begin, end=end: leaf[begin:end], batched)
        parts.append(jax.block_until_ready(_many(function, effort, eqx.combine(shared, part))))
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *parts)


def per_frontend(network: Network, value: Any) -> Float[Array, "*batch frontends"]:
    """A scalar, `(frontends,)` or `(batch, frontends)` as one number per frontend and network."""
    shape = network.latency.shape[:-1]
    number = jnp.asarray(value, network.latency.dtype)
    if number.ndim > len(shape) or number.shape not in ((), shape[-1:], shape):
        raise InputError(
            f"A direction of shape {number.shape} does not fit: give one number for each of {shape[-1]} frontends."
        )
    return jnp.broadcast_to(number, shape)


def require_double(network: Network, what: str) -> None:
    """Raise `InputError` in single precision, with the remedy."""
    if network.latency.dtype != jnp.float64:
        raise InputError(
            f"{what} needs double precision, but the network is {network.latency.dtype}: "
            'put jax.config.update("jax_enable_x64", True) before the network is made.'
        )


def _is_shared(leaf: Any) -> bool:
    return not eqx.is_array(leaf) or leaf.ndim == 0


@eqx.filter_jit
def _one(function, arguments):
    return function(*arguments)


@eqx.filter_jit
def _many(function, effort, arguments):
    shared, batched = eqx.partition(arguments, _is_shared)
    size = jax.tree.leaves(batched)[0].shape[0]

    grouped = lambda function, batch: _in_groups(lambda part: function(*eqx.combine(shared, part)), batch, size)
    if effort is None:
        return grouped(function, batched)
    order = jnp.argsort(jax.lax.stop_gradient(grouped(effort, batched)))
    found = grouped(function, jax.tree.map(lambda leaf: leaf[order], batched))
    back = jnp.argsort(order)
    return jax.tree.map(lambda leaf: leaf[back], found)


def _in_groups(function, batch, size: int):
    """Mapped over the leading axis, a few side by side. The last group is filled up: a smaller one would be compiled apart."""
    lanes = min(size, _LANES if device.on_cpu() else _CHUNK)
    filled = np.minimum(np.arange(-(-size // lanes) * lanes), size - 1)
    groups = jax.tree.map(lambda leaf: leaf[filled].reshape(-1, lanes, *leaf.shape[1:]), batch)
    found = jax.lax.map(jax.vmap(function), groups)
    return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:])[:size], found)
