"""Time per arc and step, and how it depends on the length of the delay buffer.

    python benchmarks/bench_simulate.py [--device cpu|gpu|tpu] [--cores 1] [--double] [--picture time-per-arc.png]

The rival, in the same run, is the textbook way: a scan over steps that keeps the history in a ring, written for one network and vmapped.
"""

import argparse
import os

parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
parser.add_argument("--device", default="cpu", help="cpu, gpu or tpu")
parser.add_argument("--cores", type=int, default=1, help="virtual devices that the batch is spread over, on cpu")
parser.add_argument("--double", action="store_true", help="double precision")
parser.add_argument("--picture", help="draw how the time per arc and step depends on the sizes, and print no tables")
options = parser.parse_args()
os.environ["JAX_PLATFORMS"] = {"gpu": "cuda"}.get(options.device, options.device)
os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={options.cores}"

import jax
import jax.numpy as jnp
import numpy as np

import dgdlb_jax as dgd
from common import machine, seconds
from dgdlb_jax.simulation.plan import choose_lanes

jax.config.update("jax_enable_x64", options.double)
DT, STEP_SIZE = 0.01, 0.05


def networks(count: int, frontends: int, backends: int, rows: int) -> dgd.Network:
    """Random networks whose latencies fill a delay buffer of so many rows."""
    rng = np.random.default_rng(0)
    draw = lambda low, high, *shape: jnp.asarray(rng.uniform(low, high, (count, *shape)), float)

    def build(rate, steps, max_rate):
        return dgd.Network(rate, steps * DT, dgd.Hyperbolic(max_rate=max_rate, half_load=jnp.ones(backends)))

    rate = draw(0.5, 1.5, frontends) * backends / frontends
    return jax.vmap(build)(rate, draw(1, rows - 3, frontends, backends), draw(2, 4, backends))


def ours(
    batch: dgd.Network, policy, steps: int, rows: int, lanes: int | None = None, devices: int | None = None, keep=False
):
    """The product, keeping statistics only; and, if wanted, the delay lines to go on from."""
    return lambda: dgd.simulate_batch(
        batch,
        policy,
        duration=steps * DT,
        dt=DT,
        save=dgd.SaveAt.statistics(resumable=keep),
        max_latency=(rows - 2) * DT,
        execution=dgd.Execution(lanes=lanes, devices=devices, threads=None if devices is None else 1),
        throw=False,
    )


def textbook(batch: dgd.Network, steps: int, rows: int):
    """DGD-LB by a scan over a ring of (rows, frontends, backends), first order, vmapped over networks."""

    def one(network):
        lag = network.latency / DT
        whole, fraction = jnp.floor(lag).astype(int), lag - jnp.floor(lag)
        i, j = jnp.indices(lag.shape)

        def look(ring, k, *index):
            now, before = ring[(k - whole) % rows, *index], ring[(k - whole - 1) % rows, *index]
            return now + fraction * (before - now)

        def step(carry, k):
            routing, workload, flows, workloads = carry
            seen = look(workloads, k, j)
            inflow = look(flows, k, i, j).sum(0)
            gradient = jax.vmap(network.service.marginal_latency)(seen) + network.cost_latency
            moved = routing - DT * STEP_SIZE * gradient
            ranked = -jnp.sort(-moved, axis=1)
            excess = (jnp.cumsum(ranked, axis=1) - 1) / jnp.arange(1, moved.shape[1] + 1)
            cut = jnp.take_along_axis(excess, (ranked > excess).sum(1, keepdims=True) - 1, axis=1)
            routing = jnp.maximum(moved - cut, 0)
            workload = workload + DT * (inflow - network.service.rate(workload))
            flows = flows.at[(k + 1) % rows].set(network.arrival_rate[:, None] * routing)
            return (routing, workload, flows, workloads.at[(k + 1) % rows].set(workload)), None

        start = jnp.full(lag.shape, 1 / lag.shape[1], network.latency.dtype)
        flow = network.arrival_rate[:, None] * start
        empty = jnp.ones(lag.shape[1], flow.dtype)
        rings = jnp.broadcast_to(flow, (rows, *flow.shape)), jnp.broadcast_to(empty, (rows, *empty.shape))
        return jax.lax.scan(step, (start, empty, *rings), jnp.arange(steps))[0][1]

    return jax.jit(lambda: jax.vmap(one)(batch))


def picture(path: str) -> None:
    """Time per arc and step against the sizes: 10 x 10, 128 rows, 256 networks, one core, unless the axis says otherwise."""
    from matplotlib.figure import Figure

    usual = {"size": 10, "rows": 128, "count": 256, "devices": 1}
    panels = {
        "count": ("networks in the batch", [1, 2, 4, 8, 16, 64, 256, 1024]),
        "size": ("frontends = backends", [1, 2, 3, 5, 10, 20, 32, 50, 80]),
        "rows": ("rows of the delay buffer", [16, 64, 256, 1024, 4096, 16384]),
        "devices": ("cores", list(range(1, options.cores + 1))),
    }
    policies = {"DGD-LB": dgd.DGDLB(STEP_SIZE), "least latency": dgd.LeastLatency()}
    figure = Figure(figsize=(10, 7), layout="constrained")
    for ax, (axis, (label, values)) in zip(figure.subplots(2, 2).flat, panels.items(), strict=True):
        for name, policy in policies.items():
            found = [_time_per_arc(policy, **usual | {axis: value}) for value in values]
            print(
                f"{label}, {name}: " + ", ".join(f"{x}: {y:.2f}" for x, y in zip(values, found, strict=True)),
                flush=True,
            )
            ax.plot(values, found, "o-", label=name)
        ax.set(xlabel=label, ylabel="time per arc and step (ns)", ylim=(0, None))
        if axis == "devices":
            ax.set_xticks(values)
        else:
            ax.set_xscale("log")
        ax.grid(alpha=0.3)
    figure.axes[0].legend()
    figure.suptitle("10 x 10 networks, 128 rows, a batch of 256 on one core, where the axis does not say otherwise")
    figure.savefig(path, dpi=110)


def _time_per_arc(policy, size: int, rows: int, count: int, devices: int) -> float:
    count = max(1, min(count, 4 * 10**7 // (size**2 * rows)))  # long buffers of many networks would not fit the memory
    steps = max(2 * rows, 1000)
    run = ours(networks(count, size, size, rows), policy, steps, rows, devices=devices)
    return seconds(run)[1] / (count * size**2 * steps) * 1e9


def main() -> None:
    """Print the tables, or draw the picture."""
    print(machine())
    if options.picture:
        return picture(options.picture)
    print(
        "float64" if options.double else "float32", "| figures in ns per arc and step, median of 5, compilation apart\n"
    )
    columns = (
        "network|topologies|rows|steps|DGD-LB|DGD-LB, resumable|least latency|textbook scan|textbook / DGD-LB|compile s"
    )
    print("|", columns.replace("|", " | "), "|")
    print("|---|---|---|---|---|---|---|---|---|---|")
    cases = [(3, 3, 256, 128), (10, 10, 64, 64), (10, 10, 64, 512), (10, 10, 64, 4096), (32, 32, 16, 128)]
    for frontends, backends, count, rows in cases:
        batch = networks(count, frontends, backends, rows)
        # A long buffer needs many steps, or filling it once would be most of what is measured.
        steps = max(4 * rows, 1000)
        work = count * frontends * backends * steps
        compiled, dgdlb = seconds(ours(batch, dgd.DGDLB(STEP_SIZE), steps, rows))
        _, kept = seconds(ours(batch, dgd.DGDLB(STEP_SIZE), steps, rows, keep=True))
        _, greedy = seconds(ours(batch, dgd.LeastLatency(), steps, rows))
        few = max(steps // 10, 100)
        _, plain = seconds(textbook(batch, few, rows), repeats=3)
        figures = [value * 1e9 for value in (dgdlb / work, kept / work, greedy / work, plain / (work / steps * few))]
        print(
            f"| {frontends}x{backends} | {count} | {rows} | {steps} | {figures[0]:.2f} | {figures[1]:.2f} | {figures[2]:.2f} | "
            f"{figures[3]:.1f} | {figures[3] / figures[0]:.1f} | {compiled:.1f} |",
            flush=True,
        )
    long_over_short()
    if jax.default_backend() == "cpu":
        tiles()


def long_over_short(long: int = 4096, short: int = 64, repeats: int = 9) -> None:
    """Time per step with a long buffer over that with a short one: runs of the same number of steps, in turns."""
    batches = [networks(64, 10, 10, rows) for rows in (long, short)]
    runs = [
        ours(batch, dgd.DGDLB(STEP_SIZE), 4 * long, rows) for batch, rows in zip(batches, (long, short), strict=True)
    ]
    pairs = [[seconds(run, repeats=1)[1] for run in runs] for _ in range(repeats)]
    ratios = sorted(slow / fast for slow, fast in pairs)
    print(
        f"\n10x10, time per step at {long} rows over that at {short}, {repeats} pairs: {ratios[repeats // 2]:.2f} "
        f"({ratios[0]:.2f} to {ratios[-1]:.2f})"
    )


def tiles() -> None:
    """The tile that is chosen against half and twice as many networks side by side."""
    print(
        "\n| network | rows | networks side by side | DGD-LB, half of that | as chosen | twice that |\n|---|---|---|---|---|---|"
    )
    for size, rows in ((3, 128), (10, 128), (10, 1024), (32, 128), (32, 1024)):
        chosen = choose_lanes(networks(1, size, size, rows), rows, 4096)
        batch, steps = networks(4 * chosen, size, size, rows), max(2 * rows, 1000)
        unit = 1e9 / (4 * chosen * size**2 * steps)
        tried = [lanes for lanes in (chosen // 2, chosen, 2 * chosen) if lanes]
        figures = [seconds(ours(batch, dgd.DGDLB(STEP_SIZE), steps, rows, lanes))[1] * unit for lanes in tried]
        texts = ["-"] * (3 - len(figures)) + [f"{figure:.2f}" for figure in figures]
        print(f"| {size}x{size} | {rows} | {chosen} | {' | '.join(texts)} |", flush=True)


if __name__ == "__main__":
    main()
