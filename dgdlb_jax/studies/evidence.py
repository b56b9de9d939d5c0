"""What the end of a run shows, in numbers that verdicts rest on: for many runs at once."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from dgdlb_jax.equilibrium.feasibility import missing_capacity
from dgdlb_jax.model.network import Network
from dgdlb_jax.model.service import replicas
from dgdlb_jax.numerics.programs import compiled
from dgdlb_jax.simulation.trajectory import Trajectory
from dgdlb_jax.studies.turns import Turns, one_way, turns

LAST_PART = 0.2
"""The part of a run, at its end, that is judged."""
SWING_LIMIT = 0.02
"""(max - min) / mean of a workload above which a run has not settled."""
MATTERS = 1e-3
"""Part of the total workload, or of the total inflow, above which a backend matters."""
SAME_SHARE = 0.01
"""Relative change of the share sent to a backend, over the second half of a run, up to which it counts as fixed."""
SHRINKING = 0.95
"""Factor per period below which swings die out."""
AMONG_LARGEST = 0.25
"""Part of the largest range from which a steady swing decides: the fleet as a whole will not settle."""

FADED = 0.8
"""Factor over the window, in the median of the largest swings, below which they may die out later, however slowly."""

_LOOKS = 601  # instants of the second half of a run that are looked at, at most
_ROUNDING = 1e-4  # relative: an inflow this close to a supremum is not above it
_SHOWN = 0.5  # of the exact range that saved instants have to show, else the swing is faster than they are
_SLOPES_AGREE = 0.1  # of the range: difference over half a window between slopes of the saved instants and of all steps


class Movements(NamedTuple):
    """What goes on in the window, `(runs, backends)`: where a range above the limit has too few turns (`undecided`) or moves, unless the
    fleet as a whole swings on; which of them go in one direction (`drifting`). `fading` `(runs,)`: whether most of what swings on
    gets smaller.
    """

    undecided: Bool[np.ndarray, "runs backends"]
    moving: Bool[np.ndarray, "runs backends"]
    drifting: Bool[np.ndarray, "runs backends"]
    fading: Bool[np.ndarray, " runs"]


class Evidence:
    """What the last part of many runs shows; arrays have a leading axis of runs, and `(runs, time)` or `(runs, backends)` after it.

    - `window`: length of the last fifth, seconds. `late`: which instants lie in it. `finite`: whether all numbers are.
    - `rate`: arrival rates of the frontends at the end. `varying`: whether demand or capacity changes in the window.
    - `mean`, `low`, `high`: of the workloads, requests; `growth` `(runs, 2, backends)`: their slopes in both halves, requests/s;
      `seen_growth`: what the saved instants say of these.
    - `inflow`, `supremum`: what a backend is sent, and what it serves at most, requests/s.
    - `exact`: whether these come from statistics of the window, else they come from the saved instants.
    - `matters`: which backends do. `range`: (max - min) / mean of their workloads, 0 for others.
    - `overloaded`: which are sent more than they can ever serve while their workload grows in both halves.
    - `fixed_share`: whether the share of all requests that reaches a backend keeps still over the second half of the run.
    - `hopeless`: whether the fleet as a whole cannot serve its demand, asked only where some backend is overloaded.
    - `time_in_service`: the longest of the backends that matter, overloaded ones left out, seconds.
    """

    def __init__(self, networks: Network, runs: Trajectory):
        every = np.asarray(runs.time, float)
        self.duration, self.end = every[:, -1:] - every[:, :1], every[:, -1:]
        self.window = LAST_PART * self.duration[:, 0]
        index = _instants(every)
        self.time = np.take_along_axis(every, index, 1)
        workload = np.take_along_axis(np.asarray(runs.workload), index[..., None], 1)
        self.workload = workload.astype(float)
        scaled = None
        if runs.replicas is not None and runs.commanded is not None:
            most = np.maximum(runs.replicas, runs.commanded)[:, -1:]  # what has been commanded will be ready
            scaled = np.take_along_axis(np.asarray(runs.replicas), index[..., None], 1), most
        found = _inputs(networks, *jax.device_put((self.time, workload, scaled)))
        rate, factor, service, self.supremum, alone = map(np.asarray, found)
        self.late = self._part(1 - LAST_PART, 1)
        self.varying = _varies(rate, self.late) | _varies(factor, self.late)
        self.rate = rate[:, -1]
        mean_service = self._take_instants(service)
        self._take_statistics(runs)
        self.finite = np.isfinite(self.mean).all(-1) & np.isfinite(self.workload[:, -1]).all(-1)
        self.matters = _above(self.mean) | _above(np.maximum(self.inflow, 0))
        self.range = np.where(self.matters & (self.mean > 0), (self.high - self.low) / self.mean, 0)
        above = self.inflow > self.supremum * (1 + _ROUNDING)
        # A wave that starts low and ends high seems to grow: growth has to be most of the range, or to have lasted since mid-run.
        mostly = self.growth.sum(1) * self.window[:, None] > self.high - self.low
        self.overloaded = self.matters & above & (self.growth > 0).all(1) & (mostly | self._keeps_growing())
        self.fixed_share = self._fixed_share(service)
        self.hopeless = self._hopeless(np.asarray(networks.mask))
        self.time_in_service = self._time_in_service(mean_service, alone)

    def _part(self, begin: float, end: float) -> Bool[np.ndarray, "runs time"]:
        """The instants of a part of the run, as fractions of it; times may be rounded to single precision."""
        place = 1 - (self.end - self.time) / np.maximum(self.duration, 1e-300)
        return (place >= begin - 1e-6) & (place <= end + 1e-6)

    def _take_instants(self, service: Float[np.ndarray, "runs time backends"]) -> Float[np.ndarray, "runs backends"]:
        """Figures from the saved instants; returns mean service rates. What is sent is what is served and what the workload grows by."""
        weight = _weights(self.time, self.late)
        self.mean, mean_service = _mean(weight, self.workload), _mean(weight, service)
        late = self.late[..., None]
        self.low = np.where(late, self.workload, np.inf).min(1)
        self.high = np.where(late, self.workload, -np.inf).max(1)
        middle = 1 - LAST_PART / 2
        halves = self._part(1 - LAST_PART, middle), self._part(middle, 1)
        self.growth = self.seen_growth = np.stack([self._slope(half, self.workload) for half in halves], 1)
        self.inflow = self.growth.mean(1) + mean_service
        return mean_service

    def _take_statistics(self, runs: Trajectory) -> None:
        """Exact figures in the place of those from the saved instants, where the statistics cover the window and nothing else."""
        found = runs.statistics
        self.exact = np.zeros(len(self.window), bool)
        if found is None:
            return
        step = np.asarray(runs.final.time_step, float)
        self.exact = np.abs(np.asarray(found.duration, float) - self.window) <= 2.01 * step
        exact = self.exact[:, None]
        inflow = np.einsum("nf,nfb->nb", self.rate, np.asarray(found.mean_routing, float))
        self.inflow = np.where(exact, inflow, self.inflow)
        self.mean = np.where(exact, found.mean_workload, self.mean)
        self.low = np.where(exact, found.lowest_workload, self.low)
        self.high = np.where(exact, found.highest_workload, self.high)
        self.growth = np.where(exact[..., None], found.workload_growth, self.growth)

    def _keeps_growing(self) -> Bool[np.ndarray, "runs backends"]:
        """Whether a workload has risen since the middle of the run by at least half of what arrives above the supremum."""
        middle, late = (_mean(_weights(self.time, self._part(*part)), self.workload) for part in ((0.5, 0.7), (0.8, 1)))
        with np.errstate(invalid="ignore"):  # an infinite supremum
            return late - middle > 0.5 * (self.inflow - self.supremum) * 0.3 * self.duration

    def _time_in_service(
        self, mean_service: Float[np.ndarray, "runs backends"], alone: Float[np.ndarray, "runs backends"]
    ) -> Float[np.ndarray, " runs"]:
        """That of an overloaded backend grows with the run; if none is left, the shortest time of a request that is `alone` counts."""
        counts = self.matters & (mean_service > 0) & ~self.overloaded & ~self.hopeless[:, None]
        longest = np.where(counts, self.mean / mean_service, 0).max(-1)
        shortest = np.where(self.matters, alone, np.inf).min(-1)
        return np.where(counts.any(-1) | ~self.matters.any(-1), longest, shortest)

    def _hopeless(self, mask: Bool[np.ndarray, "runs frontends backends"]) -> Bool[np.ndarray, " runs"]:
        found = np.zeros(len(mask), bool)
        for k in np.flatnonzero(self.overloaded.any(-1) & self.finite):
            found[k] = missing_capacity(self.rate[k], mask[k], self.supremum[k]) > 0
        return found

    def _fixed_share(self, service: Float[np.ndarray, "runs time backends"]) -> Bool[np.ndarray, "runs backends"]:
        """The change of a share over half a run is twice that between the means of its halves."""
        parts = self._part(0.5, 0.75), self._part(0.75, 1)
        inflow = [self._slope(part, self.workload) + _mean(_weights(self.time, part), service) for part in parts]
        before, after = (np.maximum(one, 0) / np.maximum(one, 0).sum(-1, keepdims=True) for one in inflow)
        return 2 * np.abs(after - before) <= SAME_SHARE * np.maximum(after, before)

    def movements(self) -> Movements:
        """What goes on in the window with workloads whose range is above the limit."""
        first = int(np.argmax(self.late, 1).min())
        start = np.take_along_axis(self.workload, np.argmax(self.late, 1)[:, None, None], 1)
        values = np.where(self.late[..., None], self.workload, start)[:, first:].swapaxes(0, 1)
        values = np.where(np.isfinite(values), values, 0)
        wide, size = self.range > SWING_LIMIT, np.maximum(self.high - self.low, 0)
        seen = np.ptp(values, 0)  # turns are those of the instants, so they are held against the range of the instants
        found = turns(values, SWING_LIMIT / 2 * np.maximum(self.mean, 0))
        fast = self._faster_than_instants(values)
        straight = np.where(fast, self._fast_drift(size), one_way(values) | _mostly_drift(found, seen, self.mean))
        undecided = wide & ~fast & ~straight & ((found.peaks < 2) | (found.troughs < 2))
        halves = _of_halves(values)
        shrinking = ~fast & ~undecided & (found.shrinkage < SHRINKING) & (halves < SHRINKING)
        moving = wide & (straight | shrinking)
        # Of many backends some turn late, or swing less at the end, by chance: where one of the largest swings is steady, it decides.
        largest = wide & ~undecided & (self.range >= AMONG_LARGEST * self.range.max(-1, keepdims=True))
        steady = (largest & ~moving).any(-1)
        fading = _middle(found.shrinkage**found.peaks, largest & ~fast & ~straight) < FADED
        fading &= _middle(halves, largest & ~fast & ~straight) < SHRINKING
        unsteady = ~steady[:, None]
        return Movements(undecided & unsteady, moving & unsteady, wide & straight, steady & fading)

    def _faster_than_instants(
        self, values: Float[np.ndarray, "time runs backends"]
    ) -> Bool[np.ndarray, "runs backends"]:
        """Where the instants hide a swing, or show it as something slower: their slopes are not those of all steps then."""
        size, half = self.high - self.low, self.window[:, None, None] / 2
        hidden = values.max(0) - values.min(0) < _SHOWN * size
        apart = np.abs(self.growth - self.seen_growth).max(1) * half[:, 0]
        return self.exact[:, None] & (hidden | (apart > _SLOPES_AGREE * size))

    def _fast_drift(self, size: Float[np.ndarray, "runs backends"]) -> Bool[np.ndarray, "runs backends"]:
        """Whether a fast swing rides on a drift that is larger than itself."""
        drift = np.abs(self.growth.sum(1)) * self.window[:, None] / 2
        return (drift > size / 2) & (drift > SWING_LIMIT * self.mean) & (self.growth[:, 0] * self.growth[:, 1] > 0)

    def _slope(
        self, inside: Bool[np.ndarray, "runs time"], values: Float[np.ndarray, "runs time backends"]
    ) -> Float[np.ndarray, "runs backends"]:
        """Slope of the straight line through a part of series, by least squares in time."""
        weight = _weights(self.time, inside)
        away = self.time - _mean(weight, self.time[..., None])
        spread = (weight * away**2).sum(1)
        slope = np.einsum("nt,ntb->nb", weight * away, values)
        return slope / np.where(spread > 0, spread, np.inf)[:, None]


def _of_halves(values: Float[np.ndarray, "time runs backends"]) -> Float[np.ndarray, "runs backends"]:
    """The range of the second half of a series over that of the first: legs from turn to turn alone may be irregular."""
    middle = len(values) // 2
    before, after = (part.max(0) - part.min(0) for part in (values[: middle + 1], values[middle:]))
    return np.where(before > 0, after / np.where(before > 0, before, 1), np.inf)


def _middle(
    values: Float[np.ndarray, "runs backends"], where: Bool[np.ndarray, "runs backends"]
) -> Float[np.ndarray, " runs"]:
    """The median of the backends that count; inf where none does."""
    ordered, count = np.sort(np.where(where, values, np.inf), -1), where.sum(-1)
    return np.take_along_axis(ordered, np.maximum(count - 1, 0)[:, None] // 2, -1)[:, 0]


def _mostly_drift(
    found: Turns, size: Float[np.ndarray, "runs backends"], mean: Float[np.ndarray, "runs backends"]
) -> Bool[np.ndarray, "runs backends"]:
    """Whether a series ranges over more than twice its largest swing: the rest of the range is a drift then."""
    drift = size - found.largest
    return (found.largest > 0) & (drift > found.largest) & (drift > SWING_LIMIT * mean)


def _instants(time: Float[np.ndarray, "runs time"]) -> Int[np.ndarray, "runs looks"]:
    """Evenly spaced saved instants of the second half of each run; short runs repeat some, and have saved their last one often."""
    middle = (time[:, :1] + time[:, -1:]) / 2
    first = np.maximum((time <= middle * (1 + 1e-9)).sum(1) - 1, 0)
    last = (time < time[:, -1:]).sum(1)
    return np.rint(first[:, None] + (last - first)[:, None] * np.linspace(0, 1, _LOOKS)).astype(int)


@compiled
def _inputs(networks: Network, time: Array, workload: Array, scaled: tuple[Array, Array] | None):
    """Over time: arrival rates, factors on the capacity, service rates at the workloads. At the end: suprema, times of lone requests.

    `scaled`: replicas over time, and at the most, where an autoscaler moves them.
    """

    def one(network: Network, time: Array, workload: Array, scaled):
        rate = jax.vmap(network.demand.rate)(time)
        capacity = network.capacity
        factor = jnp.ones_like(workload) if capacity is None else jax.vmap(capacity.rate)(time)
        last = network.service_at(time[-1])
        if scaled is None:
            served = jax.vmap(lambda t, n: network.service_at(t).rate(n))(time, workload)
            return rate, factor, served, last.supremum, 1 / last.initial_slope
        now, most = (each / replicas(network.service) for each in scaled)
        served = jax.vmap(lambda t, n, r: r * network.service_at(t).rate(n / r))(time, workload, now)
        return rate, factor, served, most[0] * last.supremum, 1 / last.initial_slope

    return jax.vmap(one)(networks, time.astype(workload.dtype), workload, scaled)


def _above(values: Float[np.ndarray, "runs backends"]) -> Bool[np.ndarray, "runs backends"]:
    """Those that make up more than `MATTERS` of the total."""
    return values > MATTERS * values.sum(-1, keepdims=True)


def _varies(
    values: Float[np.ndarray, "runs time columns"], late: Bool[np.ndarray, "runs time"]
) -> Bool[np.ndarray, " runs"]:
    """Whether some column changes in the window, by more than rounding."""
    low = np.where(late[..., None], values, np.inf).min(1)
    high = np.where(late[..., None], values, -np.inf).max(1)
    return (high - low > 16 * np.finfo(values.dtype).eps * np.abs(high)).any(-1)


def _weights(
    time: Float[np.ndarray, "runs time"], inside: Bool[np.ndarray, "runs time"]
) -> Float[np.ndarray, "runs time"]:
    """Weights of the trapezoidal rule over the instants inside, which follow on one another."""
    length = np.where(inside[:, 1:] & inside[:, :-1], np.diff(time, axis=1), 0) / 2
    return np.pad(length, ((0, 0), (1, 0))) + np.pad(length, ((0, 0), (0, 1)))


def _mean(
    weight: Float[np.ndarray, "runs time"], values: Float[np.ndarray, "runs time columns"]
) -> Float[np.ndarray, "runs columns"]:
    total = weight.sum(1)[:, None]
    return np.where(total > 0, np.einsum("nt,ntb->nb", weight, values) / np.where(total > 0, total, 1), values[:, -1])
