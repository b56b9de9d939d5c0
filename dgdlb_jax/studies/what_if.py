"""What one replica more or less would change at each backend, and losing it altogether: the optimum, solved again each time."""

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
        mask = jax.device_put(np.asarray(network.mask) & (np.arange(count.size) != backend))
        return _change(eqx.tree_at(lambda n: (n.mask, n.service), network, (mask, service)), before)

    found = [
        WhatIf(name, changed(j, 1.0), changed(j, -1.0) if count[j] > 1 else None, lost(j))
        for j, name in enumerate(names)
    ]
    return sorted(found, key=lambda one: (-one.without.short_by, -one.without.latency))


def _change(network: Network, before: float) -> Change:
    best = solve_optimum(network, throw=False)
    if int(best.result) == Result.successful:
        return Change(float(best.mean_latency) - before)
    supremum = np.asarray(network.mean_service.supremum, float)
    mask = np.asarray(network.mask)
    return Change(float("nan"), missing_capacity(np.asarray(network.arrival_rate, float), mask, supremum))
