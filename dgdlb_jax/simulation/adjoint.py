"""A run with derivatives in both modes: the loop is one function to JAX, with a derivative of its own.

Its forward mode is JAX's: the loop with the derivative of every step beside it. Its reverse mode is the transpose of that, but by the
way back of `reverse`, at a cost that does not depend on the length of the delay lines. Both use the functions of `step`.
"""

import dataclasses
from dataclasses import dataclass
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array, PyTree

from dgdlb_jax.numerics.dependence import dependence
from dgdlb_jax.numerics.linear_map import linear_map
from dgdlb_jax.numerics.native import one_native_loop
from dgdlb_jax.numerics.results import InputError
from dgdlb_jax.simulation.loop import Extra, Machine, Node, join, observe_fields, schedule
from dgdlb_jax.simulation.memory import Memory
from dgdlb_jax.simulation.reverse import WayBack
from dgdlb_jax.simulation.step import Carry, Now, System


def evolve(
    system: System,
    carry: Carry,
    steps: int,
    every: int | None,
    fields: tuple[str, ...],
    memory: Memory,
    extra: Extra | None = None,
    native: bool = True,
) -> tuple[Carry, dict[str, Any]]:
    """Run `steps` steps, with a look at the start, after every `every` of them and at the end; without `every` at the end only.

    Looks come back with time as second axis, behind the batch. `extra` is flow that is sent at these instants, the start apart,
    besides what is routed. `memory` is for reverse mode; `native`: see `one_native_loop`.
    """
    task = _Task(steps, every, fields, memory, native)
    first = None if every is None else task.look(system, carry.now)
    carry, looks = _evolve(task, system, carry, extra)
    looks = looks if first is None else join([jax.tree.map(lambda leaf: leaf[None], first), looks])
    return carry, jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 0, 1), looks)


@dataclass(frozen=True)
class _Task:
    """What there is to do, and what is looked at."""

    steps: int
    every: int | None
    fields: tuple[str, ...]
    memory: Memory
    native: bool

    def look(self, system: System, now: Now) -> dict[str, Array]:
        return observe_fields(self.fields, system, now)

    def run(self, system: System, carry: Carry, extra: Extra | None) -> tuple[Carry, PyTree]:
        return Machine(system, self.look, None).run(schedule(self.steps, self.every), carry, extra)[:2]

    def program(self, back: WayBack) -> Node:
        """What is followed backwards: a recording of all steps if that takes little memory, otherwise with checkpoints."""
        return schedule(self.steps, self.every, self.memory.segment(self.steps, back.rows, *back.weight()))


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _evolve(task: _Task, system: System, carry: Carry, extra: Extra | None) -> tuple[Carry, PyTree]:
    return one_native_loop(task.run, task.native)(system, carry, extra)


def _evolve_jvp(task: _Task, primals, tangents):
    _refuse_jumps(primals[0])
    leaves, tree = jax.tree.flatten(primals)
    moves = jax.tree.leaves(tangents, is_leaf=lambda leaf: isinstance(leaf, SymbolicZero))
    moving = tuple(k for k, move in enumerate(moves) if not isinstance(move, SymbolicZero))
    derivative = _Derivative(task, tree, moving)
    native = partial(one_native_loop, wanted=task.native)
    outputs, tape = native(derivative.remember)(leaves)
    flat, out_tree = jax.tree.flatten(outputs)
    derivative = dataclasses.replace(derivative, moved=derivative.depends(leaves))
    tape_leaves, tape_tree = jax.tree.flatten(tape)
    native_backward = native(partial(derivative.backward, tape_tree, out_tree))
    backward = lambda given, cotangents: native_backward(derivative.without_lines(given), cotangents)
    given = [*leaves, *tape_leaves]
    slopes = iter(linear_map(native(derivative.forward), backward, given, [moves[k] for k in moving]))
    slope = lambda leaf, moved: next(slopes) if moved else _no_slope(leaf)
    return outputs, jax.tree.unflatten(out_tree, list(map(slope, flat, derivative.moved)))


_evolve.defjvp(_evolve_jvp, symbolic_zeros=True)


def _no_slope(leaf):
    return jnp.zeros_like(leaf) if eqx.is_inexact_array(leaf) else np.zeros(leaf.shape, jax.dtypes.float0)


def _refuse_jumps(system: System) -> None:
    policy = system.field.policy
    if not policy.differentiable:
        raise InputError(
            f"{type(policy).__name__} jumps from one routing to another, so a run with it has no gradient: use its smooth "
            "relative, a softmin of the same signal, or a flow policy such as DGDLB."
        )


@dataclass(frozen=True)
class _Derivative:
    """The derivative of a run with respect to those leaves of its inputs that move, as functions of flat lists of arrays.

    `tree` is that of the inputs (system, carry, extra), `moving` says which of its leaves move, `moved` which outputs move with them.
    """

    task: _Task
    tree: Any
    moving: tuple[int, ...]
    moved: tuple[bool, ...] = ()

    def depends(self, leaves) -> tuple[bool, ...]:
        """Which outputs depend on a leaf that moves. (vmap wants to hear nothing of a slope where the output itself knows no batch.)"""
        run = lambda leaves: self.task.run(*self._inputs(leaves))
        outputs = jax.tree.leaves(jax.eval_shape(run, list(leaves)))
        return tuple(
            jnp.issubdtype(output.dtype, jnp.inexact) and any(needed[m] for m in self.moving)
            for output, needed in zip(outputs, dependence(run, list(leaves)), strict=True)
        )

    def remember(self, leaves) -> tuple[tuple[Carry, PyTree], PyTree]:
        """The run, and a tape of it."""
        system, carry, extra = self._inputs(leaves)
        back = self._way_back(leaves)
        carry, looks, tape = Machine(system, self.task.look, back.keep).run(self.task.program(back), carry, extra)
        return (carry, looks), (tape, carry.now)

    def forward(self, leaves, slopes) -> list[Array]:
        """The derivative in one direction: the run with the derivative of every step beside it."""

        def run(values):
            outputs = jax.tree.leaves(self.task.run(*self._inputs(leaves, values)))
            return [output for output, moved in zip(outputs, self.moved, strict=True) if moved]

        return jax.jvp(run, ([leaves[k] for k in self.moving],), (list(slopes),))[1]

    def backward(self, tape_tree, out_tree, given, cotangents) -> list[Array]:
        """The transpose of `forward`: what the cotangents of all outputs mean for the leaves that move."""
        count = self.tree.num_leaves
        leaves, (tape, end) = given[:count], jax.tree.unflatten(tape_tree, given[count:])
        cotangents = iter(cotangents)
        carry, looks = jax.tree.unflatten(out_tree, [next(cotangents) if moved else None for moved in self.moved])
        back = self._way_back(leaves)
        history = not self._lines().isdisjoint(self.moving)
        values, *start = back.run(self.task.program(back), tape, end, carry, looks, history)
        # Counters have no cotangent; their own values keep their places.
        start = jax.tree.leaves(eqx.combine(start, list(self._inputs(leaves)[1:])))
        values, parts = iter(values), self._parts()
        return [next(values) if k < parts else start[k - parts] for k in self.moving]

    def _inputs(self, leaves, values=()) -> tuple[System, Carry, Extra | None]:
        leaves = list(leaves[: self.tree.num_leaves])
        for k, value in zip(self.moving, values, strict=False):
            leaves[k] = value
        return jax.tree.unflatten(self.tree, leaves)

    def _way_back(self, leaves) -> WayBack:
        _, carry, extra = self._inputs(leaves)
        values = [leaves[k] for k in self.moving if k < self._parts()]
        return WayBack(lambda values: self._inputs(leaves, values)[0], values, carry, extra, self.task.look)

    def without_lines(self, given) -> list[Array | None]:
        """Without the delay lines of the start. `backward` does not look at them, but a function would be handed copies."""
        lines = self._lines()
        return [None if k in lines else leaf for k, leaf in enumerate(given)]

    def _lines(self) -> set[int]:
        """Which leaves are what stood in the delay lines at the start."""
        carry = jax.tree.unflatten(self.tree, list(range(self.tree.num_leaves)))[1]
        return set(jax.tree.leaves((carry.flows, carry.workloads)))

    def _parts(self) -> int:
        """How many leaves the system has; those of the state at the start come behind them."""
        return self.tree.children()[0].num_leaves
