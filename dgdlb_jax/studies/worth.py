"""Derivatives and changes of the optimum, changes of a routing, and the scatter of measurements, as JSON."""

from dataclasses import asdict
from typing import Any

import numpy as np

from dgdlb_jax.equilibrium.prices import ShadowPrices
from dgdlb_jax.model.network import Network
from dgdlb_jax.studies.outcome import backend_names, frontend_names
from dgdlb_jax.studies.scatter import Scatter
from dgdlb_jax.studies.switching import Switch
from dgdlb_jax.studies.what_if import Change, WhatIf


def changes_json(changes: list[WhatIf]) -> dict[str, Any]:
    """By backend: seconds of mean latency, or what the fleet is short by."""
    entry = lambda one: None if one is None else _entry(one)
    return {
        "what": "change of the optimal mean latency (s) with one replica more, one less, without the backend",
        "backends": {
            one.backend: {"more": entry(one.more), "less": entry(one.less), "without": entry(one.without)}
            for one in changes
        },
    }


def _entry(change: Change) -> dict[str, float | None]:
    known = np.isfinite(change.latency)
    return {"latency": change.latency if known else None, "short_by": change.short_by}


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


def switch_json(found: Switch | None) -> dict[str, Any] | None:
    """Latencies in seconds, None where a backend is overloaded."""
    if found is None:
        return None
    return {
        "what": "mean latency at rest (s) of the current routing, of the optimum, and after each change of some requests' backend",
        "before": _finite(found.before),
        "after": _finite(found.after),
        "part_of_gain": _finite(found.part),
        "moves": [asdict(move) | {"latency": _finite(move.latency)} for move in found.moves],
    }


def scatter_json(found: Scatter | None) -> dict[str, Any] | None:
    """Ranges that hold nine tenths of what was drawn; those of the gain are None where there is none."""
    if found is None:
        return None
    return asdict(found) | {"gain": [_finite(value) for value in found.gain]}


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
