"""Value and gradient over the forward run, and memory, against plain autodiff of a scan with a ring; a million steps in bounded memory.

    python benchmarks/bench_gradients.py [--double] [--million]

The rival, in the same run, is what one writes first: DGD-LB by a scan over a ring of (rows, frontends, backends), and `jax.grad` of it.
Memory is what the compiled program allocates besides its arguments; for the million steps it is the peak of the process.
"""

import argparse
import os

parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
parser.add_argument("--double", action="store_true", help="double precision")
parser.add_argument("--million", action="store_true", help="the million steps instead of the table")
options = parser.parse_args()
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=1"

import resource
import time

import jax
import jax.numpy as jnp
import numpy as np

import dgdlb_jax as dgd
from common import machine

jax.config.update("jax_enable_x64", options.double)
DT, STEP_SIZE = 0.01, 0.05
TURNS = 21


def networks(count: int, size: int, rows: int) -> dgd.Network:
    """Random networks whose latencies fill a delay buffer of so many rows."""
    rng = np.random.default_rng(0)
    draw = lambda low, high, *shape: jnp.asarray(rng.uniform(low, high, (count, *shape)), float)

    def build(rate, steps, max_rate):
        return dgd.Network(rate, steps * DT, dgd.Hyperbolic(max_rate=max_rate, half_load=jnp.ones(size)))

    return jax.vmap(build)(draw(0.5, 1.5, size), draw(1, rows - 3, size, size), draw(2, 4, size))


def start(batch: dgd.Network):
    """Equal shares, one request at each backend."""
    shape, dtype = batch.latency.shape, batch.latency.dtype
    return jnp.full(shape, 1 / shape[-1], dtype), jnp.ones((shape[0], shape[-1]), dtype)


def ours(batch: dgd.Network, steps: int, rows: int, adjoint=None):
    """Cost of the runs as a function of the step sizes."""

    def cost(step_size):
        runs = dgd.simulate_batch(
            batch, dgd.DGDLB(step_size), duration=steps * DT, dt=DT, initial=start(batch), save=dgd.SaveAt.statistics(),
            max_latency=(rows - 2) * DT, throw=False, adjoint=adjoint,
        )  # fmt: skip
        return runs.statistics.cost.sum()

    return cost


def textbook(batch: dgd.Network, steps: int, rows: int):
    """The same cost, first order, by a scan over a ring, vmapped over networks."""

    def one(network, step_size):
        lag = network.latency / DT
        whole, fraction = jnp.floor(lag).astype(int), lag - jnp.floor(lag)
        i, j = jnp.indices(lag.shape)

        def look(ring, k, *index):
            now, before = ring[(k - whole) % rows, *index], ring[(k - whole - 1) % rows, *index]
            return now + fraction * (before - now)

        def step(carry, k):
            routing, workload, cost, flows, workloads = carry
            gradient = jax.vmap(network.service.marginal_latency)(look(workloads, k, j)) + network.cost_latency
            inflow = look(flows, k, i, j).sum(0)
            routing = dgd.project_simplex((routing - DT * step_size[:, None] * gradient).T, guess=routing.T > 0).T
            workload = workload + DT * (inflow - network.service.rate(workload))
            flow = network.arrival_rate[:, None] * routing
            cost = cost + DT * (workload.sum() + (flow * network.cost_latency).sum())
            flows = flows.at[(k + 1) % rows].set(flow)
            return (routing, workload, cost, flows, workloads.at[(k + 1) % rows].set(workload)), None

        shares = jnp.full(lag.shape, 1 / lag.shape[1], lag.dtype)
        flow, one = network.arrival_rate[:, None] * shares, jnp.ones(lag.shape[1], lag.dtype)
        rings = jnp.broadcast_to(flow, (rows, *flow.shape)), jnp.broadcast_to(one, (rows, *one.shape))
        begin = (shares, one, jnp.zeros((), lag.dtype), *rings)
        return jax.lax.scan(step, begin, jnp.arange(steps))[0][2]

    return lambda step_size: jax.vmap(one)(batch, step_size).sum()


def measure(cost, step_size) -> tuple[float, float, float, float, float]:
    """Seconds forward and with the gradient, the quickest of many; their ratio, the median of as many turns; the memory of both in MB.

    Compiled before. The two of a turn run one after the other: what else the machine does slows both.
    """
    runs = [jax.jit(function).lower(step_size).compile() for function in (cost, jax.value_and_grad(cost))]
    seconds = np.empty((TURNS, 2))
    for turn in range(TURNS):
        for place, run in enumerate(runs):
            begin = time.perf_counter()
            jax.block_until_ready(run(step_size))
            seconds[turn, place] = time.perf_counter() - begin
    memory = [run.memory_analysis().temp_size_in_bytes / 1e6 for run in runs]
    return *seconds.min(0), np.median(seconds[:, 1] / seconds[:, 0]), *memory


def table() -> None:
    """The table against plain autodiff."""
    print(
        "| networks | rows | steps | what | forward ns | with gradient ns | ratio | memory forward MB | with gradient MB |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    cases = ((1, 64, 2000), (4, 64, 2000), (4, 512, 2000), (4, 512, 20_000), (4, 4096, 8192), (128, 64, 2000))
    for count, rows, steps in cases:
        batch = networks(count, 10, rows)
        few = max(100, min(500, 200_000 // rows))
        step_size = jnp.full((count, 10), STEP_SIZE)
        lines = [
            ("full storage", steps, ours(batch, steps, rows, dgd.FullStorage())),
            ("checkpoints", steps, ours(batch, steps, rows, dgd.Checkpoints())),
        ]
        if steps < 20_000:  # the rival's time per step does not depend on it
            lines.append(("plain autodiff of a ring", few, textbook(batch, few, rows)))
        for what, length, cost in lines:
            forward, both, ratio, small, large = measure(cost, step_size)
            unit = 1e9 / (count * 100 * length)
            print(
                f"| {count} x 10x10 | {rows} | {length} | {what} | {forward * unit:.1f} | {both * unit:.1f} | {ratio:.2f} | "
                f"{small:.1f} | {large:.1f} |",
                flush=True,
            )


def million() -> None:
    """A million steps of one 10x10 network with checkpoints, and the peak memory of the process."""
    batch, before = networks(1, 10, 128), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    cost, step_size = ours(batch, 1_000_000, 128, dgd.Checkpoints()), jnp.full((1, 10), STEP_SIZE)
    compiled = jax.jit(jax.value_and_grad(cost)).lower(step_size).compile()
    begin = time.perf_counter()
    value, slope = jax.block_until_ready(compiled(step_size))
    taken, peak = time.perf_counter() - begin, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    print(
        f"a million steps, 10x10, 128 rows, checkpoints: value and gradient in {taken:.1f} s, peak memory of the process "
        f"{peak:.0f} MB ({before:.0f} MB before), cost {float(value):.6g}, norm of the gradient {float(jnp.linalg.norm(slope)):.4g}"
    )


if __name__ == "__main__":
    print(machine())
    print(
        "float64" if options.double else "float32",
        f"| ns per arc and step, the quickest of {TURNS}, compilation apart; the ratio is the median of {TURNS} turns\n",
    )
    if not options.million:
        table()
    else:
        million()
