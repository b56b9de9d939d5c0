"""Events in a tile of networks: what fails, closes and changes in a step, so that the step stays of second order.

A jump within a step splits it. What jumps only once costs no order as long as each step is right to its square: so before the jump
numbers are those of the step's start, after it those of its end, and each counts with its part of the step.
"""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from dgdlb_jax.model.signals import Signals
from dgdlb_jax.numerics.knots import Steps
from dgdlb_jax.simulation.lanes import Shape

Arcs = Float[Array, "backends frontend_lanes"]
Backends = Float[Array, " backend_lanes"]
Frontends = Float[Array, " frontend_lanes"]
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
    - `closing`: signals over arcs, all of which have to be 1 for an arc to be used.
    """

    replicas: Steps | None
    seen_replicas: Steps | None
    up: Steps | None
    closing: tuple[Steps, ...]

    def __init__(self, shape: Shape, signals: Signals, feedback_latency: Arcs):
        def seen(steps: Steps | None) -> Steps | None:
            if steps is None:
                return None
            arcs = jax.tree.map(shape.backend_to_arcs, steps)
            return Steps(arcs.times + feedback_latency, arcs.values)

        self.replicas, self.up = jax.tree.map(shape.last, (signals.replicas, signals.up))
        self.seen_replicas = seen(signals.replicas)
        allowed = None if signals.allowed is None else jax.tree.map(shape.arcs, signals.allowed)
        self.closing = tuple(steps for steps in (seen(signals.serving), allowed) if steps is not None)

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
        several = self.closing if self.seen_replicas is None else (*self.closing, self.seen_replicas)
        return [steps.jumps_within(start, step) for steps in several]

    def mean_rate(self, rate, workload: Backends, t: Backends, step: tuple[Backends, Backends] | None) -> Backends:
        r"""$r\,\ell(N / r)$ at a time, or on average over a step, its start and its length; `rate` is $\ell$."""
        if self.replicas is None:
            return rate(workload)
        replicated = lambda count: count * rate(workload / count)
        if step is None:
            return replicated(self.replicas.at(t))
        count, place = self.replicas.jumps_within(*step)
        before = jnp.where(count > 0, place, 1)
        return before * replicated(self.replicas.at(step[0])) + (1 - before) * replicated(self.replicas.at(sum(step)))

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


def shared(jumps: list[Jump], mask: Bool[Array, "..."]) -> Jump:
    """Of all arcs of a frontend together: how many jumps, and the mean part of the step before them."""
    counts = [jnp.where(mask, count, 0) for count, _ in jumps]
    total = sum(jnp.sum(count, axis=0) for count in counts)
    places = sum(jnp.sum(count * place, axis=0) for count, (_, place) in zip(counts, jumps, strict=True))
    return jnp.asarray(total), places / jnp.maximum(total, 1)
