"""From one network to many and back, and what the axes of a parameter mean in a batch.

Code written for one network runs in a batch by `each_network` (compiled, a few networks side by side) or `over_networks` (as it is); code
written for a batch takes a single network by `of_batch`. What is called gets networks without names, so that these never cause a
recompilation.
"""

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree, UInt32

from dgdlb_jax.model.network import Network
from dgdlb_jax.numerics import device
from dgdlb_jax.numerics.programs import compiled
from dgdlb_jax.numerics.results import InputError, is_concrete
from dgdlb_jax.numerics.threads import in_threads, is_shared, parts_for

_LANES = 4  # networks side by side on a CPU; they wait for the slowest of them, and few are faster there
_CHUNK = 512  # networks per call, on each of the threads: what memory depends on


def each_network(
    function: Callable[..., Any], network: Network, *arguments: Any, effort: Callable[..., Array] | None = None
) -> Any:
    """`function(network, *arguments)`, for a batch mapped over its leading axis; scalars and functions among them are shared.

    A batch runs in chunks on all cores (see `numerics.threads`); under a transformation as one program.

    **Arguments:** `effort(network, *arguments)`: a guess of the work, so that networks of equal effort run side by side.
    """
    everything = network.anonymous(), *arguments
    if network.batch is None:
        return _one(function, everything)
    if not is_concrete(everything):
        return _many(function, effort, everything)
    threads = parts_for(network.batch, everything)
    chunks = max(threads, -(-network.batch // _CHUNK))
    return in_threads(partial(_many, function, effort), everything, chunks, at_once=threads)


def over_networks(function: Callable[..., Any], network: Network, *arguments: Any) -> Any:
    """`function(network, *arguments)`, for a batch mapped over the leading axis of everything."""
    return (function if network.batch is None else jax.vmap(function))(network.anonymous(), *arguments)


def of_batch(function: Callable[..., Any], network: Network, *arguments: Any) -> Any:
    """`function(networks, *arguments)` of a batch, also for a single network and what belongs to it."""
    if network.batch is not None:
        return function(network.anonymous(), *arguments)
    return only_one(function(*as_batch((network.anonymous(), *arguments))))


def as_batch(tree: Any, *, shared_scalars: bool = False) -> Any:
    """A network, or whatever belongs to it, as a batch of one: every array with a leading axis.

    **Arguments:** `shared_scalars`: leave scalars as they are, which a policy has in common for all networks.
    """
    stays, others = eqx.partition(tree, lambda leaf: shared_scalars and jnp.ndim(leaf) == 0)
    if device.at_hand(others):
        return eqx.combine(stays, jax.device_put(jax.tree.map(lambda leaf: np.asarray(leaf)[None], others)))
    return eqx.combine(stays, jax.tree.map(lambda leaf: leaf[None], others))


def only_one(batch: Any) -> Any:
    """The inverse of `as_batch`: what a batch of one holds."""
    ours, others = eqx.partition(batch, lambda leaf: isinstance(leaf, jax.Array))
    if device.at_hand(ours):  # by the host and in one go: for the device every shape is a program
        found = jax.device_put(jax.tree.map(lambda leaf: np.asarray(leaf)[0], ours))
    else:
        found = jax.tree.map(lambda leaf: leaf[0], ours)
    return eqx.combine(found, jax.tree.map(lambda leaf: leaf[0], others))


class FrontendNumber(eqx.Module):
    """Which frontend it is, from 0: what `each_frontend` fills in where a policy tells frontends apart by itself, as random numbers do."""

    number: UInt32[Array, "*batch frontends"] | None = None


def each_frontend(network: Network, parameters: PyTree, what: str) -> PyTree:
    """Numbers and arrays of a policy with their axes written out: scalars stay, others become `(batch, frontends, ...)`.

    In a batch an array has the axes `(batch, frontends, ...)`, either of which may be 1: `(1, frontends)` is shared by all networks,
    `(batch, 1)` by the frontends of each. A single axis is that of the frontends, `(batch,)` with other lengths is deprecated, and where
    both fit the array is refused: nothing is told from a coincidence of sizes. For a single network the first axis is the frontends, or
    1 in front of others.

    **Arguments:** `what`: a name for messages.

    **Raises:** `InputError` naming the parameter, for axes that do not fit or may be either.
    """

    return _each(network, parameters, what, _Axis("frontend", network.frontends))


def each_backend(network: Network, parameters: PyTree, what: str) -> PyTree:
    """`each_frontend`, for numbers and arrays that belong to backends."""
    return _each(network, parameters, what, _Axis("backend", network.backends))


def per_frontend(network: Network, value: Any, what: str) -> Float[Array, "*batch frontends"]:
    """One number per frontend and network from a scalar or an array, whose axes mean what `each_frontend` says."""
    shape = network.latency.shape[:-1]
    number = each_frontend(network, jnp.asarray(value, network.latency.dtype), what)
    if number.ndim and number.shape != shape:
        raise InputError(
            f"{what} has shape {number.shape}: give a scalar, or one number for each of {shape[-1]} frontends."
        )
    return jnp.broadcast_to(number, shape)


class _Axis(NamedTuple):
    """What the leading axis of a parameter counts, and how many there are."""

    one: str
    size: int


def _each(network: Network, parameters: PyTree, what: str, axis: _Axis) -> PyTree:
    def complete(path: tuple, leaf: Any) -> Any:
        if isinstance(leaf, FrontendNumber):
            numbers = jnp.arange(network.frontends, dtype=jnp.uint32)
            return FrontendNumber(jnp.broadcast_to(numbers, network.latency.shape[:-1]))
        return _complete(network.batch, axis, jnp.asarray(leaf), what + jax.tree_util.keystr(path))

    is_number = lambda leaf: isinstance(leaf, FrontendNumber)
    return jax.tree_util.tree_map_with_path(complete, parameters, is_leaf=is_number)


def _complete(size: int | None, axis: _Axis, leaf: Array, name: str) -> Array:
    one, count = axis
    if leaf.ndim == 0:
        return leaf
    if size is None:
        if leaf.ndim > 1 and leaf.shape[0] == 1:
            leaf = jnp.broadcast_to(leaf, (count, *leaf.shape[1:]))
        if leaf.shape[0] != count:
            raise InputError(
                f"{name} has {leaf.shape[0]} entries, but the network has {count} {one}s: give a scalar, or one for each."
            )
        return leaf
    if leaf.ndim == 1:
        leaf = _two_axes(leaf, size, axis, name)
    if leaf.shape[0] not in (1, size):
        raise InputError(f"{name} has {leaf.shape[0]} entries, but there are {size} networks: give one for each.")
    if leaf.shape[1] not in (1, count):
        raise InputError(
            f"{name} has {leaf.shape[1]} entries, but the network has {count} {one}s: give a scalar, or one for each."
        )
    return jnp.broadcast_to(leaf, (size, count, *leaf.shape[2:]))


def _two_axes(leaf: Array, size: int, axis: _Axis, name: str) -> Array:
    """`(1, frontends)` or `(batch, 1)`, whichever an array of one axis can only be."""
    length, (one, count) = leaf.shape[0], axis
    per_network, shared = (
        "of shape (batch, 1), as values[:, None], gives one to each network",
        f"(1, {one}s), as values[None]",
    )
    if length == size == count and length > 1:
        raise InputError(
            f"{name} has one axis of {length} entries, and there are {size} networks of {count} {one}s, so it may mean either: "
            f"an array {per_network}, {shared}, one to each {one}."
        )
    if length == count:
        return leaf[None]
    if length == size:
        warnings.warn(
            f"{name} of shape (batch,) is deprecated, since it is taken for ({one}s,) when both are equally long: an array "
            f"{per_network}.",
            DeprecationWarning,
            stacklevel=2,
        )
        return leaf[:, None]
    raise InputError(
        f"{name} has {length} entries, but there are {size} networks of {count} {one}s: give a scalar, or an array "
        f"{per_network}, {shared}, one to each {one}."
    )


def require_single(network: Network, what: str, otherwise: str = "") -> None:
    """Raise `InputError` for a batch, with the remedy; `otherwise` names the function that takes one."""
    if network.batch is not None:
        remedy = f"{otherwise} takes a batch, and" if otherwise else ""
        raise InputError(
            f"{what} takes a single network, this is a batch of {network.batch}:{remedy and ' ' + remedy} network[0] picks one out of it."
        )


def require_double(network: Network, what: str) -> None:
    """Raise `InputError` in single precision, with the remedy."""
    if network.latency.dtype != jnp.float64:
        raise InputError(
            f"{what} needs double precision, but the network is {network.latency.dtype}: "
            'put jax.config.update("jax_enable_x64", True) before the network is made.'
        )


@compiled
def _one(function, arguments):
    return function(*arguments)


@compiled
def _many(function, effort, arguments):
    shared, batched = eqx.partition(arguments, is_shared)
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
