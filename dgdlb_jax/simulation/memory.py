"""Whether what a run takes fits into memory: asked before anything is allocated."""

from dataclasses import dataclass

from dgdlb_jax.numerics import device

# Measured: how often what a run keeps exists at its end.
_LINES, _RESUMABLE_LINES, _HISTORIES, _STATES = 1.5, 2.0, 2.0, 20.0


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
