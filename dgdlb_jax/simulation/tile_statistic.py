r"""What a built-in statistic is: `init`, `update` and `finish` as of one of the user's (`plugins.AbstractStatistic`),

$$ s_0 = init, \qquad s_{k+1} = update(s_k, step_k), \qquad results = finish(s_{end}), $$

but for all networks of a tile at once, in the layout of the time step (see `lanes`), and with what only the engine knows of a step.
"""

from abc import abstractmethod
from typing import Any, NamedTuple

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, PyTree

from dgdlb_jax.simulation.autoscaled import Scaling
from dgdlb_jax.simulation.clock import Lanes
from dgdlb_jax.simulation.dynamics import Arcs, Backends, Field, Frontends
from dgdlb_jax.simulation.lanes import Shape


def higher(sofar: Array, now: Array) -> Array:
    """The higher one. Of equal ones the last counts, whatever JAX's own would do with derivatives; so the reverse pass can tell."""
    return jnp.where(now < sofar, sofar, now)


def lower(sofar: Array, now: Array) -> Array:
    """The lower one, of equal ones the last."""
    return jnp.where(now > sofar, sofar, now)


def set_by(sofar: Array, now: Array, end: Array) -> Array:
    """In place of `lower` and `higher` in a reverse pass, which knows the extreme of all: it has its derivative from the last value
    that is equal to it, and its values are not recorded."""
    return jnp.where(now == end, now, sofar)


class Window(eqx.Module):
    """From which step statistics count; their beginning, middle and end."""

    start: Int[Array, " frontend_lanes"]
    marks: tuple[Int[Array, " backend_lanes"], ...]

    def __init__(self, shape: Shape, first: Int[Array, " lanes"], last: Int[Array, " lanes"]):
        marks = (first, first + (last - first) // 2, last)
        self.start = shape.over_frontends(first)
        self.marks = tuple(shape.over_backends(mark) for mark in marks)


class RunStart(NamedTuple):
    """The start of a run, as statistics see it; `inside`: whether the window begins at once."""

    field: Field
    inside: Bool[Array, " backend_lanes"]
    workload: Backends
    scaling: Scaling | None


class RunStep(NamedTuple):
    """A step `k`, as statistics see it.

    - `weights`: half its length over frontends and over backends, 0 outside the window; `inside`: whether its end is in the window.
    - `flows`: the sum of the flows before and after. `before`, `after`: workloads. `scaling`: of an autoscaler, before and after.
    - `detour`: its network cost beyond that of the first latencies, where events change these.
    """

    k: Int[Array, ""]
    window: Window
    weights: tuple[Frontends, Backends]
    inside: Bool[Array, " backend_lanes"]
    flows: Arcs
    before: Backends
    after: Backends
    scaling: tuple[Scaling, Scaling] | None
    detour: Lanes | None


class RunEnd(NamedTuple):
    """The end of a run, as statistics see it: steps of the window until its middle and from there on, and `duration` of all of it."""

    field: Field
    halves: tuple[Int[Array, " lanes"], Int[Array, " lanes"]]
    dt: Lanes

    @property
    def duration(self) -> Lanes:
        """The length of the window, seconds."""
        return (self.halves[0] + self.halves[1]).astype(self.dt.dtype) * self.dt


class AbstractTileStatistic(eqx.Module):
    """Sums or extremes over the window, of all networks of a tile; `finish` names fields of `Statistics`."""

    @abstractmethod
    def init(self, begin: RunStart) -> PyTree:
        """The state before the first step: few arrays, in the layout of the time step."""

    @abstractmethod
    def update(self, state: Any, step: RunStep, end: Any) -> PyTree:
        """The state after a step; `end`: in a reverse pass the state in the end, from which an extreme is known."""

    @abstractmethod
    def finish(self, state: Any, end: RunEnd) -> dict[str, Array]:
        """The results, batch axis first."""


class Range(eqx.Module):
    """Extremes so far."""

    lowest: Backends
    highest: Backends

    @classmethod
    def of(cls, values: Backends, inside: Bool[Array, " backend_lanes"]) -> "Range":
        """Of these values if they count, else of none."""
        return cls(jnp.where(inside, values, jnp.inf), jnp.where(inside, values, -jnp.inf))

    def widened(self, values: Backends, inside: Bool[Array, " backend_lanes"], end: "Range | None") -> "Range":
        """With these values, if they count."""
        if end is None:
            lowest, highest = lower(self.lowest, values), higher(self.highest, values)
        else:
            lowest, highest = set_by(self.lowest, values, end.lowest), set_by(self.highest, values, end.highest)
        return Range(jnp.where(inside, lowest, self.lowest), jnp.where(inside, highest, self.highest))
