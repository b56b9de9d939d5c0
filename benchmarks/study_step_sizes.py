"""How tight the sufficient step sizes are: sufficient / exact / observed in simulation, over four latency families.

python benchmarks/study_step_sizes.py --count 250 --picture tightness.png
"""

import argparse
import time

import jax

jax.config.update("jax_enable_x64", True)

import numpy as np

from common import machine
from dgdlb_jax.experiments.stability import LATENCIES, study_networks, tightness


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=250, help="networks per family")
    parser.add_argument(
        "--observe", type=int, default=250, help="for how many of them to look for the limit in simulation"
    )
    parser.add_argument("--families", nargs="+", default=LATENCIES, help="latency families")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--picture", help="write a picture of the distributions")
    options = parser.parse_args()
    print(machine(), flush=True)
    found = {}
    for latencies in options.families:
        begin = time.perf_counter()
        found[latencies] = result = tightness(
            study_networks(latencies, options.count, seed=options.seed), observe=options.observe
        )
        print(f"{latencies}: {result.exact.size} networks, {time.perf_counter() - begin:.0f} s")
        with np.errstate(invalid="ignore"):  # networks without a limit
            ratios = {"observed": result.observed / result.exact}
            ratios |= {name: step / result.exact for name, step in result.sufficient.items()} | result.distributed
        for name, ratio in ratios.items():
            ratio = ratio[np.isfinite(result.exact)]
            low, middle, high = np.nanquantile(ratio, [0, 0.5, 1])
            above = int(np.sum(ratio > 1 + 1e-9)) if name != "observed" else int(np.sum(np.abs(ratio - 1) >= 0.01))
            note = "off by more than 1 %" if name == "observed" else "above the exact limit"
            print(f"  {name:20s} {low:.3f} / {middle:.3f} / {high:.3f}   {above} {note}", flush=True)
    if options.picture:
        from dgdlb_jax.experiments.stability_plots import tightness_plot

        tightness_plot(found).figure.savefig(options.picture, dpi=130)


if __name__ == "__main__":
    main()
