"""All steps of a network in one kernel of a CUDA device: the state stays in registers, only the delay lines are in memory.

What XLA's loop writes to memory and reads again between its kernels never leaves the processor here, and nothing is launched per step.
The stages of `step` are the same; between them the kernel writes and reads the lines itself. A block of threads holds one network.
"""

import warnings
from contextlib import contextmanager
from functools import partial
from typing import NamedTuple, NoReturn

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
from jaxtyping import Array, ArrayLike, Int, PyTree

from dgdlb_jax.model.service.tabulated import FEW, Tabulated
from dgdlb_jax.numerics import device
from dgdlb_jax.numerics.delay import Carry, ChannelState, DelayedSystem, Each, Gather, StepContext
from dgdlb_jax.numerics.delay.line import DelayLine
from dgdlb_jax.numerics.results import InputError
from dgdlb_jax.policies.base import AbstractPolicy
from dgdlb_jax.simulation.dynamics import Field
from dgdlb_jax.simulation.lanes import Shape

_PER_WARP = 256  # arcs that a warp holds; measured, benchmarks/README.md
_PAIRS = 32**3  # pairs of backends x frontends that a block of threads compares: the largest measured


@contextmanager
def compiling(policy: AbstractPolicy):
    """What the compiler of kernels cannot do, as a sentence; without its announcement that it will go some day.

    **Raises:** `InputError` naming the operation that it lacks.
    """
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The Pallas Triton backend is deprecated", DeprecationWarning)
            yield
    except NotImplementedError as error:
        reason = str(error).split("\n")[0].split(". ")[0]
        raise InputError(
            f"No fused kernel can be made of {type(policy).__name__} in these networks ({reason}): leave fused=True out."
        ) from error


@jax.custom_jvp
def run_fused(system: DelayedSystem, carry: Carry, steps: Int[Array, ""]) -> Carry:
    """The carry after so many steps, of a tile of one network; batches by `vmap`, each network with a number of its own. On CPU
    interpreted, slowly, for tests.

    **Raises:** `InputError` for a network or arrays that have no place in the kernel, and when differentiated.
    """
    system = _with_room(system)
    field = system.parameters.field
    grid = _Grid(field.shape)
    _refuse_tables(field)
    changing = carry.k, carry.state, tuple(channel.reading for channel in carry.channels)
    inputs = _without_tables(system), changing, steps
    lines, ends = [channel.line for channel in carry.channels], jax.tree.leaves(changing)
    rings, offsets = [line.ring for line in lines], [channel.offset for channel in system.channels]
    done = pl.pallas_call(
        partial(_kernel, grid, jax.eval_shape(lambda: inputs)),
        out_shape=[jax.ShapeDtypeStruct((leaf.size,), leaf.dtype) for leaf in (*rings, *ends)],
        input_output_aliases={n: n for n in range(len(rings))},
        interpret=device.on_cpu(),
        compiler_params=_tuning(grid),
    )(*rings, *offsets, *map(jnp.ravel, jax.tree.leaves(inputs)))
    rings, ended = done[: len(rings)], done[len(rings) :]
    shaped = [leaf.reshape(before.shape) for leaf, before in zip(ended, ends, strict=True)]
    k, state, readings = jax.tree.unflatten(jax.tree.structure(changing), shaped)
    moved = [DelayLine(ring, line.rows) for ring, line in zip(rings, lines, strict=True)]
    return Carry(k, state, tuple(map(ChannelState, moved, readings)))


@run_fused.defjvp
def _refuse(primals, tangents):
    raise InputError("fused=True has no derivatives: leave it out.")


def _with_room(system: DelayedSystem) -> DelayedSystem:
    """The same, with measured curves of as many components as a block has room for, which it sums at once."""
    measured = lambda node: isinstance(node, Tabulated)
    room = lambda curve: curve.with_components(max(2 * FEW, pl.next_power_of_2(curve.components)))
    return jax.tree.map(lambda node: room(node) if measured(node) else node, system, is_leaf=measured)


def _refuse_tables(field: Field) -> None:
    """The knots of a table in time could not be told from frontends, and would be filled up like those."""
    for leaf in jax.tree.leaves((field.demand, field.capacity)):
        if leaf.ndim > 1:
            _refuse_shape(leaf.shape)


def _refuse_shape(shape: tuple[int, ...]) -> NoReturn:
    raise InputError(
        f"The fused kernel has no place for an array of shape {shape}: demand keeps numbers per frontend there, curves per backend, "
        "policies per frontend or arc. Leave fused=True out."
    )


def _without_tables(system: DelayedSystem) -> DelayedSystem:
    """The kernel reads the lines itself; of its channels it needs what they do locally."""
    names = ("offset", "return_offset", "at_once", "overflow")
    where = lambda s: [getattr(channel, name) for channel in s.channels for name in names if hasattr(channel, name)]
    return eqx.tree_at(where, system, replace_fn=lambda _: None)


def _tuning(grid: "_Grid"):
    return triton.CompilerParams(num_warps=max(1, min(32, grid.room.frontends * grid.room.backends // _PER_WARP)))


class _Place(NamedTuple):
    """Where the numbers of an array stand when it is flat, in a block whose sides are powers of two, and which of them there are."""

    at: Array
    inside: Array


class _Grid:
    """The sizes of a network, and those of the block that has room for it."""

    def __init__(self, shape: Shape):
        self.network = shape
        self.room = Shape(pl.next_power_of_2(shape.frontends), pl.next_power_of_2(shape.backends), 1)
        if self.room.backends**2 * self.room.frontends > _PAIRS:
            raise InputError(
                f"A network of {shape.frontends} x {shape.backends} is too large for the fused kernel, where one block of threads holds "
                "it (32 x 32 fits): leave fused=True out."
            )

    def place(self, shape: tuple[int, ...]) -> _Place:
        """Of an array over frontends, backends or arcs, or of several such arrays, a number that is a power of two."""
        F, B = self.network.frontends, self.network.backends
        sizes = [pl.next_power_of_2(size) for size in shape]
        padded = [n for n, (size, room) in enumerate(zip(shape, sizes, strict=True)) if size != room]
        over_arcs = shape[-2:] in ((F, B), (B, F))
        if any(shape[n] not in (F, B) or n < len(shape) - (2 if over_arcs else 1) for n in padded):
            _refuse_shape(shape)
        at, inside = jnp.zeros(sizes, jnp.int32), jnp.ones(sizes, bool)
        for axis, size in enumerate(shape):
            number = jax.lax.broadcasted_iota(jnp.int32, sizes, axis)
            at, inside = at * size + number, inside & (number < size)
        return _Place(at, inside)


class _Line:
    """A delay line in memory: as `numerics.delay.line`, in place."""

    def __init__(self, ref, rows: int, written: _Place, read: _Place, offset):
        self.ref, self.rows, self.width = ref, rows, ref.size // rows
        self.written, self.taps = written, read
        self.offset = _read(offset, read, 0)

    def write(self, k: Array, row: Array) -> None:
        _write(self.ref, self.written, self._row(k), row)

    def read(self, k: Array) -> Array:
        _wait()
        index = self._row(k) + self.offset
        return _read(self.ref, _Place(jnp.where(index < 0, index + self.ref.size, index), self.taps.inside), 0)

    def _row(self, k: Array) -> Array:
        return jax.lax.rem(k, jnp.int32(self.rows)) * self.width


def _kernel(grid: _Grid, like: PyTree, *refs) -> None:
    """`refs`: the lines, offsets and what else changes as they come in, then the same lines and what has changed as it goes out."""
    count, channels = len(jax.tree.leaves(like)), like[0].channels
    offsets, given = refs[len(channels) : 2 * len(channels)], refs[2 * len(channels) : 2 * len(channels) + count]
    rings, ends = refs[2 * len(channels) + count :][: len(channels)], refs[3 * len(channels) + count :]
    system, changing, steps = jax.tree.map(
        partial(_load, grid), like, jax.tree.unflatten(jax.tree.structure(like), given)
    )
    changing = _without_flows_of_nobody(grid, changing)
    system = eqx.tree_at(
        lambda s: s.parameters.field.shape, system, grid.room, is_leaf=lambda node: isinstance(node, Shape)
    )
    arcs, backends = grid.place(grid.network.ends.shape), grid.place((grid.network.backends,))
    written = [backends if isinstance(channel, Gather) else arcs for channel in channels]
    each = zip(rings, channels, written, offsets, strict=True)
    lines = [_Line(ring, channel.rows, row, arcs, offset) for ring, channel, row, offset in each]

    def step(_, changing):
        k, state, readings = changing
        state, readings = _step(system, lines, k, state, readings)
        return k + 1, state, readings

    changing = jax.lax.fori_loop(0, steps, step, changing)
    for ref, leaf, before in zip(ends, jax.tree.leaves(changing), jax.tree.leaves(like[1]), strict=True):
        if before.ndim:
            _write(ref, grid.place(before.shape), 0, leaf)
        else:
            ref[0] = leaf


def _step(system: DelayedSystem, lines: list[_Line], k: Array, state: PyTree, readings: tuple) -> tuple[PyTree, tuple]:
    """As `numerics.delay.advance`, with lines in memory."""
    held, received, found = state, None, []
    for n, stage in enumerate(system.stages):
        held, sent = stage(system.parameters, StepContext(k), held, received)
        if n == len(lines):
            break
        channel, line = system.channels[n], lines[n]
        entering = channel.enter(sent)
        if isinstance(channel, Gather):
            line.write(k, entering[0])
            line.write(k + 1, entering[1])
            found.append(line.read(k + 1))
            received = channel.receive((found[n], readings[n]))
        else:
            line.write(k + 1, entering)
            found.append(None)
            read = line.read(k + 1)
            received = channel.receive(read if isinstance(channel.incidence, Each) else jnp.sum(read, axis=1))
    return held, tuple(found)


def _without_flows_of_nobody(grid: _Grid, changing: tuple) -> tuple:
    """Nothing is sent, and nothing arrives, where there is no frontend and no backend: sums over all of them hold."""
    arcs, backends = grid.place(grid.network.ends.shape).inside, grid.place((grid.network.backends,)).inside
    flows = lambda changing: (changing[1].routing, changing[1].flow, changing[1].inflow)
    kept = [jnp.where(inside, flow, 0) for inside, flow in zip((arcs, arcs, backends), flows(changing), strict=True)]
    return eqx.tree_at(flows, changing, kept)


def _load(grid: _Grid, like: jax.ShapeDtypeStruct, ref) -> Array:
    """What is not there counts as 1, or as no: harmless in every curve."""
    if not like.ndim:
        return ref[0]
    return _read(ref, grid.place(like.shape), 1 if jnp.issubdtype(like.dtype, jnp.floating) else 0)


def _read(ref, place: _Place, other: float) -> Array:
    at = jnp.where(place.inside, place.at, ref.size)
    return triton.load(ref.at[at], mask=place.inside, other=jnp.asarray(other, ref.dtype))


def _write(ref, place: _Place, start: ArrayLike, values: Array) -> None:
    triton.store(ref.at[jnp.where(place.inside, start + place.at, ref.size)], values, mask=place.inside)


def _wait() -> None:
    """Until every thread of the block has written what it had to."""
    if not device.on_cpu():
        triton.debug_barrier()
