"""How tight the sufficient step sizes are: sufficient / exact / observed in simulation, over four latency families and the real fleets.

python benchmarks/study_step_sizes.py --count 250 --picture tightness.png
"""

import argparse
import time
from functools import partial

import jax

jax.config.update("jax_enable_x64", True)

import numpy as np

import dgdlb_jax as dgd
from common import machine
from dgdlb_jax.fleets.load import fleet_names
from dgdlb_jax.studies.stability import LATENCIES, study_networks, tightness


def one(name: str) -> dgd.Network:
    """A real fleet as a batch of one."""
    return dgd.stack([dgd.load_fleet(name)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=250, help="networks per family")
    parser.add_argument(
        "--observe", type=int, default=250, help="for how many of them to look for the limit in simulation"
    )
    parser.add_argument("--families", nargs="*", default=LATENCIES, help="latency families")
    parser.add_argument("--fleets", nargs="*", default=fleet_names(), help="real fleets")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--picture", help="write a picture of the distributions")
    options = parser.parse_args()
    print(machine(), flush=True)
    found = {}
    networks = {name: partial(study_networks, name, options.count, seed=options.seed) for name in options.families}
    networks |= {name: partial(one, name) for name in options.fleets}
    for name, draw in networks.items():
        begin = time.perf_counter()
        result = tightness(draw(), observe=options.observe)
        print(f"{name}: {result.exact.size} networks, {time.perf_counter() - begin:.0f} s")
        if not np.isfinite(result.exact).any():
            print("  nothing limits its step size")
            continue
        if name in options.families:
            found[name] = result
        with np.errstate(invalid="ignore"):  # networks without a limit
            ratios = {"observed": result.observed / result.exact}
            ratios |= {name: step / result.exact for name, step in result.sufficient.items()} | result.distributed
        for rule, ratio in ratios.items():
            ratio = ratio[np.isfinite(result.exact)]
            low, middle, high = np.nanquantile(ratio, [0, 0.5, 1])
            above = int(np.sum(ratio > 1 + 1e-9)) if rule != "observed" else int(np.sum(np.abs(ratio - 1) >= 0.01))
            note = "off by more than 1 %" if rule == "observed" else "above the exact limit"
            print(f"  {rule:20s} {low:.3f} / {middle:.3f} / {high:.3f}   {above} {note}", flush=True)
    if options.picture and found:
        from dgdlb_jax.reports.stability_plots import tightness_plot

        tightness_plot(found).figure.savefig(options.picture, dpi=130)


if __name__ == "__main__":
    main()
