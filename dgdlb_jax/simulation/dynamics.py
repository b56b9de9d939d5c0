"""The vector field, written once: what the simulator steps, the gradients differentiate and the stability analysis linearises.

Everything here works on lanes (see `lanes`): arcs are `(backends, frontends * lanes)`.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from dgdlb_jax.model.demand import AbstractDemand, AbstractJumpingDemand
from dgdlb_jax.model.network import Network
from dgdlb_jax.model.service import AbstractService
from dgdlb_jax.model.signals import Signals
from dgdlb_jax.numerics.precision import with_float_type
from dgdlb_jax.numerics.results import InputError
from dgdlb_jax.policies.base import AbstractFlowPolicy, AbstractPolicy, Observation, State, for_each_frontend
from dgdlb_jax.simulation.lanes import Shape
from dgdlb_jax.simulation.timeline import Jump, Timeline, shared

Arcs = Float[Array, "backends frontend_lanes"]
Backends = Float[Array, " backend_lanes"]
Frontends = Float[Array, " frontend_lanes"]
PerArc = Float[Array, "#backends frontend_lanes"]
"""Of every arc, or the same for all arcs of a frontend."""


class Field(eqx.Module):
    """A tile of networks and the policy that runs in them, laid out for the time step."""

    shape: Shape
    demand: AbstractDemand
    service: AbstractService  # over backends
    seen_service: AbstractService  # the same, over arcs
    capacity: AbstractDemand | None
    seen_capacity: AbstractDemand | None
    feedback_latency: Arcs
    latency: Arcs
    cost_latency: Arcs
    mask: Bool[Array, "backends frontend_lanes"]
    nominal_capacity: Arcs
    policy: AbstractPolicy
    events: Timeline | None

    def __init__(self, network: Network, policy: AbstractPolicy, signals: Signals | None = None):
        """From a batched, nameless network and a policy whose parameters are scalars, `(lanes,)` or `(lanes, frontends, ...)`.

        Here they meet: the parameters are converted to the network's floating-point type. `signals`: events in these networks, their
        demand apart.
        """
        shape = Shape(network.frontends, network.backends, network.latency.shape[0])
        self.shape = shape
        self.demand = jax.tree.map(shape.last, network.demand)
        self.service = jax.tree.map(shape.last, network.service)
        self.seen_service = jax.tree.map(shape.backend_to_arcs, network.service)
        self.capacity = jax.tree.map(shape.last, network.capacity)
        self.seen_capacity = jax.tree.map(shape.backend_to_arcs, network.capacity)
        self.feedback_latency = shape.arcs(network.feedback_latency)
        self.latency = shape.arcs(network.latency)
        self.cost_latency = shape.arcs(network.cost_latency)
        self.mask = shape.arcs(network.mask)
        self.nominal_capacity = shape.backend_to_arcs(network.nominal_capacity)
        self.policy = shape.policy(with_float_type(policy, network.latency.dtype))
        checks = self.policy.checks_health
        self.events = None if signals is None else Timeline(shape, signals, self.feedback_latency, checks)

    def arrival_rate(self, t: Frontends) -> Frontends:
        r"""$\lambda_i(t)$, requests/s."""
        return self.demand.rate(t)

    def mean_arrival_rate(self, start: Frontends, step: Frontends, part: PerArc) -> PerArc:
        r"""The mean of $\lambda_i$ over the first part of a step, requests/s: exact where it jumps, else on a straight line."""
        if isinstance(self.demand, AbstractJumpingDemand):
            return self.demand.mean_over(start[None], part * step[None])
        before, after = self.arrival_rate(start)[None], self.arrival_rate(start + step)[None]
        return before + part / 2 * (after - before)

    def service_rate(
        self,
        t: Backends,
        workload: Backends,
        step: tuple[Backends, Backends] | None = None,
        replicas: Backends | None = None,
    ) -> Backends:
        r"""$\ell_j(N_j)$, times the capacity factor where capacity changes in time, requests/s.

        What jumps counts with its mean over `step`, its start and its length. `replicas`: a factor $r$ on those that the curve stands
        for, $r\,\ell_j(N_j / r)$.
        """
        curve = self.service.rate
        if replicas is not None:
            curve = lambda workload: replicas * self.service.rate(workload / replicas)
        rate = curve(workload) if self.events is None else self.events.mean_rate(curve, workload, t, step)
        return self._at_capacity(t, rate, step)

    def rate_per_request(
        self,
        t: Backends,
        workload: Backends,
        step: tuple[Backends, Backends] | None = None,
        replicas: Backends | None = None,
    ) -> Backends:
        r"""$\ell_j(N_j) / N_j$, 1/s, which has a limit at 0: how fast each request is served where they share a backend equally."""
        each = workload if replicas is None else workload / replicas
        return self._at_capacity(t, 1 / self.service.average_latency(each), step)

    def _at_capacity(self, t: Backends, rate: Backends, step: tuple[Backends, Backends] | None) -> Backends:
        if self.capacity is None:
            return rate
        if step is not None and isinstance(self.capacity, AbstractJumpingDemand):
            return self.capacity.mean_over(*step) * rate
        return self.capacity.rate(t) * rate

    def observe(
        self, t: Frontends, seen: Arcs, outstanding: Arcs, time_step: Frontends, scaled: Arcs | None = None
    ) -> Observation:
        """What every frontend sees: `seen` is the workload after the feedback latency, `outstanding` are the frontend's own requests
        (anything where its policy does not look at them), `scaled` the factor on replicas after that latency, where it moves."""
        replicas, nominal, way = 1.0, self.nominal_capacity, 1.0
        if scaled is not None:
            replicas, nominal = scaled, scaled * nominal
        if self.events is not None and self.events.seen_replicas is not None:
            replicas = self.events.seen_replicas.at(t)
            nominal = replicas * nominal
        if self.events is not None and self.events.seen_latency is not None:
            way = self.events.seen_latency.at(t)
        each = seen / replicas
        rate = replicas * self.seen_service.rate(each)
        marginal, average = self.seen_service.marginal_latency(each), self.seen_service.average_latency(each)
        if self.seen_capacity is not None:
            # Capacity is known in advance, so its past needs no delay line. Where it is 0 a latency has no finite value.
            factor = self.seen_capacity.rate(jnp.maximum(t[None] - self.feedback_latency, 0))
            some = jnp.maximum(factor, 1e-12)
            rate, marginal, average = factor * rate, marginal / some, average / some
        return Observation(
            workload=seen,
            service_rate=rate,
            marginal_latency=marginal,
            average_latency=average,
            cost_latency=way * self.cost_latency,
            outstanding=outstanding,
            nominal_capacity=nominal,
            mask=self.open_arcs(t),
            arrival_rate=self.arrival_rate(t),
            time_step=time_step,
            healthy=None if self.events is None or self.events.health is None else self.events.health.at(t) > 0.5,
        )

    def cost_latency_at(self, t: Frontends) -> Arcs:
        """The network time charged to what is sent at a time, seconds."""
        way = None if self.events is None else self.events.latency
        return self.cost_latency if way is None else way.at(t) * self.cost_latency

    def open_arcs(self, t: Frontends) -> Bool[Array, "backends frontend_lanes"]:
        """The arcs that frontends use at a time."""
        return self.mask if self.events is None else self.events.open_arcs(t, self.mask)

    def weight_of_start(self, start: Frontends, step: Frontends) -> PerArc | None:
        """How much the velocity at the start of a step counts in its mean over the step; None: half.

        Where what a frontend sees jumps, it is the part of the step before the jump. Arcs without a jump of their own take that of the
        other arcs of their frontend, or of its demand: a rule may look at them.
        """
        weight, seen = None, self._seen_jumps(start, step)
        if isinstance(self.demand, AbstractJumpingDemand):
            count, place = self.demand.jumps_within(start, step)
            weight = jnp.where(count > 0, place, 0.5)[None]
        if not seen:
            return weight
        total, mean = shared(seen, self.mask)
        found = jnp.where(total > 0, mean, 0.5 if weight is None else weight)
        for count, place in seen:
            found = jnp.where(self.mask & (count > 0), place, found)
        return found

    def _seen_jumps(self, start: Frontends, step: Frontends) -> list[Jump]:
        found = [] if self.events is None else self.events.seen_jumps(start, step)
        if isinstance(self.seen_capacity, AbstractJumpingDemand):
            found.append(self.seen_capacity.jumps_within(start[None] - self.feedback_latency, step[None]))
        return found

    def init(self, observation: Observation) -> State:
        """The memory of every frontend's policy."""
        return for_each_frontend(self.policy, lambda policy, seen: policy.init(seen), observation)

    def velocity(self, t: Frontends, routing: Arcs, observation: Observation, state: State) -> tuple[Arcs, State]:
        """The raw velocity of the routing, before any projection (1/s)."""
        rule = lambda policy, *seen: policy.velocity(*seen)
        velocity, state = for_each_frontend(self.policy, rule, t, routing, observation, state)
        return self._checked(velocity, "velocity"), state

    def route(self, t: Frontends, observation: Observation, state: State) -> tuple[Arcs, State]:
        """Where an instant policy sends the traffic."""
        rule = lambda policy, *seen: policy.route(*seen)
        routing, state = for_each_frontend(self.policy, rule, t, observation, state)
        return self._checked(routing, "route"), state

    def _checked(self, arcs: Arcs, what: str) -> Arcs:
        if arcs.shape != self.mask.shape:
            raise InputError(
                f"{type(self.policy).__name__}.{what} gives a routing of shape {arcs.shape[:-1]}, but the network has "
                f"{self.shape.backends} backends: give one number for each."
            )
        return arcs

    @property
    def counts(self) -> bool:
        """Whether the line of flow has to carry counts, since demand or routing jump."""
        return self.events is not None or isinstance(self.demand, AbstractJumpingDemand)

    @property
    def flows(self) -> bool:
        """Whether the routing moves with a velocity (and does not jump)."""
        return isinstance(self.policy, AbstractFlowPolicy)
