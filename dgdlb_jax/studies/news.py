"""Reports that are read every so often, in words and figures: what they are, and the limit of a rule behind them."""

import math
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from dgdlb_jax.equilibrium.optimum import Optimum
from dgdlb_jax.model.batch import as_batch, each_frontend
from dgdlb_jax.model.network import Network, stack
from dgdlb_jax.numerics.formatting import percent, ranging, seconds
from dgdlb_jax.policies.base import AbstractPolicy
from dgdlb_jax.policies.estimates import Scraped, estimated
from dgdlb_jax.stability.critical import critical_mode, critical_step_size
from dgdlb_jax.stability.scraped import averaged, scraped_loops
from dgdlb_jax.studies.onset import Onset, simulated_onset


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
    - `simulated`: the same by simulation, None where none was made.
    """

    network: Network
    policy: AbstractPolicy
    news: Scraped
    factor: float
    fresh: float
    period: float
    exact: bool
    simulated: Onset | None = None


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
    return replace(found, simulated=simulated_onset(network, policy, optimum, factor, period, news))


def limits_behind_reports(
    network: Network, policy: AbstractPolicy, optimum: Optimum, intervals: Float[np.ndarray, " intervals"]
) -> Float[np.ndarray, " intervals"]:
    """How many times as fast a smooth rule may be, for each interval of its reports in seconds, with clocks in step."""
    count = len(intervals)
    best = jax.tree.map(lambda leaf: jnp.stack([leaf] * count), optimum)
    rule = estimated(as_batch(policy, shared_scalars=True), Scraped(jnp.asarray(intervals)[:, None]))
    return np.asarray(critical_step_size(stack([network.anonymous()] * count), rule, best, throw=False))
