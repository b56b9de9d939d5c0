"""Whole requests in a sweep: every case runs again from where its fluid run ended, several times, with requests one by one."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from dgdlb_jax.equilibrium.optimum import Optimum
from dgdlb_jax.model.network import Network
from dgdlb_jax.numerics.results import InputError
from dgdlb_jax.policies.base import AbstractFlowPolicy, AbstractPolicy
from dgdlb_jax.simulation.requests.engine import simulate_requests_batch
from dgdlb_jax.simulation.trajectory import Trajectory
from dgdlb_jax.stability.noise import noise
from dgdlb_jax.studies.noise import stationary_latency
from dgdlb_jax.studies.requests import PERCENTILES, QUANTILES, state_at_the_end

RUNS = 8
"""Runs of each case; the same random numbers for all cases, so that these differ by what they are and not by chance."""
_STEPS, _TRANSIENT = 20_000, 4_000  # of each run; statistics begin after the transient


def run_requests(
    networks: Network, policy: AbstractPolicy, optimum: Optimum, run: Trajectory, dt: Float[np.ndarray, " cases"]
) -> dict[str, Float[np.ndarray, " cases"]]:
    """Mean latency over all runs of a case (by `stationary_latency`), its standard error from their scatter, and quantiles, seconds.

    **Arguments:** the cases side by side; `run`: their fluid runs; `dt`: time steps, seconds.

    **Returns:** `mean`, `error`, `p50`, `p95`, `p99`; NaN for what cannot run.
    """
    cases = dt.size
    repeat = lambda leaf: jnp.repeat(jnp.asarray(leaf), RUNS, axis=0) if np.ndim(leaf) else leaf
    every = lambda tree: jax.tree.map(repeat, tree)
    keys = jnp.tile(jax.random.key_data(jax.random.split(jax.random.key(0), RUNS)), (cases, 1))
    steps = np.repeat(dt, RUNS)
    found = simulate_requests_batch(
        every(networks), every(policy), jax.random.wrap_key_data(keys), duration=_STEPS * steps, dt=steps,
        after=_TRANSIENT * steps, initial=every(state_at_the_end(networks, run)), throw=False,
    )  # fmt: skip
    found, networks, optimum = jax.tree.map(
        np.asarray, (found, networks, optimum)
    )  # sliced often, which costs little there
    columns: dict[str, list[float]] = {"mean": [], "error": [], **{name: [] for name in PERCENTILES}}
    for case in range(cases):
        part = jax.tree.map(lambda leaf, case=case: leaf[case * RUNS : (case + 1) * RUNS], found)
        one = jax.tree.map(lambda leaf, case=case: leaf[case], (networks, optimum))
        each = stationary_latency(part, *one)
        quantiles = [float(value) for value in part.latency_quantiles(QUANTILES)]
        row = [float(each.mean()), float(each.std(ddof=1) / RUNS**0.5), *quantiles]
        good = not np.asarray(part.result).any()
        for values, value in zip(columns.values(), row, strict=True):
            values.append(value if good else float("nan"))
    return {name: np.array(values) for name, values in columns.items()}


def predicted_noise(networks: Network, policy: AbstractPolicy, optimum: Optimum) -> Float[Array, " cases"]:
    """What linear theory says that noise costs, over the optimal latency; NaN where it says nothing."""
    nothing = jnp.full(optimum.mean_latency.shape, jnp.nan)
    if not isinstance(policy, AbstractFlowPolicy):
        return nothing
    try:
        found = noise(networks, policy, optimum, throw=False)
    except InputError:  # a rule that does not rest smoothly, or networks for which it would take hours
        return nothing
    return found.excess / optimum.mean_latency
