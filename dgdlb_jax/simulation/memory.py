"""What a run takes in memory: known before anything is allocated."""

import math
from dataclasses import dataclass

from dgdlb_jax.numerics import device
from dgdlb_jax.numerics.labelled import labels
from dgdlb_jax.simulation.trajectory import Trajectory

LINES = 1.5
"""How often a delay line exists at the end of a run; measured, as are the others."""
_RESUMABLE_LINES, _HISTORIES, _STATES = 2.0, 2.0, 20.0


@dataclass(frozen=True)
class Memory:
    """The memory of a batch of runs.

    - `size`: networks, frontends, backends; `side_by_side`: how many networks run at the same time.
    - `rows`: of the delay lines, which are kept if the run is `resumable`; `instants`: at which `fields` are saved.
    - `itemsize`: bytes of a number. `counts_own`: whether answers have a delay line as well.
    """

    size: tuple[int, int, int]
    side_by_side: int
    rows: int
    instants: int
    fields: tuple[str, ...]
    resumable: bool
    itemsize: int
    counts_own: bool = False

    @property
    def bytes(self) -> float:
        """All of it."""
        return self.itemsize * (self._lines + self._history + self._work)

    def check(self) -> None:
        """Raise `InputError` when that is more than the memory there is, with what takes most of it and a remedy."""
        batch, frontends, backends = self.size
        what = f"A run of {batch} x {frontends} x {backends} (networks, frontends, backends)"
        if self._history > self._lines:
            what, remedy = f"{what} that saves {self.instants:,} instants", "use SaveAt(every=...) or fewer fields"
        elif self._lines > self._work:
            what = f"{what} with {self.rows:,} delay rows (the largest latency over dt)"
            remedy = "raise dt, " + (
                "lower that latency, or use SaveAt(..., resumable=False)" if self.resumable else "or lower that latency"
            )
        else:
            remedy = "use smaller networks"
        device.check_fits(self.bytes, what, remedy)

    @property
    def _lines(self) -> float:
        """Numbers in delay lines."""
        batch, frontends, backends = self.size
        line = self.rows * backends * (frontends * (1 + self.counts_own) + 1)
        return line * (LINES * self.side_by_side + _RESUMABLE_LINES * batch * self.resumable)

    @property
    def _history(self) -> float:
        """Numbers that are saved, the time included."""
        batch, frontends, backends = self.size
        axes, known = {"frontend": frontends, "backend": backends}, labels(Trajectory)
        sizes = [math.prod(axes.get(dim, 1) for dim in known[field].dims) for field in self.fields]
        return _HISTORIES * batch * self.instants * (1 + sum(sizes))

    @property
    def _work(self) -> float:
        """Numbers that a step computes with."""
        _, frontends, backends = self.size
        return _STATES * frontends * backends * self.side_by_side
