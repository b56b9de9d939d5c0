"""What one replica more or less would change at each backend, and losing it altogether: the optimum, solved again each time."""

import math
from dataclasses import dataclass

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from dgdlb_jax.equilibrium.feasibility import missing_capacity
from dgdlb_jax.equilibrium.optimum import Optimum, solve_optimum
from dgdlb_jax.model.network import Network
from dgdlb_jax.model.service import Replicas
from dgdlb_jax.numerics.results import Result
from dgdlb_jax.studies.outcome import backend_names


@dataclass(frozen=True)
class Change:
    """What a change does to the optimal mean latency: `latency` in seconds, NaN where demand cannot be served any more (`short_by`
    requests/s are too many then)."""

    latency: float
    short_by: float = 0.0


@dataclass(frozen=True)
class WhatIf:
    """Of one backend: one replica more, one less (None where it has no two), and none at all."""

    backend: str
    more: Change
    less: Change | None
    without: Change


def what_if(network: Network, optimum: Optimum) -> list[WhatIf]:
    """Solve again with one replica more, with one less, and without each backend.

    A backend whose curve has no replicas counts as one. Times are held against the given optimum: differences, not derivatives.

    **Arguments:** a single `network`, of whose demand and capacity the means count; its `optimum`.

    **Returns:** one entry per backend, the one whose loss costs most first.
    """
    names, network = backend_names(network), network.with_arrival_rate(network.arrival_rate).anonymous()
    service = network.service if isinstance(network.service, Replicas) else Replicas(network.service, 1.0)
    count, before = np.asarray(service.count), float(optimum.mean_latency)

    def changed(backend: int, replicas: float) -> Change:
        """One after the other: all of them run the same compiled code."""
        counts = count + replicas * (np.arange(count.size) == backend)
        other = eqx.tree_at(lambda n: n.service, network, eqx.tree_at(lambda s: s.count, service, jnp.asarray(counts)))
        return _change(other, before)

    def lost(backend: int) -> Change:
        return _change(eqx.tree_at(lambda n: n.service, without(network, backend), service), before)

    found = [
        WhatIf(name, changed(j, 1.0), changed(j, -1.0) if count[j] > 1 else None, lost(j))
        for j, name in enumerate(names)
    ]
    return sorted(found, key=lambda one: (-one.without.short_by, -one.without.latency))


def without(network: Network, backend: int) -> Network:
    """The same network, had it never had a backend."""
    mask = jax.device_put(np.asarray(network.mask) & (np.arange(network.backends) != backend))
    return eqx.tree_at(lambda n: n.mask, network, mask)


def best_latency(network: Network) -> tuple[float, float]:
    """Optimal mean latency, seconds, and 0; or NaN and what the demand is too high by, requests/s."""
    best = solve_optimum(network, throw=False)
    if int(best.result) == Result.successful:
        return float(best.mean_latency), 0.0
    supremum = np.asarray(network.mean_service.supremum, float)
    return math.nan, missing_capacity(np.asarray(network.arrival_rate, float), np.asarray(network.mask), supremum)


def _change(network: Network, before: float) -> Change:
    latency, short_by = best_latency(network)
    return Change(latency - before, short_by)
