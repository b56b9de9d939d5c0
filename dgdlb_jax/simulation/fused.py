"""All steps of a network in one kernel of a CUDA device: the state stays in registers, only the delay lines are in memory.

What XLA's loop writes to memory and reads again between its kernels never leaves the processor here, and nothing is launched per step.
The functions of `step` are the same; between them the kernel writes and reads the lines itself. A block of threads holds one network.
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
from jaxtyping import Array, ArrayLike, PyTree

from dgdlb_jax.numerics import device
from dgdlb_jax.numerics.delay_line import DelayLine
from dgdlb_jax.numerics.results import InputError
from dgdlb_jax.policies.base import AbstractPolicy
from dgdlb_jax.simulation.dynamics import Field
from dgdlb_jax.simulation.lanes import Shape
from dgdlb_jax.simulation.step import Carry, Now, System, arrive, predict, route, see

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


@partial(jax.custom_jvp, nondiff_argnums=(2,))
def run_fused(system: System, carry: Carry, steps: int) -> Carry:
    """The carry after so many steps, of a tile of one network; batches by `vmap`. On CPU interpreted, slowly, for tests.

    **Raises:** `InputError` for a network or arrays that have no place in the kernel, and when differentiated.
    """
    grid = _Grid(system.field.shape)
    _refuse_tables(system.field)
    like = jax.eval_shape(lambda: (_without_taps(system), carry.now))
    inputs = jax.tree.leaves((_without_taps(system), carry.now))
    lines, ends = (carry.flows.ring, carry.workloads.ring), jax.tree.leaves(carry.now)
    offsets = system.wiring.flow.offset, system.wiring.workload.offset
    flows, workloads, *ended = pl.pallas_call(
        partial(_kernel, grid, like, carry.flows.rows, steps),
        out_shape=[jax.ShapeDtypeStruct((leaf.size,), leaf.dtype) for leaf in (*lines, *ends)],
        input_output_aliases={0: 0, 1: 1},
        interpret=device.on_cpu(),
        compiler_params=_tuning(grid),
    )(*lines, *offsets, *map(jnp.ravel, inputs))
    shaped = [leaf.reshape(before.shape) for leaf, before in zip(ended, ends, strict=True)]
    rows = carry.flows.rows
    now = jax.tree.unflatten(jax.tree.structure(carry.now), shaped)
    return Carry(now, DelayLine(flows, rows), DelayLine(workloads, rows))


@run_fused.defjvp
def _refuse(steps, primals, tangents):
    raise InputError("fused=True has no derivatives: leave it out.")


def _refuse_tables(field: Field) -> None:
    """A table's knots could not be told from backends or frontends, and would be filled up like those."""
    for leaf in jax.tree.leaves((field.demand, field.service, field.capacity)):
        if leaf.ndim > 1:
            _refuse_shape(leaf.shape)


def _refuse_shape(shape: tuple[int, ...]) -> NoReturn:
    raise InputError(
        f"The fused kernel has no place for an array of shape {shape}: demand keeps numbers per frontend there, curves per backend, "
        "policies per frontend or arc. Leave fused=True out."
    )


def _without_taps(system: System) -> System:
    """The kernel reads the lines itself."""
    taps = lambda s: (s.wiring.flow, s.wiring.workload)
    where = lambda s: (s.wiring.overflow, *(leaf for one in taps(s) for leaf in (one.offset, one.overflow)))
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
        """Of an array over frontends, backends or arcs, or of such arrays in a number that is a power of two."""
        F, B = self.network.frontends, self.network.backends
        sizes = [pl.next_power_of_2(size) for size in shape]
        padded = [n for n, (size, room) in enumerate(zip(shape, sizes, strict=True)) if size != room]
        over_arcs = shape in ((F, B), (B, F))
        if any(shape[n] not in (F, B) or (n < len(shape) - 1 and not over_arcs) for n in padded):
            _refuse_shape(shape)
        at, inside = jnp.zeros(sizes, jnp.int32), jnp.ones(sizes, bool)
        for axis, size in enumerate(shape):
            number = jax.lax.broadcasted_iota(jnp.int32, sizes, axis)
            at, inside = at * size + number, inside & (number < size)
        return _Place(at, inside)


class _Line:
    """A delay line in memory: as `numerics.delay_line`, in place."""

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


def _kernel(grid: _Grid, like: PyTree, rows: int, steps: int, *refs) -> None:
    """`refs`: both lines, offsets and state as they come in, then the same lines and the state as it goes out."""
    count = len(jax.tree.leaves(like))
    offsets, state = refs[2:4], refs[4 : 4 + count]
    flows, workloads, *ends = refs[4 + count :]
    system, now = jax.tree.map(partial(_load, grid), like, jax.tree.unflatten(jax.tree.structure(like), state))
    system = eqx.tree_at(lambda s: s.field.shape, system, grid.room, is_leaf=lambda node: isinstance(node, Shape))
    F, B = grid.network.frontends, grid.network.backends
    arcs = grid.place((B, F))
    flows = _Line(flows, rows, arcs, arcs, offsets[0])
    workloads = _Line(workloads, rows, grid.place((B,)), arcs, offsets[1])

    def step(_, now: Now) -> Now:
        k, ahead = now.k, now.k + 1
        predicted = predict(system, now)
        workloads.write(k, now.workload)
        workloads.write(ahead, predicted)
        reading = workloads.read(ahead)
        move = route(system, now, see(system, reading, now.reading))
        flows.write(ahead, move.entering)
        return arrive(system, now, predicted, reading, move, jnp.sum(flows.read(ahead), axis=1))

    now = jax.lax.fori_loop(0, steps, step, now)
    for ref, leaf, before in zip(ends, jax.tree.leaves(now), jax.tree.leaves(like[1]), strict=True):
        if before.ndim:
            _write(ref, grid.place(before.shape), 0, leaf)
        else:
            ref[0] = leaf


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
