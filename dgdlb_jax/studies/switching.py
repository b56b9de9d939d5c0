"""What changing from a routing in use to a recommended one brings, and which few changes bring most of it."""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import ArrayLike, Float

from dgdlb_jax.equilibrium.at_rest import latency_at_rest, latency_of_flows
from dgdlb_jax.model.network import Network
from dgdlb_jax.studies.outcome import backend_names, frontend_names

_TRIED = 512  # moves that are weighed against each other, those of the largest flow
_WORTHWHILE = 1e-4  # of the mean latency: a move that brings less is not named
_LEAST_SHARE = 5e-3  # of a frontend's requests
_NEARLY_ALL = 1 - 1e-9  # of what a backend can serve: so much and no more counts as served


@dataclass(frozen=True)
class Move:
    """A part of a frontend's requests that goes to `target` instead of `source`: `share` of all it sends; `latency`: the mean latency
    after this move and those before it, seconds, inf as long as a backend is overloaded."""

    frontend: str
    source: str
    target: str
    share: float
    latency: float


@dataclass(frozen=True)
class Switch:
    """From one routing to another: mean latency at rest `before` and `after`, seconds (inf where a backend is overloaded), and the
    `moves` that bring most of the difference, the one that brings most first."""

    before: float
    after: float
    moves: tuple[Move, ...]

    @property
    def part(self) -> float:
        """The part of the gain that the moves bring; NaN when they leave, or found, a backend overloaded."""
        if not self.moves or not math.isfinite(self.before) or not self.before > self.after:
            return math.nan
        return (self.before - self.moves[-1].latency) / (self.before - self.after)


def switch(network: Network, current: ArrayLike, recommended: ArrayLike, most: int = 3) -> Switch:
    """Weigh the moves that lead from one routing to another, and pick the best one `most` times.

    A move takes as much of a frontend's requests from a backend that gets more of them than recommended to one that gets less as
    both differ by. What backends are short by is weighed first, then the mean latency at rest.

    **Arguments:** a single `network`, of whose demand the means count; shares `(frontends, backends)`.

    **Returns:** a `Switch`.
    """
    routing, wanted = (np.asarray(shares, float) for shares in (current, recommended))
    before, after = np.asarray(latency_at_rest(network, np.stack([routing, wanted])))
    moves: list[Move] = []
    for _ in range(most):
        routings, candidates = _candidates(network, routing, wanted)
        shortage, latency = _weigh(network, routings)
        k = int(np.lexsort((latency, shortage))[0])
        if k == 0 or (shortage[k] == shortage[0] and not latency[k] < (1 - _WORTHWHILE) * latency[0]):
            break
        i, source, target, share = candidates[k]
        names = frontend_names(network)[i], backend_names(network)[source], backend_names(network)[target]
        routing = routing.copy()
        routing[i, source] -= share
        routing[i, target] += share
        moves.append(Move(*names, share, float(latency[k])))
    return Switch(float(before), float(after), tuple(moves))


_Flows = tuple[Float[np.ndarray, "moves backends"], Float[np.ndarray, " moves"]]


def _candidates(network: Network, routing: np.ndarray, wanted: np.ndarray) -> tuple[_Flows, list]:
    """What backends get and what the network costs as it is (row 0) and after every move, and the moves: frontend, source, target,
    share. Always of the same size, so that they are compiled once."""
    rate, cost = np.asarray(network.arrival_rate, float), np.asarray(network.cost_latency, float)
    excess, lack = np.maximum(routing - wanted, 0), np.maximum(wanted - routing, 0)
    share = np.minimum(excess[:, :, None], lack[:, None, :])
    flow = np.where(share > _LEAST_SHARE, share, 0) * rate[:, None, None]
    chosen = np.argsort(-flow, axis=None, kind="stable")[: _TRIED - 1]
    chosen = chosen[flow.ravel()[chosen] > 0]
    i, source, target = np.unravel_index(chosen, flow.shape)
    moved, rows = flow[i, source, target], 1 + np.arange(chosen.size)
    sent = rate[:, None] * routing
    inflow, network_cost = np.tile(sent.sum(0), (_TRIED, 1)), np.full(_TRIED, (sent * cost).sum())
    inflow[rows, source] -= moved
    inflow[rows, target] += moved
    network_cost[rows] += moved * (cost[i, target] - cost[i, source])
    found = zip(i, source, target, share[i, source, target].tolist(), strict=True)
    return (np.maximum(inflow, 0), network_cost), [None, *found]


def _weigh(network: Network, flows: _Flows) -> tuple[np.ndarray, np.ndarray]:
    """What backends are short by, requests/s, and the mean latency, seconds."""
    most = _NEARLY_ALL * np.asarray(network.mean_service.supremum, float)
    return np.maximum(flows[0] - most, 0).sum(-1), np.asarray(latency_of_flows(network, *flows))
