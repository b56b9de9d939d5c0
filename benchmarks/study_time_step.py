"""How the time step of the simulator moves the limit that one observes: observed over exact critical step size.

python benchmarks/study_time_step.py --count 32
"""

import argparse
import time

import jax

jax.config.update("jax_enable_x64", True)

import jax.numpy as jnp
import numpy as np

import dgdlb_jax as dgd
from common import machine
from dgdlb_jax.stability.critical import critical_mode
from dgdlb_jax.studies.stability import coarsest_step, observe_limit, study_networks


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=32, help="networks")
    parser.add_argument("--family", default="three decades", help="latency family")
    parser.add_argument("--steps", type=int, nargs="+", default=[160, 80, 40], help="steps per period of oscillation")
    options = parser.parse_args()
    print(machine(), "\n", flush=True)
    networks = study_networks(options.family, options.count)
    optimum = dgd.solve_optimum(networks)
    mode = critical_mode(networks, dgd.DGDLB(jnp.ones_like(networks.arrival_rate)), optimum)
    exact, period = np.asarray(mode.step_size), np.asarray(mode.period)
    print(
        "| steps per period | networks | observed / exact: lowest | median | highest | seconds |\n|---|---|---|---|---|---|"
    )
    for steps in options.steps:
        begin = time.perf_counter()
        # Where the fastest backend already asks for a finer step, this one is not what is tested.
        tested = np.isfinite(exact) & (period / steps <= coarsest_step(networks))
        if not tested.any():
            print(f"| {steps} | 0 | | | | |")
            continue
        ratio = (observe_limit(networks, optimum, exact, period, rounds=9, steps_per_period=steps) / exact)[tested]
        low, middle, high = np.quantile(ratio, [0, 0.5, 1])
        print(
            f"| {steps} | {tested.sum()} | {low:.4f} | {middle:.4f} | {high:.4f} | {time.perf_counter() - begin:.0f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
