"""Reports that are read every so often, in words and figures: what they are, and the limit of a rule behind them."""

import math
from dataclasses import dataclass
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from dgdlb_jax.equilibrium.optimum import Optimum
from dgdlb_jax.model.batch import each_frontend
from dgdlb_jax.model.network import Network, stack
from dgdlb_jax.numerics.formatting import percent, ranging, seconds
from dgdlb_jax.policies.base import AbstractPolicy
from dgdlb_jax.policies.estimates import Scraped, estimated
from dgdlb_jax.simulation.engine import simulate_batch
from dgdlb_jax.simulation.trajectory import SaveAt
from dgdlb_jax.stability.critical import critical_mode, critical_step_size
from dgdlb_jax.stability.scraped import averaged, scraped_loops
from dgdlb_jax.studies.time_steps import time_step, usual_step

PARTS = (0.8, 0.9, 0.95, 0.98, 1.02, 1.05, 1.1, 1.25)
"""Of a limit: what is simulated to see on which side deviations grow."""
_PATIENCE = 10.0  # seconds that these runs may take
_INTERVALS = 400  # how long they are
_KICK = 1e-6  # relative


def news_words(news: Scraped) -> str:
    """`reports every 15 s, clocks spread at random, 10 % lost`."""
    range_of = lambda values, form=seconds: ranging(float(jnp.min(values)), float(jnp.max(values)), form)
    words = [f"reports every {range_of(news.interval)}"]
    if news.offset is None:
        words.append("clocks spread at random")
    elif bool((news.offset != 0).any()):
        words.append(f"the first one after {range_of(news.offset)}")
    if news.jitter is not None:
        words.append(f"intervals up to {range_of(news.jitter, percent)} shorter or longer")
    if news.lost is not None:
        words.append(f"{range_of(news.lost, percent)} lost")
    if news.late is not None:
        words.append(f"up to {range_of(news.late)} late")
    if news.drift is not None:
        words.append(f"latencies that drift by {range_of(news.drift)} in {range_of(news.drift_period)}")
    return ", ".join(words)


def news_json(news: Scraped) -> dict[str, Any]:
    """The same as numbers, or lists of them; an offset of null is drawn."""
    known = ("interval", "offset", "jitter", "lost", "late", "drift", "drift_period", "seed")
    found = {name: getattr(news, name) for name in known}
    plain = {name: None if value is None else np.asarray(value).tolist() for name, value in found.items()}
    return plain | {name: 0.0 for name in ("jitter", "lost", "late", "drift") if plain[name] is None}


@dataclass(frozen=True)
class NewsLimit:
    """How many times faster a smooth rule may be behind reports that are read every so often.

    - `factor`: the limit, by linearisation; inf without one. `fresh`: the same with every report at once.
    - `period`: of the swings beyond it, seconds; inf without any.
    - `exact`: whether the clocks have a common period; otherwise reports count as averages.
    - `simulated`: the largest factor at which a simulation decays, and the smallest at which it grows, None where none was made.
    """

    network: Network
    policy: AbstractPolicy
    news: Scraped
    factor: float
    fresh: float
    period: float
    exact: bool
    simulated: tuple[float, float] | None = None


def news_limit(
    network: Network, policy: AbstractPolicy, news: Scraped, optimum: Optimum, *, simulate: bool = True
) -> NewsLimit:
    """The limit of a smooth rule behind scraped reports in one network.

    **Arguments:** a single `network`, its `optimum`; `policy`: the rule with reports at once; `simulate`: whether to look on which side of
    the limit simulations grow, as far as that takes seconds.

    **Raises:** `InputError` as `critical_step_size`.
    """
    rule = each_frontend(network, estimated(policy, news), type(policy).__name__)
    factor = float(critical_step_size(network, rule, optimum))
    fresh = float(critical_step_size(network, policy, optimum))
    loop = scraped_loops(network, rule, optimum, jnp.ones(network.frontends))[0]
    exact = loop.period is not None
    if not math.isfinite(factor):
        period = math.inf
    else:
        period = loop.swing(factor) if exact else float(critical_mode(*averaged(network, rule), optimum).period)
    found = NewsLimit(network, policy, news, factor, fresh, period, exact)
    if not (simulate and math.isfinite(factor) and factor > 0):
        return found
    return NewsLimit(network, policy, news, factor, fresh, period, exact, _simulated(found, optimum))


def _simulated(found: NewsLimit, optimum: Optimum) -> tuple[float, float] | None:
    """Between which parts of the limit runs from close to the optimum begin to grow; None where that would take too long."""
    interval = float(jnp.max(found.news.interval))
    duration = _INTERVALS * max(interval, min(found.period, 4 * interval) / 4)
    step = getattr(found.policy, "step_size", None)
    if step is None:
        return None
    dt = float(time_step(found.network, found.policy, found.factor * step, optimum))
    dt = interval / max(10, math.ceil(interval / dt))
    count = len(PARTS)
    if duration / dt * usual_step(count * found.network.latency.size) > _PATIENCE:
        return None
    networks, best = (
        stack([found.network.anonymous()] * count),
        jax.tree.map(lambda leaf: jnp.stack([leaf] * count), optimum),
    )
    factors = jnp.asarray(PARTS)[:, None] * found.factor * jnp.asarray(step)
    shared = jax.tree.map(lambda leaf: leaf[None] if leaf.ndim else leaf, (found.policy, found.news))
    policy = estimated(eqx.tree_at(lambda rule: rule.step_size, shared[0], factors), shared[1])
    kick = 1 + _KICK * np.random.default_rng(0).standard_normal(optimum.workload.shape)
    every = max(1, round(interval / dt))
    runs = simulate_batch(
        networks, policy, duration=duration, dt=dt, initial=(best.routing, best.workload * kick),
        save=SaveAt(every=every, fields=("workload",)), throw=False,
    )  # fmt: skip
    moved = np.abs(np.diff(np.asarray(runs.workload), axis=1)).max(-1)
    size = lambda part: moved[:, part * moved.shape[1] // 8 : (part + 1) * moved.shape[1] // 8].max(1)
    grows = (size(7) > size(3)) | (size(7) > 1e3 * _KICK * float(optimum.workload.max()))
    stable = np.array(PARTS)[~grows]
    return found.factor * stable.max(initial=0.0), found.factor * np.array(PARTS)[grows].min(initial=np.inf)
