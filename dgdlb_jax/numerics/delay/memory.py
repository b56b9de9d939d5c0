"""How much a run remembers for its reverse mode."""

import math
from dataclasses import dataclass

import equinox as eqx

from dgdlb_jax.numerics import device
from dgdlb_jax.numerics.results import InputError

_LITTLE = 256e6  # bytes up to which every step is remembered unless the user says otherwise


class FullStorage(eqx.Module):
    """Remember every step: fastest, memory in proportion to the length of the run."""


class Checkpoints(eqx.Module):
    """Remember the state every so many steps, and compute what lies between again in the reverse pass: one more forward run.

    **Arguments:** `every`: steps between two checkpoints, at least as many as the delay buffer has rows (a checkpoint holds all of the
    buffer). By default as many as need the least memory, about the square root of the length of the run.

    **Raises:** `InputError` for less than one step.
    """

    every: int | None = eqx.field(static=True)

    def __init__(self, every: int | None = None):
        if every is not None and (every < 1 or every != int(every)):
            raise InputError(f"Checkpoints(every={every}): give a whole number of steps, at least 1.")
        self.every = None if every is None else int(every)


class Autodiff(eqx.Module):
    """JAX's own derivative of the loop: slow, and it remembers every delay line of every step. To hold the others to."""


ReverseMode = FullStorage | Checkpoints | Autodiff


@dataclass(frozen=True)
class Memory:
    """What the user chose to remember, and how many runs like this one share the memory."""

    adjoint: ReverseMode | None
    runs: float

    def segment(self, steps: int, rows: int, step: int, checkpoint: int) -> int | None:
        """Steps between two checkpoints; None for no checkpoints.

        **Arguments:** `steps` of the run, `rows` of the buffer, and how many bytes a remembered `step` and a `checkpoint` of it take.

        **Raises:** `InputError` when what is remembered is more than the memory there is.
        """
        every = self._segment(steps, rows, step, checkpoint)
        kept = steps * step if every is None else math.ceil(steps / every) * checkpoint + every * step
        remedy = "use fewer steps" + (", or adjoint=Checkpoints()" if every is None and rows < steps else "")
        device.check_fits(self.runs * kept, f"What the gradient of a run of {steps:,} steps remembers", remedy)
        return every

    def _segment(self, steps: int, rows: int, step: int, checkpoint: int) -> int | None:
        adjoint = self.adjoint
        if adjoint is None:
            adjoint = FullStorage() if self.runs * steps * step <= _LITTLE else Checkpoints()
        if not isinstance(adjoint, Checkpoints):
            return None
        every = math.isqrt(steps * checkpoint // step) if adjoint.every is None else adjoint.every
        every = max(every, rows)
        return every if every < steps else None
