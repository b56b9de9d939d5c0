"""Balancers that compare latencies as seen."""

from functools import partial
from typing import ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Float

from dgdlb_jax.numerics.types import Numbers
from dgdlb_jax.policies.base import AbstractInstantPolicy, Observation, at_most, best_of, checked, least


class LeastLatency(AbstractInstantPolicy):
    r"""Least latency as seen: $\arg\min_j \tau^{cost}_{ij} + N_j / \ell_j(N_j)$ at $t - \tau^{fb}_{ij}$; ties shared equally.

    The average latency of a backend, where the optimum compares marginal ones: its equilibrium is that of selfish routing.

    **Source:** Wardrop (1952), "Some theoretical aspects of road traffic research", for the equilibrium. The latency of a request by
    Little's law, as if the backend were at rest.
    """

    takes_lanes: ClassVar[bool] = True

    def route(self, t, observation: Observation, state):
        """All to the least latency."""
        del t
        return least(latency_as_seen(observation), observation.mask), state


class HotCold(AbstractInstantPolicy):
    r"""Prequal's hot-cold lexicographic rule: the least latency among the cold.

    A backend is *hot* when its requests in flight, $N_j(t - \tau^{fb}_{ij})$, exceed their quantile $q$ over the backends within reach
    (the smallest value that at least a part $q$ of them does not exceed). The latency is that of `LeastLatency`. Ties are shared
    equally.

    **Arguments:**

    - `quantile`: $q$ between 0 and 1, a scalar or `(frontends,)`; 0.84 as in the paper. 0 leaves only the shortest queues cold (and
      is `LeastWorkload`, ties broken by latency), 1 is `LeastLatency`.
    - `probes`: how many backends, drawn at random with replacement, each request chooses among, at least 1, a scalar or
      `(frontends,)`; where all of these are hot, it takes the one with the fewest requests in flight. By default it knows all.

    **Raises:** `InputError` for a quantile outside 0 to 1, and for fewer than one probe.

    **Source:** Wydrowski, Kleinberg, Rumble, Archer (2024), "Load is not what you should balance: Introducing Prequal",
    arXiv:2312.10172. Kept are the rule and the age of the probes: what is hot is told from the news of all backends within reach, as
    from the distribution that Prequal keeps. A pool is drawn for every request, where Prequal's outlives some; the shares of a rule
    that draws are those of its mean, which for whole requests is the rule itself, as each draws for itself. It loses error aversion and
    the difference between replicas of one backend. It charges the network, which within one datacentre, where Prequal lives, is
    the same for all. With the few backends of a fleet hardly one is ever hot: up to 6 none is above the quantile 0.84.
    """

    takes_lanes: ClassVar[bool] = True

    quantile: Float[Array, "*frontends"]
    probes: Float[Array, "*frontends"]

    def __init__(self, quantile: Numbers = 0.84, probes: Numbers = float("inf")):
        self.quantile = checked(
            "HotCold.quantile", quantile, lambda q: (q >= 0) & (q <= 1), "between 0 and 1 (0.84 in Prequal)"
        )
        self.probes = checked("HotCold.probes", probes, lambda d: d >= 1, "at least 1 (inf looks at all)")

    def route(self, t, observation: Observation, state):
        """All to the least latency among the cold of the pool."""
        del t
        in_flight, latency, mask = observation.workload, latency_as_seen(observation), observation.mask
        count = partial(jnp.sum, dtype=latency.dtype)
        shorter = count(mask[None] & ~at_most(in_flight[:, None], in_flight[None]), axis=1)
        wanted = self.quantile * count(mask, axis=0) * (1 - 1e-6)  # 0.7 * 10 is a little more than 7
        cold = shorter < jnp.maximum(wanted, 1)[None]
        # How many are to be preferred: all that are cold to a hot one, among the cold by latency, among the hot by their queues.
        faster = ~at_most(latency[:, None], latency[None])
        preferred = jnp.where(cold[:, None], cold[None] & faster, cold[None])
        rank = count(mask[None] & preferred, axis=1) + jnp.where(cold, 0, shorter)
        return best_of(rank, mask, self.probes), state


def latency_as_seen(observation: Observation) -> Float[Array, "backends *lanes"]:
    """What a request would take to each backend: the network, and the time in service there; seconds."""
    return observation.cost_latency + observation.average_latency
