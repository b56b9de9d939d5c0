"""A sweep as one self-contained HTML page."""

import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dgdlb_jax.reports import html as report
from dgdlb_jax.reports.sweep_plots import standard_pictures
from dgdlb_jax.studies.sweep import manifest
from dgdlb_jax.studies.sweep.measures import RESULTS
from dgdlb_jax.studies.sweep.selection import choose_by, choose_x, choose_y, is_numeric, quartiles_along, varying
from dgdlb_jax.studies.sweep.store import open_dataset
from dgdlb_jax.studies.sweep.summary import counts, quartile_rows
from dgdlb_jax.studies.verdict import Verdict

if TYPE_CHECKING:
    import xarray

    Dataset = xarray.Dataset
else:
    Dataset = object

_CAPTIONS = {
    "curves": "Medians over all cases with the same input; bands reach from the lower to the upper quartile",
    "verdicts": "How the runs end",
    "settling": "Time to settle of the runs that settle: medians and quartiles",
    "heatmap": "Medians over two inputs",
    "distribution": "Part of the cases below a value; lines that end below 100 % have cases without a finite value",
}


def sweep_report(store: Path, x: str | None = None, y: str | None = None, by: str | None = None) -> str:
    """A store as HTML: pictures, tables, specification, how it was computed.

    **Arguments:** `x`, `y`, `by`: as for `pictures.curves`.

    **Raises:** `InputError` when it is no store, or for an unknown name.
    """
    with open_dataset(store, verify=True) as opened:
        dataset = opened.load()
    attributes = dataset.attrs
    parts = [report.paragraph(attributes["description"] or "A sweep.", "lead"), report.paragraph(_ends(dataset))]
    for name, figure in standard_pictures(dataset, x, y, by).items():
        parts.append(report.picture(figure, _CAPTIONS[name]))
    parts += _medians(dataset, x, y, by)
    parts.append(report.heading("All measures"))
    header = ("measure", "lowest", "25 %", "median", "75 %", "highest", "units")
    rows = [(name, *map(report.figure_text, values), units) for name, values, units in quartile_rows(dataset)]
    parts.append(report.table(header, rows, right=range(1, 6)))
    parts += _inputs(json.loads(attributes["specification"]))
    parts += _computed(store, attributes)
    return report.page(attributes["title"], parts)


def _ends(dataset: Dataset) -> str:
    sentences = [f"{dataset['result'].size:,} cases."]
    if "verdict" in dataset:
        sentences.append(counts(dataset["verdict"].values, {verdict.words: int(verdict) for verdict in Verdict}) + ".")
    if np.any(dataset["result"].values != 0):
        sentences.append("Results: " + counts(dataset["result"].values, RESULTS) + ".")
    return " ".join(sentences)


def _medians(dataset: Dataset, x: str | None, y: str | None, by: str | None) -> list[str]:
    """The numbers behind the first picture."""
    if not any(is_numeric(dataset, name) for name in varying(dataset)):
        return []
    x, y = choose_x(dataset, x), choose_y(dataset, y)
    by = choose_by(dataset, x) if by is None else by
    groups = quartiles_along(dataset, x, y, by)
    places = next(iter(groups.values()))[0]
    header = (x.replace("_", " "), *(label or "median" for label in groups))
    rows = [
        (f"{place:g}", *(report.figure_text(float(found[2][k])) for found in groups.values()))
        for k, place in enumerate(places)
    ]
    title = f"Median of {y.replace('_', ' ')}" + (f" by {by.replace('_', ' ')}" if by else "")
    return [report.heading(title), report.table(header, rows, right=range(len(header)))]


def _inputs(specification: dict[str, Any]) -> list[str]:
    rows = [
        (name, axis["name"], len(values), _shortened(values))
        for axis in specification["axes"]
        for name, values in axis["values"].items()
    ]
    rows += [(name, "", 1, str(value)) for name, value in specification["fixed"].items()]
    return [report.heading("Inputs"), report.table(("input", "axis", "values", ""), rows, right=(2,))]


def _computed(store: Path, attributes: dict[str, Any]) -> list[str]:
    entries = [manifest.read_record(file) for file in manifest.entries(store).values()]
    devices = Counter(f"{entry['devices']} x {entry['device']}" for entry in entries)
    lines = [
        f"{len(entries):,} of {attributes['chunks']:,} chunks are complete; {sum(entry['seconds'] for entry in entries):,.0f} s "
        f"of computing on {', '.join(devices) or 'nothing'}, in {attributes['precision']}.",
    ]
    small = sum(entry["smaller_for_lack_of_memory"] for entry in entries)
    if small:
        lines.append(f"{small} chunks were computed in smaller batches for lack of memory.")
    code = f'import xarray\ndataset = xarray.open_zarr("{store.name}")'
    return [report.heading("How it was computed"), *map(report.paragraph, lines), report.preformatted(code)]


def _shortened(values: list[Any], most: int = 12) -> str:
    texts = [value if isinstance(value, str) else f"{value:g}" for value in values]
    if len(texts) <= most:
        return ", ".join(texts)
    return ", ".join([*texts[:4], "...", texts[-1]])
