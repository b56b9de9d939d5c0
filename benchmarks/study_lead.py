r"""A lead on the reported marginal latency: where does it pay? DGD-LB, its logarithm, and leads on the logarithm, each at many step sizes.

    python benchmarks/study_lead.py [networks] [fleets] [requests] [--count 60] [--picture lead.png]

A frontend that extrapolates what it sees makes up for old news near the optimum: the filter $(1 + s T_l) / (1 + s T_f)$ with
$(1 + a T_l) / (1 + a T_f) = e^{a (f + b)}$ takes away the first order of jitter. `LogLead` is that filter on the logarithm, bounded, with
what a backend publishes and off where $a (f + b) > 1$. It is an estimate with memory as a user would write it: the package linearises it
by differentiation.
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
from dgdlb_jax.studies.stability import LATENCIES, far_starts, study_networks

FRACTIONS = (0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.7, 0.95, 1.4, 2.0, 3.0)
"""Step sizes, over the critical one of DGD-LB."""
PERIODS, STEPS = 200, 60  # of the critical swing: the length of a run, and time steps in each
SETTLED = (
    0.02  # of all workloads, or of the deviation at the start if that is smaller: how far from the optimum they may be
)
BINS = (0.3, 1.0)  # of the largest a (f + b) in use


class LogLead(AbstractEstimate):
    r"""$y = u + (\rho - 1)(u - z)$ of $u = \log g$, with z a lag $T_f = m (f + b)$ of u: marginal latencies ahead of the news.

    - `trip`: $f + b$, seconds, `(frontends, backends)`. `lag`: m. `largest`: what bounds $\rho$.
    """

    trip: jax.Array
    lag: jax.Array
    largest: jax.Array

    def _logarithm(self, observation):
        return jnp.log(observation.marginal_latency + observation.cost_latency)

    def init(self, observation):
        return self._logarithm(observation)

    def estimate(self, observation, state):
        time, known = self.lag * self.trip, self.trip > 0
        far = self.trip / observation.marginal_latency
        slow = jnp.where(known, time, 1) / observation.marginal_latency
        ratio = jnp.clip(((1 + slow) * jnp.exp(jnp.minimum(far, 1)) - 1) / slow, 1, self.largest)
        ratio = jnp.where(known & (far <= 1), ratio, 1)
        u, part = self._logarithm(observation), observation.time_step / jnp.where(known, time, 1)
        z = state - jnp.expm1(-part / 2) * (u - state)
        ahead = jnp.exp(u + (ratio - 1) * (u - z)) - observation.cost_latency
        seen = jnp.maximum(ahead, 1e-3 * observation.marginal_latency)
        after = state - jnp.expm1(-part) * (u - state)
        return eqx.tree_at(lambda o: o.marginal_latency, observation, seen), jnp.where(known, after, u)


def leading(networks, step, lag, largest):
    """`LogDGDLB` behind a `LogLead`."""
    trip = networks.latency + networks.feedback_latency
    one = lambda value: jnp.full((), value)
    return estimated(dgd.LogDGDLB(step), LogLead(trip, one(lag), one(largest)))


RULES = {
    "DGD-LB": lambda networks, step: dgd.DGDLB(step),
    "log": lambda networks, step: dgd.LogDGDLB(step),
    "lead 1.5": partial(leading, lag=2.0, largest=1.5),
    "lead 2": partial(leading, lag=2.0, largest=2.0),
    "lead 4": partial(leading, lag=1.0, largest=4.0),
}
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


def draw(family, count, seed=0):
    """Networks of a family that have a limit, their optima and critical modes."""
    return limited(study_networks(family, count, seed=seed, frontends=3, backends=3))


def limited(networks):
    """Those of a batch that have a limit and whose service is not stiff beside the swings, with optima and critical modes."""
    optimum = dgd.solve_optimum(networks, throw=False)
    mode = dgd.critical_mode(networks, optimum, throw=False)
    steep = np.asarray(networks.service.initial_slope).max(-1) * np.asarray(mode.period)
    kept = np.flatnonzero(np.isfinite(np.asarray(mode.step_size)) & (np.asarray(optimum.result) == Result.successful) & (steep < 90))
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
    every = max(1, int(np.max(np.round(duration / dt))) // 1000)
    for (f, fraction), (s, start) in itertools.product(enumerate(fractions), enumerate(starts)):
        policy = RULES[rule](networks, (fraction * mode.step_size)[:, None])
        save = dgd.SaveAt(every=every, fields=("workload",), resumable=False)
        runs = dgd.simulate_batch(
            networks,
            policy,
            duration=duration,
            dt=dt,
            initial=start,
            save=save,
            throw=False,
            max_latency=longest(networks),
        )
        distance = np.abs(np.asarray(runs.workload) - aim).sum(-1) / whole[:, None]
        outside = distance > SETTLED * np.minimum(distance[:, :1], 1)
        last = np.where(outside, np.asarray(runs.time), 0).max(1)
        settled[f, s] = np.where(outside[:, -1], np.inf, last)
        failed[f, s] = distance[:, -distance.shape[1] // 5 :].max(1) > SETTLED
        cost[f, s] = (np.asarray(runs.statistics.mean_latency) - best) * rate * duration
    limit = np.asarray(dgd.critical_step_size(networks, RULES[rule](networks, mode.step_size[:, None]), optimum))
    jitter = np.full((len(fractions), networks.batch), np.inf)
    for f, fraction in enumerate(fractions):
        found = dgd.noise(networks, RULES[rule](networks, (fraction * mode.step_size)[:, None]), optimum, throw=False)
        known = np.asarray(found.result) == Result.successful
        jitter[f] = np.where(known, np.asarray(found.jitter) * rate, np.inf)
    return Outcome(settled, cost, failed, jitter, limit)


def longest(networks):
    """Seconds."""
    return float(jnp.maximum(networks.latency, networks.feedback_latency).max())


def of_networks(count, folder):
    """Random networks of four latency families, with the largest $a (f + b)$ in use of each; raw outcomes go to files."""
    for family in LATENCIES:
        networks, optimum, mode = draw(family, count)
        point = dgd.linearise(networks, optimum=optimum).point
        trips = np.where(point.support, point.slope[:, None] * (point.latency + point.feedback_latency), 0)
        period = np.asarray(mode.period)
        dt = np.minimum(period / STEPS, 0.3 / np.asarray(networks.service.initial_slope).max(-1))
        begin = time.perf_counter()
        starts = starts_of(networks, optimum)
        outcome = {rule: run(rule, networks, optimum, mode, PERIODS * period, dt, starts) for rule in RULES}
        print(f"{family}: {networks.batch} networks, {time.perf_counter() - begin:.0f} s", flush=True)
        arrays = {f"{rule}/{name}": values for rule, found in outcome.items() for name, values in found._asdict().items()}
        np.savez(folder / f"lead-{family.replace(' ', '-')}.npz", far=trips.max((-1, -2)), period=period, **arrays)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=60, help="networks per latency family")
    parser.add_argument("--folder", type=Path, default=Path("."), help="where raw outcomes of networks go")
    options = parser.parse_args()
    print(machine(), flush=True)
    of_networks(options.count, options.folder)


if __name__ == "__main__":
    main()
