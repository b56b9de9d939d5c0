"""Statistics of replicas that an autoscaler moves: summed up during a run, beside those of `summary`."""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from dgdlb_jax.numerics.delay import Carry
from dgdlb_jax.numerics.totals import Total
from dgdlb_jax.simulation.autoscaled import ReplicaSums, Scaling
from dgdlb_jax.simulation.dynamics import Backends
from dgdlb_jax.simulation.lanes import Shape
from dgdlb_jax.simulation.summary import Window, higher, lower, set_by


def with_sums(window: Window, carry: Carry) -> Carry:
    """With empty sums, if there is an autoscaler; extremes start from now only if the window begins at once."""
    if carry.state.scaling is None:
        return carry
    ready = carry.state.scaling.ready
    lowest, highest = (jnp.where(carry.k >= window.marks[0], ready, bound) for bound in (jnp.inf, -jnp.inf))
    sums = ReplicaSums(Total.zero(ready), Total.zero(ready), lowest, highest)
    return eqx.tree_at(lambda c: c.state.scaling.sums, carry, sums, is_leaf=lambda leaf: leaf is None)


def replica_statistics(
    shape: Shape, window: Window, dt: Float[Array, " lanes"], now: Scaling | None, used: Bool[Array, "lanes backends"]
) -> dict[str, Array]:
    """What `Statistics` says of replicas, batch axis first: none without an autoscaler, 0 of backends that nobody can reach."""
    if now is None or now.sums is None:
        return {}
    sums, (first, _, last) = now.sums, (shape.from_last(mark)[:, :1] for mark in window.marks)
    found = {
        "replica_seconds": sums.paid.value,
        "mean_replicas": sums.ready.value,
        "lowest_replicas": sums.lowest,
        "highest_replicas": sums.highest,
    }
    found = {name: jnp.where(used, shape.from_last(values), 0) for name, values in found.items()}
    return found | {"mean_replicas": found["mean_replicas"] / ((last - first) * dt[:, None])}


def add_step(
    window: Window | None, k: Int[Array, ""], step: Backends, now: Scaling, after: Scaling, end: Scaling | None
) -> Scaling:
    """The state after a step with its sums, by the trapezoidal rule; `end`: in a reverse pass the state in the end.

    Of a rule that decides every so often, `now` is the state behind its decision: replicas stand still in a step.
    """
    sums = now.sums
    if window is None or sums is None:
        return after
    start = window.marks[0]
    weight, inside = jnp.where(k >= start, step / 2, 0), k + 1 >= start
    paid = [jnp.maximum(each.ready, each.commanded) for each in (now, after)]
    if end is None or end.sums is None:
        lowest, highest = lower(sums.lowest, after.ready), higher(sums.highest, after.ready)
    else:
        lowest = set_by(sums.lowest, after.ready, end.sums.lowest)
        highest = set_by(sums.highest, after.ready, end.sums.highest)
    found = ReplicaSums(
        paid=sums.paid.plus(weight * (paid[0] + paid[1])),
        ready=sums.ready.plus(weight * (now.ready + after.ready)),
        lowest=jnp.where(inside, lowest, sums.lowest),
        highest=jnp.where(inside, highest, sums.highest),
    )
    return eqx.tree_at(lambda s: s.sums, after, found)
