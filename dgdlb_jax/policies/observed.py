"""llm-d's scorer by observed latencies: a curve over own requests, learnt from their answers, read at the count of this moment."""

from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from dgdlb_jax.numerics.checks import not_negative, positive
from dgdlb_jax.numerics.types import Matrix, Numbers
from dgdlb_jax.policies.base import AbstractInstantPolicy, Observation, at_most, checked, least, per_backend, somewhere
from dgdlb_jax.policies.latency import latency_as_seen

Arcs = Float[Array, "backends *lanes"]

_PARTS = 16  # of the window, as which a frontend keeps it


class Anchor(NamedTuple):
    """A point of the curve: own requests under way when one was sent, and the latency that it had, seconds."""

    in_flight: Arcs
    latency: Arcs


class Answers(NamedTuple):
    """What a part of the window has collected, or several (the leading axis): how many answers, and sums over them of what an `Anchor`
    holds."""

    number: Float[Array, "..."]
    in_flight: Float[Array, "..."]
    latency: Float[Array, "..."]


class Snapshot(NamedTuple):
    """What the observer has published: how many recent answers, their low and their typical anchor."""

    number: Arcs
    low: Anchor
    typical: Anchor


class Observer(NamedTuple):
    """The memory of a frontend.

    - `waited`: seconds since it published. `answered`: what the requests that are answered now had when they were sent.
    - `age`: seconds for which the newest part of the window has been filled. `filling`, `full`: that part, and those before it, the
      newest first. `snapshot`: as published last.
    """

    waited: Float[Array, "*lanes"]
    answered: Anchor
    age: Arcs
    filling: Answers
    full: Answers
    snapshot: Snapshot


class LatencyObservationScorer(AbstractInstantPolicy):
    r"""llm-d's `latency-observation-scorer-hub`: the least latency predicted for the frontend's own requests under way now.

    $$ \arg\min_j\ F_j + (T_j - F_j) \frac{o_j}{I_j} $$
    with $o_j$ own requests under way, $F_j$ the latency of an empty backend, and $(I_j, T_j)$ the typical observation of late: so many
    were under way when a request was sent that took so long. What was faster than typical gives a second anchor, as soon as it was
    sent into a load that is lower by `min_inflight_gap` (`predicted_latency`).

    Own counts have no delay, so the rule slides along equal predictions: there is no linear limit. Slowly, as observations move the
    curve, it is a loop with the delay of a latency and an average over the window (`stability.observed`). At rest all measured latencies
    are equal: that is `LeastLatency`, not the optimum.

    **Arguments:** numbers are scalars or `(frontends,)`, if nothing else is said.

    - `floor_latency`: the part of $F_j$ in the backend, the network apart, seconds, a scalar or `(frontends, backends)`; 0 by default.
    - `exploration_rate`: the probability of probing a backend with fewer than `min_requests` recent answers; 0.1 as in llm-d.
    - `min_inflight_gap`: requests by which both anchors have to differ, 2 as in llm-d.
    - `interval_duration`: seconds between two publications of the observer, 1 as in llm-d.
    - `max_requests`, `max_observation_age`: how many answers its window holds at most, and how old they may be, seconds; 100 and 180 as
      in llm-d. `min_requests`: answers that it needs, 10 as in llm-d.

    **Raises:** `InputError` for a value that is not allowed.

    **Source:** llm-d-router, READMEs and `scorer.go` of the scorer and its observer, 2026-11. The fluid has no scatter of latencies: the
    typical observation (the median there) is the mean over the window, the low one (the lower quartile) the mean of what is faster, and
    the floor, a low percentile over a day, is given. Backends share themselves equally, so answers belong to requests sent a latency ago
    on average, spread exponentially. The time to the first token is the whole latency here, as for `LatencyScorer`.
    """

    takes_lanes: ClassVar[bool] = True

    floor_latency: Float[Array, "*frontends_backends"]
    exploration_rate: Float[Array, "*frontends"]
    min_inflight_gap: Float[Array, "*frontends"]
    interval_duration: Float[Array, "*frontends"]
    max_requests: Float[Array, "*frontends"]
    max_observation_age: Float[Array, "*frontends"]
    min_requests: Float[Array, "*frontends"]

    def __init__(
        self,
        floor_latency: Matrix = 0.0,
        exploration_rate: Numbers = 0.1,
        min_inflight_gap: Numbers = 2.0,
        interval_duration: Numbers = 1.0,
        max_requests: Numbers = 100.0,
        max_observation_age: Numbers = 180.0,
        min_requests: Numbers = 10.0,
    ):
        name, seconds, count = (
            "LatencyObservationScorer",
            "positive and finite, seconds",
            "positive and finite (requests)",
        )
        self.floor_latency = checked(
            f"{name}.floor_latency", floor_latency, not_negative, "finite and not negative, seconds"
        )
        self.exploration_rate = checked(
            f"{name}.exploration_rate", exploration_rate, lambda p: (p >= 0) & (p <= 1), "between 0 and 1"
        )
        self.min_inflight_gap = checked(f"{name}.min_inflight_gap", min_inflight_gap, positive, count)
        self.interval_duration = checked(f"{name}.interval_duration", interval_duration, positive, seconds)
        self.max_requests = checked(f"{name}.max_requests", max_requests, positive, count)
        self.max_observation_age = checked(f"{name}.max_observation_age", max_observation_age, positive, seconds)
        self.min_requests = checked(f"{name}.min_requests", min_requests, positive, count)

    @property
    def time_scale(self) -> Float[Array, "*parameters"]:
        """Seconds between two publications."""
        return self.interval_duration

    def init(self, observation: Observation) -> Observer:
        """A window of what is seen now."""
        now, none = _sent_now(observation), jnp.zeros_like(observation.workload)
        rate = now.in_flight / now.latency
        most, oldest = per_backend(self.max_requests, rate), per_backend(self.max_observation_age, rate)
        number = jnp.minimum(most, oldest * rate) / _PARTS
        every = Answers(number, number * now.in_flight, number * now.latency)
        full = jax.tree.map(lambda each: jnp.broadcast_to(each, (_PARTS, *each.shape)), every)
        nothing = Answers(none, none, none)
        start = jnp.zeros_like(observation.arrival_rate)
        return Observer(start, now, none, nothing, full, self._published(none, nothing, full))

    def route(self, t, observation: Observation, state: Observer) -> tuple[Arcs, Observer]:
        """The least prediction by what is published, and some for those that hardly anything is known of."""
        del t
        after = self._observed(observation, state)
        mask, known = observation.mask, after.snapshot
        floor = observation.cost_latency + per_backend(self.floor_latency, mask)
        gap, enough = per_backend(self.min_inflight_gap, mask), per_backend(self.min_requests, mask)
        trusted = (known.number >= enough) & (known.typical.in_flight > 0) & (known.typical.latency > floor)
        curve = predicted_latency(observation.outstanding, floor, known.low, known.typical, gap)
        return _explored(jnp.where(trusted, curve, floor), mask, trusted, self.exploration_rate), after

    def _observed(self, observation: Observation, state: Observer) -> Observer:
        """The memory after the answers of a step."""
        step, now = observation.time_step, _sent_now(observation)
        number = step[None] * now.in_flight / now.latency
        passed = step[None] / now.latency
        answered = Anchor(*(_lag(old, new, passed) for old, new in zip(state.answered, now, strict=True)))
        new = Answers(number, number * answered.in_flight, number * answered.latency)
        filling = Answers(*(old + more for old, more in zip(state.filling, new, strict=True)))
        age = state.age + step[None]
        closes = self._filled(age, filling.number) >= 1
        full = jax.tree.map(
            lambda part, parts: jnp.where(closes, jnp.concatenate([part[None], parts[:-1]]), parts), filling, state.full
        )
        filling = jax.tree.map(lambda part: jnp.where(closes, 0, part), filling)
        age = jnp.where(closes, 0, age)
        waited, interval = state.waited + step, jnp.maximum(self.interval_duration, step)
        due = waited >= interval - step / 2
        snapshot = jax.tree.map(
            lambda new, old: jnp.where(due, new, old), self._published(age, filling, full), state.snapshot
        )
        left = jnp.where(due, jnp.maximum(waited - interval, -step), waited)
        return Observer(left, answered, age, filling, full, snapshot)

    def _filled(self, age: Arcs, number: Arcs) -> Arcs:
        """Which part of the newest part of the window is full: it closes by its count or by its age, whichever is first."""
        most, oldest = per_backend(self.max_requests, age), per_backend(self.max_observation_age, age)
        return _PARTS * jnp.maximum(number / most, age / oldest)

    def _published(self, age: Arcs, filling: Answers, full: Answers) -> Snapshot:
        """Typical and low anchors of a window that moves on evenly: its oldest part leaves as the newest fills."""
        leaves = 1 - jnp.clip(self._filled(age, filling.number), 0, 1)
        parts = jax.tree.map(
            lambda new, old: jnp.concatenate([new[None], old[:-1], (leaves * old[-1])[None]]), filling, full
        )
        typical, total = _anchor(parts, jnp.ones_like(parts.number, bool))
        faster = parts.latency < typical.latency[None] * parts.number
        low, some = _anchor(parts, faster)
        low = jax.tree.map(lambda anchor, other: jnp.where(some > 0, anchor, other), low, typical)
        return Snapshot(total, low, typical)


def predicted_latency(
    in_flight: Float[Array, "..."],
    floor: Float[Array, "..."],
    low: Anchor,
    typical: Anchor,
    min_inflight_gap: Float[Array, "..."],
) -> Float[Array, "..."]:
    """The latency with so many requests under way: straight lines from (0, floor) through both anchors, and beyond the typical one.

    The low anchor counts if it is lower by `min_inflight_gap` requests, lies above the floor and below the typical latency. Floors in
    seconds; all arguments in one shape, the result in the same.

    **Source:** llm-d-router, `scorer/latencyobservation`.
    """
    gap = typical.in_flight - low.in_flight
    counts = (gap >= min_inflight_gap) & (low.in_flight > 0) & (low.latency > floor) & (typical.latency > low.latency)
    below = in_flight < low.in_flight
    over = lambda rise, run: rise / jnp.where(run > 0, run, 1)
    chord = floor + in_flight * over(typical.latency - floor, typical.in_flight)
    first = floor + in_flight * over(low.latency - floor, low.in_flight)
    second = low.latency + (in_flight - low.in_flight) * over(typical.latency - low.latency, gap)
    return jnp.maximum(jnp.where(counts, jnp.where(below, first, second), chord), floor)


def _sent_now(observation: Observation) -> Anchor:
    """What a request that is sent now will be remembered by."""
    return Anchor(observation.outstanding, latency_as_seen(observation))


def _lag(old: Arcs, new: Arcs, steps: Arcs) -> Arcs:
    """A value that follows another exponentially, so many time constants later."""
    return old - jnp.expm1(-steps) * (new - old)


def _anchor(parts: Answers, chosen: Bool[Array, "parts backends *lanes"]) -> tuple[Anchor, Arcs]:
    """The mean over some parts of a window, and how many answers that is."""
    number, in_flight, latency = (jnp.where(chosen, each, 0).sum(0) for each in parts)
    some = jnp.where(number > 0, number, 1)
    return Anchor(in_flight / some, latency / some), number


def _explored(
    predicted: Arcs, mask: Bool[Array, "backends *lanes"], trusted: Bool[Array, "backends *lanes"], rate: Array
) -> Arcs:
    """Shares of the highest score, where each of those that are not trusted gets it besides with a probability, for every request anew.

    Where the best of those trusted has the highest score by itself, it shares in the draw.
    """
    trusted = mask & trusted
    best = least(predicted, jnp.where(somewhere(trusted), trusted, mask))
    probed = mask & ~trusted & (best == 0)
    lowest = jnp.min(jnp.where(mask, predicted, jnp.inf), axis=0)
    ties = at_most(jnp.min(jnp.where(best > 0, predicted, jnp.inf), axis=0), lowest)
    n, dtype = jnp.maximum(probed.sum(0), 1).astype(predicted.dtype), predicted.dtype
    spared = (1 - rate) ** n
    alone = (1 - spared) / n
    with_best = 1 / n - (1 - spared * (1 - rate)) / (n * (n + 1) * jnp.where(rate > 0, rate, 1))
    each = jnp.where(rate > 0, jnp.where(ties, with_best, alone), 0)
    probes = jnp.where(probed, each, 0).astype(dtype)
    return probes + best * (1 - probes.sum(0))[None]
