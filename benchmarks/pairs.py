"""Two checkouts of this project against each other, in alternating pairs.

    python benchmarks/pairs.py OLD NEW [--pairs 15]

OLD and NEW are folders with a `dgdlb_jax` in them, as `git worktree add` makes. Each has a process of its own, which compiles all cells and
waits; then they take turns, so what else the machine does slows both. The cells are those of `bench_rivals.py --quick` on one core, and
runs with their gradients as in `bench_gradients.py`. A ratio is the median of the pairs; its interval, of 95 %, is that of two order
statistics, which assumes nothing of how times scatter. (In n pairs the number of ratios below their median is binomial.)
"""

import argparse
import os
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
from scipy.stats import binom

CORE = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_force_host_platform_device_count=1", "DGDLB_THREADS": "1"}
# Networks, rows of their delay lines, steps: a tenth of a second each at most.
FORWARD = ((128, 128, 1000),)
GRADIENTS = ((1, 64, 2000), (4, 64, 2000), (4, 512, 2000), (4, 4096, 8192), (128, 64, 200))


def cells() -> dict:
    """Name -> a function that runs a compiled cell with the `dgdlb_jax` of this process."""
    import jax
    import jax.numpy as jnp

    import dgdlb_jax as dgd
    from common import random_networks, simulation

    policies = {"DGD-LB": dgd.DGDLB(0.05), "least latency": dgd.LeastLatency()}
    found = {}
    for count, rows, steps in FORWARD:
        run = simulation(random_networks(count, 10, 10, rows, np.float32), steps, rows, 0.01)
        found |= {f"{count} x 10x10, {name}": lambda p=policy, run=run: run(p) for name, policy in policies.items()}
    for count, rows, steps in GRADIENTS:
        networks = random_networks(count, 10, 10, rows, np.float32)
        at = jnp.full((count, 10), 0.05, jnp.float32)
        for name, how in (("value and gradient", {}), ("by checkpoints", {"adjoint": dgd.Checkpoints()})):
            run = simulation(networks, steps, rows, 0.01, **how)
            cost = lambda step_size, run=run: run(dgd.DGDLB(step_size)).statistics.cost.sum()
            found[f"{count} x 10x10, {rows} rows, {name}"] = partial(jax.jit(jax.value_and_grad(cost)), at)
    return found


def work() -> None:
    """Print the names of all compiled cells, then the seconds of every cell whose name is asked for."""
    import jax

    known = cells()
    for run in known.values():
        for _ in range(2):
            jax.block_until_ready(run())
    print("\t".join(known), flush=True)
    for line in sys.stdin:
        begin = time.perf_counter()
        jax.block_until_ready(known[line.rstrip("\n")]())
        print(time.perf_counter() - begin, flush=True)


class Checkout:
    """The process of one checkout."""

    def __init__(self, folder: Path):
        if not (folder / "dgdlb_jax").is_dir():
            sys.exit(f"{folder}: there is no dgdlb_jax in it; name the folder of a checkout.")
        command, environment = [sys.executable, __file__, "--worker"], os.environ | CORE | {"PYTHONPATH": str(folder)}
        self._process = subprocess.Popen(
            command, env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        self.cells = self._line().split("\t")

    def seconds(self, cell: str) -> float:
        print(cell, file=self._process.stdin, flush=True)
        return float(self._line())

    def close(self) -> None:
        self._process.communicate()

    def _line(self) -> str:
        line = self._process.stdout.readline()
        return line.rstrip("\n") or sys.exit("A checkout's process has ended; what it said is above.")


def median_and_interval(ratios: np.ndarray) -> tuple[float, float, float]:
    """The median of a sample, and the order statistics that hold that of its distribution in 95 % of samples; inf from 5 or fewer."""
    ordered = np.concatenate([[0.0], np.sort(ratios), [np.inf]])
    outside = int(binom.ppf(0.025, ratios.size, 0.5))
    return float(np.median(ratios)), float(ordered[outside]), float(ordered[-1 - outside])


def main(old: Path, new: Path, pairs: int) -> None:
    """Print the table."""
    both = [Checkout(folder.resolve()) for folder in (old, new)]
    names = both[0].cells
    taken = np.empty((pairs, len(names), 2))
    for pair in range(pairs):
        for place, name in enumerate(names):
            for who in (0, 1) if pair % 2 else (1, 0):
                taken[pair, place, who] = both[who].seconds(name)
    for checkout in both:
        checkout.close()
    ratios = taken[..., 1] / taken[..., 0]
    print(
        f"new / old, medians of {pairs} pairs\n\n| cell | old, s | new, s | new / old | 95 % |\n|---|---|---|---|---|"
    )
    for place, name in enumerate(names):
        middle, low, high = median_and_interval(ratios[:, place])
        before, after = np.median(taken[:, place], axis=0)
        print(f"| {name} | {before:.4f} | {after:.4f} | {middle:.3f} | {low:.3f} to {high:.3f} |")
    middle, low, high = median_and_interval(np.exp(np.log(ratios).mean(1)))
    print(f"| geometric mean | | | {middle:.3f} | {low:.3f} to {high:.3f} |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--pairs", type=int, default=15)
    parser.add_argument("old", type=Path, metavar="OLD")
    parser.add_argument("new", type=Path, metavar="NEW")
    if "--worker" in sys.argv[1:]:
        work()
    else:
        options = parser.parse_args()
        main(options.old, options.new, options.pairs)
