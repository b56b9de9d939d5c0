"""Envoy, dynamic: endpoints with locality weights, as a file that Envoy's endpoint discovery watches.

A `DiscoveryResponse` with a `ClusterLoadAssignment` for every frontend, whose localities are the backends. The Envoy of a frontend
subscribes to the assignment of its own name (`eds_cluster_config.service_name`) in a cluster with
`common_lb_config.locality_weighted_lb_config`; addresses are to be replaced.

Schema: `envoy.service.discovery.v3.DiscoveryResponse`, `envoy.config.endpoint.v3.ClusterLoadAssignment` of Envoy's published API (v3).
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
from dgdlb_jax.reports.exporters.envoy import address

_TYPE = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment"


def _document(shares: Shares, names: Names) -> dict[str, Any]:
    resources = [
        {
            "@type": _TYPE,
            "cluster_name": cluster,
            "endpoints": [
                {
                    "locality": {"region": place},
                    "load_balancing_weight": weight,
                    "lb_endpoints": [{"endpoint": {"address": address(place)}}],
                }
                for place, weight in weights_of(row, TOTAL_WEIGHT, names.backends).items()
            ],
        }
        for cluster, row in zip(names.frontends, shares, strict=True)
    ]
    return {"version_info": "1", "type_url": _TYPE, "resources": resources}


def _read(document: Any) -> ByName | None:
    """Locality weights by cluster; those of one region in several localities are added."""
    try:
        found: ByName = {}
        for resource in document["resources"]:
            found[resource["cluster_name"]] = shares_of(
                (endpoint["locality"]["region"], endpoint["load_balancing_weight"])
                for endpoint in resource["endpoints"]
            )
    except (KeyError, TypeError, AttributeError):
        return None
    return found


EXPORTER = json_exporter("envoy-eds", TOTAL_WEIGHT, _document, _read)
