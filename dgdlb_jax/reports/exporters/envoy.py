"""Envoy, static: a bootstrap configuration with a listener for every frontend and weighted clusters behind it.

Schema: `envoy.config.bootstrap.v3.Bootstrap`, `envoy.config.route.v3.WeightedCluster` of Envoy's published API (v3).
"""

from typing import Any

from dgdlb_jax.reports.exporters.base import (
    TOTAL_WEIGHT,
    ByName,
    Names,
    Shares,
    json_exporter,
    shares_of,
    weights_of,
)

_FIRST_PORT = 10_000


def envoy_bootstrap(shares: Shares, names: Names) -> dict[str, Any]:
    """A static configuration of Envoy: for each frontend a listener that spreads requests over the backends by weight.

    Listener `i` stands for frontend `i`, on port 10000 + i; clusters stand for backends, with addresses to be replaced.
    """
    found = [
        _listener(names.frontends[i], _FIRST_PORT + i, weights_of(row, TOTAL_WEIGHT, names.backends))
        for i, row in enumerate(shares)
    ]
    return {"static_resources": {"listeners": found, "clusters": [_cluster(name) for name in names.backends]}}


def _listener(name: str, port: int, weights: dict[str, int]) -> dict[str, Any]:
    weighted = [{"name": cluster, "weight": weight} for cluster, weight in weights.items()]
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


def address(name: str) -> dict[str, Any]:
    """Where a backend would be: an address that is reserved for not existing."""
    return {"socket_address": {"address": f"{name}.example.invalid", "port_value": 80}}


def _cluster(name: str) -> dict[str, Any]:
    return {
        "name": name,
        "type": "STRICT_DNS",
        "load_assignment": {
            "cluster_name": name,
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address(name)}}]}],
        },
    }


def _read(document: Any) -> ByName | None:
    """The weighted clusters of the first route of every listener."""
    try:
        listeners = document["static_resources"]["listeners"]
        found: ByName = {}
        for listener in listeners:
            manager = listener["filter_chains"][0]["filters"][0]["typed_config"]
            route = manager["route_config"]["virtual_hosts"][0]["routes"][0]["route"]
            found[listener["name"]] = shares_of(
                (one["name"], one["weight"]) for one in route["weighted_clusters"]["clusters"]
            )
    except (KeyError, IndexError, TypeError, AttributeError):
        return None
    return found


EXPORTER = json_exporter("envoy", TOTAL_WEIGHT, envoy_bootstrap, _read)
