r"""News as it is: reports that are read every so often, held in between, and sometimes late or lost.

$$ \hat u(t) = u(t_k - \tau^{fb}), \quad t_k + D_k \le t < t_{k+1} + D_{k+1}, \qquad t_{k+1} = t_k + T (1 + j\, U_k) $$
over the reports $k$ that are not lost, with $U_k$ uniform in $(-1, 1)$, for every frontend and every backend by itself.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, UInt32

from dgdlb_jax.model.batch import FrontendNumber
from dgdlb_jax.numerics.checks import not_negative, positive
from dgdlb_jax.numerics.counter_random import uniforms
from dgdlb_jax.numerics.results import InputError, is_concrete
from dgdlb_jax.numerics.types import Matrix
from dgdlb_jax.policies.base import Observation, State, checked, per_backend
from dgdlb_jax.policies.estimates.base import AbstractEstimate, aligned, reports, with_reports

_INTERVAL, _DELAY, _OFFSET = 0, 1, 2  # what random numbers are for
_PURPOSE_BITS = 28

Arcs = Float[Array, "backends *lanes"]


class UnderWay(NamedTuple):
    """A report that has been read and is late: seconds until it arrives, inf for none; and what it says."""

    wait: Arcs
    reports: tuple[Arcs, ...]


class News(NamedTuple):
    """The memory of a frontend, for every backend: seconds until it is read again, how often it has been, and what was reported last."""

    left: Arcs
    number: Arcs
    shown: tuple[Arcs, ...]
    under_way: UnderWay | None


class Scraped(AbstractEstimate):
    r"""Reports that a frontend reads every T seconds, as Prometheus scrapes its targets, and holds until the next one.

    Held is what backends report. That one fails or drains is known after the feedback latency as before: health checks have intervals of
    their own. With an interval of 0 every report counts at once, as without it. In a run, instants are rounded to whole time steps, on
    average exactly: with intervals and offsets that are whole numbers of steps a run is of second order.

    `critical_step_size(network, estimated(DGDLB(1.0), Scraped(15.0)))` is the limit of a smooth rule behind it (`stability.scraped`).

    **Arguments:**

    - `interval`: T, seconds. `offset`: when the first report is read, seconds from 0 to T; 0, the default, is in step with all others, None
      draws one for every frontend and backend, as Prometheus spreads its targets.
    - `jitter`: j, by which part of T an interval may be shorter or longer, below 1.
    - `lost`: the probability that a report is lost, below 1: the last one stays.
    - `late`: by how many seconds a report may be later than its feedback latency, uniformly from 0.
    - `drift`: seconds by which the latency of reports drifts up and down again, over `drift_period` seconds.
    - `seed`: of all random numbers, an integer from 0; in a batch also `(batch, 1)`. Networks with the same seed have the same luck, and
      so have runs of whole requests with different keys: they differ by their requests alone, and other seeds show what reports add.

    All but the seed: a scalar, `(frontends,)` or `(frontends, backends)`. `late` and `drift` together are at most the shortest interval.

    **Raises:** `InputError` for a number that is out of range, or for reports that could overtake each other.
    """

    interval: Float[Array, "*frontends"]
    offset: Float[Array, "*frontends"] | None
    jitter: Float[Array, "*frontends"] | None
    lost: Float[Array, "*frontends"] | None
    late: Float[Array, "*frontends"] | None
    drift: Float[Array, "*frontends"] | None
    drift_period: Float[Array, "*frontends"]
    seed: UInt32[Array, "*batch"]
    frontend: FrontendNumber

    def __init__(
        self,
        interval: Matrix,
        offset: Matrix | None = 0.0,
        jitter: Matrix = 0.0,
        lost: Matrix = 0.0,
        late: Matrix = 0.0,
        drift: Matrix = 0.0,
        drift_period: Matrix = 3600.0,
        seed: ArrayLike = 0,
    ):
        span = "finite and not negative, seconds"
        self.interval = checked("Scraped.interval", interval, not_negative, span)
        self.offset = None if offset is None else checked("Scraped.offset", offset, not_negative, span)
        self.jitter = _part("jitter", jitter)
        self.lost = _part("lost", lost)
        self.late = _unless_zero(checked("Scraped.late", late, not_negative, span))
        self.drift = _unless_zero(checked("Scraped.drift", drift, not_negative, span))
        self.drift_period = checked("Scraped.drift_period", drift_period, positive, "positive and finite, seconds")
        self.seed = _seed(seed)
        self.frontend = FrontendNumber()
        self._check_order()

    def _check_order(self) -> None:
        """Raise `InputError` where a report could be older than one that is read after it, or is never read first."""
        if not is_concrete(self):
            return
        shortest = self.interval if self.jitter is None else jnp.multiply(*aligned(self.interval, 1 - self.jitter))
        if bool(jnp.greater(*aligned(self.latest, shortest)).any()):
            raise InputError(
                f"Scraped: reports may be {float(self.latest.max()):g} s late (late + drift), longer than the shortest interval of "
                f"{float(shortest.min()):g} s, and could overtake each other: give a longer interval, or shorter delays."
            )
        if self.offset is not None and bool(jnp.greater(*aligned(self.offset, self.interval)).any()):
            raise InputError(
                f"Scraped.offset is {float(self.offset.max()):g} s, but must be at most the interval of {float(self.interval.min()):g} s."
            )
        if (self.lost is not None or self.jitter is not None) and not bool((self.interval > 0).all()):
            raise InputError(
                "Scraped.interval is 0, but reports that are lost or jitter are read one by one: give an interval above 0."
            )

    @property
    def time_scale(self) -> Float[Array, "*parameters"]:
        """The interval; inf where it is 0."""
        return jnp.where(self.interval > 0, self.interval, jnp.inf)

    @property
    def idle(self) -> bool:
        """With an interval of 0: then reports are not late either."""
        return is_concrete(self.interval) and not bool((self.interval > 0).any())

    @property
    def latest(self) -> Float[Array, "*parameters"]:
        """The longest delay of a report beside its feedback latency, seconds."""
        return jnp.add(*aligned(*(jnp.asarray(0.0) if each is None else each for each in (self.late, self.drift))))

    @property
    def mean_interval(self) -> Float[Array, "*parameters"]:
        """Seconds from one report that arrives to the next, on average: $T / (1 - p)$."""
        return self.interval if self.lost is None else jnp.divide(*aligned(self.interval, 1 - self.lost))

    @property
    def delay(self) -> Float[Array, "*parameters"]:
        """How old a report gets until the next one, on average of those that are not lost, and in the worst case of the others."""
        return jnp.add(*aligned(self.mean_interval, self.latest))

    @property
    def oldest(self) -> Float[Array, "*frontends"]:
        """`delay`, the longest of every frontend, as `default_step_size(network, averaging=...)` takes it."""
        delay = self.delay
        return delay.reshape(delay.shape[0], -1).max(-1) if delay.ndim else delay

    def drawn_offset(self, arcs: Arcs) -> Arcs:
        """When the first report is read, for these arcs, given or drawn, seconds."""
        if self.offset is not None:
            return arcs + per_backend(self.offset, arcs)
        return arcs + per_backend(self.interval, arcs) * self._uniform(arcs, _OFFSET)[0]

    def init(self, observation: Observation) -> News:
        """The reports themselves, until the first is read."""
        arcs, now = jnp.zeros_like(observation.workload), reports(observation)
        offset = self.drawn_offset(arcs)
        waiting = None if self.late is None and self.drift is None else UnderWay(arcs + jnp.inf, now)
        return News(jnp.where(offset > 0, offset, per_backend(self.interval, arcs)), arcs, now, waiting)

    def estimate(self, observation: Observation, state: State) -> tuple[Observation, State]:
        """What was reported last, and at the instant of a report the mean of the last two: half of the step around it lies before."""
        after = self._after(observation, state)
        held = per_backend(self.interval, observation.mask) > observation.time_step[None]
        half = lambda old, new: jnp.where(held, (old + new) / 2, new)
        return with_reports(observation, jax.tree.map(half, state.shown, after.shown)), after

    def at_instant(self, observation: Observation, state: State) -> tuple[Observation, State]:
        """What was reported last."""
        after = self._after(observation, state)
        return with_reports(observation, after.shown), after

    def _after(self, observation: Observation, state: News) -> News:
        step, now = observation.time_step[None], reports(observation)
        left = state.left - step
        read = left <= step / 2  # the nearest step
        some = self.jitter is not None or self.lost is not None
        first, second = self._uniform(state.number, _INTERVAL) if some else (0.5, 0.5)
        interval = per_backend(self.interval, left)
        if self.jitter is not None:
            interval = interval * (1 + per_backend(self.jitter, left) * (2 * first - 1))
        arrives = read if self.lost is None else read & (second >= per_backend(self.lost, left))
        shown, under_way = self._delivered(step, arrives, now, state)
        return News(
            left=jnp.where(read, left + jnp.maximum(interval, step), left),
            number=jnp.where(read, state.number + 1, state.number),
            shown=shown,
            under_way=under_way,
        )

    def _delivered(
        self, step: Float[Array, "1 *lanes"], read: Bool[Array, "backends *lanes"], now: tuple[Arcs, ...], state: News
    ) -> tuple[tuple[Arcs, ...], UnderWay | None]:
        """What is shown when a report is read now or not, and what is under way then."""
        if state.under_way is None:
            return _choose(read, now, state.shown), None
        wait, late = state.under_way.wait - step, self._lateness(state.number)
        arrives, at_once = wait <= step / 2, read & (late <= step / 2)
        shown = _choose(at_once, now, _choose(arrives, state.under_way.reports, state.shown))
        leaves = read & ~at_once
        wait = jnp.where(leaves, late, jnp.where(arrives, jnp.inf, wait))
        return shown, UnderWay(wait, _choose(leaves, now, state.under_way.reports))

    def _lateness(self, count: Arcs) -> Arcs:
        """Of the report that is read next, seconds."""
        late = jnp.zeros_like(count)
        if self.late is not None:
            late = late + per_backend(self.late, count) * self._uniform(count, _DELAY)[0]
        if self.drift is not None:
            period = per_backend(self.drift_period, count)
            turn = 2 * jnp.pi * count * per_backend(self.interval, count) / period
            late = late + per_backend(self.drift, count) * (1 - jnp.cos(turn)) / 2
        return late

    def _uniform(self, count: Arcs, purpose: int) -> tuple[Arcs, Arcs]:
        """Two random numbers for every backend, the same ones whenever they are asked for."""
        backend = jnp.arange(count.shape[0], dtype=jnp.uint32).reshape(-1, *(1,) * (count.ndim - 1))
        place = jnp.broadcast_to(backend + jnp.uint32(purpose << _PURPOSE_BITS), count.shape)
        key = self.seed, jnp.uint32(0) if self.frontend.number is None else self.frontend.number
        first, second = uniforms(key, (place, count.astype(jnp.uint32)))
        return first.astype(count.dtype), second.astype(count.dtype)


def _choose(where: Bool[Array, "..."], new: tuple[Arcs, ...], old: tuple[Arcs, ...]) -> tuple[Arcs, ...]:
    return jax.tree.map(lambda a, b: jnp.where(where, a, b), new, old)


def _part(name: str, value: Matrix) -> Float[Array, "..."] | None:
    below_one = lambda part: not_negative(part) & (part < 1)
    return _unless_zero(checked(f"Scraped.{name}", value, below_one, "at least 0 and below 1"))


def _unless_zero(value: Float[Array, "..."]) -> Float[Array, "..."] | None:
    """None for what is known to be 0 everywhere, so that nothing is computed for it."""
    return None if is_concrete(value) and not bool((value != 0).any()) else value


def _seed(seed: ArrayLike) -> UInt32[Array, "*batch"]:
    if not is_concrete(seed):
        return jnp.asarray(seed, jnp.uint32)
    numbers = np.asarray(seed)
    if not (np.issubdtype(numbers.dtype, np.integer) and (numbers >= 0).all() and (numbers < 2**32).all()):
        raise InputError(f"Scraped.seed is {seed}: give a whole number from 0 to {2**32 - 1}.")
    return jnp.asarray(numbers.astype(np.uint32))
