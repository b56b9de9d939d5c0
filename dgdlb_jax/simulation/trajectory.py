"""What a simulation keeps: which instants, which statistics, and the state it can go on from."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from dgdlb_jax.numerics.labelled import Label, label
from dgdlb_jax.numerics.results import InputError, is_concrete
from dgdlb_jax.numerics.types import Matrix, Numbers
from dgdlb_jax.simulation import dataset
from dgdlb_jax.simulation.attached import ExtensionState
from dgdlb_jax.simulation.autoscaled import ScalingState
from dgdlb_jax.simulation.observe import OBSERVED
from dgdlb_jax.simulation.own import OwnState
from dgdlb_jax.simulation.plugins import AbstractStatistic, Observable
from dgdlb_jax.simulation.statistics import Statistics

if TYPE_CHECKING:
    import xarray

FIELDS = tuple(OBSERVED)


class SaveAt(eqx.Module):
    """What to keep of a run.

    - `SaveAt()`: every step, the start and the end included. `SaveAt(every=k)`: every k-th step, and the end.
    - `SaveAt(fields=("workload", ...))`: only these of routing, workload, arrival_rate, cost_rate, in_flight.
    - `SaveAt.statistics(after=...)`: no history, only time integrals and extremes from the time `after` on, in seconds after the
      start of the run (in a batch also one number per network).
    - `SaveAt.final()`: only the state at the end.

    Statistics come with every choice but `final`. `reference` is a workload `(backends,)` to measure the distance to. With
    `resumable=False` the state at the end comes without its delay lines, which nothing but going on from it needs: for many networks
    with long buffers, less memory and up to half the time (benchmarks/README.md).

    - `fn`: `fn(t, view) -> pytree of arrays` at the saved instants, found in `run.observed`; for **one** network, with the time in
      seconds and a `View` of routing, workload, rates. An `Observable` gives it a name, dimensions and units. (A plain function is
      compiled in: keep it, a new one in every call is compiled in every call.)
    - `statistics`: statistics of your own, found in `run.measured`: `TimeMean(fn)`, `TimeIntegral`, `Maximum`, `Minimum` of an
      observable, or any `AbstractStatistic`. Over the same window, with every choice of what else is kept.

    **Raises:** `InputError` for an unknown field, `every` below 1 or a negative `after`.
    """

    after: Float[np.ndarray | Array, "*batch"]
    reference: Float[Array, "*batch backends"] | None
    every: int | None = eqx.field(static=True)
    fields: tuple[str, ...] = eqx.field(static=True)
    summary: bool = eqx.field(static=True)
    resumable: bool = eqx.field(static=True)
    fn: Any
    own_statistics: tuple[AbstractStatistic, ...]

    def __init__(
        self,
        every: int | None = 1,
        *,
        fields: tuple[str, ...] | None = None,
        after: Numbers = 0.0,
        reference: Matrix | None = None,
        summary: bool = True,
        resumable: bool = True,
        fn: Callable | None = None,
        statistics: tuple[AbstractStatistic, ...] = (),
    ):
        if every is not None and (every < 1 or every != int(every)):
            raise InputError(f"SaveAt(every={every}): save every k-th step, with a whole number k of at least 1.")
        unknown = [field for field in fields or () if field not in FIELDS]
        if unknown:
            raise InputError(f"SaveAt(fields=...) knows no {unknown[0]!r}: choose from {', '.join(FIELDS)}.")
        self.after = np.asarray(after, float) if is_concrete(after) else jnp.asarray(after, float)
        if is_concrete(after) and not np.all(np.isfinite(self.after) & (self.after >= 0)):
            raise InputError(
                f"SaveAt(after={after}): statistics start at a finite time that is not negative, in seconds."
            )
        self.every = None if every is None else int(every)
        self.fields = FIELDS if fields is None else tuple(fields)
        self.reference = None if reference is None else jnp.asarray(reference)
        self.summary = summary
        self.resumable = resumable
        if fn is not None and every is None:
            raise InputError("SaveAt(None, fn=...) saves no instants: give every=k, or statistics=(TimeMean(fn),).")
        self.fn = fn if fn is None or isinstance(fn, Observable) else Observable(fn)
        self.own_statistics = tuple(statistics)

    def __hash__(self) -> int:
        """Of the values: what is the same to `==` may be a static argument of `jax.jit`."""
        leaves, structure = jax.tree.flatten(self)
        return hash((structure, *(np.asarray(leaf).tobytes() for leaf in leaves)))

    @classmethod
    def statistics(
        cls,
        *own: AbstractStatistic,
        after: Numbers = 0.0,
        reference: Matrix | None = None,
        resumable: bool = True,
    ) -> "SaveAt":
        """Only statistics, `own` ones besides: memory does not grow with the duration."""
        return cls(None, fields=(), after=after, reference=reference, resumable=resumable, statistics=own)

    @classmethod
    def final(cls, *, resumable: bool = True) -> "SaveAt":
        """Only the state at the end."""
        return cls(None, fields=(), summary=False, resumable=resumable)


class SimulationState(eqx.Module):
    """All that a run needs to go on as if it had never stopped. In a batch every array has a leading axis.

    - `step`: steps taken since the start; the time is `step * time_step`.
    - `row`: where the delay lines stand; beyond `step` in a network of a batch that had to wait for longer runs.
    - `time_step`: dt, seconds.
    - `routing` `(frontends, backends)`, `workload` `(backends,)`: the state at that time.
    - the rest: rates, flows and readings of the last step, the two delay lines, the policy's memory; `tail` in a run whose demand
      jumps, what of the last step arrives one step after the rest of it (its line of flow holds counts). Without the lines
      (`SaveAt(resumable=False)`) no run goes on from it; requests on the wires are read off them, and are not known either unless
      `in_flight` was saved. `extensions`: state variables of the user's, an `ExtensionState` for each. `own`: requests that frontends
      have under way, counted where the policy looks at them. In a run with events, `lost`: requests lost since the start, and
      `reported`: the workload of which frontends hear next. Where events change latencies, a frontend has several wires; where they
      change those of news, several ways of it, and `left`: what was reported when they changed. `scaling`: replicas, in a run with an
      autoscaler.

    Latencies and dt are those of the run it comes from: the delay lines hold values interpolated for them.
    """

    step: Int[Array, "*batch"]
    row: Int[Array, "*batch"]
    time_step: Float[Array, "*batch"]
    routing: Float[Array, "*batch frontends backends"]
    workload: Float[Array, "*batch backends"]
    flow: Float[Array, "*batch frontends backends"]
    inflow: Float[Array, "*batch backends"]
    velocity: Float[Array, "*batch frontends backends"]
    reading: Float[Array, "*batch ways backends"]
    in_flight: Float[Array, "*batch"] | None
    peak_workload: Float[Array, "*batch backends"]
    flow_line: Float[Array, "*batch rows wires backends"] | None
    workload_line: Float[Array, "*batch rows backends"] | None
    policy_state: PyTree
    tail: Float[Array, "*batch wires backends"] | None = None
    extensions: tuple[ExtensionState, ...] = ()
    own: OwnState | None = None
    lost: Float[Array, "*batch backends"] | None = None
    reported: Float[Array, "*batch backends"] | None = None
    left: Float[Array, "*batch jumps frontends backends"] | None = None
    scaling: ScalingState | None = None

    @property
    def time(self) -> Float[Array, "*batch"]:
        """Seconds since the start."""
        return self.step.astype(self.time_step.dtype) * self.time_step

    @property
    def past_workload(self) -> Float[Array, "steps backends"]:
        """Of a single network: its workload before each of the last steps, as many as its delay line holds, the oldest first."""
        assert self.workload_line is not None
        rows = len(self.workload_line)
        return self.workload_line[(self.row - jnp.arange(rows - 1, 0, -1)) % rows]


class Trajectory(eqx.Module):
    """A run. In a batch every array has a leading axis; what was not asked for is None.

    - `time` `(time,)`: seconds of the saved instants.
    - `routing` `(time, frontends, backends)`: shares. `workload` `(time, backends)`: requests.
    - `arrival_rate` `(time, frontends)`: requests/s.
    - `cost_rate` `(time,)`: workload plus what is charged for the network, requests.
    - `in_flight` `(time,)`: requests on the forward wires.
    - `statistics`: time integrals and extremes, see `Statistics`.
    - `final`: the state at the end; give it as `initial` to go on (unless saved with `resumable=False`).
    - `result`: how it ended, a `Result` code.
    - `lost` `(time, backends)`: in a run with events, the requests that backends have lost until then.
    - `replicas`, `commanded` `(time, backends)`: in a run with an autoscaler, replicas that serve, and those asked for.
    - `observed`: what `SaveAt(fn=...)` gave at the saved instants, with time as leading axis.
    - `measured`: the results of `SaveAt(statistics=...)`, by their names.
    """

    time: Float[Array, "*batch time"]
    routing: Float[Array, "*batch time frontends backends"] | None = eqx.field(
        metadata=label("time", "frontend", "backend", units="1", meaning="share of a frontend's requests")
    )
    workload: Float[Array, "*batch time backends"] | None = eqx.field(
        metadata=label("time", "backend", units="requests", meaning="workload")
    )
    arrival_rate: Float[Array, "*batch time frontends"] | None = eqx.field(
        metadata=label("time", "frontend", units="requests/s", meaning="arrival rate")
    )
    cost_rate: Float[Array, "*batch time"] | None = eqx.field(
        metadata=label("time", units="requests", meaning="workload plus network cost")
    )
    in_flight: Float[Array, "*batch time"] | None = eqx.field(
        metadata=label("time", units="requests", meaning="requests on their way to the backends")
    )
    statistics: Statistics | None
    final: SimulationState
    result: Int[Array, "*batch"] = eqx.field(metadata=label(units="1", meaning="how the run ended, a Result code"))
    lost: Float[Array, "*batch time backends"] | None = eqx.field(
        default=None,
        metadata=label(
            "time", "backend", units="requests", meaning="requests lost at or on the way to a backend since the start"
        ),
    )
    replicas: Float[Array, "*batch time backends"] | None = eqx.field(
        default=None, metadata=label("time", "backend", units="1", meaning="replicas that serve")
    )
    commanded: Float[Array, "*batch time backends"] | None = eqx.field(
        default=None, metadata=label("time", "backend", units="1", meaning="replicas that the autoscaler asks for")
    )
    observed: PyTree = None
    measured: dict[str, PyTree] = eqx.field(default_factory=dict)
    labels: tuple[Label, ...] = eqx.field(static=True, default=())
    frontend_names: tuple[str, ...] | None = eqx.field(static=True, default=None)
    backend_names: tuple[str, ...] | None = eqx.field(static=True, default=None)

    @property
    def mean_latency(self) -> Float[Array, "*batch time"]:
        """Momentary mean latency: cost rate over total arrival rate, seconds."""
        if self.cost_rate is None or self.arrival_rate is None:
            raise InputError(
                "run.mean_latency needs the saved fields cost_rate and arrival_rate: add them to SaveAt(fields=...)."
            )
        return self.cost_rate / self.arrival_rate.sum(-1)

    def to_xarray(self) -> "xarray.Dataset":
        """The run as an `xarray.Dataset` with labelled dimensions and units."""
        return dataset.to_dataset(self)

    def save(self, path: str | Path) -> Path:
        """Write the run as a netCDF file that xarray opens; an existing file is replaced only by a complete one."""
        return dataset.write(self, path)
