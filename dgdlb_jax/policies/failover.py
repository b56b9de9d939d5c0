"""Balancers that know what is near and what is healthy, and nothing of load."""

from typing import ClassVar, Literal, NamedTuple

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from dgdlb_jax.numerics.checks import positive
from dgdlb_jax.numerics.types import Numbers
from dgdlb_jax.policies.base import AbstractInstantPolicy, Observation, at_most, checked, least, per_backend, somewhere
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
        cost = observation.cost_latency
        factor = per_backend(self.overprovisioning_factor, cost)
        same = at_most(cost[:, None], cost[None]) & at_most(cost[None], cost[:, None])
        nearer = ~same & (cost[None] < cost[:, None])
        whole, left = (jnp.where(same, each[None], 0).sum(1) for each in (state, healthy))
        health = jnp.minimum(1, factor * left / jnp.where(whole > 0, whole, 1))
        part = state / jnp.where(
            whole > 0, whole, 1
        )  # of its level, so that a sum over backends counts every level once
        total = jnp.minimum(1, (part * health).sum(0))
        total = jnp.where(total > 0, total, 1)[None]
        before = jnp.where(nearer, (part * health)[None], 0).sum(1) / total
        load = jnp.clip(1 - before, 0, health / total)
        weight = state * jnp.minimum(1, factor * healthy / jnp.where(state > 0, state, 1))
        together = jnp.where(same, weight[None], 0).sum(1)
        share = load * weight / jnp.where(together > 0, together, 1)
        return proportional(jnp.where(share.sum(0) > 0, share, state), observation.mask), state


class Health(NamedTuple):
    """What health checks say: whether each backend counts as healthy (1 or 0), how many of the last checks said otherwise, and seconds
    since the last."""

    healthy: Float[Array, "backends *lanes"]
    against: Float[Array, "backends *lanes"]
    waited: Float[Array, "*lanes"]


class Record(NamedTuple):
    """What clients have in their caches: a mixture of the answer before the last and the last, and for how long that has been given; and
    what the answer depends on."""

    before: Float[Array, "backends *lanes"]
    answer: Float[Array, "backends *lanes"]
    since: Float[Array, "*lanes"]
    health: Health


class DnsLatency(AbstractInstantPolicy):
    r"""Latency-based DNS: the healthy backend with the least network latency, as old as the records in clients' caches.

    $$ x(t) = \frac1D \int_{t - D}^t \text{answer}(s)\, ds $$
    with $D$ the time to live, where caches expire spread out over it; all at once every $D$ seconds where they expire together. Changes of
    the answer at least $D$ apart are followed exactly; of faster ones the last counts, from where the caches were.

    A backend that [[events]] take out of service stays in the answer until $n$ checks in a row have failed, one every $I$ seconds, and in
    caches for a time to live: for $(n - 1/2) I + D/2$ on average over the instants of a failure, $n I + D$ at most. What is sent to it
    meanwhile is lost, if it failed. It comes back the same way. Where nothing is healthy, everything counts as healthy.

    No feedback of load, hence no limit; at rest it is `Nearest`.

    **Arguments:**

    - `ttl`: $D$, seconds, a scalar or `(frontends,)`; 60 as recommended for records with health checks.
    - `expiry`: `"spread"` or `"together"`.
    - `request_interval`: $I$, seconds, a scalar or `(frontends,)`; 30, or 10, in Route 53. All check at once, after an interval first.
    - `failure_threshold`: $n$, checks, a scalar or `(frontends,)`; 3 in Route 53.

    **Raises:** `InputError` for a time that is not positive and finite, fewer than one check, or an unknown expiry.

    **Source:** Amazon Route 53 Developer Guide, latency-based routing, how it chooses records when health checking is configured, and how
    it determines whether an endpoint is healthy. One checker stands for the many that vote there.
    """

    takes_lanes: ClassVar[bool] = True

    ttl: Float[Array, "*frontends"]
    expiry: Expiry = eqx.field(static=True)
    request_interval: Float[Array, "*frontends"]
    failure_threshold: Float[Array, "*frontends"]

    def __init__(
        self,
        ttl: Numbers = 60.0,
        expiry: str = "spread",
        request_interval: Numbers = 30.0,
        failure_threshold: Numbers = 3.0,
    ):
        seconds = "positive and finite, seconds"
        self.ttl = checked("DnsLatency.ttl", ttl, positive, seconds)
        self.expiry = one_of("DnsLatency.expiry", expiry, Expiry)
        self.request_interval = checked("DnsLatency.request_interval", request_interval, positive, seconds)
        self.failure_threshold = checked(
            "DnsLatency.failure_threshold",
            failure_threshold,
            lambda n: (n >= 1) & (n < float("inf")),
            "at least 1 check",
        )

    @property
    def checks_health(self) -> bool:
        """It does."""
        return True

    def init(self, observation: Observation) -> Record:
        """All have the answer of the start, and are healthy."""
        start = jnp.zeros_like(observation.arrival_rate)
        health = Health(jnp.ones_like(observation.workload), jnp.zeros_like(observation.workload), start)
        answer = self._answer(observation, health)
        return Record(answer, answer, start, health)

    def route(self, t, observation: Observation, state: Record):
        """Part of the clients still where they were sent before."""
        del t
        health, step = self._checked(observation, state.health), observation.time_step
        answer, since = self._answer(observation, health), state.since + step
        if self.expiry == "together":
            due = since >= jnp.maximum(self.ttl, step) - step / 2
            gone = ~somewhere(observation.mask & (state.answer > 0))
            answer = jnp.where(due | gone, answer, state.answer)
            return answer, Record(answer, answer, jnp.where(due, since - jnp.maximum(self.ttl, step), since), health)
        caught_up = jnp.minimum(1, since / self.ttl)[None]
        held = jnp.where(observation.mask, state.before + (state.answer - state.before) * caught_up, 0)
        held = jnp.where(held.sum(0) > 0, proportional(held, observation.mask), answer)
        changed = somewhere(answer != state.answer)
        before, since = jnp.where(changed, held, state.before), jnp.where(changed, 0, jnp.minimum(since, self.ttl))
        return held, Record(before, answer, since, health)

    def _answer(self, observation: Observation, health: Health) -> Float[Array, "backends *lanes"]:
        """The nearest of those that count as healthy."""
        healthy = observation.mask & (health.healthy > 0)
        return least(observation.cost_latency, jnp.where(somewhere(healthy), healthy, observation.mask))

    def _checked(self, observation: Observation, health: Health) -> Health:
        """After the checks that are due: as many in a row as the threshold says turn what a backend counts as."""
        if observation.healthy is None:
            return health
        step = observation.time_step
        waited, interval = health.waited + step, jnp.maximum(self.request_interval, step)
        due = waited >= interval - step / 2
        otherwise = observation.healthy != (health.healthy > 0)
        against = jnp.where(due, jnp.where(otherwise, health.against + 1, 0), health.against)
        turns = against >= per_backend(self.failure_threshold, against)
        left = jnp.where(due, jnp.maximum(waited - interval, -step), waited)
        return Health(jnp.where(turns, 1 - health.healthy, health.healthy), jnp.where(turns, 0, against), left)
