"""How close an accelerator comes to its memory's bandwidth, and what a kernel written by hand reaches.

    python benchmarks/bench_device.py [--double] [--cases 10x1024 ...] [--trace]

Per network size and batch size: time of a step, kernels that it launches (from a profile), and the bytes that a step has to move at the
least, over time, against what a plain copy moves on this device. Then all steps in one kernel, by hand in CUDA (`rival.cu`,
compiled here when nvcc is there), beside the product's own (`fused=True`, from the policy and curve at hand); final workloads are
compared.
"""

import argparse
import collections
import ctypes
import glob
import shutil
import subprocess
import tempfile
from functools import partial
from pathlib import Path

parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
parser.add_argument("--double", action="store_true", help="double precision")
parser.add_argument(
    "--cases",
    nargs="*",
    default=["10x1", "10x64", "10x1024", "10x8192", "10x32768", "3x65536", "32x2048"],
    metavar="SIZExCOUNT",
)
parser.add_argument("--gradients", nargs="*", default=["10x64", "10x1024", "10x8192"], metavar="SIZExCOUNT")
parser.add_argument("--optima", type=int, default=10_000)
parser.add_argument("--steps", type=int, default=4000, help="start and end of a run included")
parser.add_argument("--trace", action="store_true", help="print the kernels of a step")
options = parser.parse_args()

import jax
import jax.numpy as jnp
import numpy as np

import dgdlb_jax as dgd
from common import machine, random_networks, seconds, simulation

jax.config.update("jax_enable_x64", options.double)
DTYPE = np.dtype("float64" if options.double else "float32")
DT, STEP_SIZE, ROWS = 0.01, 0.05, 128
# Numbers per arc that a step has to touch once. Read and written: routing, velocity, flow, reading, the sum of flows (and what rounding
# took away from it). Read: two offsets, two fractions, the latency that is charged, two parameters of the curve, the mask. Delay lines:
# one number written, two read from anywhere, which moves a sector of 32 bytes each.
SECTOR = 32
TOUCHED = (5 if options.double else 6) * 2 + 2 + 1 + 2 + 1


def least_bytes(arcs: int) -> float:
    """What a step moves at least."""
    return arcs * (TOUCHED * DTYPE.itemsize + 2 * 4 + 1 + 2 * SECTOR)


def final_workload(arrays, steps: int, **more):
    """The product's run, and what it is compared by."""
    run = simulation(arrays, steps, ROWS, DT, **more)
    return lambda: run(dgd.DGDLB(STEP_SIZE)).final.workload


def kernels(run) -> collections.Counter:
    """Launches of every kernel in a run, by name."""
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            jax.block_until_ready(run())
        (path,) = glob.glob(f"{folder}/**/*.xplane.pb", recursive=True)
        profile = jax.profiler.ProfileData.from_file(path)
        found = collections.Counter()
        for plane in profile.planes:
            if "/device:" in plane.name:
                for line in plane.lines:
                    if line.name.startswith("Stream"):
                        found.update(event.name for event in line.events)
    return found


def copy_bandwidth() -> float:
    """Bytes per second of a large copy, read and written."""
    size = 2**28 if jax.default_backend() != "cpu" else 2**24
    values = jnp.ones(size, jnp.float32)
    copy = jax.jit(lambda x: x + 1)
    return 2 * 4 * size / seconds(lambda: copy(values))[1]


def rival() -> ctypes.CDLL | None:
    """The kernel written by hand, when there is a compiler."""
    compiler = shutil.which("nvcc") or shutil.which("/usr/local/cuda/bin/nvcc")
    if compiler is None or jax.default_backend() != "gpu":
        return None
    target = str(Path(tempfile.mkdtemp()) / "rival-cuda.so")
    kind = "double" if options.double else "float"
    flags = ["-O3", "-arch=native", "-use_fast_math", "-shared", "-Xcompiler", "-fPIC", f"-DREAL={kind}"]
    subprocess.run([compiler, *flags, str(Path(__file__).with_name("rival.cu")), "-o", target], check=True)
    library = ctypes.CDLL(target)
    library.fused.restype = ctypes.c_double
    return library


def by_hand(library: ctypes.CDLL, arrays, steps: int) -> tuple[float, np.ndarray]:
    """Seconds of the kernel alone, and the final workloads."""
    count, F, B = arrays[1].shape
    workload, cost = np.empty((count, B), DTYPE), np.empty(count, DTYPE)
    pointers = [ctypes.c_void_p(array.ctypes.data) for array in (*arrays, workload, cost)]
    numbers = [ctypes.c_int(count), ctypes.c_int(F), ctypes.c_int(B), ctypes.c_int(ROWS), ctypes.c_long(steps)]
    call = lambda: library.fused(*numbers, ctypes.c_double(DT), ctypes.c_double(STEP_SIZE), *pointers)
    taken = [call() for _ in range(3)]
    if min(taken) < 0:
        raise SystemExit(f"The kernel failed with CUDA's error {-min(taken):.0f}.")
    return float(np.median(taken)) / 1e3, workload


def main() -> None:
    """Print the tables."""
    print(machine())
    bandwidth, library = copy_bandwidth(), rival()
    print(f"{DTYPE}; a copy moves {bandwidth / 1e9:.0f} GB/s; figures are medians, compilation apart\n")
    print(
        "| network | topologies | loop: us per step | ns per arc and step | kernels per step | least GB/s | of a copy | "
        "fused=True: ns per arc and step | by hand in CUDA | loop / fused | fused / by hand | apart | compile s |"
    )
    print("|---" * 13 + "|")
    for case in options.cases:
        size, count = map(int, case.split("x"))
        arrays = random_networks(count, size, size, ROWS, DTYPE)
        arcs, steps = count * size**2, options.steps
        unit = 1e9 / arcs / steps
        run = final_workload(arrays, steps, execution=dgd.Execution(fused=False))
        compiled, taken = seconds(run, repeats=3)
        launches = kernels(run)
        rate = least_bytes(arcs) * steps / taken
        fused, theirs, apart = float("nan"), float("nan"), float("nan")
        if library is not None:
            kernel = final_workload(arrays, steps, execution=dgd.Execution(fused=True))
            fused = seconds(kernel, repeats=3)[1]
            theirs, end = by_hand(library, arrays, steps)
            ends = np.asarray(run()), np.asarray(kernel()), end
            apart = max(float(np.median(np.abs(other - end)) / end.mean()) for other in ends)
        print(
            f"| {size}x{size} | {count} | {taken / steps * 1e6:.1f} | {taken * unit:.4f} | {launches.total() / steps:.1f} | "
            f"{rate / 1e9:.0f} | {rate / bandwidth:.2f} | {fused * unit:.4f} | {theirs * unit:.4f} | {taken / fused:.1f} | "
            f"{fused / theirs:.2f} | {apart:.0e} | {compiled:.1f} |",
            flush=True,
        )
        if options.trace:
            for name, times in launches.most_common(40):
                print(f"    {times / steps:6.2f} {name}")
    gradients()
    optima()


def gradients() -> None:
    """Value and gradient of the total cost with respect to the step sizes, over the forward run."""
    print("\n| network | topologies | forward, ms | value and gradient, ms | over forward |\n|---|---|---|---|---|")
    for case in options.gradients:
        size, count = map(int, case.split("x"))
        arrays = random_networks(count, size, size, ROWS, DTYPE)
        run = simulation(arrays, 500, ROWS, DT, adjoint=dgd.FullStorage())
        cost = lambda step_size, run=run: run(dgd.DGDLB(step_size)).statistics.cost.sum()
        functions = [partial(jax.jit(f), jnp.full(count, STEP_SIZE, DTYPE)) for f in (cost, jax.value_and_grad(cost))]
        taken = [seconds(function, repeats=3)[1] for function in functions]
        print(f"| {size}x{size} | {count} | {taken[0] * 1e3:.1f} | {taken[1] * 1e3:.1f} | {taken[1] / taken[0]:.2f} |")


def optima() -> None:
    """The certified optimum of many networks."""
    if not options.optima:
        return
    networks = dgd.topologies.complete(jax.random.key(0), count=options.optima)
    compiled, taken = seconds(lambda: dgd.solve_optimum(networks, throw=False), repeats=3)
    gap = float(jnp.max(dgd.solve_optimum(networks, throw=False).gap))
    print(
        f"\noptimum of {options.optima} 10x10 networks: {taken / options.optima * 1e3:.4f} ms each, largest gap {gap:.0e}, "
        f"compile {compiled:.1f} s"
    )


if __name__ == "__main__":
    main()
