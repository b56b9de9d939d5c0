r"""A lead on the reported marginal latency: where does it pay? DGD-LB, its logarithm, and leads on the logarithm, each at many step sizes.

    python benchmarks/study_lead.py [networks] [fleets] [reports] [--count 60] [--picture lead.png]

`dgd.LeadDGDLB` says what it is. What is looked for: limits, settling from near and far, jitter, cycles, also with reports that are
sampled and noisy.
"""

import argparse
import itertools
import time
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax

jax.config.update("jax_enable_x64", True)

import equinox as eqx
import jax.numpy as jnp
import numpy as np

import dgdlb_jax as dgd
from common import machine
from dgdlb_jax.numerics.results import Result
from dgdlb_jax.policies.estimates import AbstractEstimate, estimated
from dgdlb_jax.studies.stability import coarsest_step, far_starts, study_networks

FRACTIONS = (0.05, 0.1, 0.2, 0.35, 0.5, 0.7, 0.95, 1.4)
"""Step sizes, over the critical one of DGD-LB."""
PERIODS, STEPS = 100, 40  # of the critical swing: the length of a run, and time steps in each
STIFF = 125  # steps in a critical swing from which on service is stiff beside it
SETTLED = (
    0.02  # of all workloads, or of the deviation at the start if that is smaller: how far from the optimum they may be
)
BINS = (0.3, 1.0)  # of the largest a (f + b) in use


def leading(networks, step, oldest=0.3):
    """`LogDGDLB` that sees marginal latencies extrapolated."""
    return dgd.LeadDGDLB(step, networks.latency + networks.feedback_latency, oldest=oldest)


RULES = {
    "DGD-LB": lambda networks, step: dgd.DGDLB(step),
    "log": lambda networks, step: dgd.LogDGDLB(step),
    "lead": leading,
    "lead to 1": partial(leading, oldest=1.0),
}

NOISY = (0.1, 0.5, 0.95)  # at which of them jitter is computed
GROUPS = (("equal", "per frontend"), ("geographic",), ("three decades",))  # latency families that are run as one batch
STARTS = ("near", "proportional", "far")


class Outcome(NamedTuple):
    """Of one rule, `(fractions, starts, networks)` or `(fractions, networks)`.

    - `settled`: seconds until workloads stay close to the optimum; inf if they do not. `cost`: requests x seconds above the optimum on
      the way. `failed`: more than 2 % of all workloads away in the last fifth.
    - `jitter`: requests, cost of jitter at scale 1 (inf where unstable); `limit`: over the critical step size of DGD-LB.
    """

    settled: np.ndarray
    cost: np.ndarray
    failed: np.ndarray
    jitter: np.ndarray
    limit: np.ndarray


def limited(networks):
    """Those of a batch that have a limit and whose service is not stiff beside the swings, with optima and critical modes."""
    optimum = dgd.solve_optimum(networks, throw=False)
    mode = dgd.critical_mode(networks, optimum, throw=False)
    resolved = np.asarray(mode.period) < STIFF * coarsest_step(networks)
    kept = np.flatnonzero(
        np.isfinite(np.asarray(mode.step_size)) & (np.asarray(optimum.result) == Result.successful) & resolved
    )
    return jax.tree.map(lambda leaf: leaf[kept], (networks, optimum, mode))


def starts_of(networks, optimum, seed=0):
    """Near the optimum, traffic in proportion to capacity at empty backends, all traffic of a frontend at one backend."""
    rng = np.random.default_rng(seed)
    proportional, _, far, _ = far_starts(networks, seed=seed)
    near = optimum.routing, optimum.workload * jnp.asarray(1 + 0.01 * rng.standard_normal(optimum.workload.shape))
    return near, proportional, far


def run(rule, networks, optimum, mode, duration, dt, starts, fractions=FRACTIONS):
    """An `Outcome`."""
    shape = len(fractions), len(starts), networks.batch
    settled, cost, failed = np.full(shape, np.inf), np.full(shape, np.inf), np.ones(shape, bool)
    aim, whole = np.asarray(optimum.workload)[:, None], np.asarray(optimum.workload).sum(-1)
    rate, best = np.asarray(networks.arrival_rate.sum(-1)), np.asarray(optimum.mean_latency)
    every = max(1, int(np.max(np.round(duration / dt))) // 500)
    for (f, fraction), (s, start) in itertools.product(enumerate(fractions), enumerate(starts)):
        policy = RULES[rule](networks, (fraction * mode.step_size)[:, None])
        save = dgd.SaveAt(every=every, fields=("workload",), resumable=False)
        runs = dgd.simulate_batch(networks, policy, duration=duration, dt=dt, initial=start, save=save, throw=False)
        distance = np.abs(np.asarray(runs.workload) - aim).sum(-1) / whole[:, None]
        outside = distance > SETTLED * np.minimum(distance[:, :1], 1)
        last = np.where(outside, np.asarray(runs.time), 0).max(1)
        settled[f, s] = np.where(outside[:, -1], np.inf, last)
        failed[f, s] = distance[:, -distance.shape[1] // 5 :].max(1) > SETTLED
        cost[f, s] = (np.asarray(runs.statistics.mean_latency) - best) * rate * duration
    limit = np.asarray(dgd.critical_step_size(networks, RULES[rule](networks, mode.step_size[:, None]), optimum))
    jitter = np.full((len(NOISY), networks.batch), np.inf)
    for f, fraction in enumerate(NOISY):
        found = dgd.noise(networks, RULES[rule](networks, (fraction * mode.step_size)[:, None]), optimum, throw=False)
        known = np.asarray(found.result) == Result.successful
        jitter[f] = np.where(known, np.asarray(found.jitter) * rate, np.inf)
    return Outcome(settled, cost, failed, jitter, limit)


def of_networks(count, folder):
    """Random networks, with the largest $a (f + b)$ in use of each; raw outcomes go to files."""
    for families in GROUPS:
        networks, optimum, mode = drawn(families, count)
        point = dgd.linearise(networks, optimum=optimum).point
        trips = np.where(point.support, point.slope[:, None] * (point.latency + point.feedback_latency), 0)
        period = np.asarray(mode.period)
        whole = np.asarray(networks.arrival_rate.sum(-1) * optimum.mean_latency)
        print(f"{', '.join(families)}: {networks.batch} networks", flush=True)
        arrays = {"far": trips.max((-1, -2)), "period": period, "whole": whole}
        starts = starts_of(networks, optimum)
        for rule in RULES:
            begin = time.perf_counter()
            found = run(rule, networks, optimum, mode, PERIODS * period, finest(networks, period), starts)
            arrays |= {f"{rule}/{name}": values for name, values in found._asdict().items()}
            np.savez(folder / f"lead-{families[-1].replace(' ', '-')}.npz", **arrays)
            print(f"  {rule}: {time.perf_counter() - begin:.0f} s", flush=True)


def tell(folder, picture=None):
    """What the raw outcomes say, by the largest $a (f + b)$ in use; and a picture of it."""
    files = [np.load(folder / f"lead-{families[-1].replace(' ', '-')}.npz") for families in GROUPS]
    read = lambda name: np.concatenate([file[name] for file in files], -1)
    far, period = read("far"), read("period")
    found = {rule: Outcome(*(read(f"{rule}/{name}") for name in Outcome._fields)) for rule in RULES}
    plain, half = found["DGD-LB"], NOISY.index(0.5)
    bins = [(far >= low) & (far < high) for low, high in itertools.pairwise((0, *BINS, np.inf))]
    for chosen, (low, high) in zip(bins, itertools.pairwise((0, *BINS, np.inf)), strict=True):
        print(f"a (f + b) from {low:g} to {high:g}: {chosen.sum()} networks")
        for rule, of in found.items() if chosen.any() else ():
            some = lambda values, chosen=chosen: values[..., chosen]
            ratio = some(of.jitter[half] / plain.jitter[half])
            print(
                f"  {rule:9s} limit x{middle(some(of.limit)):.2f} ({some(of.limit).min():.2f} to {some(of.limit).max():.2f}), "
                f"jitter at half of DGD-LB's limit x{middle(ratio):.3f} (90 % {np.sort(ratio)[int(0.9 * ratio.size)]:.2f})"
            )
            for s, start in enumerate(STARTS):
                failures, settled = some(of.failed[:, s]).sum(-1), some(of.settled[:, s])
                middles = [middle(row) for row in settled / some(period)]
                common = min(range(len(FRACTIONS)), key=lambda f: (failures[f], middles[f]))
                best = settled.min(0) / some(plain.settled[:, s]).min(0)
                print(
                    f"    {start:13s} best for all {FRACTIONS[common]:g}: {failures[common]} fail, {middles[common]:.1f} periods; "
                    f"each at its best x{middle(np.nan_to_num(best, nan=1.0)):.2f}, {np.isinf(settled.min(0)).sum()} never; "
                    f"fail {' '.join(map(str, failures))}; periods {' '.join(f'{value:.2g}' for value in middles)}"
                )
    if picture:
        draw(picture, found, far)


def draw(path, found, far):
    """Limits and jitter against $a (f + b)$; failures from far starts against the step size."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (limits, jitters, failures) = plt.subplots(1, 3, figsize=(13, 3.8), layout="constrained")
    for rule, of in found.items():
        if rule not in ("DGD-LB", "log"):
            limits.loglog(far, of.limit, ".", label=rule)
            jitters.loglog(far, of.jitter[NOISY.index(0.5)] / found["DGD-LB"].jitter[NOISY.index(0.5)], ".", label=rule)
        failures.semilogx(FRACTIONS, of.failed[:, STARTS.index("far")].mean(-1), ".-", label=rule)
    limits.set(xlabel="largest a (f + b) in use", ylabel="critical step size over that of DGD-LB")
    jitters.set(xlabel="largest a (f + b) in use", ylabel="jitter over that of DGD-LB, at half its limit")
    failures.set(xlabel="step size over the critical one of DGD-LB", ylabel="networks that do not settle from far")
    limits.legend()
    failures.legend()
    figure.savefig(path, dpi=130)


def drawn(families, count):
    """Networks of some families that have a limit as one batch, their optima and critical modes."""
    parts = [limited(study_networks(family, count, frontends=3, backends=3)) for family in families]
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *parts)


def finest(networks, period):
    """Time steps that resolve the swings and the service, seconds."""
    return np.minimum(period / STEPS, coarsest_step(networks))


def of_fleets():
    """The built-in fleets, from traffic in proportion to capacity and from the nearest backend, at parts of the critical step size."""
    for name in ("two-by-two", "global-llm", "small-models", "global-prefill"):
        networks, optimum, mode = limited(dgd.stack([dgd.load_fleet(name)]))
        step = dgd.default_step_size(networks, optimum)
        point = dgd.linearise(networks, optimum=optimum).point
        trips = point.slope[:, None] * (point.latency + point.feedback_latency)
        duration = 0.3 * np.asarray(dgd.suggest_duration(networks, step, optimum))
        dt = np.asarray(dgd.suggest_dt(networks, mode.step_size[:, None], optimum))
        nearest = jax.nn.one_hot(jnp.argmin(networks.latency, -1), networks.backends, dtype=networks.latency.dtype)
        proportional = far_starts(networks)[0]
        starts = optimum_moved(optimum), proportional, (nearest, proportional[1])
        print(
            f"{name}: a (f + b) in use {float(jnp.where(point.support, trips, 0).max()):.2f}, median "
            f"{float(jnp.nanmedian(jnp.where(point.support, trips, jnp.nan))):.2f}; default step "
            f"{float(step.max() / mode.step_size[0]):.3f} of critical; {duration[0]:.0f} s in steps of {dt[0]:.2g} s"
        )
        for rule in RULES:
            found = run(rule, networks, optimum, mode, duration, dt, starts)
            print(f"  {rule}: limit x{found.limit[0]:.2f}")
            print("    jitter, requests  " + " ".join(f"{value:9.3g}" for value in found.jitter[:, 0]))
            for s, start in enumerate(("near", "proportional", "nearest")):
                print(f"    {start:13s} s   " + " ".join(f"{value:9.3g}" for value in found.settled[:, s, 0]))
                print(
                    f"    {'excess cost':13s}     " + " ".join(f"{value:9.3g}" for value in found.cost[:, s, 0]),
                    flush=True,
                )


def optimum_moved(optimum, seed=0):
    """Workloads a percent off."""
    rng = np.random.default_rng(seed)
    return optimum.routing, optimum.workload * jnp.asarray(1 + 0.01 * rng.standard_normal(optimum.workload.shape))


class Sampled(AbstractEstimate):
    r"""Reports every `interval` seconds, held in between, each off by a part of itself that is drawn anew: uniform, $\pm$ `noise`."""

    interval: jax.Array
    noise: jax.Array

    def _reported(self, observation, count):
        place = jnp.arange(observation.marginal_latency.shape[0], dtype=count.dtype)
        place = place.reshape(-1, *(1,) * count.ndim)
        drawn = jnp.mod(jnp.sin(12.9898 * count + 78.233 * place) * 43758.5453, 1.0)
        return observation.marginal_latency * (1 + self.noise * (2 * drawn - 1))

    def init(self, observation):
        return jnp.zeros_like(observation.time_step), jnp.ones_like(observation.time_step), observation.marginal_latency

    def estimate(self, observation, state):
        age, count, held = state
        age = age + observation.time_step
        due = age >= self.interval - observation.time_step / 2
        held = jnp.where(due, self._reported(observation, count), held)
        after = jnp.where(due, age - self.interval, age), jnp.where(due, count + 1, count), held
        return eqx.tree_at(lambda o: o.marginal_latency, observation, held), after


def of_reports(count):
    """With reports that are sampled and noisy, from rest: mean excess over the optimum in the second half of a run."""
    parts = [drawn(families, count) for families in GROUPS]
    for interval, noise in ((0.01, 0.1), (1.0, 0.0), (1.0, 0.1)):
        print(f"a report every {interval:g} longest round trips, off by {100 * noise:g} %")
        for rule in RULES:
            whole = 100 * np.concatenate([excess_of_reports(rule, *part, interval, noise) for part in parts], -1)
            tell = [f"{middle(row):.2g} (90 % {np.sort(row)[int(0.9 * row.size)]:.2g})" for row in whole]
            print(f"  {rule:9s} excess, %, at 0.1, 0.35, 0.7 of critical: {', '.join(tell)}", flush=True)


def excess_of_reports(rule, networks, optimum, mode, interval, noise):
    """`(fractions, networks)`, over the optimum; inf where a run failed."""
    period = np.asarray(mode.period)
    trip = (networks.latency + networks.feedback_latency).max((-1, -2))
    reports = Sampled(interval * trip[:, None], jnp.full((), noise))
    duration, found = PERIODS * period, []
    for fraction in (0.1, 0.35, 0.7):
        policy = estimated(RULES[rule](networks, (fraction * mode.step_size)[:, None]), reports)
        save = dgd.SaveAt.statistics(after=duration / 2, resumable=False)
        start = optimum.routing, optimum.workload
        runs = dgd.simulate_batch(
            networks, policy, duration=duration, dt=finest(networks, period), initial=start, save=save, throw=False
        )
        found.append(np.asarray(runs.statistics.mean_latency / optimum.mean_latency) - 1)
    return np.nan_to_num(np.array(found), nan=np.inf)


def middle(values):
    """Median of numbers that may be infinite."""
    ordered = np.sort(values)
    return ordered[(ordered.size - 1) // 2] if ordered.size else np.nan


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", default=["networks", "fleets", "reports"], help="networks, fleets, reports")
    parser.add_argument("--count", type=int, default=60, help="networks per latency family")
    parser.add_argument("--folder", type=Path, default=Path("."), help="where raw outcomes of networks go")
    parser.add_argument("--picture", help="write a picture of the outcomes in that folder")
    options = parser.parse_args()
    print(machine(), flush=True)
    if "networks" in options.what:
        of_networks(options.count, options.folder)
    if "networks" in options.what or options.picture:
        tell(options.folder, options.picture)
    if "fleets" in options.what:
        of_fleets()
    if "reports" in options.what:
        of_reports(options.count // 3)


if __name__ == "__main__":
    main()
