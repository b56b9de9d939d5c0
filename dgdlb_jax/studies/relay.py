"""What a rule without a rest point does: the cycle it falls into, by simulation, since it has no linearisation."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from dgdlb_jax.model.batch import as_batch
from dgdlb_jax.model.network import Network
from dgdlb_jax.numerics.patience import patience
from dgdlb_jax.policies.held import AbstractHeldPolicy
from dgdlb_jax.simulation.engine import simulate
from dgdlb_jax.simulation.trajectory import SaveAt
from dgdlb_jax.studies.stability import coarsest_step
from dgdlb_jax.studies.time_steps import usual_step

_UPDATES, _STEPS = 400, 20  # periods, and time steps in one, at least
_QUARTER = 4
_PATIENCE = 60.0  # seconds that the run may take


@dataclass(frozen=True)
class Cycle:
    """How the frontend that switches most does so, in the second half of a run.

    - `frontend`, `backend`: the arc whose share moves most. `low`, `high`, `mean`: that share.
    - `period`: seconds between two times at which it rises through its middle, on average; NaN if it does so less than twice.
    """

    frontend: int
    backend: int
    low: float
    high: float
    mean: float
    period: float


def relay_cycle(network: Network, policy: AbstractHeldPolicy) -> Cycle | None:
    """Run a policy until its start is forgotten, and look at the arc that moves most; None where that would take too long.

    **Arguments:** a single `network` at constant rates; `policy` with one period.
    """
    interval = float(np.max(np.asarray(policy.period)))
    forgotten = max(4 * float(np.max(np.asarray(policy.smoothing))), _UPDATES / 2 * interval)
    steps = max(_STEPS, int(np.ceil(interval / coarsest_step(as_batch(network))[0])))
    steps = _QUARTER * -(-steps // _QUARTER)
    dt = interval / steps
    if 2 * forgotten / dt * usual_step(network.latency.size) > patience(_PATIENCE):
        return None
    save = SaveAt(every=steps // _QUARTER, fields=("routing",))
    run = simulate(network, policy, duration=2 * forgotten, dt=dt, save=save, throw=False)
    routing = np.asarray(run.routing)
    late = routing[len(routing) // 2 :]
    weight = np.asarray(network.arrival_rate)[:, None]
    i, j = np.unravel_index(np.argmax(weight * np.ptp(late, axis=0)), weight.shape[:1] + late.shape[2:])
    share = late[:, i, j]
    return Cycle(
        int(i), int(j), float(share.min()), float(share.max()), float(share.mean()), _period(share, interval / _QUARTER)
    )


def _period(values: Float[np.ndarray, " instants"], step: float) -> float:
    above = values > (values.min() + values.max()) / 2
    rises = np.flatnonzero(above[1:] & ~above[:-1])
    return float(step * np.diff(rises).mean()) if rises.size > 1 else float("nan")
