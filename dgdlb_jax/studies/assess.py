"""From networks and a policy to a verdict and figures: the same for comparisons, sweeps, reports and studies."""

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Int

from dgdlb_jax.equilibrium.optimum import Optimum, solve_optimum
from dgdlb_jax.model.batch import per_frontend
from dgdlb_jax.model.network import Network
from dgdlb_jax.numerics.promotion import standard_promotion
from dgdlb_jax.numerics.results import InputError
from dgdlb_jax.numerics.types import Numbers
from dgdlb_jax.policies.base import AbstractPolicy
from dgdlb_jax.policies.estimates import Scraped
from dgdlb_jax.simulation.engine import simulate_batch
from dgdlb_jax.simulation.plugins import AbstractStatistic
from dgdlb_jax.simulation.statistics import Statistics
from dgdlb_jax.simulation.trajectory import Trajectory
from dgdlb_jax.stability.defaults import default_step_size, suggest_duration
from dgdlb_jax.studies.balancers import BALANCERS, behind, check_keys
from dgdlb_jax.studies.starts import start_state
from dgdlb_jax.studies.time_steps import time_step
from dgdlb_jax.studies.verdict import Judgement, Verdict, classify, look_every, save_for_verdict


@dataclass(frozen=True)
class Setup:
    """Networks, what is best in them, and where runs start. For a batch every array has a leading axis.

    - `networks`, `optimum`; `step_size` `(frontends,)`: 1/s^2, of the gradient rules.
    - `initial`: the start, routing `(frontends, backends)` and workload `(backends,)`. `news`: how frontends get their reports.
    """

    networks: Network
    optimum: Optimum
    step_size: Float[Array, "*batch frontends"]
    initial: tuple[ArrayLike, ArrayLike]
    news: Scraped | None = None

    def balancer(self, key: str) -> AbstractPolicy:
        """The policy with this key of `BALANCERS`."""
        check_keys([key])
        return behind(BALANCERS[key].make(self.networks, self.optimum, self.step_size), self.news)

    def time_step(self, policy: AbstractPolicy) -> Float[np.ndarray, "*batch"]:
        """A time step that resolves a policy from this start, seconds."""
        return time_step(self.networks, policy, self.step_size, self.optimum, self.initial[1])

    @cached_property
    def settling(self) -> float | Float[Array, "*batch"]:
        """After how many seconds DGD-LB has settled, as suggested."""
        return suggest_duration(self.networks, self.step_size, self.optimum)


def set_up(
    networks: Network,
    *,
    optimum: Optimum | None = None,
    step_size: ArrayLike | None = None,
    start: str | tuple[ArrayLike, ArrayLike] = "proportional",
    news: Scraped | None = None,
) -> Setup:
    """Optimum, step size and start of a network or a batch, as far as they are not given.

    **Arguments:** `step_size`: 1/s^2, a scalar or one number per frontend, `default_step_size` by default; `start`: one of `STARTS`, or
    `(routing, workload)`; `news`: how frontends get their reports, at once by default: a default step size counts how much older they
    are.

    **Raises:** `InputError` for demand that exceeds capacity, and an unknown start.
    """
    optimum = solve_optimum(networks) if optimum is None else optimum
    given = None if step_size is None else per_frontend(networks, step_size, "step_size")
    older = 0.0 if news is None else news.oldest
    step = default_step_size(networks, optimum, averaging=older) if given is None else given
    return Setup(networks, optimum, step, start_state(networks, start), news)


@dataclass(frozen=True)
class Assessment:
    """What came of runs. For a batch every array has a leading axis.

    - `networks`: what they ran in. `run`: a trajectory with saved `workload` and statistics of its last fifth, see `save_for_verdict`.
    - `best_latency`: what their mean latency is held against, that of the optimum or of a moving reference, seconds.
    """

    networks: Network
    run: Trajectory
    best_latency: Float[np.ndarray, "*batch"]

    @cached_property
    def judgement(self) -> Judgement:
        """The verdicts, and what they rest on."""
        return classify(self.networks, self.run)

    @property
    def verdict(self) -> Int[np.ndarray, "*batch"]:
        """Codes of `Verdict`."""
        return self.judgement.verdict

    @property
    def statistics(self) -> Statistics:
        """Those of the last fifth."""
        return statistics_of(self.run)

    @cached_property
    def mean_latency(self) -> Float[np.ndarray, "*batch"]:
        """Seconds per request: infinite when a queue grows without end, NaN when the run failed."""
        latency = np.asarray(self.statistics.mean_latency, float)
        latency = np.where(self.verdict == Verdict.diverging, np.inf, latency)
        return np.where(self.verdict == Verdict.failed, np.nan, latency)

    @property
    def excess(self) -> Float[np.ndarray, "*batch"]:
        """Mean latency over the best one, minus 1."""
        return np.asarray(self.mean_latency / np.asarray(self.best_latency, float) - 1)

    @property
    def undecided(self) -> Bool[np.ndarray, "*batch"]:
        """Whether a longer run may end in another way: it still moves, or is too short to judge."""
        return np.asarray(np.isin(self.verdict, (Verdict.moving, Verdict.too_short)))

    def arrived(self, close: float = 0.01) -> Bool[np.ndarray, "*batch"]:
        """Whether it settled at less than this excess."""
        return np.asarray((self.verdict == Verdict.settled) & (self.excess < close))


@standard_promotion
def assess(
    networks: Network,
    policy: AbstractPolicy | str = "dgd-lb",
    *,
    optimum: Optimum | None = None,
    step_size: ArrayLike | None = None,
    start: str | tuple[ArrayLike, ArrayLike] = "proportional",
    dt: Numbers | None = None,
    duration: Numbers | None = None,
    every: int | None = None,
    fields: tuple[str, ...] = ("workload",),
    statistics: tuple[AbstractStatistic, ...] = (),
    frames: int | None = None,
    max_latency: float | None = None,
) -> Assessment:
    """Run a policy in many networks at once and judge every run, from defaults for all that is not given.

    **Arguments:**

    - `networks`: a batch. `policy`: one, or a key of `BALANCERS`.

    Other arguments:

    - `optimum`, `step_size`, `start`: as for `set_up`.
    - `dt`, `duration`: seconds, scalars or `(batch,)`; by default what resolves the policy, and what DGD-LB takes to settle.
    - `every`, `fields`, `statistics`, `frames`, `max_latency`: what is kept, and how it is compiled, as for `SaveAt` and `simulate_batch`.
      By default the workload, as often as a verdict needs; batches of other durations then share compiled code. `every=0` keeps no
      instants.

    **Returns:** an `Assessment`. A run that fails by itself is one that says so.

    **Raises:** `InputError` as `set_up` and `simulate_batch`.
    """
    if networks.batch is None:
        raise InputError(
            "assess takes a batch: stack([network, ...]) makes one, compare assesses balancers in a single network."
        )
    if optimum is None or isinstance(policy, str) or dt is None or duration is None:
        setup = set_up(networks, optimum=optimum, step_size=step_size, start=start)
        optimum, start = setup.optimum, setup.initial
        policy = setup.balancer(policy) if isinstance(policy, str) else policy
        dt = setup.time_step(policy) if dt is None else dt
        duration = np.asarray(setup.settling) if duration is None else duration
    steps = np.broadcast_to(np.asarray(duration, float) / np.asarray(dt, float), (networks.batch,))
    every = look_every(steps) if every is None else every
    if frames is None:
        frames = 2 ** math.ceil(math.log2(steps.max() / every + 2)) if every else 0
    run = simulate_batch(
        networks,
        policy,
        duration=duration,
        dt=dt,
        initial=start_state(networks, start),
        save=save_for_verdict(duration, every, fields, optimum.workload, statistics=statistics),
        max_latency=max_latency,
        frames=frames,
        throw=False,
    )
    return Assessment(networks, run, np.asarray(optimum.mean_latency, float))


def statistics_of(run: Trajectory) -> Statistics:
    """The statistics of a run, which has to have been saved with some."""
    if run.statistics is None:
        raise InputError("A comparison needs runs with statistics: save with SaveAt(...), not SaveAt.final().")
    return run.statistics
