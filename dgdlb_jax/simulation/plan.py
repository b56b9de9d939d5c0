"""How a batch is run: its time grid, what is compiled in, what runs side by side, what it takes. All of it is known beforehand."""

import math
from dataclasses import dataclass, field
from typing import Any

import equinox as eqx
import jax

from dgdlb_jax.model.batch import as_batch
from dgdlb_jax.model.network import Network
from dgdlb_jax.numerics import device
from dgdlb_jax.numerics.checks import is_count
from dgdlb_jax.numerics.delay import ReverseMode
from dgdlb_jax.numerics.delay.checkpoint import count_frames
from dgdlb_jax.numerics.native import TOO_LARGE
from dgdlb_jax.numerics.promotion import standard_promotion
from dgdlb_jax.numerics.results import InputError, is_concrete, under_jit
from dgdlb_jax.numerics.threads import parts_for
from dgdlb_jax.numerics.tiles import has_a_mesh
from dgdlb_jax.numerics.types import Numbers
from dgdlb_jax.policies.autoscalers.base import AbstractAutoscaler
from dgdlb_jax.policies.base import AbstractPolicy
from dgdlb_jax.simulation import checks
from dgdlb_jax.simulation.attached import Plugins, collect, extension_rows
from dgdlb_jax.simulation.autoscaled import rows_of
from dgdlb_jax.simulation.memory import Memory
from dgdlb_jax.simulation.own import reads_outstanding
from dgdlb_jax.simulation.plugins import AbstractExtension
from dgdlb_jax.simulation.trajectory import SaveAt

# Measured: benchmarks/bench_simulate.py prints half and twice the tile beside it.
CACHE = 5e6  # bytes that the delay lines of a tile may take
LANES = 128  # frontends x lanes at most: what a step computes with stays in the nearest cache
SHARE = 0.15  # of an accelerator's memory that the delay lines of a tile may take; there are up to four copies at the end of a run
NARROW = 128  # bytes of frontends x lanes at least: vector units are full, which outweighs the cache


@dataclass(frozen=True)
class Execution:
    """Where a batch runs and how much of it at a time. Answers depend on it by rounding at most.

    - `devices`: over how many the batch is spread; by default all, and one inside `jit`, `grad` or `vmap`. A mesh of the user's
      (`jax.set_mesh`, or explicit axes) is left in charge: then the batch is spread as it lies.
    - `threads`: parts of the batch that run at the same time, at most, on the one device of a CPU; by default what the environment
      variable DGDLB_THREADS says, or one for each core that the process may use. One inside `jit`, `grad`, `vmap` and threads of the
      user's.
    - `lanes`: how many networks run side by side in each; chosen from the sizes by default.
    - `fused`: on a CUDA device, all steps between two saved instants in one kernel: 2 to 10 times as fast (benchmarks/README.md). By
      itself where a kernel can do it, which is outside `jit` and `grad`, without `extra_flow`, events and autoscalers; networks up to
      about 32 x 32, constant or cyclic demand, curves of the package, no plug-ins of the user's but policies. Everything else runs in a
      loop, with the same results to rounding. `False`: always in a loop; `True`: an error where no kernel can do it.
    """

    devices: int | None = None
    threads: int | None = None
    lanes: int | None = None
    fused: bool | None = None


class Program(eqx.Module):
    """Everything that is compiled in, beside the shapes of arrays."""

    rows: int = eqx.field(static=True)
    steps: int | None = eqx.field(static=True)
    every: int | None = eqx.field(static=True)
    fields: tuple[str, ...] = eqx.field(static=True)
    summary: bool = eqx.field(static=True)
    resumable: bool = eqx.field(static=True)
    adjoint: ReverseMode | None = eqx.field(static=True)
    networks: int = eqx.field(static=True)
    frames: int = eqx.field(static=True)
    fused: bool = eqx.field(static=True)
    extensions: tuple[int, ...] = eqx.field(static=True)  # rows of the delay line of each
    counts_own: bool = eqx.field(static=True)  # requests of every frontend, since the policy looks at them
    commands: int | None = eqx.field(static=True)  # rows of those of an autoscaler
    native: bool = eqx.field(static=True, default=True)


@dataclass(frozen=True)
class Plan:
    """How a batch is run, see `plan`.

    - `grid`: `dt` and `steps` `(networks,)`, seconds and how many steps each network takes, and `rows` of the delay lines.
    - `instants`: how many are saved of each network. `devices`, `threads`, `lanes`: as in `Execution`, decided.
    - `memory`: what it takes. `program`: what is compiled in. `plugins`: what the user adds. `must_fuse`: whether it is an error if no
      kernel can do it.
    """

    grid: checks.Grid
    instants: int
    devices: int
    threads: int
    lanes: int
    program: Program
    memory: Memory
    plugins: Plugins = field(repr=False)
    must_fuse: bool

    @property
    def executor(self) -> str:
        """What makes the steps: a `kernel`, or a `loop`."""
        return "kernel" if self.program.fused else "loop"

    def __str__(self) -> str:
        """For people."""
        networks, frontends, backends = self.memory.size
        least, most = self.grid.steps.min(), self.grid.steps.max()
        steps = f"{most:,} steps" if least == most else f"{least:,} to {most:,} steps"
        return (
            f"{networks:,} networks of {frontends} x {backends}: {steps}, {self.grid.rows:,} delay rows, {self.instants:,} instants saved; "
            f"{self.lanes} side by side in a {self.executor}, {self.threads} threads, {self.devices} devices; "
            f"about {self.memory.bytes / 1e6:.3g} MB"
        )


@standard_promotion
def plan(
    networks: Network,
    *,
    duration: Numbers,
    dt: Numbers,
    save: SaveAt | None = None,
    max_latency: float | None = None,
    frames: int | None = None,
    execution: Execution | None = None,
    adjoint: ReverseMode | None = None,
    extensions: tuple[AbstractExtension, ...] = (),
    policy: AbstractPolicy | None = None,
    autoscaler: AbstractAutoscaler | None = None,
    data: Any = None,
) -> Plan:
    """How `simulate_batch` runs a batch, without running it: steps, delay rows, what runs side by side, memory.

    **Arguments:** `networks`, a batch or one, and the others as for `simulate_batch`; `policy`: one that looks at its own outstanding
    requests takes a delay line more; `autoscaler`; `data`: whatever else the run depends on, since what is traced runs as JAX spreads it.

    **Returns:** a `Plan`; `print(plan)` says it in a line.

    **Raises:** `InputError` for what cannot be counted or has no room: steps, delay rows, `frames`.
    """
    save, how = SaveAt() if save is None else save, Execution() if execution is None else execution
    _check_execution(how)
    networks = networks.in_one_type() if networks.batch is not None else as_batch(networks.in_one_type())
    grid = checks.grid(networks, duration, dt, max_latency)
    checks.check_window(save.after, grid)
    plugins = collect(save.fn, save.own_statistics, extensions, networks.latency.dtype)
    size, frontends, backends = networks.latency.shape
    steps, told = int(grid.steps.max()), frames is not None  # or compiled in
    if frames is not None:
        _check_frames(frames, steps, save.every)
    counts_own = policy is not None and reads_outstanding(networks, policy)
    everything = networks, plugins, save, data
    free = is_concrete(everything) and not has_a_mesh(networks.latency)
    by_itself = device.has_kernels() and free and not under_jit() and autoscaler is None and not plugins
    program = Program(
        rows=grid.rows,
        steps=None if told else steps,
        every=None if told else save.every,
        fields=save.fields,
        summary=save.summary,
        resumable=save.resumable,
        adjoint=None if told else adjoint,
        networks=0 if told else size,  # which checkpoints alone depend on
        frames=frames or 0,
        fused=by_itself if how.fused is None else how.fused,
        extensions=extension_rows(plugins, networks.anonymous(), grid.dt, max_latency),
        counts_own=counts_own,
        commands=None if autoscaler is None else rows_of(autoscaler, grid.dt, max_latency),
    )
    devices = min(how.devices or (jax.local_device_count() if free else 1), size)
    threads = parts_for(size, everything, how.threads) if free and devices == 1 else 1
    largest = checks.LARGEST_LINE // (grid.rows * frontends * backends)
    over_arcs = grid.rows * (2 if counts_own else 1)  # rows of all lines over arcs
    lanes = min(largest, how.lanes or choose_lanes(networks, over_arcs, math.ceil(size / (devices * threads))))
    instants = frames or (count_frames(steps, save.every) + 1 if save.every and save.fields else 1)
    memory = Memory(
        (size, frontends, backends),
        lanes * devices * threads,
        grid.rows,
        instants,
        save.fields,
        save.resumable,
        networks.latency.dtype.itemsize,
        counts_own,
    )
    return Plan(grid, instants, devices, threads, lanes, program, memory, plugins, bool(how.fused))


def _check_execution(how: Execution) -> None:
    """Raise `InputError` for devices that there are not, and for no networks side by side; `parts_for` looks at threads."""
    there = jax.local_device_count()
    if how.devices is not None and not (is_count(how.devices) and how.devices <= there):
        raise InputError(
            f"Execution: devices is {how.devices!r}: give a whole number from 1 to the {there} that this process has, or leave it out."
        )
    if how.lanes is not None and not is_count(how.lanes):
        raise InputError(f"Execution: lanes is {how.lanes!r}: give a whole number from 1 on, or leave it out.")


def _check_frames(frames: int, steps: int, every: int | None) -> None:
    needed = 0 if every is None else count_frames(steps, every) + 1
    if frames < needed:
        raise InputError(
            f"frames={frames} has no room for the {needed} instants of SaveAt(every={every}): raise one of them."
        )


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
