"""Events in a tile of networks: what fails, closes and changes in a step, so that the step stays of second order.

A jump within a step splits it. What jumps only once costs no order as long as each step is right to its square: so before the jump
numbers are those of the step's start, after it those of its end, and each counts with its part of the step.
"""

from collections.abc import Callable
from functools import reduce
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from dgdlb_jax.model.signals import Signals
from dgdlb_jax.numerics.knots import Steps
from dgdlb_jax.simulation.lanes import Shape

Arcs = Float[Array, "backends frontend_lanes"]
Wires = Float[Array, "backends wire_lanes"]
Left = Float[Array, "jumps backends frontend_lanes"]
Backends = Float[Array, " backend_lanes"]
Frontends = Float[Array, " frontend_lanes"]
Sent = Callable[[Any], Arcs]
"""What is sent in the first part of a step, over the length of all of it."""
Jump = tuple[Array, Array]  # how many, and what part of the step lies before them


class Survival(NamedTuple):
    """What a step leaves: the workload, what has been lost, what the backends report, and the workload before the step that together
    with the one after it has the right mean."""

    workload: Backends
    lost: Backends
    reported: Backends
    before: Backends


class Timeline(eqx.Module):
    """The signals of a tile, laid out for the time step; those that frontends see at the times at which they know of it.

    - `replicas`, `seen_replicas`: the factor, over backends and over arcs. `up`: 1 while a backend runs.
    - `closing`: signals over arcs, all of which have to be 1 for an arc to be used. `health`: over arcs, 1 while a backend is in service;
      one of these unless the policy checks health itself.
    - `latency`, `seen_latency`, `intact`: factors, over arcs: on the latency of what is sent, and on how much of it arrives.
    - `news`: the latency of news, over arcs, seconds; `heard`: the same at the times from which news with it arrive. None if it stays.
    - `timeout`: over arcs, after which what is lost at a failed backend is sent again, inf for never; None where nothing is.
    """

    replicas: Steps | None
    seen_replicas: Steps | None
    up: Steps | None
    closing: tuple[Steps, ...]
    health: Steps | None
    latency: Steps | None
    seen_latency: Steps | None
    intact: Steps | None
    news: Steps | None
    heard: Steps | None
    timeout: Arcs | None

    def __init__(self, shape: Shape, signals: Signals, feedback_latency: Arcs, checks_health: bool):
        self.timeout = None if signals.timeout is None else shape.backend_to_arcs(signals.timeout)
        factor = jax.tree.map(shape.arcs, signals.news)
        self.news = None if factor is None else Steps(factor.times, feedback_latency[None] * factor.values)

        def later(steps: Steps | None) -> Steps | None:
            if steps is None or self.news is None:
                return None if steps is None else Steps(steps.times + feedback_latency[None], steps.values)
            arrive = [time + self.news.at(time) for time in steps.times]
            # News that is overtaken by later news says nothing any more.
            return Steps(jax.lax.cummin(jnp.stack(arrive), reverse=True), steps.values)

        seen = lambda steps: later(jax.tree.map(shape.backend_to_arcs, steps))
        self.heard = later(self.news)
        self.replicas, self.up = jax.tree.map(shape.last, (signals.replicas, signals.up))
        self.seen_replicas = seen(signals.replicas)
        allowed, self.latency, self.intact = jax.tree.map(
            shape.arcs, (signals.allowed, signals.latency, signals.intact)
        )
        self.seen_latency = later(self.latency)
        serving = seen(signals.serving)
        self.health = serving if checks_health else None
        known = None if checks_health else serving, allowed, later(self.intact)
        self.closing = tuple(steps for steps in known if steps is not None)

    def open_arcs(self, t: Frontends, mask: Bool[Array, "..."]) -> Bool[Array, "backends frontend_lanes"]:
        """The arcs that frontends use at a time; all of them where news from several backends leave none for a while."""
        found = mask
        for steps in self.closing:
            found = found & (steps.at(t) > 0.5)
        return jnp.where(found.any(axis=0), found, mask)

    def turn(self, start: Frontends, step: Frontends, mask: Bool[Array, "..."]) -> Jump:
        """How often arcs of a frontend close or open in a step, and what part of the step lies before that."""
        return shared([steps.jumps_within(start, step) for steps in self.closing], mask)

    def seen_jumps(self, start: Frontends, step: Frontends) -> list[Jump]:
        """What changes for a frontend in a step, signal by signal, arc by arc."""
        several = (*self.closing, self.seen_replicas, self.seen_latency, self.heard)
        return [steps.jumps_within(start, step) for steps in several if steps is not None]

    @property
    def links(self) -> bool:
        """Whether something happens to links."""
        return self.latency is not None or self.intact is not None

    def detour(self, wired: list[Arcs]) -> Arcs:
        """What is sent on every wire, times the part by which its latency is longer than that of the first."""
        if self.latency is None:
            return jnp.zeros_like(wired[0])
        return total([sent * (factor - 1) for sent, factor in zip(wired, self.latency.values, strict=True)])

    @property
    def wires(self) -> int:
        """How many wires an arc has, one for every latency that it will have had."""
        return 1 if self.latency is None else len(self.latency.values)

    def by_wire(self, latency: Arcs) -> Wires:
        """The latencies of all wires, side by side along the last axis."""
        return latency if self.latency is None else jnp.concatenate([*(latency[None] * self.latency.values)], axis=-1)

    def on_the_first(self, values: Arcs) -> Wires:
        """What stands on the first wires, side by side with the others, where there is nothing."""
        return jnp.concatenate([values, *[jnp.zeros_like(values)] * (self.wires - 1)], axis=-1)

    @property
    def ways_of_news(self) -> int:
        """How many latencies the news of an arc will have had."""
        return 1 if self.news is None else len(self.news.values)

    def newest(self, seen: Wires, left: Left | None, t: Frontends) -> Arcs:
        """The latest report that has arrived, of those that every latency brings, side by side in `seen`.

        `left`: what was reported when the latency changed: nothing newer comes until news with the
        new one does.
        """
        if self.news is None or left is None:
            return seen
        t, ways = t[None], jnp.split(seen, self.ways_of_news, axis=-1)
        found = jnp.where(t - self.news.values[0] < self.news.times[0], ways[0], left[0])
        for way, latency in enumerate(self.news.values[1:], start=1):
            value = ways[way]
            if way < len(left):
                value = jnp.where(t - latency < self.news.times[way], value, left[way])
            found = jnp.where(t - latency >= self.news.times[way - 1], value, found)
        return found

    def leave(self, left: Left | None, start: Frontends, step: Frontends, before: Arcs, after: Arcs) -> Left | None:
        """`left`, after a step in which what is reported has moved from one value to another."""
        if self.news is None or left is None:
            return left
        place = (self.news.times - start[None, None]) / jnp.where(step > 0, step, 1)[None, None]
        within = (place > 0) & (place <= 1)
        return jnp.where(within, before[None] + jnp.clip(place, 0, 1) * (after - before)[None], left)

    def sent_by_wire(self, sent: Sent, start: Frontends, step: Frontends, parts: Wires) -> list[Arcs]:
        """What is sent in the first part of a step, wire by wire, each with a part of its own; `sent` tells it for the arc."""
        own = jnp.split(parts, self.wires, axis=-1)
        if self.latency is None:
            return [sent(own[0])]
        start, length = start[None], jnp.where(step > 0, step, 1)[None]
        edges = [jnp.clip((time - start) / length, 0, 1) for time in self.latency.times]
        until = [sent(jnp.minimum(part, edge)) for part, edge in zip(own, edges, strict=False)]
        before = [sent(jnp.minimum(part, edge)) for part, edge in zip(own[1:], edges, strict=True)]
        ends = [*until, sent(own[-1])]
        return [ends[0], *(end - begin for end, begin in zip(ends[1:], before, strict=True))]

    def broken(self, start: Frontends, step: Frontends) -> Bool[Array, "backends frontend_lanes"] | None:
        """Which links are broken in some part of a step; None where none ever is."""
        if self.intact is None:
            return None
        return jnp.minimum(self.intact.at(start), self.intact.at(start + step)) < 1

    def what_arrives(self, sent: Sent, start: Frontends, step: Frontends) -> Sent:
        """The part of what is sent that is not lost with a broken link."""
        intact = self.intact
        if intact is None:
            return sent
        count, place = intact.jumps_within(start, step)
        turn = jnp.where(count > 0, place, 1)
        before, after = intact.at(start), intact.at(start + step)

        def arriving(part: Arcs) -> Arcs:
            first = sent(jnp.minimum(part, turn))
            return before * first + after * (sent(part) - first)

        return arriving

    def mean_rate(self, rate, workload: Backends, t: Backends, step: tuple[Backends, Backends] | None) -> Backends:
        r"""$r\,\ell(N / r)$ at a time, or on average over a step, its start and its length; `rate` is $\ell$."""
        if self.replicas is None:
            return rate(workload)
        replicated = lambda count: count * rate(workload / count)
        if step is None:
            return replicated(self.replicas.at(t))
        count, place = self.replicas.jumps_within(*step)
        before, (start, length) = jnp.where(count > 0, place, 1), step
        return before * replicated(self.replicas.at(start)) + (1 - before) * replicated(
            self.replicas.at(start + length)
        )

    def running(self, start: Backends, step: Backends) -> Backends | float:
        """The part of a step in which a workload moves. One that fails in the step moves as if it did not: that is what was reported."""
        if self.up is None:
            return 1.0
        return jnp.where(self.up.at(start) > 0, 1, self.up.mean_over(start, step))

    def survive(
        self, times: tuple[Backends, Backends], step: Backends, before: Backends, arrived: Backends, served: Backends
    ) -> Survival:
        """From the workload before a step to that after it; `arrived` and `served` are twice the means of the step, requests/s.

        Of a backend that fails everything is lost that has not been served by then, and what arrives until it recovers.
        """
        moved = before + self.running(times[0], step) * step / 2 * (arrived - served)
        if self.up is None:
            return Survival(moved, jnp.zeros_like(moved), moved, before)
        mean = self.up.mean_over(times[0], step)
        after = self.up.at(times[1]) * moved
        down = mean < 1
        lost = jnp.where(down, before - after + step / 2 * (arrived - mean * served), 0)
        return Survival(after, lost, moved, jnp.where(down, mean * (before + moved) - after, before))


def total(several: list[Array]) -> Array:
    """Their sum, of one at least."""
    return reduce(jnp.add, several)


def shared(jumps: list[Jump], mask: Bool[Array, "..."]) -> Jump:
    """Of all arcs of a frontend together: how many jumps, and the mean part of the step before them."""
    counts = [jnp.where(mask, count, 0) for count, _ in jumps]
    number = total([jnp.sum(count, axis=0) for count in counts])
    places = total([jnp.sum(count * place, axis=0) for count, (_, place) in zip(counts, jumps, strict=True)])
    return number, places / jnp.maximum(number, 1)
