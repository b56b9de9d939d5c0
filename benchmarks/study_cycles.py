"""Where DGD-LB falls into a limit cycle: start distance x step size x load x latency.

python benchmarks/study_cycles.py --count 16 --picture cycles.png
"""

import argparse
import time

import jax

jax.config.update("jax_enable_x64", True)

import numpy as np

from common import machine
from dgdlb_jax.studies.cycle_map import cycle_map


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=16, help="networks for each load and latency")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--picture", help="write the map")
    options = parser.parse_args()
    print(machine(), flush=True)
    begin = time.perf_counter()
    found = cycle_map(count=options.count, seed=options.seed)
    runs = np.isfinite(found.failed).sum()
    print(
        f"{runs} runs, {time.perf_counter() - begin:.0f} s; smallest step size with a cycle, over the critical one:\n"
    )
    print(
        "| load | latency / service time | networks with a cycle | lowest | median of these | below what is guaranteed locally |"
    )
    print("|---|---|---|---|---|---|")
    for a, load in enumerate(found.loads):
        for b, latency in enumerate(found.latencies):
            smallest, proven = found.smallest[a, b], found.proven[a, b]
            limited = np.isfinite(proven)
            cycling = np.isfinite(smallest) & limited
            least, middle = (
                f"{figure(smallest[cycling]):.2f}" if cycling.any() else "-" for figure in (np.min, np.median)
            )
            below = int((smallest[cycling] <= proven[cycling]).sum())
            print(f"| {load:g} | {latency:g} | {cycling.sum()} of {limited.sum()} | {least} | {middle} | {below} |")
    print("\nshare of all networks with a cycle, per distance of the start (rows) and step size (columns):")
    print("  distance  " + "  ".join(f"{fraction:5g}" for fraction in found.fractions))
    for d, distance in enumerate(found.distances):
        print(
            f"  {distance:8g}  " + "  ".join(f"{share:5.2f}" for share in np.nanmean(found.failed, axis=(0, 1, 2))[d])
        )
    if options.picture:
        from dgdlb_jax.reports.stability_plots import cycle_map_plot

        cycle_map_plot(found).savefig(options.picture, dpi=130)


if __name__ == "__main__":
    main()
