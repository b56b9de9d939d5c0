"""What it costs that a marginal latency has to be estimated: whole requests under DGD-LB, with averages, learnt curves and regressions.

python benchmarks/study_estimates.py [--fleets two-by-two small-models] [--seeds 8] [--picture estimates.png]
"""

import argparse
import time

import jax

jax.config.update("jax_enable_x64", True)

import equinox as eqx
import jax.numpy as jnp
import numpy as np

import dgdlb_jax as dgd
from common import machine
from dgdlb_jax.model.service.composed import Scaled
from dgdlb_jax.policies.estimates import ExponentialAverage, LearntCurve, MovingAverage, Regression, estimated
from dgdlb_jax.studies.noise import stationary_latency

TURNS = 200  # times in service and round trips that a run lasts; the first quarter is the way there
WINDOWS = np.geomspace(0.03, 30, 25)  # over the round trip


def wrong(curve, part, seed=0):
    """The curve of other machines: every backend faster or slower by up to a part."""
    factor = jnp.asarray(1 + part * np.random.default_rng(seed).uniform(-1, 1, curve.nominal_capacity.shape))
    return Scaled(curve, factor)


def rules(network, step, unit):
    """Name -> policy; `unit` seconds is the mean latency."""
    plain = dgd.DGDLB(step)
    return {
        "as reported": plain,
        "lag of 0.3 latencies": estimated(plain, ExponentialAverage(0.3 * unit)),
        "lag of 3": estimated(plain, ExponentialAverage(3 * unit)),
        "window of 3": estimated(plain, MovingAverage(3 * unit)),
        "curve off by 10 %": estimated(plain, LearntCurve(wrong(network.service, 0.1))),
        "curve off by 30 %": estimated(plain, LearntCurve(wrong(network.service, 0.3))),
        "its level learnt over 10": estimated(plain, LearntCurve(wrong(network.service, 0.3), 10 * unit)),
        "regression over 3": estimated(plain, Regression(3 * unit)),
        "regression over 30": estimated(plain, Regression(30 * unit)),
    }


def cost(name, seeds):
    """Mean latency over the optimum under every rule, percent, and its standard error over seeds."""
    network = dgd.load_fleet(name)
    optimum = dgd.solve_optimum(network)
    step = dgd.default_step_size(network, optimum)
    unit = float(optimum.mean_latency)
    dt = dgd.suggest_dt(network, step, optimum)
    duration = max(TURNS * unit, dgd.suggest_duration(network, step, optimum))
    print(f"{name}: {unit:.3g} s of latency, {duration:.0f} s in steps of {dt:.3g} s")
    networks = dgd.stack([network] * seeds)
    keys = jax.random.split(jax.random.key(1), seeds)
    for rule, policy in rules(network, step, unit).items():
        begin = time.perf_counter()
        many = jax.tree.map(lambda leaf: leaf if leaf.ndim == 0 else jnp.stack([leaf] * seeds), policy)
        run = dgd.simulate_requests_batch(
            networks, many, keys, duration=duration, dt=dt, after=duration / 4, follow=False, throw=False
        )
        mean = 100 * (np.asarray(stationary_latency(run, network, optimum, 1.0)) / unit - 1)
        error = mean.std(ddof=1) / np.sqrt(seeds)
        print(f"  {rule:26s} {mean.mean():8.3f} +- {error:.3f} %   ({time.perf_counter() - begin:.0f} s)", flush=True)


def limits(name):
    """Critical step size over that of fresh reports, by the length of an average over the longest round trip: lag, window, and either
    counted as feedback latency."""
    network = dgd.load_fleet(name)
    optimum = dgd.solve_optimum(network)
    trip = float((network.latency + network.feedback_latency).max())
    networks = dgd.stack([network] * WINDOWS.size)
    optima = jax.tree.map(lambda leaf: jnp.stack([leaf] * WINDOWS.size), optimum)
    lengths = jnp.asarray(trip * WINDOWS)[:, None]
    fresh = float(dgd.critical_step_size(network, optimum))
    found = {
        "lag": dgd.critical_step_size(networks, estimated(dgd.DGDLB(1.0), ExponentialAverage(lengths)), optima),
        "window": dgd.critical_step_size(networks, estimated(dgd.DGDLB(1.0), MovingAverage(lengths)), optima),
    }
    for average, part in (("lag", 1.0), ("window", 0.5)):
        older = networks.feedback_latency + part * lengths[:, :, None]
        late = eqx.tree_at(lambda n: n.feedback_latency, networks, older)
        found[f"{average}, counted as latency"] = dgd.critical_step_size(late, optima)
    return {kind: np.asarray(limit) / fresh for kind, limit in found.items()}


def picture(path, fleets):
    """Limits against the length of an average, one panel for each fleet."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, len(fleets), figsize=(4.5 * len(fleets), 3.6), sharey=True, layout="constrained")
    for panel, name in zip(np.atleast_1d(panels), fleets, strict=True):
        for kind, ratio in limits(name).items():
            colour = "C0" if kind.startswith("lag") else "C1"
            panel.loglog(WINDOWS, ratio, color=colour, linestyle=":" if "latency" in kind else "-", label=kind)
        panel.set(title=name, xlabel="length of the average over the longest round trip")
    np.atleast_1d(panels)[0].set_ylabel("critical step size over that of fresh reports")
    np.atleast_1d(panels)[0].legend()
    figure.savefig(path, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--fleets", nargs="*", default=["two-by-two", "small-models"])
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--picture", help="write a picture of limits against the length of averages")
    options = parser.parse_args()
    print(machine(), flush=True)
    if options.picture:
        picture(options.picture, options.fleets)
    for name in options.fleets:
        cost(name, options.seeds)


if __name__ == "__main__":
    main()
