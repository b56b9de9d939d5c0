"""Routings of a comparison as files that other programs read, and what rounding them to weights costs."""

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dgdlb_jax.equilibrium.at_rest import latency_at_rest
from dgdlb_jax.reports.exporters import EXPORTERS, Names, Shares
from dgdlb_jax.reports.text import verdict
from dgdlb_jax.studies.assess import statistics_of
from dgdlb_jax.studies.compare import DGD, Comparison
from dgdlb_jax.studies.outcome import backend_names, frontend_names
from dgdlb_jax.studies.verdict import Verdict

FORMATS = tuple(EXPORTERS)
"""What a routing can be written as."""


def routings(comparison: Comparison) -> dict[str, Shares]:
    """`optimum`, and `dgd-lb` if it ran to its end: shares `(frontends, backends)`, for DGD-LB the mean over the window of its
    statistics."""
    found = {"optimum": np.asarray(comparison.optimum.routing, float)}
    if DGD in comparison.runs and comparison.outcomes[DGD].verdict is not Verdict.failed:
        run = comparison.judged[DGD]
        mean = np.asarray(statistics_of(run).mean_routing, float)
        idle = mean.sum(1, keepdims=True) == 0  # a frontend that sends nothing still has a routing
        found["dgd-lb"] = np.where(idle, np.asarray(run.final.routing, float), mean)
    return {name: shares / shares.sum(1, keepdims=True) for name, shares in found.items()}


def write_export(folder: Path, comparison: Comparison, form: str) -> list[Path]:
    """Write the routings of a comparison into a folder.

    **Arguments:** `form`: a name of `FORMATS`. `json` puts all routings into one file, the others have a file for each.

    **Returns:** the paths.
    """
    names = Names(frontend_names(comparison.network), backend_names(comparison.network))
    exporter, found = EXPORTERS[form], routings(comparison)
    texts = {name: exporter.write(exporter.rounded(shares), names) for name, shares in found.items()}
    if form == "json":
        documents = {name: json.loads(text) for name, text in texts.items()}
        return [_write(folder / "routing.json", json.dumps(documents, indent=2, ensure_ascii=False))]
    stem = "routing" if form == "csv" else form
    return [_write(folder / f"{stem}-{name}{exporter.suffix}", text) for name, text in texts.items()]


class Rounding(NamedTuple):
    """What a routing's weights in whole numbers, which sum to `total`, do to it.

    - `cost`: mean latency over that of the exact shares, minus 1; inf where they send a backend more than it can serve.
    - `largest_error`: of a share.
    """

    total: int
    cost: float
    largest_error: float


def roundings(comparison: Comparison, form: str) -> dict[str, Rounding]:
    """For each routing by name; none for formats that take shares as they are."""
    exporter = EXPORTERS[form]
    if exporter.total is None:
        return {}
    found = {}
    for name, shares in routings(comparison).items():
        rounded = exporter.rounded(shares)
        exact, after = np.asarray(latency_at_rest(comparison.network, np.stack([shares, rounded])))
        found[name] = Rounding(exporter.total, float(after / exact - 1), float(np.abs(rounded - shares).max()))
    return found


def export_notes(comparison: Comparison, form: str) -> list[str]:
    """What somebody who is about to use the files has to know: whether DGD-LB came to rest, renamed places, and what whole weights cost."""
    return [*_unsettled(comparison, form), *_renamed(comparison, form), *rounding_costs(comparison, form)]


def _renamed(comparison: Comparison, form: str) -> list[str]:
    """Which names a format cannot hold, and what stands for them."""
    names = Names(frontend_names(comparison.network), backend_names(comparison.network))
    labels = EXPORTERS[form].labels(names)
    pairs = zip((*names.frontends, *names.backends), (*labels.frontends, *labels.backends), strict=True)
    changed = [f'"{name}" is called {label}' for name, label in dict.fromkeys(pairs) if name != label]
    return [f"{form}: {', '.join(changed)}: use these names in the configuration around it."] if changed else []


def _unsettled(comparison: Comparison, form: str) -> list[str]:
    """That the routing of a run that did not settle is a mean over what still moved."""
    row = comparison.outcomes.get(DGD)
    if row is None or row.verdict is Verdict.settled:
        return []
    if row.verdict is Verdict.failed:
        return [f"{form}: {DGD} failed, so only the optimum is written."]
    return [
        f"{form}: the verdict on {DGD} is {verdict(row)}, so its shares are means over what did not come to rest: take those of the "
        "optimum, or run it longer (--duration) or more cautiously (--step-size)."
    ]


def rounding_costs(comparison: Comparison, form: str) -> list[str]:
    """`roundings` as a sentence for each routing."""
    return [_sentence(form, name, one) for name, one in roundings(comparison, form).items()]


def _sentence(form: str, name: str, one: Rounding) -> str:
    what = f"{form}: weights of {name} in whole numbers that sum to {one.total:,}"
    off = f"no share is off by more than {one.largest_error:.2%}"
    if not np.isfinite(one.cost):
        return f"{what} send a backend more than it can serve: use a format with finer weights; {off}."
    return f"{what} cost {one.cost:+.4%} of mean latency; {off}."


def _write(path: Path, text: str) -> Path:
    path.write_text(text + "\n", encoding="utf-8")
    return path
