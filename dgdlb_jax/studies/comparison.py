"""Balancers that ran in the same network from the same start, and what follows from their runs."""

import math
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
from jaxtyping import Array, Float

from dgdlb_jax.equilibrium.optimum import Optimum
from dgdlb_jax.equilibrium.prices import ShadowPrices, shadow_prices
from dgdlb_jax.model.network import Network
from dgdlb_jax.numerics.results import InputError
from dgdlb_jax.numerics.text import did_you_mean
from dgdlb_jax.policies.estimates import Scraped
from dgdlb_jax.simulation.trajectory import Trajectory
from dgdlb_jax.studies import results
from dgdlb_jax.studies.assess import statistics_of
from dgdlb_jax.studies.balancers import CURRENT, DGD
from dgdlb_jax.studies.conclusion import conclusion
from dgdlb_jax.studies.durations import longest_service
from dgdlb_jax.studies.outcome import Outcome, outcome
from dgdlb_jax.studies.quasi_static import FOLLOWED, QuasiStatic, steady_for
from dgdlb_jax.studies.scatter import Scatter
from dgdlb_jax.studies.schedule import Phase, Recovery, Schedule, recovery
from dgdlb_jax.studies.switching import Switch, switch
from dgdlb_jax.studies.what_if import WhatIf, what_if


@dataclass(frozen=True)
class Comparison:
    """Balancers that ran in the same network from the same start.

    - `network`, `optimum`: what they ran in, and the optimum at its mean rates.
    - `step_size` `(frontends,)` 1/s^2 of DGD-LB, `dt` (the shortest time step of all) and `duration` in seconds, `start`: what they ran
      with.
    - `time_steps`: name -> seconds, where it is not `dt`. `accuracy`: name -> relative change of the mean latency with twice that
      time step; NaN where that is too long to run.
    - `unresolved`: names of rules that jump and whose time step is too long to show how they swing: above a quarter of the largest
      latency.
    - `set_by`: name -> what decided the time step, in words; empty where it was given. `step_size_set_by`: the same of the step size.
    - `settling`: seconds after which DGD-LB has settled, as suggested; `duration` is shorter where that would take too long.
    - `scatter`: how the recommended routing moves within the scatter of measured curves, where somebody asked (`measure_scatter`).
    - `runs`: name -> `Trajectory`, all saved at the same instants; statistics cover the last fifth, or all of the run
      when demand moves.
    - `longer`: name -> `Trajectory` of the same balancer where the run in `runs` came to no verdict: its figures are those of this one.
    - `reference`: the moving quasi-static optimum; None when demand is constant.
    - `news`: how frontends got their reports, None for at once.
    - `schedule`: the events on the way, None without any. `network`, `optimum` and all figures are those after the last of them.
    """

    network: Network
    optimum: Optimum
    step_size: Float[Array, " frontends"]
    dt: float
    duration: float
    start: str
    runs: dict[str, Trajectory] = field(repr=False)
    reference: QuasiStatic | None = field(default=None, repr=False)
    time_steps: dict[str, float] = field(default_factory=dict)
    accuracy: dict[str, float] = field(default_factory=dict)
    unresolved: frozenset[str] = frozenset()
    settling: float = math.nan
    set_by: dict[str, str] = field(default_factory=dict)
    step_size_set_by: str = ""
    scatter: Scatter | None = None
    longer: dict[str, Trajectory] = field(default_factory=dict, repr=False)
    schedule: Schedule | None = field(default=None, repr=False)
    news: Scraped | None = None

    @cached_property
    def phases(self) -> list[Phase]:
        """What the events divide the runs into, the time before them first; empty without any."""
        return [] if self.schedule is None else self.schedule.phases(self.duration)

    @property
    def given(self) -> Network:
        """The network before any event."""
        return self.phases[0].network if self.phases else self.network

    @cached_property
    def recoveries(self) -> list[Recovery]:
        """How every balancer gets over every event, in the order of time; empty without any."""
        return [
            recovery(phase, name, self.network, run) for phase in self.phases[1:] for name, run in self.runs.items()
        ]

    @cached_property
    def prices(self) -> ShadowPrices:
        """What a little more of everything is worth at the optimum."""
        return shadow_prices(self.network)

    @cached_property
    def changes(self) -> list[WhatIf]:
        """What one replica more or less, and losing a backend, would change in the optimal mean latency."""
        return what_if(self.network, self.optimum)

    @cached_property
    def switch(self) -> Switch | None:
        """What changing from the routing in use to the optimum brings; None without one (`CURRENT`), or when demand moves."""
        if CURRENT not in self.runs or self.moving:
            return None
        return switch(self.network, self.mean_routing(CURRENT), self.optimum.routing)

    @cached_property
    def unmeasurable(self) -> tuple[float, float] | None:
        """Where demand changes too fast for a quasi-static reference to mean anything: for how long it stays as it is, and the longest
        time in service of a backend in use, seconds; None elsewhere."""
        steady, service = steady_for(self.network), longest_service(self.network, self.optimum)
        return (steady, service) if self.moving and steady < FOLLOWED * service else None

    @property
    def moving(self) -> bool:
        """Whether demand or capacity moves, so that there is a reference instead of an optimum."""
        return self.network.varies

    @property
    def judged(self) -> dict[str, Trajectory]:
        """Name -> the run that its figures are those of: the longest there is."""
        return self.runs | self.longer

    @property
    def best_latency(self) -> float:
        """Mean latency of the optimum, or of the reference when demand moves, seconds."""
        return float(self.optimum.mean_latency) if self.reference is None else self.reference.mean_latency

    @cached_property
    def outcomes(self) -> dict[str, Outcome]:
        """Name -> figures of that balancer."""
        best = self.best_latency if self.unmeasurable is None else math.nan
        begin = 0.0 if self.schedule is None else self.schedule.last
        return {
            name: outcome(
                self.network, name, run, best, moving=self.moving, resolved=name not in self.unresolved, begin=begin
            )
            for name, run in self.judged.items()
        }

    def table(self) -> list[Outcome]:
        """The figures, DGD-LB first, then from the best to the worst."""

        def rank(row: Outcome):
            finite = bool(np.isfinite(row.mean_latency))
            return row.balancer != DGD, not finite, row.mean_latency if finite else row.short_by

        return sorted(self.outcomes.values(), key=rank)

    def mean_routing(self, balancer: str) -> Float[np.ndarray, "frontends backends"]:
        """The shares of a balancer, on average over the window of its statistics (all of the run when demand moves)."""
        return np.asarray(statistics_of(self.judged[balancer]).mean_routing, float)

    def select(self, *balancers: str) -> "Comparison":
        """The same comparison with some of its runs. **Raises:** `InputError` for a name that did not run."""
        for name in balancers:
            if name not in self.runs:
                hint = did_you_mean(name, self.runs, ".")
                raise InputError(f"No balancer called {name!r} ran here: choose from {', '.join(self.runs)}{hint}")
        longer = {name: self.longer[name] for name in balancers if name in self.longer}
        return replace(self, runs={name: self.runs[name] for name in balancers}, longer=longer)

    @property
    def steepest_latency(self) -> float:
        r"""$\max \tau_{ij} \ell_j'(N_j)$ over the arcs in use at the optimum: latency on the backends' time scale."""
        slope = self.network.mean_service.slope(self.optimum.workload)
        used = (np.asarray(self.optimum.routing) > 1e-6) & (np.asarray(self.network.arrival_rate) > 0)[:, None]
        return float(np.max(np.where(used, np.asarray(self.network.latency) * np.asarray(slope), 0)))

    @property
    def conclusion(self) -> str:
        """One or two sentences that say what these numbers mean for the network."""
        return conclusion(self)

    def to_xarray(self):
        """All of it as an `xarray.Dataset`, with inputs, units and versions."""
        return results.to_dataset(self)
