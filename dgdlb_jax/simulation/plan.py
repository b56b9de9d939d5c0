"""What is compiled in of a run, and how many networks run side by side."""

import math

import equinox as eqx

from dgdlb_jax.model.network import Network
from dgdlb_jax.numerics import device
from dgdlb_jax.numerics.delay import Checkpoints, FullStorage
from dgdlb_jax.numerics.delay.checkpoint import count_frames
from dgdlb_jax.numerics.native import TOO_LARGE
from dgdlb_jax.numerics.results import InputError

# Measured: benchmarks/bench_simulate.py prints half and twice the tile beside it.
CACHE = 5e6  # bytes that the delay lines of a tile may take
LANES = 128  # frontends x lanes at most: what a step computes with stays in the nearest cache
SHARE = 0.15  # of an accelerator's memory that the delay lines of a tile may take; there are up to four copies at the end of a run
NARROW = 128  # bytes of frontends x lanes at least: vector units are full, which outweighs the cache


class Plan(eqx.Module):
    """Everything that is compiled in."""

    rows: int = eqx.field(static=True)
    steps: int | None = eqx.field(static=True)
    every: int | None = eqx.field(static=True)
    fields: tuple[str, ...] = eqx.field(static=True)
    summary: bool = eqx.field(static=True)
    resumable: bool = eqx.field(static=True)
    adjoint: FullStorage | Checkpoints | None = eqx.field(static=True, default=None)
    networks: int = eqx.field(static=True, default=0)
    frames: int = eqx.field(static=True, default=0)
    fused: bool = eqx.field(static=True, default=False)
    native: bool = eqx.field(static=True, default=True)
    extensions: tuple[int, ...] = eqx.field(static=True, default=())  # rows of the delay line of each


def check_frames(frames: int, steps: int, every: int | None, has_extra_flow: bool) -> None:
    """Check that there is room for what is saved in a run whose length is data.

    **Raises:** `InputError` for too few `frames`, or extra flow.
    """
    needed = 0 if every is None else count_frames(steps, every) + 1
    if frames < needed:
        raise InputError(
            f"frames={frames} has no room for the {needed} instants of SaveAt(every={every}): raise one of them."
        )
    if has_extra_flow:
        raise InputError("extra_flow needs a number of steps that is compiled in: leave frames out.")


def choose_lanes(network: Network, rows: int, networks: int) -> int:
    """How many networks run side by side on one device: on CPU a tile that fits the cache and one native function, else what fits
    the memory."""
    arcs, size = network.frontends * network.backends, network.latency.dtype.itemsize
    if not device.on_cpu():
        line = rows * arcs  # numbers
        return max(1, int(min(networks, SHARE * device.memory() / (line * size))))
    widest = min(LANES / network.frontends, (TOO_LARGE - 1) / arcs)
    fitting = math.log2(CACHE / (rows * arcs * size))
    narrowest = math.log2(NARROW / (network.frontends * size))
    lanes = 2 ** max(math.floor(fitting), math.ceil(narrowest), 0)
    return min(lanes, 2 ** math.floor(math.log2(max(1, widest))), networks)
