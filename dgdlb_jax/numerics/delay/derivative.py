"""A run with derivatives in both modes: the loop is one function to JAX, with a derivative of its own.

Its forward mode is JAX's: the loop with the derivative of every step beside it. Its reverse mode is the transpose of that, but by the
reverse pass of `reverse_scan`, at a cost that does not depend on the length of the delay lines.
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
from jaxtyping import PyTree

from dgdlb_jax.numerics.delay.adjoint import Ending
from dgdlb_jax.numerics.delay.checkpoint import Node, schedule
from dgdlb_jax.numerics.delay.memory import Autodiff, Memory, ReverseMode
from dgdlb_jax.numerics.delay.reverse_scan import Problem
from dgdlb_jax.numerics.delay.scan import Runner
from dgdlb_jax.numerics.delay.system import Carry, DelayedSystem
from dgdlb_jax.numerics.dependence import dependence
from dgdlb_jax.numerics.linear_map import linear_map
from dgdlb_jax.numerics.native import one_native_loop


def delayed_scan(
    system: DelayedSystem,
    carry: Carry,
    steps: int,
    every: int | None = None,
    *,
    inputs: PyTree = None,
    memory: ReverseMode | None = None,
    runs: float = 1,
    native: bool = True,
) -> tuple[Carry, PyTree]:
    """Run a system, differentiable in both modes with respect to its parameters, delays, start, history and inputs.

    **Arguments:**

    - `system`, `carry`: what runs, and where it begins: `start(system, state, history)`, or the carry that another run ended with.
    - `steps`: how many. `every`: observe after so many steps, and at the end; by default at the end only.
    - `inputs`: a pytree with one row for every observation, which stages find in the steps of its frame (see `StepContext`).
    - `memory`: how much reverse mode remembers; by default every step if that takes little, otherwise checkpoints. `runs`: how many
      runs like this share the memory.
    - `native`: on CPU, as one native loop (see `one_native_loop`).

    Call it within `jax.jit`: outside it is compiled again in every call.

    **Returns:** the carry at the end, and the observations with a leading axis over frames, the start not included.

    **Raises:** `NotImplementedError` when differentiated twice.
    """
    task = _Task(steps, every, Memory(memory, runs), native)
    return (task.run if isinstance(memory, Autodiff) else partial(_compiled, task))(system, carry, inputs)


@dataclass(frozen=True)
class _Task:
    """What there is to do."""

    steps: int
    every: int | None
    memory: Memory
    native: bool

    def run(self, system: DelayedSystem, carry: Carry, inputs: PyTree) -> tuple[Carry, PyTree]:
        return Runner(system).run(schedule(self.steps, self.every), carry, inputs)[:2]

    def program(self, problem: Problem) -> Node:
        """What is followed backwards: a recording of all steps if that takes little memory, otherwise with checkpoints."""
        rows = max((channel.rows for channel in problem.system.channels), default=1)
        return schedule(self.steps, self.every, self.memory.segment(self.steps, rows, *problem.weight()))


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _scan(task: _Task, system: DelayedSystem, carry: Carry, inputs: PyTree) -> tuple[Carry, PyTree]:
    return one_native_loop(task.run, task.native)(system, carry, inputs)


def _scan_jvp(task: _Task, primals, tangents):
    leaves, tree = jax.tree.flatten(primals)
    moves = jax.tree.leaves(tangents, is_leaf=lambda leaf: isinstance(leaf, SymbolicZero))
    moving = tuple(k for k, move in enumerate(moves) if not isinstance(move, SymbolicZero))
    like = tuple(jax.ShapeDtypeStruct(jnp.shape(leaf), jnp.result_type(leaf)) for leaf in leaves)
    derivative = _Derivative(task, tree, like, moving)
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


_scan.defjvp(_scan_jvp, symbolic_zeros=True)
_compiled = jax.jit(_scan, static_argnums=0, inline=True)  # inside another jit it is part of that


def _no_slope(leaf):
    return jnp.zeros_like(leaf) if eqx.is_inexact_array(leaf) else np.zeros(leaf.shape, jax.dtypes.float0)


@dataclass(frozen=True)
class _Derivative:
    """The derivative of a run with respect to those leaves of its inputs that move, as functions of flat lists of arrays.

    `tree` and `like` are the structure of the inputs (system, carry, inputs) and the shapes of their leaves, `moving` says which of them
    move, `moved` which outputs move with them.
    """

    task: _Task
    tree: Any
    like: tuple[jax.ShapeDtypeStruct, ...]
    moving: tuple[int, ...]
    moved: tuple[bool, ...] = ()

    def depends(self, leaves) -> tuple[bool, ...]:
        """Which outputs depend on a leaf that moves. (`vmap` refuses a derivative with a batch axis of an output without one.)"""
        run = lambda leaves: self.task.run(*self._inputs(leaves))
        outputs = jax.tree.leaves(jax.eval_shape(run, list(leaves)))
        return tuple(
            jnp.issubdtype(output.dtype, jnp.inexact) and any(needed[m] for m in self.moving)
            for output, needed in zip(outputs, dependence(run, list(leaves)), strict=True)
        )

    def remember(self, leaves) -> tuple[tuple[Carry, PyTree], PyTree]:
        """The run, and a tape of it."""
        problem = self._problem(leaves)
        carry, seen, tape = problem.run(self.task.program(problem))
        return (carry, seen), (tape, (carry.k, carry.state))

    def forward(self, leaves, slopes) -> list[Any]:
        """The derivative in one direction: the run with the derivative of every step beside it."""

        def run(values):
            outputs = jax.tree.leaves(self.task.run(*self._inputs(leaves, values)))
            return [output for output, moved in zip(outputs, self.moved, strict=True) if moved]

        return jax.jvp(run, ([leaves[k] for k in self.moving],), (list(slopes),))[1]

    def backward(self, tape_tree, out_tree, given, cotangents) -> list[Any]:
        """The transpose of `forward`: what the cotangents of all outputs mean for the leaves that move."""
        count = self.tree.num_leaves
        leaves, (tape, (k, state)) = given[:count], jax.tree.unflatten(tape_tree, given[count:])
        cotangents = iter(cotangents)
        carry, seen = jax.tree.unflatten(out_tree, [next(cotangents) if moved else None for moved in self.moved])
        problem = self._problem(leaves)
        history = not self._lines().isdisjoint(self.moving)
        ending, program = Ending(k, state, carry.channels), self.task.program(problem)
        values, *begin = problem.run_back(program, tape, ending, carry.state, seen, history)
        # Counters have no cotangent; their own values keep their places.
        begin = jax.tree.leaves(eqx.combine(begin, list(self._inputs(leaves)[1:])))
        values, parts = iter(values), self._parts()
        return [next(values) if k < parts else begin[k - parts] for k in self.moving]

    def without_lines(self, given) -> list[Any]:
        """Without the delay lines of the start. `backward` does not use them, but a function would be handed copies."""
        lines = self._lines()
        return [None if k in lines else leaf for k, leaf in enumerate(given)]

    def _inputs(self, leaves, values=()) -> tuple[DelayedSystem, Carry, PyTree]:
        """The inputs of the run, with these values of what moves; shapes in place of lines that have been left out."""
        leaves = [like if leaf is None else leaf for like, leaf in zip(self.like, leaves, strict=False)]
        for k, value in zip(self.moving, values, strict=False):
            leaves[k] = value
        return jax.tree.unflatten(self.tree, leaves)

    def _problem(self, leaves) -> Problem:
        _, carry, inputs = self._inputs(leaves)
        values = [leaves[k] for k in self.moving if k < self._parts()]
        return Problem(lambda values: self._inputs(leaves, values)[0], values, carry, inputs)

    def _lines(self) -> set[int]:
        """Which leaves are what stood in the delay lines at the start."""
        carry = jax.tree.unflatten(self.tree, list(range(self.tree.num_leaves)))[1]
        return set(jax.tree.leaves([state.line for state in carry.channels]))

    def _parts(self) -> int:
        """How many leaves the system has; those of the state at the start come behind them."""
        return self.tree.children()[0].num_leaves
