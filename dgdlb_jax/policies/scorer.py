"""llm-d's scorers: every candidate gets a score between 0 and 1, and a picker chooses by it."""

from typing import ClassVar, Literal

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from dgdlb_jax.numerics.checks import not_negative, positive
from dgdlb_jax.numerics.types import Matrix, Numbers
from dgdlb_jax.policies.base import AbstractInstantPolicy, Observation, at_most, checked, least, per_backend, somewhere
from dgdlb_jax.policies.held import AbstractHeldPolicy, Arcs, checked_report, one_of, utilization
from dgdlb_jax.policies.latency import latency_as_seen
from dgdlb_jax.policies.static import proportional

Strategy = Literal["least", "most"]
Picker = Literal["weighted-random", "max-score"]


class LatencyScorer(AbstractInstantPolicy):
    r"""llm-d's `latency-scorer`: a score by headroom, the objective minus the latency predicted, and a picker.

    With headroom $h_j = \text{slo} - R_j$, $R_j$ the latency as seen: where some have headroom, only those are scored, by default the less
    the better (they are packed: what is left stays free for bursts); where none has, the nearer to the objective the better. Scores run
    from 0 for the worst to 1 for the best of those scored. Without an objective (0) the least latency has the best score.

    Scores are relative: **the worst gets 0, whatever the distance.** Of two backends one gets everything, also with a picker that draws
    by scores, and packing fills a backend until its latency is at the objective. The rule jumps, so it has no limit of its own kind.

    **Arguments:**

    - `slo`: seconds from request to answer, a scalar or `(frontends,)`; 0 for no objective.
    - `headroom_selection_strategy`: `"least"` as in llm-d, or `"most"` headroom, where there is some.
    - `picker`: `"weighted-random"`, in proportion to scores, as in llm-d's guides, or `"max-score"`, ties shared equally.

    **Raises:** `InputError` for an objective that is negative or not finite, or an unknown strategy or picker.

    **Source:** llm-d-inference-scheduler, README of the latency scorer and of the pickers, 2026-11. Kept are tiers, strategies and
    normalisation. Times to the first and per further token (weights 0.8 and 0.2 there) are one latency here, their predictor is exact
    for the news it has, and as fluid nobody is ever idle.
    """

    takes_lanes: ClassVar[bool] = True

    slo: Float[Array, "*frontends"]
    headroom_selection_strategy: Strategy = eqx.field(static=True)
    picker: Picker = eqx.field(static=True)

    def __init__(
        self,
        slo: Numbers = 0.0,
        headroom_selection_strategy: str = "least",
        picker: str = "weighted-random",
    ):
        self.slo = checked("LatencyScorer.slo", slo, not_negative, "finite and not negative, seconds (0 for none)")
        self.headroom_selection_strategy = one_of(
            "LatencyScorer.headroom_selection_strategy", headroom_selection_strategy, Strategy
        )
        self.picker = one_of("LatencyScorer.picker", picker, Picker)

    def route(self, t, observation: Observation, state):
        """By score."""
        del t
        seen, mask = latency_as_seen(observation), observation.mask
        headroom = per_backend(self.slo, seen) - seen
        meets = mask & (headroom >= 0)
        some = somewhere(meets)
        scored = jnp.where(some, meets, mask)
        # How far from what is wanted; seconds.
        off = jnp.where(some & (self.headroom_selection_strategy == "least"), headroom, -headroom)
        if self.picker == "max-score":
            return least(off, scored), state
        return proportional(relative_score(off, scored), scored), state


class KvCacheScorer(AbstractHeldPolicy):
    r"""llm-d's `multicluster-kv-cache-utilization-scorer`: pools by the part of their KV cache that is free.

    $$ s_j = 1 - u_j, \qquad u_j = N_j / \text{slots}_j $$
    as last reported. The picker for the highest score is a switch: all traffic goes to the emptiest pool until the next report (bang-bang;
    it has no linearisation). The random one, $x \propto s$, has a loop with gain $\frac{1}{e} \frac{u}{1 - u}$ between equal pools, $e$
    the elasticity of their throughput.

    **Arguments:** numbers are scalars or `(frontends,)`, if nothing else is said.

    - `interval`: seconds between two reports. 5 by default: a pool renews its average that often (`refresh-prometheus-metrics-interval`),
      whichever shorter interval it is read at.
    - `picker`: `"max-score"` as in llm-d's example, ties shared equally, or `"weighted-random"`, in proportion to scores.
    - `host_capacity`: what one replica serves, requests/s, a scalar or `(frontends, backends)`; a pool has as many as that goes into its
      nominal capacity. `max_concurrency`: requests whose caches fit into one replica, of the same shape.

    **Raises:** `InputError` for a value that is not allowed.

    **Source:** llm-d-router, READMEs of the scorer, the pickers and the multi-cluster plugins, 2026-11. A cache fills by requests
    here, not by their tokens.
    """

    takes_lanes: ClassVar[bool] = True
    period_knob: ClassVar[str] = "interval"

    interval: Float[Array, "*frontends"]
    host_capacity: Float[Array, "*frontends_backends"]
    max_concurrency: Float[Array, "*frontends_backends"] | None
    picker: Picker = eqx.field(static=True)

    def __init__(
        self,
        interval: Numbers = 5.0,
        picker: str = "max-score",
        *,
        host_capacity: Matrix = 1.0,
        max_concurrency: Matrix = 1.0,
    ):
        self.interval = checked("KvCacheScorer.interval", interval, positive, "positive and finite, seconds")
        self.picker = one_of("KvCacheScorer.picker", picker, Picker)
        _, self.host_capacity, self.max_concurrency = checked_report(
            "KvCacheScorer", "concurrency", host_capacity, max_concurrency
        )

    @property
    def period(self) -> Float[Array, "*frontends"]:
        """`interval`."""
        return self.interval

    @property
    def smoothing(self) -> Float[Array, "*frontends"]:
        """None."""
        return jnp.zeros_like(self.interval)

    @property
    def switches(self) -> bool:
        """With the picker for the highest score."""
        return self.picker == "max-score"

    def report(self, observation: Observation) -> Arcs:
        """The part of each pool's cache that is in use."""
        return utilization("concurrency", observation, self.host_capacity, self.max_concurrency)

    def shares(self, t, report: Arcs, observation: Observation) -> Arcs:
        """By what is free."""
        del t
        score = jnp.maximum(1 - report, 0)
        if self.picker == "max-score":
            return least(-score, observation.mask)
        return proportional(score, observation.mask)


def relative_score(
    off: Float[Array, "backends *lanes"], scored: Bool[Array, "backends *lanes"]
) -> Float[Array, "backends *lanes"]:
    """1 for the least, 0 for the largest, on a straight line between; 1 for all where they are equal, 0 for those not scored."""
    low = jnp.min(jnp.where(scored, off, jnp.inf), axis=0)
    high = jnp.max(jnp.where(scored, off, -jnp.inf), axis=0)
    equal = at_most(high, low)
    score = jnp.where(equal, 1, (high[None] - off) / jnp.where(equal, 1, high - low)[None])
    return jnp.where(scored, score, 0)
