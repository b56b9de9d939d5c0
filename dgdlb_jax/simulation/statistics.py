"""Statistics that every run sums up without keeping its history. Each is a class with `init`, `update` and `finish`, see `tile_statistic`;
a new one is such a class, its labelled fields in `Statistics`, and its place in `Summary`.
"""

from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from dgdlb_jax.numerics.labelled import label
from dgdlb_jax.numerics.programs import compiled
from dgdlb_jax.numerics.totals import Total
from dgdlb_jax.simulation.autoscaled import Scaling
from dgdlb_jax.simulation.clock import Clock, Lanes, length
from dgdlb_jax.simulation.dynamics import Arcs, Backends, Field
from dgdlb_jax.simulation.lanes import Shape
from dgdlb_jax.simulation.tile_statistic import AbstractTileStatistic, Range, RunEnd, RunStart, RunStep, Window


class Statistics(eqx.Module):
    r"""Time integrals and extremes over the window from `after` to the end. In a batch every array has a leading axis.

    - `duration`: length of the window, seconds.
    - `arrivals`: $\int \sum_i \lambda_i dt$, requests.
    - `cost`: $\int (\sum_j N_j + \sum_{ij} f_{ij} \tau^{cost}_{ij}) dt$, request-seconds.
    - `network_cost`: the second half of it.
    - `mean_workload`, `lowest_workload`, `highest_workload` `(backends,)`: requests.
    - `mean_routing` `(frontends, backends)`: share of the requests that went this way.
    - `workload_growth` `(2, backends)`: slope of the straight line through the workload (least squares) in each half of the
      window, requests/s.
    - `distance`: time mean of $\sum_j |N_j - N^{ref}_j| / \sum_j N^{ref}_j$; None without a reference.
    - `peak_workload` `(backends,)`: largest workload of the whole run, before the window too.
    - `replica_seconds`, `mean_replicas`, `lowest_replicas`, `highest_replicas` `(backends,)`: in a run with an autoscaler. The first is
      what is paid for: replicas from their command to their end; the others are of those that serve.
    """

    duration: Float[Array, "*batch"] = eqx.field(
        metadata=label(units="s", meaning="length of the window of the statistics")
    )
    arrivals: Float[Array, "*batch"] = eqx.field(
        metadata=label(units="requests", meaning="requests that arrived in the window")
    )
    cost: Float[Array, "*batch"] = eqx.field(
        metadata=label(units="requests s", meaning="workload and network cost over the window")
    )
    network_cost: Float[Array, "*batch"] = eqx.field(
        metadata=label(units="requests s", meaning="network cost over the window")
    )
    mean_workload: Float[Array, "*batch backends"] = eqx.field(
        metadata=label("backend", units="requests", meaning="time mean of the workload in the window")
    )
    lowest_workload: Float[Array, "*batch backends"] = eqx.field(
        metadata=label("backend", units="requests", meaning="lowest workload in the window")
    )
    highest_workload: Float[Array, "*batch backends"] = eqx.field(
        metadata=label("backend", units="requests", meaning="highest workload in the window")
    )
    mean_routing: Float[Array, "*batch frontends backends"] = eqx.field(
        metadata=label(
            "frontend", "backend", units="1", meaning="share of the requests that went this way in the window"
        )
    )
    workload_growth: Float[Array, "*batch 2 backends"] = eqx.field(
        metadata=label(
            "half", "backend", units="requests/s", meaning="slope of the workload in each half of the window"
        )
    )
    distance: Float[Array, "*batch"] | None = eqx.field(
        metadata=label(units="1", meaning="time mean of the relative distance to the reference workload")
    )
    peak_workload: Float[Array, "*batch backends"] = eqx.field(
        metadata=label("backend", units="requests", meaning="highest workload of the whole run")
    )
    replica_seconds: Float[Array, "*batch backends"] | None = eqx.field(
        default=None,
        metadata=label("backend", units="s", meaning="replicas from their command to their end, over the window"),
    )
    mean_replicas: Float[Array, "*batch backends"] | None = eqx.field(
        default=None,
        metadata=label("backend", units="1", meaning="time mean of the replicas that serve in the window"),
    )
    lowest_replicas: Float[Array, "*batch backends"] | None = eqx.field(
        default=None, metadata=label("backend", units="1", meaning="fewest replicas that serve in the window")
    )
    highest_replicas: Float[Array, "*batch backends"] | None = eqx.field(
        default=None, metadata=label("backend", units="1", meaning="most replicas that serve in the window")
    )

    derived: ClassVar[dict[str, tuple]] = {
        "mean_latency": ((), "s", "time-integrated cost over arrivals in the window"),
        "network_share": ((), "1", "part of the mean latency spent on the network"),
        "swing": ((), "1", "largest (max - min) / mean of a workload in the window"),
    }

    @property
    @compiled  # one program, instead of one for every operation
    def mean_latency(self) -> Float[Array, "*batch"]:
        """Time-integrated cost over time-integrated arrivals, seconds; 0 where nothing was sent and nothing was there."""
        return self.cost / jnp.where(self.cost > 0, self.arrivals, 1)

    @property
    def network_share(self) -> Float[Array, "*batch"]:
        """The part of the latency that is spent on the network; 0 where there is none."""
        return self.network_cost / jnp.where(self.cost > 0, self.cost, 1)

    @property
    def swing(self) -> Float[Array, "*batch"]:
        """Largest peak-to-peak workload of a backend over its mean."""
        # A backend that is hardly used has no swing worth a verdict: its mean is compared with a millionth of the largest one.
        floor = 1e-6 * jnp.max(self.mean_workload, axis=-1, keepdims=True)
        floor = jnp.maximum(floor, jnp.finfo(self.mean_workload.dtype).tiny)
        return jnp.max((self.highest_workload - self.lowest_workload) / jnp.maximum(self.mean_workload, floor), axis=-1)

    @property
    def growth(self) -> Float[Array, "*batch 2"]:
        """Largest growth of a backend's workload in each half of the window, as a part of the total arrival rate."""
        return jnp.max(self.workload_growth, axis=-1) * (self.duration / self.arrivals)[..., None]


class CostSums(eqx.Module):
    """What `Costs` adds up."""

    flow: Total  # over arcs
    workload: Total  # over backends
    detour: Total | None  # over lanes: network cost beyond that of the first latencies, where these change


class Costs(AbstractTileStatistic):
    """What was sent where, how many requests there were, and what both cost, by the trapezoidal rule."""

    def init(self, begin: RunStart) -> CostSums:
        """Nothing yet."""
        field, events = begin.field, begin.field.events
        changes = events is not None and (events.links or events.timeout is not None)
        detour = Total.zero(field.shape.per_lane(begin.workload)) if changes else None
        return CostSums(Total.zero(field.latency), Total.zero(begin.workload), detour)

    def update(self, state: CostSums, step: RunStep, end: Any) -> CostSums:
        """One step more."""
        del end
        of_frontends, of_backends = step.weights
        detour = state.detour
        return CostSums(
            flow=state.flow.plus(of_frontends[None] * step.flows),
            workload=state.workload.plus(of_backends * (step.before + step.after)),
            detour=detour if detour is None or step.detour is None else detour.plus(step.detour),
        )

    def finish(self, state: CostSums, end: RunEnd) -> dict[str, Array]:
        """Totals, means and shares."""
        shape = end.field.shape
        flow, workload = shape.from_arcs(state.flow.value), shape.from_last(state.workload.value)
        network_cost = (flow * shape.from_arcs(end.field.cost_latency)).sum((1, 2))
        network_cost = network_cost if state.detour is None else network_cost + state.detour.value
        sent = flow.sum(-1, keepdims=True)
        return {
            "arrivals": flow.sum((1, 2)),
            "cost": workload.sum(-1) + network_cost,
            "network_cost": network_cost,
            "mean_workload": workload / end.duration[:, None],
            "mean_routing": jnp.where(sent > 0, flow / jnp.where(sent > 0, sent, 1), 0),
        }


def costs_in(sums: tuple[PyTree, ...]) -> CostSums:
    """What `Costs` has added up, among the state of a `Summary`: it is always the first."""
    return sums[0]


class Distance(AbstractTileStatistic):
    """The distance of workloads to a reference."""

    reference: Backends

    def init(self, begin: RunStart) -> Total:
        """Nothing yet."""
        return Total.zero(begin.workload)

    def update(self, state: Total, step: RunStep, end: Any) -> Total:
        """One step more."""
        del end
        away = jnp.abs(step.before - self.reference) + jnp.abs(step.after - self.reference)
        return state.plus(step.weights[1] * away)

    def finish(self, state: Total, end: RunEnd) -> dict[str, Array]:
        """Its mean over the reference."""
        last = end.field.shape.from_last
        return {"distance": last(state.value).sum(-1) / end.duration / last(self.reference).sum(-1)}


class Growth(AbstractTileStatistic):
    """The slope of workloads by least squares, from their first moment in time about the middle of each half of the window."""

    def init(self, begin: RunStart) -> Total:
        """Nothing yet, in both halves: `(2, backends)`."""
        return Total.zero(jnp.stack([begin.workload, begin.workload]))

    def update(self, state: Total, step: RunStep, end: Any) -> Total:
        """One step more, of one of the halves."""
        del end
        start, middle, last = step.window.marks
        late = step.k >= middle
        passed, steps = step.k - jnp.where(late, middle, start), jnp.where(late, last - middle, middle - start)
        # Compared, not stacked: a fused kernel cannot put arrays together.
        second = jax.lax.broadcasted_iota(jnp.int32, (2, 1), 0) == 1
        mean = (step.before + step.after) / 2
        lever = passed.astype(mean.dtype) + (1 - steps).astype(mean.dtype) / 2
        rise = jnp.where(step.weights[1] > 0, lever * mean, 0)
        return state.plus(jnp.where(late[None] == second, rise, 0))

    def finish(self, state: Total, end: RunEnd) -> dict[str, Array]:
        """The moments over those of as many equidistant instants about their middle."""
        steps = jnp.stack(end.halves, axis=1).astype(end.dt.dtype)
        spread = steps * (steps**2 - 1) / 12 * end.dt[:, None]
        rise = end.field.shape.from_last(state.value)
        return {"workload_growth": rise / jnp.where(spread > 0, spread, jnp.inf)[..., None]}


class Extremes(AbstractTileStatistic):
    """The lowest and the highest workloads at instants of the window."""

    def init(self, begin: RunStart) -> Range:
        """From the first workload only if the window begins at once."""
        return Range.of(begin.workload, begin.inside)

    def update(self, state: Range, step: RunStep, end: Range | None) -> Range:
        """One instant more."""
        return state.widened(step.after, step.inside, end)

    def finish(self, state: Range, end: RunEnd) -> dict[str, Array]:
        """Of every backend."""
        last = end.field.shape.from_last
        return {"lowest_workload": last(state.lowest), "highest_workload": last(state.highest)}


class _ReplicaUse(eqx.Module):
    paid: Total
    ready: Total
    extremes: Range


class ReplicaUse(AbstractTileStatistic):
    """Replicas that an autoscaler moves: those that serve, and those that are paid for."""

    def init(self, begin: RunStart) -> _ReplicaUse:
        """Nothing yet."""
        assert begin.scaling is not None
        ready = begin.scaling.ready
        return _ReplicaUse(Total.zero(ready), Total.zero(ready), Range.of(ready, begin.inside))

    def update(self, state: _ReplicaUse, step: RunStep, end: _ReplicaUse | None) -> _ReplicaUse:
        """One step more. Of a rule that decides every so often, the state before is behind its decision: replicas stand still in a step."""
        assert step.scaling is not None
        weight, (now, after) = step.weights[1], step.scaling
        paid = [jnp.maximum(each.ready, each.commanded) for each in (now, after)]
        return _ReplicaUse(
            paid=state.paid.plus(weight * (paid[0] + paid[1])),
            ready=state.ready.plus(weight * (now.ready + after.ready)),
            extremes=state.extremes.widened(after.ready, step.inside, end and end.extremes),
        )

    def finish(self, state: _ReplicaUse, end: RunEnd) -> dict[str, Array]:
        """Of every backend, 0 of one that nobody can reach."""
        shape = end.field.shape
        used = shape.from_arcs(end.field.mask).any(axis=-2)
        found = {
            "replica_seconds": state.paid.value,
            "mean_replicas": state.ready.value,
            "lowest_replicas": state.extremes.lowest,
            "highest_replicas": state.extremes.highest,
        }
        found = {name: jnp.where(used, shape.from_last(values), 0) for name, values in found.items()}
        return found | {"mean_replicas": found["mean_replicas"] / end.duration[:, None]}


class Summary(eqx.Module):
    """The statistics of a tile. Their state is a tuple, with an entry for each."""

    window: Window
    parts: tuple[AbstractTileStatistic, ...]

    def __init__(
        self,
        shape: Shape,
        first: Int[Array, " lanes"],
        last: Int[Array, " lanes"],
        reference: Float[Array, "lanes backends"] | None = None,
        scales: bool = False,
    ):
        """Over the steps from `first` to `last`; with a `reference`, the distance to it; `scales`: whether replicas move."""
        self.window = Window(shape, first, last)
        distance = () if reference is None else (Distance(shape.last(reference)),)
        self.parts = (Costs(), *distance, Extremes(), Growth(), *([ReplicaUse()] if scales else []))

    def begin(
        self, field: Field, k: Int[Array, ""], workload: Backends, scaling: Scaling | None = None
    ) -> tuple[PyTree, ...]:
        """The state before step `k`."""
        begin = RunStart(field, k >= self.window.marks[0], workload, scaling)
        return tuple(part.init(begin) for part in self.parts)

    def add(
        self,
        state: tuple[PyTree, ...],
        k: Int[Array, ""],
        clock: Clock,
        flows: Arcs,
        workloads: tuple[Backends, Backends],
        *,
        scaling: tuple[Scaling, Scaling] | None = None,
        detour: Lanes | None = None,
        end: tuple[PyTree, ...] | None = None,
    ) -> tuple[PyTree, ...]:
        """One step by the trapezoidal rule: `flows` is the sum of the flows before and after, `detour` twice the mean rate at which
        other latencies than the first are charged. Outside the window its weight is 0. `end`: in a reverse pass the state in the end."""
        window, start = self.window, self.window.marks[0]
        step = RunStep(
            k=k,
            window=window,
            weights=(
                jnp.where(k >= window.start, length(k, clock.frontends) / 2, 0),
                jnp.where(k >= start, length(k, clock.backends) / 2, 0),
            ),
            inside=k + 1 >= start,
            flows=flows,
            before=workloads[0],
            after=workloads[1],
            scaling=scaling,
            detour=None if detour is None else self._weight(k, clock.lanes) * detour,
        )
        ends = [None] * len(self.parts) if end is None else end
        return tuple(part.update(own, step, last) for part, own, last in zip(self.parts, state, ends, strict=True))

    def _weight(self, k: Int[Array, ""], lanes: tuple[Lanes, Int[Array, " lanes"]]) -> Lanes:
        step = length(k, lanes)
        return jnp.where(k >= self.window.start[: len(step)], step / 2, 0)

    def finish(self, field: Field, dt: Lanes, state: tuple[PyTree, ...], peak: Backends) -> Statistics:
        """The finished statistics, batch axis first; `peak`: the highest workloads of the whole run, which the engine keeps."""
        first, middle, last = (field.shape.from_last(mark)[:, 0] for mark in self.window.marks)
        end = RunEnd(field, (middle - first, last - middle), dt)
        found = {"duration": end.duration, "distance": None, "peak_workload": field.shape.from_last(peak)}
        for part, own in zip(self.parts, state, strict=True):
            found |= part.finish(own, end)
        return Statistics(**found)
