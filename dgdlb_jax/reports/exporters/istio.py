"""Istio: a DestinationRule whose `localityLbSetting.distribute` says where each region's requests go.

Percentages per region of the caller, which sum to 100. Names are regions as nodes carry them (`topology.kubernetes.io/region`), as
far as values of labels may be such; spaces and the like are made dashes, and letters lose their accents. Istio distributes by locality
only where outlier detection is set, so the rule has it.

Schema: DestinationRule of networking.istio.io/v1 (Istio 1.22 and later). That weights sum to 100 is checked by Istio itself
(`validateLocalityLbSetting` in `pkg/config/validation`: "total locality weight ... != 100").
"""

import re
import unicodedata
from collections.abc import Sequence
from itertools import count
from typing import Any

from dgdlb_jax.numerics.results import InputError
from dgdlb_jax.reports.exporters.base import (
    ByName,
    Names,
    Shares,
    items,
    json_exporter,
    shares_of,
    weights_of,
)

_TOTAL = 100
_LABEL = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?")


def regions(names: Sequence[str]) -> list[str]:
    """Names that can be values of labels in Kubernetes, all different: those that can be stay, others are made such."""
    found = [name if _LABEL.fullmatch(name) else _label(name) for name in names]
    taken = set(found)
    for k, name in enumerate(names):
        if found[k] != name and found.count(found[k]) > 1:
            found[k] = next(f"{found[k]}-{n}" for n in count(k) if f"{found[k]}-{n}" not in taken)
            taken.add(found[k])
    return found


def _label(name: str) -> str:
    """The nearest value of a label: at most 63 letters, digits, points, dashes and underscores, the first and the last none of these
    three; 5 are left for a number."""
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
    return re.sub(r"[^A-Za-z0-9._-]+", "-", plain)[:58].strip("._-") or "region"


def places(names: Names) -> Names:
    """Frontends and backends as labels, one region with one name in both."""
    every = tuple(dict.fromkeys((*names.frontends, *names.backends)))
    label = dict(zip(every, regions(every), strict=True))
    return Names(tuple(label[name] for name in names.frontends), tuple(label[name] for name in names.backends))


def _document(shares: Shares, names: Names) -> dict[str, Any]:
    distribute = [
        {
            "from": f"{origin}/*",
            "to": {f"{region}/*": weight for region, weight in weights_of(row, _TOTAL, names.backends).items()},
        }
        for origin, row in zip(names.frontends, shares, strict=True)
    ]
    outliers = {"consecutive5xxErrors": 5, "interval": "10s", "baseEjectionTime": "30s"}
    balancer = {"localityLbSetting": {"enabled": True, "distribute": distribute}}
    return {
        "apiVersion": "networking.istio.io/v1",
        "kind": "DestinationRule",
        "metadata": {"name": "dgdlb"},
        "spec": {
            "host": "service.example.invalid",
            "trafficPolicy": {"loadBalancer": balancer, "outlierDetection": outliers},
        },
    }


def _read(document: Any) -> ByName | None:
    found: ByName = {}
    try:
        for rule in items(document, "DestinationRule", "networking.istio.io/"):
            for entry in rule["spec"]["trafficPolicy"]["loadBalancer"]["localityLbSetting"]["distribute"]:
                origin = str(entry["from"]).removesuffix("/*")
                weights = [(str(place).removesuffix("/*"), weight) for place, weight in entry["to"].items()]
                found[origin] = shares_of(weights)
                _check_total(origin, sum(weight for _, weight in weights))
    except (KeyError, TypeError, AttributeError):
        return None
    return found or None


def _check_total(origin: str, total: float) -> None:
    """Raise `InputError` for weights that Istio itself refuses, so no system can run by them."""
    if total != _TOTAL:
        raise InputError(
            f'the weights of "{origin}" sum to {total:g}, and Istio takes no others than {_TOTAL}: correct them.'
        )


EXPORTER = json_exporter("istio", _TOTAL, _document, _read, places)
