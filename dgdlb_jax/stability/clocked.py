r"""Loops of frontends that read reports by clocks of their own, as a map over one common period, and its multipliers.

Between two instants of its clock a frontend $m$ holds numbers $h_m$, and what it sends moves by itself:

$$ \dot s_m = A_m s_m + B_m h_m, \qquad p_m = C_m s_m $$
with $p_{mj}$ what its requests add to the workload of backend $j$, as seen without any delay. When frontend $i$ reads backend $j$ at time
$t$, it finds $y_{ij} = \sum_m p_{mj}(t - D_{imj})$, $D_{imj} = \tau^{fb}_{ij} + \tau_{mj}$, and holds $K h_i + H y_i$ from then on. Where
all instants repeat after a period $\Theta$, what a frontend had at its last few instants makes a state that one period maps linearly,
exactly for latencies of any number of seconds. Small deviations die out iff all eigenvalues of the map, its multipliers, lie within the
unit circle, directions that nothing moves (multipliers of 1) apart.

**Source:** own derivation (lifting); Floquet's theorem.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Complex, Float, Int
from scipy.linalg import expm

from dgdlb_jax.numerics.arnoldi import all_eigenvalues, largest_eigenvalues

_DENSE = 400  # unknowns up to which all multipliers are computed, above it the largest few
_NEUTRAL = 1e-7  # distance from 1 of a multiplier of a direction that nothing moves
_SAME = 1e-9  # of a period: instants that near are one


@dataclass(frozen=True)
class Reading:
    """What a frontend does at instants of its clock.

    - `at`: seconds within the period. `frontend`: which.
    - `keep` `(held, held)`, `take` `(held, backends)`: it holds `keep @ h + take @ y` from then on.
    """

    at: float
    frontend: int
    keep: Float[np.ndarray, "held held"]
    take: Float[np.ndarray, "held backends"]


@dataclass(frozen=True)
class ClockedLoop:
    """A linear loop with clocks, in numpy, on the host.

    - `rate` $A$ `(frontends, own, own)`, `drive` $B$ `(frontends, own, held)`, `load` $C$ `(frontends, backends, own)`.
    - `age` $D$ `(reader, sender, backend)`, seconds. `period`: seconds. `readings`: of one period, in any order.
    """

    rate: Float[np.ndarray, "frontends own own"]
    drive: Float[np.ndarray, "frontends own held"]
    load: Float[np.ndarray, "frontends backends own"]
    age: Float[np.ndarray, "frontends frontends backends"]
    period: float
    readings: Sequence[Reading]

    def multipliers(self) -> Complex[np.ndarray, " found"]:
        """Eigenvalues of one period, the largest first: all of them, or the few largest of a large loop."""
        lifted = _Period(self)
        found = lifted.multipliers() if lifted.size <= _DENSE else lifted.largest()
        return found[np.argsort(-np.abs(found), kind="stable")]

    def radius(self) -> float:
        """The largest modulus of a multiplier, directions that nothing moves apart: deviations die out below 1."""
        found = self.multipliers()
        return float(np.abs(found[np.abs(found - 1) > _NEUTRAL]).max(initial=0.0))


class _Period:
    """One period as a map of `(frontends, instants, own + held, columns)`: the states at the last instants, the latest first."""

    def __init__(self, loop: ClockedLoop):
        self.loop = loop
        self.order = sorted(loop.readings, key=lambda reading: reading.at)
        self.own, held = loop.drive.shape[1:]
        self.wide = self.own + held
        frontends = len(loop.rate)
        # d/dt (s, h) = (A s + B h, 0)
        self.flow = np.zeros((frontends, self.wide, self.wide))
        self.flow[:, : self.own, : self.own], self.flow[:, : self.own, self.own :] = loop.rate, loop.drive
        self.load = np.concatenate([loop.load, np.zeros((*loop.load.shape[:2], held))], -1)
        clocks = [np.array([r.at for r in self.order if r.frontend == m]) for m in range(frontends)]
        self.steps = [self._step(clocks, *place) for place in enumerate(self.order)]
        self.past = max(int(back.max()) for back, *_ in self.steps) + 1
        self.shape = frontends, self.past, self.wide
        self.size = int(np.prod(self.shape))

    def _step(
        self, clocks: list[np.ndarray], number: int, reading: Reading
    ) -> tuple[
        Int[np.ndarray, "frontends backends"],
        Float[np.ndarray, "frontends backends wide"],
        Float[np.ndarray, "wide wide"],
    ]:
        """Of one reading: which earlier instant of every sender, how what it had then adds to each report, and how the reader's own
        state has moved since its last instant."""
        period, frontends = self.loop.period, range(len(clocks))
        seen = reading.at - self.loop.age[reading.frontend]  # (sender, backend)
        done = [sum(r.frontend == m for r in self.order[:number]) for m in frontends]  # in this period
        instants = [_last_instant(clocks[m], seen[m], done[m], period) for m in frontends]
        back = np.array([at[0] for at in instants])
        since = np.array([at[1] for at in instants])
        moved = expm(self.flow[:, None] * since[..., None, None])
        rows = np.einsum("mbn,mbnk->mbk", self.load, moved)
        last = _last_instant(clocks[reading.frontend], np.array([reading.at]), done[reading.frontend], period)[1]
        return back, rows, expm(self.flow[reading.frontend] * last[0])

    def advance(self, state: Float[np.ndarray, "size columns"]) -> Float[np.ndarray, "size columns"]:
        """The state one period later."""
        past = state.reshape(*self.shape, -1).copy()
        senders = np.arange(self.shape[0])[:, None]
        for reading, (back, rows, moved) in zip(self.order, self.steps, strict=True):
            report = np.einsum("mbk,mbkc->bc", rows, past[senders, back])
            mine = past[reading.frontend]
            now = moved @ mine[0]
            now[self.own :] = reading.keep @ now[self.own :] + reading.take @ report
            past[reading.frontend] = np.concatenate([now[None], mine[:-1]])
        return past.reshape(state.shape)

    def multipliers(self) -> Complex[np.ndarray, " size"]:
        """All of them."""
        return all_eigenvalues(self.advance, self.size)

    def largest(self) -> Complex[np.ndarray, " found"]:
        """Those of the largest modulus."""
        count = 12 + 2 * self.shape[0]  # neutral ones apart
        return largest_eigenvalues(self.advance, self.size, count, basis=3 * count, accuracy=1e-9)


def _last_instant(
    clock: Float[np.ndarray, " instants"], time: Float[np.ndarray, " times"], done: int, period: float
) -> tuple[Int[np.ndarray, " times"], Float[np.ndarray, " times"]]:
    """How many instants before the latest one a clock stood at a time, and how long before that time that was.

    **Arguments:** `clock`: its instants within a period, in order; `done`: how many of these have passed.
    """
    count = clock.size
    turns = np.floor(time / period + _SAME)
    within = np.clip(time - turns * period, 0, None)
    passed = np.searchsorted(clock, within + _SAME * period, side="right")  # of that period
    # Instants from the start of this period on, negative before.
    number = np.minimum((turns * count + passed).astype(int), done)
    turn, place = np.divmod(number - 1, count)
    return done - number, np.maximum(time - (turn * period + clock[place]), 0)


def unique_instants(
    interval: Float[np.ndarray, " arcs"], offset: Float[np.ndarray, " arcs"], period: float
) -> list[tuple[float, list[int]]]:
    """The instants of several clocks within a period, and which of them each is of: `(at, arc)` pairs, the same instants together."""
    found: dict[int, list[int]] = {}
    for arc, (each, first) in enumerate(zip(interval, offset, strict=True)):
        for k in range(round(period / each)):
            at = (first + k * each) % period
            found.setdefault(round(at / period / _SAME) % round(1 / _SAME), []).append(arc)
    return [(place * _SAME * period, arcs) for place, arcs in sorted(found.items())]
