"""Time per arc and step against C: the obvious loop, and one with topologies packed in vector lanes, each keeping statistics or none;
NumPy as well.

    python benchmarks/bench_rivals.py [--quick]

Every row is measured in one process, ours and theirs in turns, median of several; compilation apart. Ours keeps the statistics of a
default call, which are compared with those of C; "lean" C keeps the last workloads only, "ours, none" is `SaveAt.final`. With all cores
nothing is set. The C is `rival.c`, compiled here when a compiler is there.
"""

import argparse
import ctypes
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
parser.add_argument("--quick", action="store_true", help="10x10 with 128 rows in single precision only")
parser.add_argument("--worker", nargs=3, metavar=("CORES", "PRECISION", "LIBRARY"), help=argparse.SUPPRESS)
options = parser.parse_args()
if options.worker:
    cores = int(options.worker[0])
    os.environ["OMP_NUM_THREADS"] = options.worker[0]
    os.environ["JAX_PLATFORMS"] = "cpu"
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])

import jax
import numpy as np

import dgdlb_jax as dgd
from common import machine, random_networks, seconds, simulation

DT, STEP_SIZE = 0.01, 0.05
SIZES = ((3, 3, 1024), (10, 10, 128), (32, 32, 32))
ROWS = (128, 1024)
ROUNDS = 5
POLICIES = {"DGD-LB": 0, "least latency": 1}


def ours(arrays, policy, steps: int, rows: int):
    """The product."""
    simulate = simulation(arrays, steps, rows, DT)

    def run():
        done = simulate(policy)
        return done.final.workload, done.statistics

    return run


def ours_without(arrays, policy, steps: int, rows: int):
    """The product, which keeps the last state alone."""
    simulate = simulation(arrays, steps, rows, DT, save=dgd.SaveAt.final(resumable=False))

    def run():
        return simulate(policy).final.workload

    return run


def by_hand(function, arrays, greedy: int, steps: int, rows: int):
    """A function of `rival.c`."""
    count, F, B = arrays[1].shape
    dtype = arrays[0].dtype
    per_backend = (count, B)
    shapes = per_backend, (count, F, B), per_backend, per_backend, per_backend, (count, 2, B)
    results = [np.empty(shape, dtype) for shape in shapes]
    pointers = [ctypes.c_void_p(array.ctypes.data) for array in (*arrays, *results)]

    def run():
        numbers = [ctypes.c_int(count), ctypes.c_int(F), ctypes.c_int(B), ctypes.c_int(rows), ctypes.c_long(steps)]
        function(*numbers, ctypes.c_int(greedy), ctypes.c_double(DT), ctypes.c_double(STEP_SIZE), *pointers)
        return results

    return run


def compared(ours, theirs, steps: int) -> float:
    """The largest median difference of what two programs found: final workloads and the statistics, in units of their mean."""
    final, sums = ours
    workload, sent, held, low, high, rise = theirs
    part, size = steps / 2, np.mean(sums.mean_workload)
    pairs = [
        (final, workload, size),
        (sums.mean_workload, held / (2 * steps), size),
        (sums.lowest_workload, low, size),
        (sums.highest_workload, high, size),
        (sums.mean_routing, sent / sent.sum(-1, keepdims=True), np.mean(sums.mean_routing)),
        (sums.workload_growth, 6 * rise / (part * (part**2 - 1) * DT), size / (steps * DT)),
    ]
    return max(float(np.median(np.abs(np.asarray(ours) - theirs)) / unit) for ours, theirs, unit in pairs)


def with_numpy(arrays, steps: int, rows: int):
    """DGD-LB in NumPy, vectorised over topologies; projection by sorting."""
    rate, delay, mu, kappa = arrays
    lag = delay.astype(int)
    fraction, tau = delay - lag, delay * DT
    n, i, j = np.ogrid[tuple(slice(size) for size in delay.shape)]
    positions = np.arange(1, delay.shape[2] + 1)

    def gradient(seen):
        return (kappa[:, None] + seen) ** 2 / (mu * kappa)[:, None] + tau

    def run():
        x = np.full_like(delay, 1 / delay.shape[2])
        N, flow = np.ones_like(mu), rate[..., None] * x
        flows, works = np.tile(flow, (rows, 1, 1, 1)), np.ones((rows, *N.shape), N.dtype)
        inflow, reading, velocity = flow.sum(1), np.ones_like(x), -STEP_SIZE * gradient(np.ones_like(x))
        for k in range(steps):
            slope = inflow - mu * N / (kappa + N)
            guess = N + DT * slope
            works[k % rows], works[(k + 1) % rows] = N, guess
            look = works[(k + 1 - lag) % rows, n, j]
            seen, reading = look + fraction * (reading - look), look
            ahead = -STEP_SIZE * gradient(seen)
            y = x + DT / 2 * (velocity + ahead)
            ranked = -np.sort(-y, axis=2)
            excess = (np.cumsum(ranked, axis=2) - 1) / positions
            last = (ranked > excess).sum(2, keepdims=True) - 1
            x, velocity = np.maximum(y - np.take_along_axis(excess, last, 2), 0), ahead
            new = rate[..., None] * x
            flows[(k + 1) % rows] = new + fraction * (flow - new)
            flow, inflow = new, flows[(k + 1 - lag) % rows, n, i, j].sum(1)
            N = N + DT / 2 * (slope + inflow - mu * guess / (kappa + guess))
        return N, None

    return run


def work(cores: int, precision: str, library: str) -> None:
    """One JSON line per case."""
    jax.config.update("jax_enable_x64", precision == "float64")
    dtype = np.dtype(precision)
    rival, lean = (ctypes.CDLL(name) for name in library.split(":")) if library != "none" else (None, None)
    cases = [(10, 10, 128, 128)] if options.quick else [(*size, rows) for size in SIZES for rows in ROWS]
    for F, B, count, rows in cases:
        arrays = random_networks(count, F, B, rows, dtype)
        steps = 4 * ROWS[-1]
        for name, greedy in POLICIES.items():
            policy = dgd.LeastLatency() if greedy else dgd.DGDLB(STEP_SIZE)
            runs = {"ours": ours(arrays, policy, steps, rows), "ours, none": ours_without(arrays, policy, steps, rows)}
            if rival is not None and lean is not None:
                for kind, by in (("", rival), ("lean ", lean)):
                    runs[f"{kind}C"] = by_hand(by.scalar, arrays, greedy, steps, rows)
                    runs[f"{kind}packed C"] = by_hand(by.packed, arrays, greedy, steps, rows)
            if not greedy and (F, rows, cores, precision) == (10, 128, 1, "float32"):
                runs["NumPy"] = with_numpy(arrays, steps, rows)
            compiled, taken = in_turns({key: run for key, run in runs.items() if key != "NumPy"})
            if "NumPy" in runs:
                taken["NumPy"] = [seconds(runs["NumPy"], repeats=1)[1]]
            ends = {key: run() for key, run in runs.items() if key != "NumPy"}
            apart = [compared(ends["ours"], ends[key], steps) for key in ("C", "packed C") if key in ends]
            row = {"network": f"{F}x{B}", "topologies": count, "rows": rows, "threads": cores, "precision": precision}
            figures = {key: median(times) / (count * F * B * steps) * 1e9 for key, times in taken.items()}
            quotients = {
                key: median(mine / other for mine, other in zip(taken["ours"], times, strict=True))
                for key, times in taken.items()
                if key not in ("ours", "NumPy")
            }
            found = {"policy": name, "compile": compiled, "ns": figures, "ratio": quotients, "apart": apart}
            print(json.dumps(row | found), flush=True)


def in_turns(runs) -> tuple[float, dict[str, list[float]]]:
    """Seconds of compilation of the first, and of every call, one program after the other in every round: the machine's mood is the same
    for all."""
    compiled = seconds(runs["ours"], repeats=1)[0]
    for run in runs.values():
        run()
    taken = {key: [] for key in runs}
    for _ in range(ROUNDS):
        for key, run in runs.items():
            begin = time.perf_counter()
            jax.block_until_ready(run())
            taken[key].append(time.perf_counter() - begin)
    return compiled, taken


def compiled(folder: str, precision: str) -> str:
    """The shared libraries of `rival.c` in one precision, with statistics and without; `none` without a compiler."""
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        return "none"
    kind = "double" if precision == "float64" else "float"
    flags = ["-O3", "-march=native", "-ffast-math", "-fopenmp", "-shared", "-fPIC", f"-DREAL={kind}"]
    targets = [str(Path(folder) / f"rival-{precision}-{lean}.so") for lean in (0, 1)]
    for lean, target in enumerate(targets):
        source = str(Path(__file__).with_name("rival.c"))
        subprocess.run([compiler, *flags, f"-DLEAN={lean}", source, "-o", target], check=True)
    return ":".join(targets)


RIVALS = "C", "packed C", "lean C", "lean packed C", "ours, none"


def main() -> None:
    """Print the table and the geometric means of the ratios."""
    print(machine())
    print(
        f"ns per arc and step, {4 * ROWS[-1]} steps, medians of {ROUNDS} rounds; 'apart': largest median difference of final workloads"
    )
    print("and statistics from ours; the columns of rivals: their ns / ours over theirs\n")
    columns = ("network", "topologies", "rows", "threads", "precision", "policy", "ours", *RIVALS, "apart", "compile s")
    print("|", " | ".join(columns), "|")
    print("|---" * len(columns) + "|")
    ratios: dict[tuple[str, int], list[float]] = {}
    most = min(2, os.cpu_count() or 1)
    with tempfile.TemporaryDirectory() as folder:
        for precision in ("float32",) if options.quick else ("float32", "float64"):
            library = compiled(folder, precision)
            for cores in range(1, most + 1):
                worker = ["--worker", str(cores), precision, library, *["--quick"] * options.quick]
                with subprocess.Popen([sys.executable, __file__, *worker], stdout=subprocess.PIPE, text=True) as child:
                    for line in child.stdout or ():
                        row = json.loads(line)
                        print_row(row)
                        for key, ratio in row["ratio"].items():
                            ratios.setdefault((key, cores), []).append(ratio)
    mean = lambda values: float(np.exp(np.mean(np.log(values))))
    for (key, cores), values in sorted(ratios.items()):
        print(f"ours / {key}, {cores} cores: geometric mean {mean(values):.2f}, largest {max(values):.2f}")


def print_row(row) -> None:
    """A line of the table, and one for NumPy where it took part."""
    ns, ratio = row["ns"], row["ratio"]
    first = [row[key] for key in ("network", "topologies", "rows", "threads", "precision", "policy")]
    rivals = [f"{ns[key]:.2f} / {ratio[key]:.2f}" if key in ratio else "not measured" for key in RIVALS]
    apart = f"{max(row['apart']):.0e}" if row["apart"] else ""
    print(
        "|",
        " | ".join(map(str, [*first, f"{ns['ours']:.2f}", *rivals, apart])),
        f"| {row['compile']:.1f} |",
        flush=True,
    )
    if "NumPy" in ns:
        print(f"NumPy, the same case: {ns['NumPy']:.0f}", flush=True)


if __name__ == "__main__":
    work(int(options.worker[0]), *options.worker[1:]) if options.worker else main()
