"""What threads bring on a CPU: batches in one part and in as many as there are cores, in alternating order in one process.

python benchmarks/bench_threads.py
"""

import time

import jax
import numpy as np

import dgdlb_jax as dgd
from common import machine
from dgdlb_jax.numerics.parallel import cores

PAIRS, STEPS, DT = 9, 1000, 0.02


def pairs(run) -> tuple[list[float], list[float]]:
    """Seconds with one thread and with one for each core, compilation apart."""
    found: dict[int, list[float]] = {1: [], cores(): []}
    for threads in found:
        jax.block_until_ready(run(threads))
    for k in range(PAIRS):
        for threads in list(found)[:: 1 if k % 2 else -1]:
            began = time.perf_counter()
            jax.block_until_ready(run(threads))
            found[threads].append(time.perf_counter() - began)
    return found[1], found[cores()]


def row(what: str, run) -> None:
    """One line of the table."""
    one, many = map(np.array, pairs(run))
    print(f"| {what} | {np.median(one):.3f} | {np.median(many):.3f} | {np.median(many / one):.2f} |")


def main() -> None:
    print(f"{machine()}\n\n| what | 1 thread, s | {cores()} threads, s | ratio |\n|---|---|---|---|")
    draw = dgd.topologies.complete
    networks = draw(jax.random.key(0), frontends=10, backends=10, count=4096)
    networks = networks.with_latency_scale(
        127 * DT * 0.98 / float(np.maximum(networks.latency, networks.feedback_latency).max())
    )
    save = dgd.SaveAt.statistics(resumable=False)

    def simulated(threads: int):
        how = dgd.Execution(threads=threads)
        return dgd.simulate_batch(
            networks, dgd.DGDLB(0.01), duration=STEPS * DT, dt=DT, save=save, execution=how, throw=False
        )

    row(f"`simulate_batch`, 4096 networks of 10 x 10, {STEPS} steps, float32", simulated)
    jax.config.update("jax_enable_x64", True)
    fewer = draw(jax.random.key(0), frontends=10, backends=10, count=2048)
    row("`solve_optimum`, 2048 networks of 10 x 10, float64", lambda threads: dgd.solve_optimum(fewer, threads=threads))


if __name__ == "__main__":
    main()
