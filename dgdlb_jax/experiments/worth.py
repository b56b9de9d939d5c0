"""What a little more is worth, in words: the shadow prices of a network as a table and as JSON."""

from typing import Any

import numpy as np

from dgdlb_jax.analysis.shadow_prices import ShadowPrices
from dgdlb_jax.experiments.outcome import backend_names, frontend_names
from dgdlb_jax.model.network import Network

_LINES = 4  # of each kind


def worth_table(network: Network, prices: ShadowPrices) -> list[tuple[str, str, float]]:
    """The changes that matter most: (what, where, what it does to the mean latency in seconds), largest gain first in each kind."""
    frontends, backends = frontend_names(network), backend_names(network)
    request, latency, replica = (np.asarray(value) for value in (prices.request, prices.latency, prices.replica))
    links = np.argwhere(latency > 0)
    kinds = (
        ("one more replica", [(backends[j], replica[j]) for j in range(len(replica))]),
        ("1 ms less on a link", [(f"{frontends[i]} to {backends[j]}", -1e-3 * latency[i, j]) for i, j in links]),
        (
            "one request/s less",
            [(frontends[i], -request[i]) for i in np.flatnonzero(np.asarray(network.arrival_rate) > 0)],
        ),
    )
    return [
        (what, where, float(change))
        for what, rows in kinds
        for where, change in sorted(rows, key=lambda row: row[1])[:_LINES]
    ]


def worth_json(network: Network, prices: ShadowPrices) -> dict[str, Any]:
    """All prices by name; None where there is no optimum."""
    frontends, backends = frontend_names(network), backend_names(network)
    number = lambda value: float(value) if np.isfinite(value) else None
    latency = np.asarray(prices.latency)
    return {
        "what": "change of the optimal mean latency (s) per request/s at a frontend, per second on a link in use, per replica",
        "request": {name: number(value) for name, value in zip(frontends, np.asarray(prices.request), strict=True)},
        "latency": {
            name: {backends[j]: number(row[j]) for j in np.flatnonzero(row != 0)}
            for name, row in zip(frontends, latency, strict=True)
        },
        "replica": {name: number(value) for name, value in zip(backends, np.asarray(prices.replica), strict=True)},
    }
