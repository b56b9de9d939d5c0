"""How much a run remembers for its reverse mode."""

import math

import equinox as eqx
from jaxtyping import Array

from dgdlb_jax.numerics.results import InputError

_LITTLE = 256e6  # bytes up to which every step is remembered unless the user says otherwise


class FullStorage(eqx.Module):
    """Remember every step: fastest, memory in proportion to the length of the run."""


class Checkpoints(eqx.Module):
    """Remember the state every so many steps, and compute what lies between again on the way back: one more forward run.

    **Arguments:** `every`: steps between two checkpoints, at least as many as the delay buffer has rows (a checkpoint holds all of the
    buffer). By default as many as need the least memory, about the square root of the length of the run.

    **Raises:** `InputError` for less than one step.
    """

    every: int | None = eqx.field(static=True)

    def __init__(self, every: int | None = None):
        if every is not None and (every < 1 or every != int(every)):
            raise InputError(f"Checkpoints(every={every}): give a whole number of steps, at least 1.")
        self.every = None if every is None else int(every)


def segment_length(adjoint: FullStorage | Checkpoints | None, latency: Array, steps: int, rows: int) -> int | None:
    """Steps between two checkpoints; None for no checkpoints. `latency` stands for the size of the batch, `rows` for the buffer's."""
    size, frontends, backends = latency.shape
    arcs = size * frontends * backends
    step = 2 * arcs + 6 * size * backends  # numbers kept of a step, hardly ever more; of DGD-LB's a fifth
    checkpoint = rows * (arcs + size * backends) + 5 * arcs
    if adjoint is None:
        adjoint = FullStorage() if steps * step * latency.dtype.itemsize <= _LITTLE else Checkpoints()
    if isinstance(adjoint, FullStorage):
        return None
    every = math.isqrt(steps * checkpoint // step) if adjoint.every is None else adjoint.every
    every = max(every, rows)
    return every if every < steps else None
