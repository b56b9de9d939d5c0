r"""What balancers in operation have in common: they read reports every so often, smooth them, and hold their weights in between.

$$ \hat u \leftarrow (1 - b)\, u(t_k - \tau^{fb}) + b\, \hat u, \qquad x(t) = R(\hat u), \quad t_k \le t < t_{k+1} = t_k + T, \qquad
   b = e^{-T / t_s} $$

A rule of this kind is a report $u$ (what it reads of each backend), a map $R$ from reports to shares, a period $T$ and a time constant
$t_s$. The first report counts as it is. All frontends read at the same instants $0, T, 2T, \ldots$ unless they have offsets;
`stability.held` has the limits.
"""

from abc import abstractmethod
from typing import Any, ClassVar, Literal, NamedTuple, get_args

import jax.numpy as jnp
from jaxtyping import Array, Float

from dgdlb_jax.numerics.checks import not_negative, positive
from dgdlb_jax.numerics.results import InputError, is_concrete
from dgdlb_jax.numerics.text import did_you_mean
from dgdlb_jax.numerics.types import Matrix, Numbers
from dgdlb_jax.policies.base import AbstractInstantPolicy, Observation, checked, per_backend, somewhere

Arcs = Float[Array, "backends *lanes"]
Report = Literal["throughput", "concurrency", "saturated"]
"""What a backend calls its utilisation: throughput over capacity, requests over slots (as a KV cache counts them), or always 1 (a GPU
that is never idle)."""


class Held(NamedTuple):
    """The memory of a frontend: seconds since it last read, its averaged report, and the routing that it holds."""

    waited: Float[Array, "*lanes"]
    report: Arcs
    routing: Arcs


class AbstractHeldPolicy(AbstractInstantPolicy):
    """A rule that reads reports periodically and holds its routing in between. A subclass says what it reads, and what follows.

    `period_knob`, `smoothing_knob`: what operators call these settings; None for none.
    """

    period_knob: ClassVar[str] = "weight_update_period"
    smoothing_knob: ClassVar[str | None] = None

    @property
    @abstractmethod
    def period(self) -> Float[Array, "*frontends"]:
        """$T$, seconds between two updates; rounded to whole time steps of a simulation, on average."""

    @property
    def offset(self) -> Float[Array, "*frontends"]:
        """Seconds until the first update, at most a period; 0, the default, is in step with all others, after a period."""
        return jnp.zeros_like(self.period)

    @property
    @abstractmethod
    def smoothing(self) -> Float[Array, "*frontends"]:
        """$t_s$, the time constant of the average of reports, seconds; 0 for none."""

    @property
    def switches(self) -> bool:
        """Whether it sends everything to the best until the next report (bang-bang), by reports that its own traffic moves."""
        return False

    @abstractmethod
    def report(self, observation: Observation) -> Arcs:
        """What is read of each backend, and averaged."""

    @abstractmethod
    def shares(self, t: Float[Array, "*lanes"], report: Arcs, observation: Observation) -> Arcs:
        """The routing that follows from averaged reports."""

    @property
    def time_scale(self) -> Float[Array, "*parameters"]:
        """Seconds between two updates."""
        return self.period

    def init(self, observation: Observation) -> Held:
        """The first report as it is, and what follows from it."""
        report, start = self.report(observation), jnp.zeros_like(observation.arrival_rate)
        waited = start + jnp.where(self.offset > 0, self.period - self.offset, 0)
        return Held(waited, report, self.shares(start, report, observation))

    def route(self, t, observation: Observation, state: Held) -> tuple[Arcs, Held]:
        """The routing held, renewed where an update is due."""
        step = observation.time_step
        waited, period = state.waited + step, jnp.maximum(self.period, step)
        stranded = ~somewhere(observation.mask & (state.routing > 0))  # all that it used has been closed
        due = (waited >= period - step / 2) | stranded
        kept = kept_of_average(period, self.smoothing)[None]
        report = jnp.where(due, self.report(observation) * (1 - kept) + state.report * kept, state.report)
        routing = jnp.where(due, self.shares(t, report, observation), state.routing)
        left = jnp.where(due, jnp.maximum(waited - period, -step), waited)
        return routing, Held(left, report, routing)


def checked_offset(policy: str, offset: Numbers, period: Float[Array, "..."]) -> Float[Array, "..."]:
    """Seconds until the first update.

    **Raises:** `InputError` for a time that is negative, or longer than a period.
    """
    name = f"{policy}.weight_update_offset"
    found = checked(name, offset, not_negative, "finite and not negative, seconds")
    if is_concrete(found, period) and bool(jnp.greater(found, period).any()):
        raise InputError(
            f"{name} is {float(found.max()):g} s, but must be at most the period of {float(period.min()):g} s."
        )
    return found


def kept_of_average(period: Float[Array, "..."], smoothing: Float[Array, "..."]) -> Float[Array, "..."]:
    r"""$b = e^{-T / t_s}$, the part of an average that an update keeps; 0 without smoothing."""
    some = smoothing > 0
    return jnp.where(some, jnp.exp(-period / jnp.where(some, smoothing, 1)), 0)


def hosts(observation: Observation, host_capacity: Float[Array, "..."]) -> Arcs:
    """How many hosts each backend has: its nominal capacity, as it is known now, over that of one host."""
    return observation.nominal_capacity / per_backend(host_capacity, observation.nominal_capacity)


def utilization(
    kind: Report,
    observation: Observation,
    host_capacity: Float[Array, "..."],
    max_concurrency: Float[Array, "..."] | None,
) -> Arcs:
    """What hosts report as their utilisation, the mean over each backend: `Report` says how they may count."""
    if kind == "saturated":
        return jnp.ones_like(observation.workload)
    if kind == "throughput":
        used, room = observation.service_rate, observation.nominal_capacity
    else:
        assert max_concurrency is not None
        used, slots = observation.workload, per_backend(max_concurrency, observation.workload)
        room = slots * hosts(observation, host_capacity)
    return jnp.where(room > 0, used / jnp.where(room > 0, room, 1), 1)


def one_of(name: str, value: str, allowed: Any) -> Any:
    """A word among those of a `Literal`.

    **Raises:** `InputError` with the words there are.
    """
    words = get_args(allowed)
    if value not in words:
        hint = did_you_mean(str(value), words, ".")
        raise InputError(f"{name} is {value!r}: choose from {', '.join(words)}{hint}")
    return value


def checked_report(
    policy: str, report: str, host_capacity: Matrix, max_concurrency: Matrix | None
) -> tuple[Report, Float[Array, "..."], Float[Array, "..."] | None]:
    """The kind of report of a policy, and what it is counted by.

    **Raises:** `InputError` for an unknown kind, for numbers that are not positive, or slots that a kind needs and that are missing.
    """
    kind: Report = one_of(f"{policy}.report", report, Report)
    if kind == "concurrency" and max_concurrency is None:
        raise InputError(
            f"{policy}(report='concurrency') needs max_concurrency, the requests that one host holds at most: those that fit its KV cache, "
            "or its max_num_seqs."
        )
    capacity = checked(f"{policy}.host_capacity", host_capacity, positive, "positive and finite (requests/s)")
    if max_concurrency is None:
        return kind, capacity, None
    return (
        kind,
        capacity,
        checked(f"{policy}.max_concurrency", max_concurrency, positive, "positive and finite (requests)"),
    )
