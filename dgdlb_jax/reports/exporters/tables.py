"""Routings as they are: a CSV table, and JSON objects by name."""

import csv
import io
import json
from typing import Any

import numpy as np

from dgdlb_jax.numerics.text import plain_cell
from dgdlb_jax.reports.exporters.base import ByName, Exporter, Names, Shares

COLUMNS = ("frontend", "backend", "share")
"""The columns of a routing table."""


def as_shares(shares: Shares, names: Names) -> ByName:
    """Frontend -> backend -> share; only backends that get something."""
    rows = zip(names.frontends, shares, strict=True)
    return {name: {names.backends[j]: float(row[j]) for j in np.flatnonzero(row > 1e-9)} for name, row in rows}


def _csv(shares: Shares, names: Names) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for frontend, row in as_shares(shares, names).items():
        writer.writerows((plain_cell(frontend), plain_cell(backend), f"{share:.9g}") for backend, share in row.items())
    return text.getvalue().rstrip("\n")


def _read(document: Any) -> ByName | None:
    """One routing: frontend -> backend -> share."""
    if not isinstance(document, dict) or not document:
        return None
    for row in document.values():
        if not isinstance(row, dict) or not row or not all(_is_share(share) for share in row.values()):
            return None
    return {
        str(frontend): {str(backend): float(share) for backend, share in row.items()}
        for frontend, row in document.items()
    }


def _is_share(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


CSV = Exporter("csv", ".csv", None, _csv, None)
JSON = Exporter(
    "json",
    ".json",
    None,
    lambda shares, names: json.dumps(as_shares(shares, names), indent=2, ensure_ascii=False),
    _read,
)
