"""How a run ended: settled, oscillating or diverging, and when it settled.

The definitions look at the last fifth of a run:

- *diverging*: some backend's workload grows with a slope above 1e-3 of the total arrival rate in both halves of it;
- *oscillating*: not diverging, and some backend's workload swings by more than 2 % of its mean;
- *settled*: neither.

**Source:** own definitions.
"""

import enum

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Int

from dgdlb_jax.simulation.trajectory import Statistics

LAST_PART = 0.2
"""The part of a run, at its end, that is judged."""
GROWTH_LIMIT = 1e-3
"""Slope of a workload over the total arrival rate above which a backend is overloaded."""
SWING_LIMIT = 0.02
"""(max - min) / mean of a workload above which a run oscillates."""
SETTLED_BAND = 1e-3
"""Smallest excess over the optimum that a settled run may keep."""


class Verdict(enum.IntEnum):
    """How a run ended. Arrays of these codes (int32) come from `judge`."""

    settled = 0
    oscillating = 1
    diverging = 2
    failed = 3


def judge(statistics: Statistics) -> Int[Array, "*batch"]:
    """The verdict on runs, from the statistics of their last fifth; elementwise over a batch.

    **Returns:** codes of `Verdict`, a scalar or `(batch,)`; `failed` where a number is not finite.
    """
    diverging = jnp.any(_grows(statistics), axis=-1)
    code = jnp.where(statistics.swing > SWING_LIMIT, Verdict.oscillating, Verdict.settled)
    finite = jnp.isfinite(statistics.mean_latency) & jnp.isfinite(statistics.mean_workload).all(-1)
    return jnp.where(finite, jnp.where(diverging, Verdict.diverging, code), Verdict.failed).astype(jnp.int32)


def shortage(statistics: Statistics) -> Float[Array, "*batch backends"]:
    r"""By how much each backend falls short of what is sent to it: the slope of a workload that keeps growing.

    $$ s_j = \Delta N_j / \Delta t \text{ where it exceeds } 10^{-3} \textstyle\sum_i \lambda_i
       \text{ in both halves of the window, else } 0 $$

    **Returns:** `(backends,)` requests/s.
    """
    return jnp.where(_grows(statistics), statistics.workload_growth.mean(axis=-2), 0)


def _grows(statistics: Statistics) -> Bool[Array, "*batch backends"]:
    limit = GROWTH_LIMIT * statistics.arrivals / statistics.duration
    return jnp.all(statistics.workload_growth > limit[..., None, None], axis=-2)


def moving_mean(
    time: ArrayLike, cost_rate: ArrayLike, total_rate: ArrayLike, window: float
) -> Float[np.ndarray, " time"]:
    r"""Mean latency over the last `window` seconds, at every saved instant.

    $$ \bar L(t) = \int_{t-w}^{t} C \,ds \Big/ \int_{t-w}^{t} \sum_i \lambda_i \,ds $$

    **Arguments:** `time`, `cost_rate` and `total_rate` `(time,)` in seconds, requests and requests/s; `window` in
    seconds (shorter at the start of the run, where less has happened).

    **Returns:** `(time,)` seconds; the first entry is the momentary mean latency.
    """
    time, cost_rate, total_rate = (np.asarray(values, float) for values in (time, cost_rate, total_rate))
    before = np.maximum(time - window, time[0])
    cost, arrivals = (
        total - np.interp(before, time, total) for total in (_integral(time, cost_rate), _integral(time, total_rate))
    )
    momentary = cost_rate / np.maximum(total_rate, np.finfo(float).tiny)
    return np.where(arrivals > 0, cost / np.where(arrivals > 0, arrivals, 1), momentary)


def time_to_settle(time: ArrayLike, mean_latency: ArrayLike, optimum: float, final_latency: float) -> float:
    r"""First time after which the excess over the optimum stays within max(0.1 %, twice its final value).

    **Arguments:**

    - `time`: `(time,)` seconds.
    - `mean_latency`: `(time,)` seconds, a moving mean (`moving_mean`).
    - `optimum`: mean latency of the optimum, seconds.
    - `final_latency`: mean latency over the last fifth of the run, seconds.

    **Returns:** seconds after the start of the run; NaN when the excess leaves the band again at the end.
    """
    time = np.asarray(time, float)
    excess = np.abs(np.asarray(mean_latency, float) / optimum - 1)
    band = max(SETTLED_BAND, 2 * abs(final_latency / optimum - 1))
    outside = np.flatnonzero(~(excess <= band))
    if outside.size == 0:
        return 0.0
    return float(time[outside[-1] + 1] - time[0]) if outside[-1] + 1 < time.size else float("nan")


def _integral(time: Float[np.ndarray, " time"], values: Float[np.ndarray, " time"]) -> Float[np.ndarray, " time"]:
    return np.concatenate([[0.0], np.cumsum(np.diff(time) * (values[1:] + values[:-1]) / 2)])
