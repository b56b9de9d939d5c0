r"""The loop of policies that read reports periodically, average them and hold their weights: its multipliers, and its limits.

All frontends read at $t_k = kT$. What frontend $m$ sends to backend $j$ adds $p_{mj}$ to its workload, as seen without any delay, with
$\dot p = \lambda_m x_{mj} - a_j p$; what frontend $i$ reads of it is $D = \tau^{fb}_{ij} + \tau_{mj} = qT - r$ old, $0 \le r < T$. Weights
held over a period make one update a linear map, exactly, for latencies that are any number of seconds:

$$ y_{ij}[k] = \sum_m e^{-a_j r} p_{mj}[k - q] + \lambda_m \tfrac{1 - e^{-a_j r}}{a_j} x_{mj}[k - q], \qquad
   \hat u_i[k] = b\, \hat u_i[k-1] + (1 - b) U_i\, y_i[k], $$
$$ x_i[k] = R_i \hat u_i[k], \qquad p_{mj}[k + 1] = e^{-a_j T} p_{mj}[k] + \lambda_m \tfrac{1 - e^{-a_j T}}{a_j} x_{mj}[k] $$

with $U_i = \partial u_i / \partial N$ of the report and $R_i = \partial x_i / \partial u_i$ of the rule. Small deviations die out iff all
eigenvalues of the map, its multipliers $z$, lie within the unit circle; just outside it they swing with the period $2 \pi T / |\arg z|$.
Frontends that read at instants of their own, a period apart, have the map of `stability.clocked`.

**Source:** own derivation (lifting). For equal backends at equal distance it is the polynomial of `equal_backends`.
"""

from dataclasses import dataclass, replace

import jax.numpy as jnp
import numpy as np
from jaxtyping import Complex, Float

from dgdlb_jax.model.batch import each_frontend, require_double, require_single
from dgdlb_jax.model.network import Network
from dgdlb_jax.numerics.arnoldi import all_eigenvalues, largest_eigenvalues
from dgdlb_jax.numerics.results import InputError
from dgdlb_jax.policies.held import AbstractHeldPolicy, kept_of_average
from dgdlb_jax.stability.clocked import ClockedLoop, Reading
from dgdlb_jax.stability.rest_point import RestPoint, check_held, rest_point

_DENSE = 150  # unknowns up to which all multipliers are computed, above it the largest few
_OLDEST = 256  # periods that a report may be old
_EXACT = 1e-9  # relative accuracy of those few
_NEUTRAL = 1e-9  # distance from 1 of a multiplier of a direction that nothing moves


@dataclass(frozen=True)
class HeldLoop:
    """The linearised loop of a held policy in one network, in numpy, on the host.

    - `arrival_rate` `(frontends,)`, requests/s. `slope` `(backends,)`, 1/s. `latency`, `feedback_latency` `(frontends, backends)`, seconds.
    - `reading`, `answer` `(frontends, backends, backends)`: as in `RestPoint`.
    - `period` $T$, seconds; `smoothing` $t_s$ `(frontends,)`, seconds, 0 for none. `offset` `(frontends,)`: when each of them reads,
      seconds from 0 to T; None in step.
    """

    arrival_rate: Float[np.ndarray, " frontends"]
    slope: Float[np.ndarray, " backends"]
    latency: Float[np.ndarray, "frontends backends"]
    feedback_latency: Float[np.ndarray, "frontends backends"]
    reading: Float[np.ndarray, "frontends backends backends"]
    answer: Float[np.ndarray, "frontends backends backends"]
    period: float
    smoothing: Float[np.ndarray, " frontends"]
    offset: Float[np.ndarray, " frontends"] | None = None

    def multipliers(self) -> Complex[np.ndarray, " found"]:
        """Eigenvalues of one update, the largest first: all of them, or the few largest of a large network."""
        if self.offset is not None:
            return self._clocked(self.offset).multipliers()
        step = _Update(self)
        found = step.multipliers() if step.size <= _DENSE else step.largest()
        return found[np.argsort(-np.abs(found), kind="stable")]

    def radius(self) -> float:
        """The largest modulus of a multiplier, directions that nothing moves apart: deviations die out below 1."""
        found = self.multipliers()
        return float(np.abs(found[np.abs(found - 1) > _NEUTRAL]).max(initial=0.0))

    def neutral(self) -> int:
        """How many directions nothing moves: multipliers that are 1. Every split along them is at rest."""
        return int((np.abs(self.multipliers() - 1) <= _NEUTRAL).sum())

    def swing(self) -> float:
        """The period of the largest deviation that swings, seconds; inf if none does."""
        found = self.multipliers()
        angle = np.abs(np.angle(found))
        swinging = (angle > 1e-6) & (np.abs(found) > 1e-12)
        return float(2 * np.pi * self.period / angle[swinging][0]) if swinging.any() else np.inf

    def with_smoothing(self, smoothing: float) -> "HeldLoop":
        """The same loop with another time constant of the average of all frontends, seconds."""
        return replace(self, smoothing=np.full_like(self.smoothing, smoothing))

    def with_period(self, period: float) -> "HeldLoop":
        """The same loop updated at another period, seconds; offsets stay the same part of it."""
        offset = None if self.offset is None else self.offset * (period / self.period)
        return replace(self, period=float(period), offset=offset)

    def _clocked(self, offset: Float[np.ndarray, " frontends"]) -> ClockedLoop:
        """The loop of frontends out of step: each moves its contributions by what it holds, averages and weights."""
        frontends, backends = self.latency.shape
        alone, none = np.eye(backends), np.zeros((frontends, backends, backends))
        kept = np.asarray(kept_of_average(jnp.asarray(self.period), jnp.asarray(self.smoothing)))[:, None, None]
        average, taken = kept * alone, (1 - kept) * self.reading
        keep = np.concatenate(
            [np.concatenate([average, none], -1), np.concatenate([self.answer @ average, none], -1)], -2
        )
        return ClockedLoop(
            rate=np.broadcast_to(-np.diag(self.slope), none.shape),
            drive=np.concatenate([none, self.arrival_rate[:, None, None] * alone], -1),
            load=np.broadcast_to(alone, none.shape),
            age=self.feedback_latency[:, None] + self.latency[None],
            period=self.period,
            readings=[
                Reading(float(at) % self.period, m, keep[m], np.concatenate([taken[m], self.answer[m] @ taken[m]]))
                for m, at in enumerate(offset)
            ],
        )


def held_loop(network: Network, policy: AbstractHeldPolicy, rest: RestPoint | None = None) -> HeldLoop:
    """The loop of a held policy, linearised where it rests.

    **Arguments:** a single `network`; `policy`, whose period is the same for all frontends; `rest`: its `rest_point`, found when left out.

    **Returns:** a `HeldLoop`.

    **Raises:** `InputError` for another policy, for periods that differ, in single precision, and when the policy has no rest point there:
    a rule that jumps is a relay then, or it overloads a backend.
    """
    check_held(policy)
    require_single(network, "held_loop")
    require_double(network, "held_loop")
    rest = rest_point(network, policy) if rest is None else rest
    if not bool(rest.found):
        raise InputError(
            f"{type(policy).__name__} {why_no_rest(network, policy, rest)}, so that it has no linearisation: simulate it."
        )
    rule: AbstractHeldPolicy = each_frontend(network, policy, type(policy).__name__)
    period = np.unique(np.asarray(rule.period))
    if period.size > 1:
        raise InputError(
            f"{type(policy).__name__}: periods from {period[0]:g} to {period[-1]:g} s: all frontends update at once, so give equal ones."
        )
    array = lambda values: np.asarray(values, float)
    offset = np.broadcast_to(array(rule.offset), (network.frontends,)) % float(period[0])
    return HeldLoop(
        arrival_rate=array(network.arrival_rate),
        slope=array(rest.slope),
        latency=array(network.latency),
        feedback_latency=array(network.feedback_latency),
        reading=array(rest.reading),
        answer=array(rest.answer),
        period=float(period[0]),
        smoothing=np.broadcast_to(array(rule.smoothing), (network.frontends,)).copy(),
        offset=None if np.ptp(offset) == 0 else offset,
    )


def why_no_rest(network: Network, policy: AbstractHeldPolicy, rest: RestPoint) -> str:
    """What a policy without a rest point does, for a sentence."""
    if policy.switches:
        return "is a switch: until the next report everything goes to the backend that was best in the last one, and soon is no longer"
    if np.asarray(rest.overloaded).any():
        names = network.backend_names or tuple(str(j) for j in range(network.backends))
        return f"overloads {names[int(np.argmax(np.asarray(rest.overloaded)))]}"
    return "has no equilibrium: it is a relay, which switches to and fro for ever"


class _Update:
    """One update as a map of states `(size, columns)`: contributions to workloads and weights of the last periods, and averages."""

    def __init__(self, loop: HeldLoop):
        age = loop.feedback_latency[:, None] + loop.latency[None]  # (reader i, sender m, backend)
        if age.max() > _OLDEST * loop.period:
            raise InputError(
                f"Reports are up to {age.max():g} s old, more than {_OLDEST} periods of {loop.period:g} s: "
                "take a longer one, below which little changes."
            )
        whole = np.ceil(age / loop.period - 1e-9).astype(int)
        rest = np.maximum(whole * loop.period - age, 0)
        slope = loop.slope
        inverse = 1 / np.where(slope > 0, slope, 1)
        self.past = max(int(whole.max()), 1)
        self.arcs = loop.latency.shape
        self.whole, self.fade = whole, np.exp(-slope * rest)
        rate = loop.arrival_rate[:, None]
        self.fill = np.where(slope > 0, (1 - self.fade) * inverse, rest) * rate[None]
        self.decay = np.exp(-slope * loop.period)
        self.gain = np.where(slope > 0, (1 - self.decay) * inverse, loop.period) * rate
        self.kept = np.asarray(kept_of_average(jnp.asarray(loop.period), jnp.asarray(loop.smoothing)))[:, None, None]
        self.reading, self.answer = loop.reading, loop.answer
        frontends, backends = self.arcs
        # What each reader takes from which period: arcs of senders, flat over (age, sender, backend).
        sender, backend = np.arange(frontends)[:, None], np.arange(backends)
        self.taken = (whole * frontends + sender[None]) * backends + backend
        self.counted = frontends * backends
        self.size = self.counted * (2 * self.past + 2)

    def advance(self, state: Float[np.ndarray, "size columns"]) -> Float[np.ndarray, "size columns"]:
        """The state one period later."""
        frontends, backends = self.arcs
        columns, now = state.shape[1], self.counted * (self.past + 1)
        contributed = state[:now]  # p[k], p[k-1], ..., p[k - past]
        average = state[now : now + self.counted].reshape(frontends, backends, columns)
        sent = state[now + self.counted :]  # x[k-1], ..., x[k - past]
        # Weights of this period reach nobody in this period but where there is no delay, and there nothing is left to fill.
        weights = np.concatenate([np.zeros((self.counted, columns)), sent])
        seen = (self.fade[..., None] * contributed[self.taken] + self.fill[..., None] * weights[self.taken]).sum(1)
        report = self.kept * average + (1 - self.kept) * (self.reading @ seen)
        routing = (self.answer @ report).reshape(self.counted, columns)
        decay, gain = (np.broadcast_to(each, self.arcs).reshape(-1, 1) for each in (self.decay, self.gain))
        ahead = decay * contributed[: self.counted] + gain * routing
        return np.concatenate(
            [ahead, contributed[: -self.counted], report.reshape(self.counted, columns), routing, sent[: -self.counted]]
        )

    def multipliers(self) -> Complex[np.ndarray, " size"]:
        """All of them."""
        return all_eigenvalues(self.advance, self.size)

    def largest(self, count: int = 6) -> Complex[np.ndarray, " found"]:
        """Those of the largest modulus."""
        return largest_eigenvalues(self.advance, self.size, count, basis=40, accuracy=_EXACT)


def equal_backends(
    slope: float, gain: float, delay: float, period: float, smoothing: float = 0.0
) -> Complex[np.ndarray, " degree"]:
    r"""Multipliers of equal backends at equal distance, closed form: how differences between them develop.

    $$ (z - E)(z - b) z^m + (1 - b) G (A z + B) = 0, \qquad d = mT + \theta,\ E = e^{-aT},\
       A = 1 - e^{-a (T - \theta)},\ B = e^{-a (T - \theta)} - E $$

    **Arguments:** `slope`: $a = \ell'$, 1/s. `gain`: $G$, what a persistent relative difference of workloads is answered by in flows, over
    the elasticity $e = N \ell' / \ell$: $u / (1 - u)$ for headroom of throughput, $(1 - e) / e$ for throughput over concurrency.
    `delay`: $d$, there and back, `period` $T$, `smoothing` $t_s$ (0 for none), seconds.

    **Returns:** the roots. **Source:** own derivation (the modified z-transform).
    """
    whole = int(np.floor(delay / period + 1e-9))
    rest = max(delay - whole * period, 0.0)
    decay, kept = np.exp(-slope * period), np.exp(-period / smoothing) if smoothing > 0 else 0.0
    tail = np.exp(-slope * (period - rest))
    left = np.concatenate([np.poly([decay, kept]), np.zeros(whole)])
    right = (1 - kept) * gain * np.array([1 - tail, tail - decay])
    return np.roots(np.polyadd(left, right)).astype(complex)
