r"""The limit of a smooth rule behind reports that are read every so often: multipliers where clocks have a common period.

Between two reports a rule sees constants, so that its routing and the workloads that follow move by a linear law of their own, in closed
form; the map over one common period of all clocks has the multipliers (`stability.clocked`). That is exact for intervals that are
commensurate, the common period at most 64 of the shortest. Otherwise reports that are between 0 and T old, at times that have nothing to do
with each other, count as even averages over T: a loop that does not change in time (`averaged`), as it is for many frontends whose clocks
are spread over T. What is random counts with its mean:

- an interval that jitters with its mean, a report that is late with the mean of its delay;
- of reports that are lost with probability p, the mean follows $\hat u \leftarrow p\, \hat u + (1 - p)\, u$ exactly, whatever is lost: the
  limit is that of the mean. About a single run it says nothing exact: it may grow for a while below, and die out above.
- Latencies that drift are slow: the limit is the least of those at no, half and all of the drift.

**Source:** own derivation.
"""

from dataclasses import dataclass, replace
from fractions import Fraction
from math import gcd, lcm

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from dgdlb_jax.equilibrium.optimum import Optimum
from dgdlb_jax.model.batch import each_network
from dgdlb_jax.model.network import Network
from dgdlb_jax.numerics.results import InputError, require_values
from dgdlb_jax.policies.base import AbstractPolicy
from dgdlb_jax.policies.estimates import MovingAverage, Scraped, estimated
from dgdlb_jax.policies.estimates.base import aligned
from dgdlb_jax.policies.estimates.policy import EstimatedFlow
from dgdlb_jax.stability.clocked import ClockedLoop, Reading, unique_instants
from dgdlb_jax.stability.linearise import Linearisation, check_smooth, linearise_one, per_arc

LONGEST = 64
"""Times the shortest interval: the longest common period that is taken for one, and how old news may be."""
_COMMENSURATE = 1e-9  # relative
_FIRST, _GROWTH, _TRIES = 0.05, 1.4, 60  # where the limit is looked for, beside a guess
_ACCURATE = 1e-9

Arcs = Float[Array, "frontends backends"]


def is_scraped(policy: AbstractPolicy) -> bool:
    """Whether a policy sees reports that are read every so often."""
    return isinstance(policy, EstimatedFlow) and any(isinstance(each, Scraped) for each in policy.estimates)


def split(policy: AbstractPolicy) -> tuple[Scraped, AbstractPolicy]:
    """How a policy gets its reports, and the rule that would have them at once.

    **Raises:** `InputError` where something stands before the scrape, or averages over a window behind it.
    """
    assert isinstance(policy, EstimatedFlow)
    first, *others = policy.estimates
    if not isinstance(first, Scraped) or any(isinstance(each, Scraped) for each in others):
        raise InputError(
            "The limit behind Scraped is known where it is the first estimate and the only one of its kind: "
            "estimated(policy, Scraped(...), ...); simulate any other."
        )
    rule = estimated(policy.policy, *others)
    if rule.windows:
        raise InputError(
            "A moving average of reports that are held has no finite memory, so the limit behind both is not known: simulate it, or take "
            "ExponentialAverage."
        )
    return first, rule


@dataclass(frozen=True)
class ScrapedLoop:
    """A rule behind scraped reports in one network, linearised, in numpy; the clocks of arcs `(frontends, backends)`, seconds.

    - `linear`: of the rule with reports at once. `interval`, `offset`, `lost`: of the reports.
    - `late`: how much later than the feedback latency reports are, on average, and `drift`: by how much that may drift, slowly.
    """

    linear: Linearisation
    interval: Float[np.ndarray, "frontends backends"]
    offset: Float[np.ndarray, "frontends backends"]
    lost: Float[np.ndarray, "frontends backends"]
    late: Float[np.ndarray, "frontends backends"]
    drift: Float[np.ndarray, "frontends backends"]

    @property
    def period(self) -> float | None:
        """The common period of all clocks, seconds; None where there is none that is short enough, or news are too many intervals old."""
        on = self._active
        if not on.any():
            return float(self.interval.max())
        oldest = (np.asarray(self.linear.feedback_latency) + self.late + self.drift)[on].max()
        oldest += np.asarray(self.linear.latency)[on].max()
        if oldest > LONGEST * self.interval[on].min():
            return None
        return common_period(self.interval[on].ravel())

    @property
    def _active(self) -> Bool[np.ndarray, " frontends"]:
        """Frontends that move."""
        return np.asarray(np.any(self.linear.support, axis=-1))

    def at(self, factor: float) -> ClockedLoop:
        """The loop of the rule `factor` times as fast."""
        on, lin = self._active, self.linear
        period = self.period
        assert period is not None
        take = lambda array: np.asarray(array, float)[on]
        frontends, backends = int(on.sum()), lin.support.shape[-1]
        memory = 0 if lin.filter is None else lin.filter.rate.shape[-1]
        routing, kept, load = (
            slice(0, backends),
            slice(backends, backends + memory),
            slice(backends + memory, 2 * backends + memory),
        )
        rate = np.zeros((frontends, load.stop, load.stop))
        drive = np.zeros((frontends, load.stop, backends))
        drive[:, routing] = factor * take(lin.response)
        if lin.self_response is not None:
            rate[:, routing, routing] = factor * take(lin.self_response)
        if lin.filter is not None:
            rate[:, kept, kept], drive[:, kept] = take(lin.filter.rate), take(lin.filter.seen)
            rate[:, routing, kept] = factor * take(lin.filter.output)
            if lin.filter.own is not None:
                rate[:, kept, routing] = take(lin.filter.own)
        sent = np.where(take(lin.support) > 0, take(lin.arrival_rate)[:, None], 0)
        each = np.arange(backends)
        rate[:, load.start + each, each] = sent
        rate[:, load.start + each, load.start + each] = -np.asarray(lin.slope, float)
        loads = np.zeros((frontends, backends, load.stop))
        loads[:, each, load.start + each] = 1
        news = take(lin.feedback_latency) + self.late[on]
        return ClockedLoop(
            rate=rate,
            drive=drive,
            load=loads,
            age=news[:, None] + take(lin.latency)[None],
            period=period,
            readings=self._readings(on, period),
        )

    def _readings(self, on: Bool[np.ndarray, " frontends"], period: float) -> list[Reading]:
        backends, found = self.interval.shape[1], []
        for frontend, (interval, offset, lost) in enumerate(
            zip(self.interval[on], (self.offset + self.late)[on], self.lost[on], strict=True)
        ):
            for at, arcs in unique_instants(interval, offset, period):
                read = np.isin(np.arange(backends), arcs)
                keep = np.diag(np.where(read, lost, 1.0))
                found.append(Reading(at, frontend, keep, np.diag(np.where(read, 1 - lost, 0.0))))
        return found

    def limit(self) -> float:
        """The factor at which deviations begin to grow; inf where none does. With a drift the least on its way."""
        parts = (0.0, 0.5, 1.0) if self.drift.any() else (0.0,)
        return min(replace(self, late=self.late + part * self.drift)._limit() for part in parts)

    def _limit(self) -> float:
        if not self._active.any():
            return np.inf
        low, high = 0.0, _FIRST * self._guess()
        grows = lambda factor: self.at(factor).radius() - 1
        for _ in range(_TRIES):
            if grows(high) > _ACCURATE:
                break
            low, high = high, _GROWTH * high
        else:
            return np.inf
        while low == 0.0:  # the guess was far too high
            if grows(high / 2) > _ACCURATE:
                high /= 2
            else:
                low = high / 2
        from scipy.optimize import root_scalar  # late: it takes longer to import than this package

        return float(root_scalar(grows, bracket=(low, high), rtol=1e-7).root)

    def swing(self, factor: float) -> float:
        """The period of the largest deviation that swings, seconds; inf if none does."""
        loop = self.at(factor)
        found = loop.multipliers()
        angle = np.abs(np.angle(found))
        swings = (angle > 1e-6) & (np.abs(found) > 1e-12)
        return float(2 * np.pi * loop.period / angle[swings][0]) if swings.any() else np.inf

    def _guess(self) -> float:
        """A step size whose loop is about as fast as its news are old."""
        lin, on = self.linear, self._active
        size = np.abs(np.asarray(lin.response)).sum(-2) * np.asarray(lin.support)
        if lin.filter is not None:
            size = np.maximum(size, np.asarray(lin.filter.largest).sum(-2) * np.asarray(lin.support))
        gain = (size * np.asarray(lin.arrival_rate)[:, None])[on].sum(0)
        oldest = (np.asarray(lin.feedback_latency) + np.asarray(lin.latency) + self.interval + self.late)[on].max()
        slope = np.asarray(lin.slope)
        used = gain > 0
        return float((slope[used] / (gain[used] * oldest)).min())


def scraped_loops(
    network: Network, policy: AbstractPolicy, optimum: Optimum, factors: Float[Array, "*batch frontends"]
) -> list[ScrapedLoop]:
    """The loops of a policy behind scraped reports, one for each network of a batch; `policy` as `each_frontend` makes it."""
    require_values("The limit behind scraped reports", network, policy, optimum, factors)
    news, rule = split(policy)
    check_smooth(network, rule, optimum)
    found = each_network(_described, network, rule, news, optimum, factors)
    loop = lambda linear, *clocks: ScrapedLoop(linear, *map(np.asarray, clocks))
    if network.batch is None:
        return [loop(*found)]
    return [loop(*jax.tree.map(lambda leaf, k=k: leaf[k], found)) for k in range(network.batch)]


def averaged(network: Network, policy: AbstractPolicy) -> tuple[Network, AbstractPolicy]:
    """The same loop with reports that are averaged evenly instead, over a time in which they get as old on average: what a limit refers
    to where clocks have no common period, and for many frontends whose clocks are spread."""
    assert isinstance(policy, EstimatedFlow)
    news, _ = split(policy)
    lost = jnp.zeros(()) if news.lost is None else news.lost
    window = jnp.multiply(*aligned(news.interval, (1 + lost) / (1 - lost)))
    older = per_arc(news.latest, network.latency) / 2
    later = eqx.tree_at(lambda n: n.feedback_latency, network, network.feedback_latency + older)
    return later, estimated(policy.policy, MovingAverage(window), *policy.estimates[1:])


def _described(
    network: Network, rule: AbstractPolicy, news: Scraped, optimum: Optimum, factors: Float[Array, " frontends"]
) -> tuple[Linearisation, Arcs, Arcs, Arcs, Arcs, Arcs]:
    """The linearisation of one network, and the interval, the offset, the part that is lost and how late reports are on its arcs."""
    arcs = lambda value: per_arc(jnp.asarray(0.0) if value is None else value, network.latency)
    by_backend = jax.tree.map(lambda leaf: leaf.T if leaf.ndim == 2 else leaf, news)
    offset = by_backend.drawn_offset(jnp.zeros_like(network.latency.T)).T
    linear = linearise_one(network, rule, optimum).scaled(factors)
    return linear, arcs(news.interval), offset, arcs(news.lost), arcs(news.late) / 2, arcs(news.drift)


def common_period(intervals: Float[np.ndarray, " clocks"]) -> float | None:
    """The shortest time after which all clocks are as they were, seconds; None if it is longer than `LONGEST` of the shortest interval."""
    shortest = float(intervals.min())
    ratios = [Fraction(each / shortest).limit_denominator(LONGEST) for each in np.unique(intervals)]
    if any(
        abs(float(r) * shortest / each - 1) > _COMMENSURATE
        for r, each in zip(ratios, np.unique(intervals), strict=True)
    ):
        return None
    numerator, denominator = lcm(*(r.numerator for r in ratios)), gcd(*(r.denominator for r in ratios))
    period = Fraction(numerator, denominator)
    return float(period) * shortest if period <= LONGEST else None
