"""On which side of a limit runs from close to the optimum grow: the onset of swings, by simulation."""

import math
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float

from dgdlb_jax.equilibrium.optimum import Optimum
from dgdlb_jax.model.batch import as_batch
from dgdlb_jax.model.network import Network, stack
from dgdlb_jax.numerics.formatting import number
from dgdlb_jax.numerics.patience import patience
from dgdlb_jax.policies.base import AbstractPolicy
from dgdlb_jax.policies.estimates import Scraped
from dgdlb_jax.simulation.engine import simulate_batch
from dgdlb_jax.simulation.trajectory import SaveAt
from dgdlb_jax.studies.balancers import behind
from dgdlb_jax.studies.time_steps import time_step, usual_step

PARTS = (0.8, 0.9, 0.95, 0.98, 1.02, 1.05, 1.1, 1.25)
"""Of a limit: what is simulated to see on which side deviations grow."""
_PATIENCE = 10.0  # seconds that these runs may take
_LOOKS = 400  # at the workloads, in one run
_IN_A_SWING = 4  # of them, at least
_KICK = 1e-6  # relative


class Onset(NamedTuple):
    """How many times as fast a rule may be: the most at which runs die out (0 for none), the least at which they grow (inf for none)."""

    stable: float
    unstable: float

    @property
    def found(self) -> bool:
        """Whether it lies within what was simulated."""
        return self.stable > 0 and math.isfinite(self.unstable)

    @property
    def words(self) -> str:
        """`dies out at 11 times, grows at 12 times`."""
        if self.found:
            return f"dies out at {number(self.stable)} times, grows at {number(self.unstable)} times"
        return (
            f"grows at {number(self.unstable)} times"
            if self.stable == 0
            else f"still dies out at {number(self.stable)} times"
        )


def simulated_onset(
    network: Network,
    policy: AbstractPolicy,
    optimum: Optimum,
    limit: float,
    period: float,
    news: Scraped | None = None,
) -> Onset | None:
    """Between which parts of a limit runs from close to the optimum begin to grow.

    **Arguments:** a single `network`, its `optimum`; `policy`: a rule with a `step_size`; `limit`: how many times as fast it may be by
    linearisation, finite and above 0; `period`: of the swings beyond, seconds; `news`: how frontends get their reports.

    **Returns:** an `Onset`; None where the rule has no step size, or where that would take too long.
    """
    step = getattr(policy, "step_size", None)
    if step is None:
        return None
    # Between two reports nothing is heard, so that is when to look.
    look = period / _IN_A_SWING if news is None else float(jnp.max(news.interval))
    dt = float(time_step(network, policy, limit * step, optimum))
    every = max(10, math.ceil(look / dt))
    dt, count = look / every, len(PARTS)
    if takes_too_long(network, count, every):
        return None
    networks = stack([network.anonymous()] * count)
    best = jax.tree.map(lambda leaf: jnp.stack([leaf] * count), optimum)
    factors = jnp.asarray(PARTS)[:, None] * limit * jnp.asarray(step)
    shared, reports = as_batch((policy, news), shared_scalars=True)
    rule = behind(eqx.tree_at(lambda each: each.step_size, shared, factors), reports)
    grows = deviations_grow(networks, rule, best.routing, best.workload, dt, every)
    parts = np.array(PARTS)
    return Onset(limit * parts[~grows].max(initial=0.0), limit * parts[grows].min(initial=np.inf))


def takes_too_long(network: Network, count: int, every: int) -> bool:
    """Whether simulating so many copies of a network, with so many steps between two looks, takes longer than people wait."""
    return _LOOKS * every * usual_step(count * network.latency.size) > patience(_PATIENCE)


def deviations_grow(
    networks: Network,
    rule: AbstractPolicy,
    routing: Float[Array, "batch frontends backends"],
    workload: Float[Array, "batch backends"],
    dt: ArrayLike,
    every: int,
) -> Bool[np.ndarray, " batch"]:
    """Whether small deviations from rest grow in a batch of runs whose workloads are looked at every so many steps of `dt` seconds, a
    scalar or `(batch,)`."""
    kick = 1 + _KICK * np.random.default_rng(0).standard_normal(workload.shape[1:])
    runs = simulate_batch(
        networks, rule, duration=_LOOKS * every * dt, dt=dt, initial=(routing, workload * kick),
        save=SaveAt(every=every, fields=("workload",)), throw=False,
    )  # fmt: skip
    moved = np.abs(np.diff(np.asarray(runs.workload), axis=1)).max(-1)
    size = lambda part: moved[:, part * moved.shape[1] // 8 : (part + 1) * moved.shape[1] // 8].max(1)
    return (size(7) > size(3)) | (size(7) > 1e3 * _KICK * np.asarray(workload).max(-1))
