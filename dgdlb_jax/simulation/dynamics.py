"""The vector field, written once: what the simulator steps, the gradients differentiate and the stability analysis linearises.

Everything here works on lanes (see `lanes`): arcs are `(backends, frontends * lanes)`.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from dgdlb_jax.model.demand import AbstractDemand
from dgdlb_jax.model.network import Network
from dgdlb_jax.model.service import AbstractService
from dgdlb_jax.numerics.precision import with_float_type
from dgdlb_jax.numerics.results import InputError
from dgdlb_jax.policies.base import AbstractFlowPolicy, AbstractPolicy, Observation, State, takes_lanes
from dgdlb_jax.simulation.lanes import Shape

Arcs = Float[Array, "backends frontend_lanes"]
Backends = Float[Array, " backend_lanes"]
Frontends = Float[Array, " frontend_lanes"]


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

    def __init__(self, network: Network, policy: AbstractPolicy):
        """From a batched, nameless network and a policy whose parameters are scalars, `(lanes,)` or `(lanes, frontends, ...)`.

        Here they meet: the parameters are converted to the network's floating-point type.
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

    def arrival_rate(self, t: Frontends) -> Frontends:
        r"""$\lambda_i(t)$, requests/s."""
        return self.demand.rate(t)

    def service_rate(self, t: Backends, workload: Backends) -> Backends:
        r"""$\ell_j(N_j)$, times the capacity factor where capacity changes in time, requests/s."""
        rate = self.service.rate(workload)
        return rate if self.capacity is None else self.capacity.rate(t) * rate

    def observe(self, t: Frontends, seen: Arcs, flow: Arcs, time_step: Frontends) -> Observation:
        """What every frontend sees: `seen` is the workload after the feedback latency, `flow` the frontend's own flow now."""
        rate = self.seen_service.rate(seen)
        marginal, average = self.seen_service.marginal_latency(seen), self.seen_service.average_latency(seen)
        if self.seen_capacity is not None:
            # Capacity is known in advance, so its past needs no delay line. Where it is 0 a latency has no finite value.
            factor = self.seen_capacity.rate(jnp.maximum(t - self.feedback_latency, 0))
            some = jnp.maximum(factor, 1e-12)
            rate, marginal, average = factor * rate, marginal / some, average / some
        return Observation(
            workload=seen,
            service_rate=rate,
            marginal_latency=marginal,
            average_latency=average,
            cost_latency=self.cost_latency,
            outstanding=flow * (self.latency + average),
            nominal_capacity=self.nominal_capacity,
            mask=self.mask,
            arrival_rate=self.arrival_rate(t),
            time_step=time_step,
        )

    def init(self, observation: Observation) -> State:
        """The memory of every frontend's policy."""
        return self._each_frontend(lambda policy, seen: policy.init(seen), observation)

    def velocity(self, t: Frontends, routing: Arcs, observation: Observation, state: State) -> tuple[Arcs, State]:
        """The raw velocity of the routing, before any projection (1/s)."""
        velocity, state = self._each_frontend(
            lambda policy, *seen: policy.velocity(*seen), t, routing, observation, state
        )
        return self._checked(velocity, "velocity"), state

    def route(self, t: Frontends, observation: Observation, state: State) -> tuple[Arcs, State]:
        """Where an instant policy sends the traffic."""
        routing, state = self._each_frontend(lambda policy, *seen: policy.route(*seen), t, observation, state)
        return self._checked(routing, "route"), state

    def _checked(self, arcs: Arcs, what: str) -> Arcs:
        if arcs.shape != self.mask.shape:
            raise InputError(
                f"{type(self.policy).__name__}.{what} gives a routing of shape {arcs.shape[:-1]}, but the network has "
                f"{self.shape.backends} backends: give one number for each."
            )
        return arcs

    @property
    def flows(self) -> bool:
        """Whether the routing moves with a velocity (and does not jump)."""
        return isinstance(self.policy, AbstractFlowPolicy)

    def _each_frontend(self, rule, *arguments) -> Any:
        if takes_lanes(self.policy):
            return rule(self.policy, *arguments)
        axes = jax.tree.map(lambda leaf: None if leaf.ndim == 0 else -1, self.policy)
        return jax.vmap(rule, in_axes=(axes, *(-1 for _ in arguments)), out_axes=-1)(self.policy, *arguments)
