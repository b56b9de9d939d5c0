"""How wrong is the approximate gradient, when, and what per-frontend tuning gains: on the built-in fleets.

    python benchmarks/bench_gradient_error.py [--fleets small-models,global-prefill]

From routing proportional to capacity with the default step size, and with multiples of it; then the tuned step sizes of the same start
against the best uniform one, on starts that the tuning did not see.
"""

import argparse
import itertools

parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
parser.add_argument("--fleets", default="small-models,global-prefill", help="names, with commas between")
parser.add_argument("--topologies", type=int, default=64, help="random topologies to tune")
parser.add_argument("--iterations", type=int, default=40, help="steps of the optimizer")
options = parser.parse_args()

import jax

jax.config.update("jax_enable_x64", True)
import jax.numpy as jnp
import numpy as np
import optax

import dgdlb_jax as dgd
from common import machine

PARTS = (0.0, 0.02, 0.1, 0.3, 1.0)  # of the duration: between two of them a line


def quantiles(values) -> str:
    """Median and 90 %, in a cell."""
    values = np.asarray(values)
    values = values[np.isfinite(values)]
    return "" if values.size == 0 else f"{np.median(values):.3g} / {np.quantile(values, 0.9):.3g}"


def cut_to(found: dgd.MarginalLatency, part: np.ndarray) -> dgd.MarginalLatency:
    """The same at some of its instants."""
    size = found.time.size
    return jax.tree.map(lambda leaf: leaf[part] if leaf.ndim and leaf.shape[0] == size else leaf, found)


def errors(name: str) -> None:
    """A table for one fleet: how large the error is, how far the step turns, how often it points uphill."""
    network = dgd.load_fleet(name)
    optimum = dgd.solve_optimum(network)
    step = dgd.default_step_size(network, optimum)
    dt, duration = dgd.suggest_dt(network, step, optimum), 0.2 * dgd.suggest_duration(network, step, optimum)
    for factor in (1.0, 3.0):
        found = dgd.marginal_latency(
            network,
            dgd.DGDLB(factor * step),
            duration=duration,
            dt=dt,
            every=max(1, round(duration / dt / 200)),
            run_on=4 * duration,
        )
        several = np.asarray(found.mask).sum(1) > 1
        error, angle, angle_closed = (
            np.abs(100 * np.asarray(found.relative_error())),
            np.asarray(found.angle())[:, several],
            np.asarray(found.angle(found.closed_loop))[:, several],
        )
        ends = [round(part * (found.time.size - 1)) for part in PARTS]
        for first, last in itertools.pairwise(ends):
            part = np.arange(first, last + 1)
            cut = cut_to(found, part)
            uphill = np.asarray(cut.uphill())[several].mean(), np.asarray(cut.uphill(cut.closed_loop))[several].mean()
            print(
                f"| {name} | {factor:g} | {float(found.time[part[0]]):.3g} to {float(found.time[part[-1]]):.3g} | "
                f"{quantiles(error[part])} | {quantiles(angle[part])} | {quantiles(angle_closed[part])} | "
                f"{100 * uphill[0]:.1f} | {100 * uphill[1]:.1f} | {float(found.tail):.1e} |",
                flush=True,
            )


def starts(network: dgd.Network, key, count: int):
    """Random routings on the arcs, with the workloads of the optimum."""
    weight = jax.random.exponential(key, (count, *network.mask.shape)) * network.mask
    return weight / weight.sum(-1, keepdims=True), jnp.tile(dgd.solve_optimum(network).workload, (count, 1))


def copies(network: dgd.Network, rates) -> dgd.Network:
    """A batch of the network under other demands."""
    return dgd.stack([network.with_arrival_rate(rate) for rate in rates])


def evaluate(batch, policy, start, settings) -> float:
    """Mean latency over the runs of a batch."""
    shared = jax.tree.map(
        lambda leaf: jnp.broadcast_to(leaf, (batch.batch, *leaf.shape)) if leaf.ndim == 1 else leaf, policy
    )
    runs = dgd.simulate_batch(batch, shared, initial=start, save=dgd.SaveAt.statistics(), throw=False, **settings)
    return np.asarray(runs.statistics.mean_latency)


def tuning(name: str) -> None:
    """Step sizes per frontend against the best uniform one, tuned on four starts and demands, held against four others."""
    network = dgd.load_fleet(name)
    step = dgd.default_step_size(network)
    dt, duration = dgd.suggest_dt(network, step), 0.1 * dgd.suggest_duration(network, step)
    settings = {"dt": dt, "duration": duration}
    rates = network.arrival_rate * jnp.asarray([1.0, 0.9, 1.1, 1.0])[:, None]
    batch, seen, unseen = copies(network, rates), *(starts(network, jax.random.key(k), 4) for k in (0, 1))
    typical = float(jnp.median(step[step > 0]))
    uniform = dgd.tune(
        batch, dgd.DGDLB(jnp.asarray(typical)), optax.adam(0.3), initial=seen, iterations=options.iterations, **settings
    )
    begin = jnp.where(step > 0, uniform.policy.step_size, 0.0)
    each = dgd.tune(batch, dgd.DGDLB(begin), optax.adam(0.2), initial=seen, iterations=options.iterations, **settings)
    best = float(dgd.solve_optimum(batch).mean_latency.mean())
    figures = []
    for policy in (dgd.DGDLB(step), uniform.policy, each.policy):
        figures.append(
            tuple(100 * (float(evaluate(batch, policy, start, settings).mean()) / best - 1) for start in (seen, unseen))
        )
    print(f"| {name} | {duration:.3g} | " + " | ".join(f"{a:.2f} / {b:.2f}" for a, b in figures) + " |", flush=True)


def topologies() -> None:
    """The same on random topologies, all at once: tuned on one start, held against another."""
    networks = dgd.topologies.geographic(jax.random.key(7), frontends=5, backends=4, count=options.topologies)
    optima = dgd.solve_optimum(networks)
    step = dgd.default_step_size(networks, optima)
    dt = np.asarray(dgd.suggest_dt(networks, step, optima))
    settings = {"dt": dt, "duration": 1000 * dt}

    def start(key):
        weight = jax.random.exponential(key, networks.mask.shape) * networks.mask
        return weight / weight.sum(-1, keepdims=True), optima.workload

    seen, unseen = start(jax.random.key(1)), start(jax.random.key(2))
    scan = 4.0 ** np.arange(-2, 5)
    typical = jnp.nanmedian(jnp.where(step > 0, step, jnp.nan), axis=1, keepdims=True)
    typical = jnp.where(
        jnp.isfinite(typical), jnp.nanmedian(jnp.where(step > 0, step, jnp.nan), axis=1, keepdims=True), typical
    )
    value = np.stack([evaluate(networks, dgd.DGDLB(jnp.where(step > 0, typical * c, 0)), seen, settings) for c in scan])
    uniform = jnp.where(step > 0, typical * jnp.asarray(scan)[np.nanargmin(value, 0)][:, None], 0)
    each = dgd.tune(
        networks, dgd.DGDLB(uniform), optax.adam(0.2), initial=seen, iterations=options.iterations, **settings
    )
    best = np.asarray(optima.mean_latency)
    cells = []
    for policy in (dgd.DGDLB(step), dgd.DGDLB(uniform), each.policy):
        excess = [100 * (evaluate(networks, policy, s, settings) / best - 1) for s in (seen, unseen)]
        cells.append(" / ".join(f"{np.nanmedian(e):.2f}" for e in excess))
    print(f"| {options.topologies} topologies (median) | 1000 dt | " + " | ".join(cells) + " |", flush=True)


def main() -> None:
    """Print the tables."""
    names = [name for name in options.fleets.split(",") if name]
    print(machine(), "| float64\n")
    print(
        "Cells with two numbers: median / 90 %. Closed loop: all react. Tail: what the last half of running on still brought.\n"
    )
    print(
        "| fleet | step size / default | time s | error of open loop % | angle open loop, degrees | angle closed loop | "
        "uphill, open loop % | uphill, closed loop % | tail |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for name in names:
        errors(name)
    print("\nMean latency of the transient over that of the optimum, %, on the starts tuned on / on others.\n")
    print("| network | run s | default rule | best uniform | tuned per frontend |")
    print("|---|---|---|---|---|")
    for name in names:
        tuning(name)
    topologies()


if __name__ == "__main__":
    main()
