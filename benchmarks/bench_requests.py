"""Whole requests against the fluid run: time per arc and step; and against exact events in C: time per request.

    python benchmarks/bench_requests.py [--compiling] [--networks 64] [--size 10] [--steps 4000] [--scale 1 100] [--double] [--each 0.02 1]

Each row is the fastest of several calls that take turns with the fluid run of the same networks, on one thread. The events (`events.c`,
compiled here when a compiler is there) serve the same networks for the same time under the routing of the optimum, so that their means
have the same error; `--each`: at how many requests per arc and step. The scatter of mean latencies over `--seeds` says what is left of it
when they come from the identity of `stationary_latency` (which events could sum up as well): time times variance is the price of a
given error. Ciw, a queueing library in Python, serves one server, when it is installed. `--compiling`: instead, what the first call of
every policy takes (with JAX_COMPILATION_CACHE_DIR unset).
"""

import argparse
import os

parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
parser.add_argument("--networks", type=int, default=64)
parser.add_argument("--size", type=int, default=10, help="frontends and backends")
parser.add_argument("--steps", type=int, default=4000)
parser.add_argument("--scale", type=float, nargs="+", default=[1.0, 100.0])
parser.add_argument("--double", action="store_true", help="double precision")
parser.add_argument(
    "--each", type=float, nargs="*", default=[0.02, 0.06, 0.2, 1.0, 3.0], help="requests per arc and step"
)
parser.add_argument("--compiling", action="store_true", help="only the first call of every policy")
parser.add_argument("--seeds", type=int, default=8, help="runs of every network beside the events")
options = parser.parse_args()
os.environ["DGDLB_THREADS"] = "1"

import ctypes
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

import jax
import numpy as np

import dgdlb_jax as dgd
from common import machine

jax.config.update("jax_enable_x64", options.double)
DT, MAX_LATENCY, TURNS = 0.02, 3.0, 7


def main() -> None:
    key = jax.random.key(0)
    networks = dgd.topologies.complete(key, frontends=options.size, backends=options.size, count=options.networks)
    keys = jax.random.split(key, options.networks)
    if options.compiling:
        print(machine())
        return compiling(networks, keys)
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
        rows[f"until the answer is back, scale {scale:g}"] = requests(scale=scale, count="own", follow=False)
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

    in_python()
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        print("\nNo C compiler was found: no events.")
        return
    against_events(compiler, networks, key)


def compiling(networks: dgd.Network, keys) -> None:
    """What the first call takes for every policy, requests followed: seconds of the clock, and of processors."""
    optima, step = dgd.solve_optimum(networks), dgd.default_step_size(networks)
    print("\n| policy | first call, s | processor, s |\n|---|---|---|")
    for name, balancer in dgd.BALANCERS.items():
        policy = balancer.make(networks, optima, step)
        began, worked = time.perf_counter(), time.process_time()
        run = dgd.simulate_requests_batch(networks, policy, keys, duration=2.0, dt=DT, max_latency=MAX_LATENCY)
        jax.block_until_ready(run.statistics.arrivals)
        print(
            f"| {name} | {time.perf_counter() - began:.1f} | {time.process_time() - worked:.1f} |",
            flush=True,
        )


def in_python() -> None:
    """What a request costs in Ciw: one server at 64 % load, in order of arrival and shared."""
    try:
        import ciw
    except ImportError:
        print("\nCiw is not installed: no queueing library.")
        return
    law, costs = ciw.dists.Exponential, []
    for servers, node in ((1, ciw.Node), (float("inf"), ciw.PSNode)):
        network = ciw.create_network(
            arrival_distributions=[law(1.45)], service_distributions=[law(2.25)], number_of_servers=[servers]
        )
        began = time.process_time()
        simulation = ciw.Simulation(network, node_class=node)
        simulation.simulate_until_max_time(20_000.0)
        costs.append(1e6 * (time.process_time() - began) / len(simulation.get_all_records()))
    print(f"\nCiw {ciw.__version__}: {costs[0]:.0f} us a request in order of arrival, {costs[1]:.0f} us shared.")


def against_events(compiler: str, networks: dgd.Network, key) -> None:
    """The second table: processor time per request, how far mean workloads of all networks are apart, and the price of an error."""
    library = str(Path(tempfile.mkdtemp()) / "events.so")
    flags = ["-O3", "-march=native", "-shared", "-fPIC"]
    subprocess.run([compiler, *flags, str(Path(__file__).with_name("events.c")), "-o", library, "-lm"], check=True)
    optima = dgd.solve_optimum(networks)
    routing = np.asarray(optima.routing / optima.routing.sum(-1, keepdims=True), float)
    policy, duration = dgd.FixedRouting(routing), options.steps * DT
    rate = np.asarray(networks.arrival_rate.sum(-1), float)
    grid = {"duration": duration, "dt": DT, "max_latency": MAX_LATENCY, "follow": False, "after": duration / 2}
    empty = {"initial": (routing, np.zeros((options.networks, options.size)))}
    print(
        "\n| requests per arc and step | events in C, ns each | counted at backends | over C | on arcs | over C | apart | error of one "
        "| error over that of C | by the identity | price over C at backends | on arcs |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|---|---|")
    for each in options.each:
        scale = each * options.networks * options.size**2 / (rate.sum() * DT)
        quickest, found = dict.fromkeys(("C", "backend", "arc"), float("inf")), {"C": [], "direct": [], "identity": []}
        for turn in range(options.seeds):
            began = time.process_time()
            sent, exact = events(library, networks, routing, scale, duration, seed=turn)
            quickest["C"] = min(quickest["C"], (time.process_time() - began) / sent)
            found["C"].append(exact)
            keys = jax.random.split(jax.random.fold_in(key, turn), options.networks)
            for count in ("backend", "arc"):
                began = time.process_time()
                run = dgd.simulate_requests_batch(networks, policy, keys, scale=scale, count=count, **grid, **empty)
                ours = np.asarray(run.statistics.mean_workload, float).sum(-1)
                quickest[count] = min(quickest[count], (time.process_time() - began) / sent)
            found["direct"].append(ours)
            one = lambda tree, n: jax.tree.map(lambda leaf: leaf[n], tree)
            latencies = [
                dgd.stationary_latency(one(run, n), one(networks.anonymous(), n), one(optima, n), scale)
                for n in range(options.networks)
            ]
            found["identity"].append(np.array(latencies) * rate * scale)
        c, backend, arc = (1e9 * quickest[name] for name in ("C", "backend", "arc"))
        ratio = np.mean(found["direct"], 0) / np.mean(found["C"], 0)
        variance = {name: np.var(values, axis=0, ddof=1).mean() for name, values in found.items()}
        direct, smaller = (variance[name] / variance["C"] for name in ("direct", "identity"))
        print(
            f"| {each:g} | {c:.0f} | {backend:.0f} | {backend / c:.2f} | {arc:.0f} | {arc / c:.2f} | {ratio.mean() - 1:+.4f} "
            f"| {ratio.std(ddof=1) / len(ratio) ** 0.5:.4f} | {direct**0.5:.2f} | {smaller**0.5:.2f} | {smaller * backend / c:.2g} "
            f"| {smaller * arc / c:.2g} |",
            flush=True,
        )


def events(
    library: str, networks: dgd.Network, routing, scale: float, duration: float, seed: int
) -> tuple[int, np.ndarray]:
    """Requests sent, and the mean number of requests at the backends of each network."""
    run = ctypes.CDLL(library).events
    run.restype = ctypes.c_long
    number, doubles = ctypes.c_double, lambda values: np.ascontiguousarray(values, float)
    pointer = lambda values: values.ctypes.data_as(ctypes.POINTER(number))
    sent, found = 0, np.zeros((options.networks, options.size))
    service = networks.service
    for k in range(options.networks):
        inputs = [
            doubles(networks.arrival_rate[k]) * scale, doubles(np.cumsum(routing[k], -1)), doubles(networks.latency[k]),
            doubles(service.max_rate[k]) * scale, doubles(service.half_load[k]) * scale,
        ]  # fmt: skip
        size, first = options.size, ctypes.c_uint64(1 + 1_000_003 * seed + k)
        sent += run(size, size, number(duration), number(duration / 2), first, *map(pointer, (*inputs, found[k])))
    return sent, found.sum(-1)


if __name__ == "__main__":
    main()
