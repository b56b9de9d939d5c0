"""What a time step holds: everything that stays the same from step to step, what changes, and what its stages hand on."""

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Int, PyTree

from dgdlb_jax.policies.base import State
from dgdlb_jax.simulation.attached import Applied, Attached, Extended
from dgdlb_jax.simulation.autoscaled import Scaler, Scaling
from dgdlb_jax.simulation.clock import Clock, Lanes, length, time
from dgdlb_jax.simulation.dynamics import Arcs, Backends, Field, Frontends
from dgdlb_jax.simulation.lanes import Shape
from dgdlb_jax.simulation.own import OwnRequests
from dgdlb_jax.simulation.retries import (
    Retries,
)
from dgdlb_jax.simulation.statistics import Summary
from dgdlb_jax.simulation.timeline import Left, Wires


class System(eqx.Module):
    """Everything that stays the same from step to step; `late`: where the channel of flow carries counts, the fraction of a step in
    every latency."""

    field: Field
    clock: Clock
    summary: Summary | None
    late: Wires | None
    attached: Attached | None = None
    scaler: Scaler | None = None

    def rate(
        self,
        k: Int[Array, ""],
        at: Int[Array, ""],
        workload: Backends,
        extensions: list[PyTree],
        ready: Backends | None,
        of: Callable = Field.service_rate,
    ) -> Backends:
        """A service rate at one end of step k, with extensions in these states and so many replicas; `of`: all requests of a backend, or
        each."""
        clock = self.clock.backends
        replicas = None if self.scaler is None or ready is None else self.scaler.factor(ready)
        rate = of(self.field, time(at, clock), workload, (time(k, clock), length(k, clock)), replicas)
        factor = self.plugins.factor(extensions) if self.plugins is not None else None
        return rate if factor is None else factor * rate

    @property
    def plugins(self) -> Applied | None:
        """What a user has added, None if nothing."""
        return None if self.attached is None else Applied(self.field, self.clock, self.attached, self.scaler)


class StepState(eqx.Module):
    """What changes from step to step, the channels apart. Few arrays and no scalars: many small ones are slow in XLA's loops."""

    routing: Arcs
    workload: Backends
    flow: Arcs
    inflow: Backends
    velocity: Arcs | None
    policy: State
    peak: Backends
    in_flight: Lanes | None
    sums: tuple[PyTree, ...] | None  # by built-in statistics
    tail: Wires | None = None  # of a channel that carries counts: what of the last step arrives a step after the rest
    measured: tuple[PyTree, ...] = ()  # by statistics of the user's
    extended: tuple[Extended, ...] = ()  # by state variables of the user's
    own: OwnRequests | None = None  # where the policy looks at them
    lost: Backends | None = None  # with events: requests lost since the start
    reported: Backends | None = None  # with events: the workload as frontends hear of it
    left: Left | None = None  # where news changes its ways: what was reported then
    retries: Retries | None = None  # with events: what backends that failed have lost for a while
    scaling: Scaling | None = None  # with an autoscaler

    @property
    def ready(self) -> Backends | None:
        """Replicas that serve, where an autoscaler moves them."""
        return None if self.scaling is None else self.scaling.ready


class Predicted(NamedTuple):
    """What `predict` hands on; with an autoscaler, `ready`: replicas at the end of the step."""

    now: StepState
    workload: Backends
    ready: Backends | None = None


class Seen(NamedTuple):
    """What `answer` hands on: what frontends see of workloads (and replicas), and the rate at which own requests are answered in the
    step."""

    held: Predicted
    seen: Arcs
    left: Arcs
    replicas: Arcs | None = None


class Answers(NamedTuple):
    """Of own requests: the rates at which they leave backends in the step, and at which answers reach frontends."""

    left: Arcs
    returned: Arcs


class Routed(NamedTuple):
    """What `route` hands on; with counts, `sent`: what is sent in the step, requests/s, and the `tail` of it; with events that concern
    links, `wired`: what of it is on each wire."""

    now: StepState
    predicted: Backends
    routing: Arcs
    velocity: Arcs | None
    policy: State
    flow: Arcs
    sent: Arcs | None = None
    tail: Wires | None = None
    answers: Answers | None = None
    wired: list[Arcs] | None = None
    ready: Backends | None = None


def flow_channel(state: StepState) -> int:
    """Which channel is that of flow."""
    return 1 + (state.own is not None) + (0 if state.scaling is None else state.scaling.channels)


def wire_shape(field: Field) -> Shape:
    """The sizes of a tile of wires: as many as there are arcs, or more where events change latencies."""
    return (
        field.shape
        if field.events is None
        else replace(field.shape, frontends=field.events.wires * field.shape.frontends)
    )


def wire_delay(field: Field, step: Frontends) -> Wires:
    """The latency of every wire in steps."""
    delay = field.latency / step[None]
    return delay if field.events is None else field.events.by_wire(delay)


def news_shape(field: Field) -> Shape:
    """The sizes of a tile of ways of news: as many as there are arcs, or more where events change their latencies."""
    ways = 1 if field.events is None else field.events.ways_of_news
    return replace(field.shape, frontends=ways * field.shape.frontends)


def news_delay(field: Field, step: Frontends) -> Wires:
    """The latency of every way of news in steps."""
    if field.events is None or field.events.news is None:
        return field.feedback_latency / step[None]
    return jnp.concatenate([*(field.events.news.values / step[None, None])], axis=-1)
