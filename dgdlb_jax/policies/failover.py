"""Balancers that know what is near and what is healthy, and nothing of load."""

from typing import ClassVar, Literal, NamedTuple

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from dgdlb_jax.numerics.checks import positive
from dgdlb_jax.numerics.types import Numbers
from dgdlb_jax.policies.base import AbstractInstantPolicy, Observation, at_most, checked, least
from dgdlb_jax.policies.held import one_of
from dgdlb_jax.policies.static import proportional

Expiry = Literal["spread", "together"]


class LocalityFailover(AbstractInstantPolicy):
    r"""Priorities by nearness, as Envoy and Istio fail over: the nearest level gets all it is healthy for, the next one what is left.

    Backends equally far away are one level $P$, of health $H_P = \min(1, f \cdot \text{healthy} / \text{all})$ in hosts, with $f$ the
    overprovisioning factor:
    $$ \text{load}_P = \min\Bigl(1 - \sum_{Q < P} \text{load}_Q,\ \frac{H_P}{\min(1, \sum_Q H_Q)}\Bigr) $$
    Within a level in proportion to $\text{all}_j \min(1, f\, \text{healthy}_j / \text{all}_j)$. Health is what is left of the nominal
    capacity that a backend had at the start, and none where it is not to be used; nothing healthy at all: all hosts equally.

    No feedback of load, hence no limit, nothing to oscillate; and no spilling: a healthy backend gets all of its level's traffic, also
    above its capacity.

    **Arguments:**

    - `overprovisioning_factor`: $f$, 1.4 as in Envoy, a scalar or `(frontends,)`: 1.4 fails over once less than 71.4 % are healthy.

    **Raises:** `InputError` for a factor that is not positive and finite.

    **Source:** Envoy's documentation, "Priority levels", "Locality weighted load balancing", "Overprovisioning factor"; Istio's
    "Locality failover". Envoy computes in whole per cent and truncates, here shares are exact: its published tables differ by up to 0.6
    points. Without panic mode (below 50 % healthy Envoy counts all hosts of a level as healthy).
    """

    takes_lanes: ClassVar[bool] = True

    overprovisioning_factor: Float[Array, "*frontends"]

    def __init__(self, overprovisioning_factor: Numbers = 1.4):
        self.overprovisioning_factor = checked(
            "LocalityFailover.overprovisioning_factor", overprovisioning_factor, positive, "positive and finite"
        )

    def init(self, observation: Observation) -> Float[Array, "backends *lanes"]:
        """All hosts: the nominal capacity at the start."""
        return observation.nominal_capacity

    def route(self, t, observation: Observation, state):
        """Level after level, each for what it is healthy."""
        del t
        healthy = jnp.where(observation.mask, jnp.minimum(observation.nominal_capacity, state), 0)
        cost, factor = observation.cost_latency, self.overprovisioning_factor
        same = at_most(cost[:, None], cost[None]) & at_most(cost[None], cost[:, None])
        nearer = ~same & (cost[None] < cost[:, None])
        whole, left = (jnp.where(same, each[None], 0).sum(1) for each in (state, healthy))
        health = jnp.minimum(1, factor * left / jnp.where(whole > 0, whole, 1))
        part = state / jnp.where(
            whole > 0, whole, 1
        )  # of its level, so that a sum over backends counts every level once
        total = jnp.minimum(1, (part * health).sum(0))
        total = jnp.where(total > 0, total, 1)
        before = jnp.where(nearer, (part * health)[None], 0).sum(1) / total
        load = jnp.clip(1 - before, 0, health / total)
        weight = state * jnp.minimum(1, factor * healthy / jnp.where(state > 0, state, 1))
        together = jnp.where(same, weight[None], 0).sum(1)
        share = load * weight / jnp.where(together > 0, together, 1)
        return proportional(jnp.where(share.sum(0) > 0, share, state), observation.mask), state


class Record(NamedTuple):
    """What clients have in their caches: a mixture of the answer before the last and the last, and for how long that has been given."""

    before: Float[Array, "backends *lanes"]
    answer: Float[Array, "backends *lanes"]
    since: Float[Array, "*lanes"]


class DnsLatency(AbstractInstantPolicy):
    r"""Latency-based DNS: the healthy backend with the least network latency, as old as the records in clients' caches.

    $$ x(t) = \frac1D \int_{t - D}^t \text{answer}(s)\, ds $$
    with $D$ the time to live, where caches expire spread out over it; all at once every $D$ seconds where they expire together. Changes of
    the answer at least $D$ apart are followed exactly; of faster ones the last counts, from where the caches were.

    No feedback of load, hence no limit; at rest it is `Nearest`.

    **Arguments:**

    - `ttl`: $D$, seconds, a scalar or `(frontends,)`; 60 as recommended for records with health checks.
    - `expiry`: `"spread"` or `"together"`.

    **Raises:** `InputError` for a time to live that is not positive and finite, or an unknown expiry.

    **Source:** Amazon Route 53 Developer Guide, latency-based routing, and how it chooses records when health checking is configured. What
    [[events]] close, clients leave as soon as the news is there, and not after checks (30 s, 3 failures in a row) and their caches: the
    requests that DNS loses to a dead backend, for (3 - 1/2) 30 s + D/2 on average, are not in a run.
    """

    takes_lanes: ClassVar[bool] = True

    ttl: Float[Array, "*frontends"]
    expiry: Expiry = eqx.field(static=True)

    def __init__(self, ttl: Numbers = 60.0, expiry: str = "spread"):
        self.ttl = checked("DnsLatency.ttl", ttl, positive, "positive and finite, seconds")
        self.expiry = one_of("DnsLatency.expiry", expiry, Expiry)

    def init(self, observation: Observation) -> Record:
        """All have the answer of the start."""
        answer = least(observation.cost_latency, observation.mask)
        return Record(answer, answer, jnp.zeros_like(observation.arrival_rate))

    def route(self, t, observation: Observation, state: Record):
        """Part of the clients still where they were sent before."""
        del t
        answer, step = least(observation.cost_latency, observation.mask), observation.time_step
        since = state.since + step
        if self.expiry == "together":
            due = since >= jnp.maximum(self.ttl, step) - step / 2
            gone = ~(observation.mask & (state.answer > 0)).any(0)
            answer = jnp.where(due | gone, answer, state.answer)
            return answer, Record(answer, answer, jnp.where(due, since - jnp.maximum(self.ttl, step), since))
        caught_up = jnp.minimum(1, since / self.ttl)
        held = jnp.where(observation.mask, state.before + (state.answer - state.before) * caught_up, 0)
        held = jnp.where(held.sum(0) > 0, proportional(held, observation.mask), answer)
        changed = (answer != state.answer).any(0)
        return held, Record(
            jnp.where(changed, held, state.before), answer, jnp.where(changed, 0, jnp.minimum(since, self.ttl))
        )
