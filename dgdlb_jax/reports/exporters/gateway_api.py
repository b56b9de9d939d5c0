"""Kubernetes Gateway API: an HTTPRoute for every frontend with weighted backends.

A route belongs to the Gateway that has its frontend's name; a backend is a Service on port 80. A rule takes 16 backends at most: of more
the largest shares are kept. Apply the list with kubectl.

Schema: HTTPRoute of gateway.networking.k8s.io/v1 (Gateway API 1.0 and later).
"""

from typing import Any

from dgdlb_jax.reports.exporters.base import (
    TOTAL_WEIGHT,
    ByName,
    Names,
    Shares,
    items,
    json_exporter,
    shares_of,
    weights_of,
)

_MOST = 16


def _document(shares: Shares, names: Names) -> dict[str, Any]:
    routes = [
        _route(name, weights_of(row, TOTAL_WEIGHT, names.backends))
        for name, row in zip(names.frontends, shares, strict=True)
    ]
    return {"apiVersion": "v1", "kind": "List", "items": routes}


def _route(name: str, weights: dict[str, int]) -> dict[str, Any]:
    backends = [{"name": service, "port": 80, "weight": weight} for service, weight in weights.items()]
    return {
        "apiVersion": "gateway.networking.k8s.io/v1",
        "kind": "HTTPRoute",
        "metadata": {"name": name},
        "spec": {"parentRefs": [{"name": name}], "rules": [{"backendRefs": backends}]},
    }


def _read(document: Any) -> ByName | None:
    found: ByName = {}
    try:
        for route in items(document, "HTTPRoute", "gateway.networking.k8s.io/"):
            backends = route["spec"]["rules"][0]["backendRefs"]
            found[route["metadata"]["name"]] = shares_of((one["name"], one.get("weight", 1)) for one in backends)
    except (KeyError, IndexError, TypeError, AttributeError):
        return None
    return found or None


EXPORTER = json_exporter("gateway-api", TOTAL_WEIGHT, _document, _read, most=_MOST)
