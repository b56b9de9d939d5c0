"""Routings in the form that other programs take, one module per format, each entered once in `EXPORTERS`."""

from dgdlb_jax.reports.exporters import envoy, envoy_eds, gateway_api, istio, tables
from dgdlb_jax.reports.exporters.base import TOTAL_WEIGHT, ByName, Exporter, Names, Shares, slugs, whole_weights

__all__ = ["EXPORTERS", "TOTAL_WEIGHT", "ByName", "Exporter", "Names", "Shares", "slugs", "whole_weights"]

EXPORTERS: dict[str, Exporter] = {
    one.name: one
    for one in (envoy.EXPORTER, envoy_eds.EXPORTER, istio.EXPORTER, gateway_api.EXPORTER, tables.CSV, tables.JSON)
}
"""All formats by the name that `--export` takes."""
