"""Running statistics: what is summed up during a run, without keeping its history."""

from dataclasses import replace

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from dgdlb_jax.numerics.totals import Total
from dgdlb_jax.simulation.dynamics import Arcs, Backends, Field, Frontends
from dgdlb_jax.simulation.trajectory import Statistics


def lower(sofar: Array, now: Array) -> Array:
    """The lower one. Of equal ones the last counts, whatever JAX's own would do with derivatives; so the reverse pass can tell."""
    return jnp.where(now > sofar, sofar, now)


def higher(sofar: Array, now: Array) -> Array:
    """The higher one, of equal ones the last."""
    return jnp.where(now < sofar, sofar, now)


def set_by(sofar: Array, now: Array, end: Array) -> Array:
    """In place of `lower` and `higher` in a reverse pass, which knows the extreme of all: it has its derivative from the last value
    that is equal to it, and its values are not recorded."""
    return jnp.where(now == end, now, sofar)


class Sums(eqx.Module):
    """Statistics in the making."""

    flow: Total  # over arcs
    workload: Total  # over backends
    deviation: Total | None  # without a reference there is none
    lowest: Backends
    highest: Backends
    rise: Total  # first moment of the workload in time, about the middle of each half of the window: (2, backends)
    detour: Total | None = None  # over lanes: network cost beyond that of the first latencies, where these change


class Window(eqx.Module):
    """From which step statistics count; their beginning, middle and end; the workload that distances refer to."""

    start: Int[Array, " frontend_lanes"]
    marks: tuple[Int[Array, " backend_lanes"], ...]
    reference: Backends | None

    def __init__(
        self,
        field: Field,
        first: Int[Array, " lanes"],
        last: Int[Array, " lanes"],
        reference: Float[Array, "lanes backends"] | None,
    ):
        shape = field.shape
        marks = (first, first + (last - first) // 2, last)
        self.start = shape.over_frontends(first)
        self.marks = tuple(shape.over_backends(mark) for mark in marks)
        self.reference = None if reference is None else shape.last(reference)

    def begin(self, field: Field, k: Int[Array, ""], workload: Backends) -> Sums:
        """Empty sums; extremes start from the workload only if the window begins at once."""
        zero, start = Total.zero(workload), self.marks[0]
        return Sums(
            flow=Total.zero(field.latency),
            workload=zero,
            deviation=None if self.reference is None else zero,
            lowest=jnp.where(k >= start, workload, jnp.inf),
            highest=jnp.where(k >= start, workload, -jnp.inf),
            rise=Total.zero(jnp.stack([workload, workload])),
            detour=None
            if field.events is None or not (field.events.links or field.events.timeout is not None)
            else Total.zero(field.shape.per_lane(workload)),
        )

    def add(
        self,
        sums: Sums,
        k: Int[Array, ""],
        step_f: Frontends,
        step_b: Backends,
        flows: Arcs,
        before: Backends,
        after: Backends,
        end: Sums | None = None,
    ) -> Sums:
        """One step by the trapezoidal rule; `flows` is the sum of the flows before and after. Outside the window its weight is 0.

        `end`: in a reverse pass the sums in the end.
        """
        start, middle, last = self.marks
        weight_f = jnp.where(k >= self.start, step_f / 2, 0)
        weight_b = jnp.where(k >= start, step_b / 2, 0)
        inside = k + 1 >= start
        late = k >= middle
        lever = (k - jnp.where(late, middle, start)) + (1 - jnp.where(late, last - middle, middle - start)) / 2
        # Compared, not stacked: a fused kernel cannot put arrays together.
        second = jax.lax.broadcasted_iota(jnp.int32, (2, 1), 0) == 1
        rise = jnp.where(weight_b > 0, lever.astype(after.dtype) * (before + after) / 2, 0)
        lowest = lower(sums.lowest, after) if end is None else set_by(sums.lowest, after, end.lowest)
        highest = higher(sums.highest, after) if end is None else set_by(sums.highest, after, end.highest)
        return Sums(
            flow=sums.flow.plus(weight_f * flows),
            workload=sums.workload.plus(weight_b * (before + after)),
            deviation=self._deviation(sums, weight_b, before, after),
            lowest=jnp.where(inside, lowest, sums.lowest),
            highest=jnp.where(inside, highest, sums.highest),
            rise=sums.rise.plus(jnp.where(late == second, rise, 0)),
            detour=sums.detour,
        )

    def add_detour(self, sums: Sums, k: Int[Array, ""], step: Float[Array, " lanes"], detour: Array | None) -> Sums:
        """Network cost of one step beyond that of the first latencies; `detour` is twice its mean rate."""
        if detour is None or sums.detour is None:
            return sums
        first = self.start[: step.shape[0]]
        return replace(sums, detour=sums.detour.plus(jnp.where(k >= first, step / 2, 0) * detour))

    def _deviation(self, sums: Sums, weight: Backends, before: Backends, after: Backends) -> Total | None:
        if sums.deviation is None or self.reference is None:
            return None
        away = jnp.abs(before - self.reference) + jnp.abs(after - self.reference)
        return sums.deviation.plus(weight * away)


def statistics(
    field: Field, window: Window, dt: Float[Array, " lanes"], sums: Sums, peak: Backends, **others: Array
) -> Statistics:
    """The finished statistics, batch axis first; `others`: those that are finished already."""
    shape = field.shape
    first, middle, last = (shape.from_last(mark)[:, 0] for mark in window.marks)
    duration = (last - first) * dt
    flow, workload = shape.from_arcs(sums.flow.value), shape.from_last(sums.workload.value)
    network_cost = (flow * shape.from_arcs(field.cost_latency)).sum((1, 2))
    network_cost = network_cost if sums.detour is None else network_cost + sums.detour.value
    sent = flow.sum(-1, keepdims=True)
    steps = jnp.stack([middle - first, last - middle], axis=1).astype(dt.dtype)
    spread = steps * (steps**2 - 1) / 12 * dt[:, None]  # of that many equidistant instants about their middle, times dt
    distance = None
    if sums.deviation is not None and window.reference is not None:
        distance = shape.from_last(sums.deviation.value).sum(-1) / duration / shape.from_last(window.reference).sum(-1)
    return Statistics(
        duration=duration,
        arrivals=flow.sum((1, 2)),
        cost=workload.sum(-1) + network_cost,
        network_cost=network_cost,
        mean_workload=workload / duration[:, None],
        lowest_workload=shape.from_last(sums.lowest),
        highest_workload=shape.from_last(sums.highest),
        mean_routing=jnp.where(sent > 0, flow / jnp.where(sent > 0, sent, 1), 0),
        workload_growth=shape.from_last(sums.rise.value) / jnp.where(spread > 0, spread, jnp.inf)[..., None],
        distance=distance,
        peak_workload=shape.from_last(peak),
        **others,
    )
