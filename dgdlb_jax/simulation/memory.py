"""How much a run remembers for its reverse mode, and whether what it takes fits into memory."""

import math
from dataclasses import dataclass

import equinox as eqx

from dgdlb_jax.numerics import device
from dgdlb_jax.numerics.results import InputError

# Measured: how often what a run keeps exists at its end.
_LINES, _RESUMABLE_LINES, _HISTORIES, _STATES = 1.5, 2.0, 2.0, 20.0
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


@dataclass(frozen=True)
class Kept:
    """What a run leaves behind: `fields` at so many `instants`, and its delay lines if it is `resumable`."""

    fields: tuple[str, ...]
    instants: int
    resumable: bool

    def numbers(self, frontends: int, backends: int) -> int:
        """How many there are at an instant."""
        each = {"routing": frontends * backends, "workload": backends, "arrival_rate": frontends, "in_flight": backends}
        return 1 + sum(each.get(field, 1) for field in self.fields)


@dataclass(frozen=True)
class Memory:
    """What the user chose to remember, and how many runs like this one share the memory."""

    adjoint: FullStorage | Checkpoints | None
    runs: float

    def segment(self, steps: int, rows: int, step: int, checkpoint: int) -> int | None:
        """Steps between two checkpoints; None for no checkpoints.

        **Arguments:** `steps` of the run, `rows` of the buffer, and how many bytes a remembered `step` and a `checkpoint` of it take.
        """
        adjoint = self.adjoint
        if adjoint is None:
            adjoint = FullStorage() if self.runs * steps * step <= _LITTLE else Checkpoints()
        if isinstance(adjoint, FullStorage):
            return None
        every = math.isqrt(steps * checkpoint // step) if adjoint.every is None else adjoint.every
        every = max(every, rows)
        return every if every < steps else None


def check_memory(size: tuple[int, int, int], side_by_side: int, rows: int, kept: Kept, itemsize: int) -> None:
    """Raise `InputError` when the delay lines and the saved history of a batch are more than the memory there is.

    **Arguments:** `size`: networks, frontends, backends; `side_by_side`: how many of them run at once; `rows` of the delay lines.
    """
    batch, frontends, backends = size
    arcs = frontends * backends
    line = rows * (arcs + backends)
    lines = line * (_LINES * side_by_side + _RESUMABLE_LINES * batch * kept.resumable)
    history = _HISTORIES * batch * kept.instants * kept.numbers(frontends, backends)
    work = _STATES * arcs * side_by_side
    what = f"A run of {batch} x {frontends} x {backends} (networks, frontends, backends)"
    if history > lines:
        what, remedy = f"{what} that saves {kept.instants:,} instants", "use SaveAt(every=...) or fewer fields"
    elif lines > work:
        what = f"{what} with {rows:,} delay rows (the largest latency over dt)"
        remedy = "raise dt" + (", or use SaveAt(..., resumable=False)" if kept.resumable else "")
    else:
        remedy = "use smaller networks"
    device.check_fits(itemsize * (lines + history + work), what, remedy)
