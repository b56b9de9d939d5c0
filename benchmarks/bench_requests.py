"""Whole requests against the fluid run: time per arc and step, and requests per second.

    python benchmarks/bench_requests.py [--networks 64] [--size 10] [--steps 4000] [--scale 1 100] [--double]

Each row is the fastest of several calls that take turns with the fluid run of the same networks, on one thread.
"""

import argparse
import os

parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
parser.add_argument("--networks", type=int, default=64)
parser.add_argument("--size", type=int, default=10, help="frontends and backends")
parser.add_argument("--steps", type=int, default=4000)
parser.add_argument("--scale", type=float, nargs="+", default=[1.0, 100.0])
parser.add_argument("--double", action="store_true", help="double precision")
options = parser.parse_args()
os.environ["DGDLB_THREADS"] = "1"

import time

import jax

import dgdlb_jax as dgd
from common import machine

jax.config.update("jax_enable_x64", options.double)
DT, MAX_LATENCY, TURNS = 0.02, 3.0, 7


def main() -> None:
    key = jax.random.key(0)
    networks = dgd.topologies.complete(key, frontends=options.size, backends=options.size, count=options.networks)
    keys = jax.random.split(key, options.networks)
    policy, grid = dgd.DGDLB(0.01), {"duration": options.steps * DT, "dt": DT, "max_latency": MAX_LATENCY}

    def fluid():
        return dgd.simulate_batch(networks, policy, save=dgd.SaveAt.statistics(resumable=False), **grid)

    def requests(**more):
        return lambda: dgd.simulate_requests_batch(networks, policy, keys, **grid, **more)

    rows = {"fluid": fluid}
    for scale in options.scale:
        rows[f"counted at backends, scale {scale:g}"] = requests(scale=scale, follow=False)
        rows[f"the same, requests followed, scale {scale:g}"] = requests(scale=scale)
        rows[f"counted on arcs, scale {scale:g}"] = requests(scale=scale, count="arc", follow=False)
    first, best, served = {}, dict.fromkeys(rows, float("inf")), {}
    for name, run in rows.items():
        began = time.perf_counter()
        served[name] = float(jax.block_until_ready(run()).statistics.arrivals.sum())
        first[name] = time.perf_counter() - began
    for _ in range(TURNS):
        for name, run in rows.items():
            began = time.perf_counter()
            jax.block_until_ready(run().statistics.arrivals)
            best[name] = min(best[name], time.perf_counter() - began)
    work = options.networks * options.size**2 * options.steps
    print(machine())
    print("\n| run | first call, s | ns per arc and step | over fluid | requests/s |\n|---|---|---|---|---|")
    for name in rows:
        counted = "" if name == "fluid" else f"{served[name] / best[name]:.2g}"
        print(
            f"| {name} | {first[name]:.1f} | {1e9 * best[name] / work:.2f} | {best[name] / best['fluid']:.2f} | {counted} |"
        )


if __name__ == "__main__":
    main()
