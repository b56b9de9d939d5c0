"""What the gradient of a fluid run is worth for requests that come one by one.

    python benchmarks/study_fluid_gradient.py [--fleet two-by-two] [--seeds 256] [--scale 1 10 100 1000]

The mean latency of a run, from a start off the optimum, by the logarithm of one number at a time: exact derivatives of the fluid run,
beside central differences of runs of whole requests with common random numbers (the same keys on both sides).
"""

import argparse

import jax

jax.config.update("jax_enable_x64", True)

from collections.abc import Callable

import equinox as eqx
import jax.numpy as jnp
import numpy as np

import dgdlb_jax as dgd
from common import machine

DELTA = 0.05  # of the logarithm, on either side


def knobs(network: dgd.Network, rule: dgd.DGDLB) -> dict[str, Callable]:
    """Name of a number, and the network and policy when its logarithm is moved by some amount."""
    service = lambda net: net.service.max_rate
    first = jnp.zeros(network.backends).at[0].set(1.0)
    arc = jnp.zeros(network.latency.shape).at[0, 0].set(1.0)

    def slower(u):
        forward, back, charged = (
            each * jnp.exp(u * arc) for each in (network.latency, network.feedback_latency, network.cost_latency)
        )
        return network.with_latency(forward, feedback_latency=back, cost_latency=charged), rule

    return {
        "capacity of the first backend": lambda u: (
            eqx.tree_at(service, network, service(network) * jnp.exp(u * first)),
            rule,
        ),
        "demand": lambda u: (
            network.with_arrival_rate(network.arrival_rate * jnp.exp(u)),
            rule,
        ),
        "latency of the first link": slower,
        "step size": lambda u: (network, dgd.DGDLB(rule.step_size * jnp.exp(u))),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--fleet", default="two-by-two")
    parser.add_argument("--seeds", type=int, default=256)
    parser.add_argument("--scale", type=float, nargs="+", default=[1.0, 10.0, 100.0, 1000.0])
    parser.add_argument("--duration", type=float, default=100.0, help="seconds")
    options = parser.parse_args()
    network = dgd.load_fleet(options.fleet)
    rule = dgd.DGDLB(dgd.default_step_size(network))
    grid = {
        "duration": options.duration,
        "dt": dgd.suggest_dt(network, rule),
        "max_latency": 1.2 * float(network.latency.max()),
    }
    keys = jax.random.split(jax.random.key(0), options.seeds)

    def fluid(u, change):
        moved, policy = change(u)
        run = dgd.simulate(moved, policy, save=dgd.SaveAt.statistics(resumable=False), **grid)
        return run.statistics.mean_latency

    def requests(u, change, scale):
        moved, policy = change(u)
        run = dgd.simulate_requests_batch(moved, policy, keys, scale=scale, follow=False, **grid)
        return np.asarray(run.statistics.mean_latency)

    print(machine(), "\n")
    print(
        f"{options.fleet}, {options.duration:g} s, {options.seeds} seeds, differences of {DELTA:g}; ms for one unit of the logarithm\n"
    )
    heads = [f"requests, scale {scale:g}" for scale in options.scale]
    print("| number | fluid gradient |", " | ".join(heads), "|\n|---|---|" + "---|" * len(heads))
    for name, change in knobs(network, rule).items():
        exact = float(jax.grad(fluid)(0.0, change))
        cells = []
        for scale in options.scale:
            apart = 1e3 * (requests(DELTA, change, scale) - requests(-DELTA, change, scale)) / (2 * DELTA)
            cells.append(f"{apart.mean():.3g} ± {1.96 * apart.std(ddof=1) / len(apart) ** 0.5:.2g}")
        print(f"| {name} | {1e3 * exact:.4g} |", " | ".join(cells), "|", flush=True)


if __name__ == "__main__":
    main()
