"""Routings as files that other programs read: weights per frontend as CSV, JSON, or a configuration of Envoy."""

import csv
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from dgdlb_jax.experiments.compare import DGD, Comparison
from dgdlb_jax.experiments.outcome import backend_names, frontend_names, statistics_of
from dgdlb_jax.experiments.routing_csv import COLUMNS
from dgdlb_jax.numerics.results import InputError
from dgdlb_jax.numerics.text import plain_cell

FORMATS = ("envoy", "csv", "json")
"""What a routing can be written as."""
TOTAL_WEIGHT = 10_000
"""The sum of a frontend's weights in a configuration of Envoy, which takes whole numbers."""

_FIRST_PORT = 10_000
_VISIBLE = 0.5 / TOTAL_WEIGHT  # smaller shares are no weight

Shares = Float[np.ndarray, "frontends backends"]


def routings(comparison: Comparison) -> dict[str, Shares]:
    """`optimum`, and `dgd-lb` if it ran: shares `(frontends, backends)`, for DGD-LB the mean over the window of its statistics."""
    found = {"optimum": np.asarray(comparison.optimum.routing, float)}
    if DGD in comparison.runs:
        run = comparison.runs[DGD]
        mean = np.asarray(statistics_of(run).mean_routing, float)
        idle = mean.sum(1, keepdims=True) == 0  # a frontend that sends nothing still has a routing
        found["dgd-lb"] = np.where(idle, np.asarray(run.final.routing, float), mean)
    return {name: shares / shares.sum(1, keepdims=True) for name, shares in found.items()}


def write_export(folder: Path, comparison: Comparison, form: str) -> list[Path]:
    """Write the routings of a comparison into a folder.

    **Arguments:** `form`: `csv` (files for `dgdlb run --current`), `json` (one file with all of them) or `envoy` (a bootstrap
    configuration for each: a listener per frontend, weighted clusters behind it; addresses and ports are to be replaced).

    **Returns:** the paths.
    """
    frontends, backends = frontend_names(comparison.network), backend_names(comparison.network)
    found = routings(comparison)
    if form == "json":
        documents = {name: as_weights(shares, frontends, backends) for name, shares in found.items()}
        return [_write(folder / "routing.json", json.dumps(documents, indent=2, ensure_ascii=False))]
    if form == "csv":
        return [
            _write_csv(folder / f"routing-{name}.csv", shares, frontends, backends) for name, shares in found.items()
        ]
    return [
        _write(folder / f"envoy-{name}.json", json.dumps(envoy_bootstrap(shares, frontends, backends), indent=2))
        for name, shares in found.items()
    ]


def as_weights(shares: Shares, frontends: tuple[str, ...], backends: tuple[str, ...]) -> dict[str, dict[str, float]]:
    """Frontend -> backend -> share; only backends that get something."""
    rows = zip(frontends, shares, strict=True)
    return {name: {backends[j]: float(row[j]) for j in np.flatnonzero(row > 1e-9)} for name, row in rows}


def envoy_bootstrap(shares: Shares, frontends: tuple[str, ...], backends: tuple[str, ...]) -> dict[str, Any]:
    """A static configuration of Envoy: for each frontend a listener that spreads requests over the backends by weight.

    Listener `i` stands for frontend `i`, on port 10000 + i; clusters stand for backends, with addresses to be replaced.

    **Source:** envoy.config.bootstrap.v3.Bootstrap, envoy.config.route.v3.WeightedCluster of Envoy's published API.
    """
    clusters, names = _slugs(backends), _slugs(frontends)
    listeners = [_listener(names[i], _FIRST_PORT + i, row, clusters) for i, row in enumerate(shares)]
    return {"static_resources": {"listeners": listeners, "clusters": [_cluster(name) for name in clusters]}}


def whole_weights(row: Float[np.ndarray, " backends"], total: int = TOTAL_WEIGHT) -> list[int]:
    """Shares as whole numbers that sum to `total`: rounded down, what is left over goes to the largest remainders."""
    if not (np.all(np.isfinite(row)) and np.all(np.asarray(row) >= 0) and np.sum(row) > 0):
        raise InputError(
            f"The shares {np.asarray(row).tolist()} are no routing: give numbers that are not negative and sum to 1."
        )
    exact = total * np.asarray(row, float) / np.sum(row)
    floor = np.floor(exact + 1e-9).astype(int)
    for j in np.argsort(floor - exact, kind="stable")[: total - floor.sum()]:
        floor[j] += 1
    return floor.tolist()


def _listener(name: str, port: int, row: Float[np.ndarray, " backends"], clusters: list[str]) -> dict[str, Any]:
    weights = whole_weights(np.where(row < _VISIBLE, 0, row))
    weighted = [
        {"name": cluster, "weight": weight} for cluster, weight in zip(clusters, weights, strict=True) if weight
    ]
    route = {"match": {"prefix": "/"}, "route": {"weighted_clusters": {"clusters": weighted}}}
    manager = {
        "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": name,
        "route_config": {"name": name, "virtual_hosts": [{"name": name, "domains": ["*"], "routes": [route]}]},
        "http_filters": [
            {
                "name": "envoy.filters.http.router",
                "typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"},
            }
        ],
    }
    return {
        "name": name,
        "address": {"socket_address": {"address": "0.0.0.0", "port_value": port}},
        "filter_chains": [
            {"filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]}
        ],
    }


def _cluster(name: str) -> dict[str, Any]:
    address = {"socket_address": {"address": f"{name}.example.invalid", "port_value": 80}}
    return {
        "name": name,
        "type": "STRICT_DNS",
        "load_assignment": {
            "cluster_name": name,
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address}}]}],
        },
    }


def _slugs(names: tuple[str, ...]) -> list[str]:
    """Names that can stand in addresses, all different."""
    plain = [re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "region" for name in names]
    return [slug if plain.count(slug) == 1 else f"{slug}-{k}" for k, slug in enumerate(plain)]


def _write_csv(path: Path, shares: Shares, frontends: tuple[str, ...], backends: tuple[str, ...]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for frontend, row in as_weights(shares, frontends, backends).items():
            writer.writerows(
                (plain_cell(frontend), plain_cell(backend), f"{share:.9g}") for backend, share in row.items()
            )
    return path


def _write(path: Path, text: str) -> Path:
    path.write_text(text + "\n", encoding="utf-8")
    return path
