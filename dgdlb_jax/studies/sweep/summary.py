"""A finished sweep in a few lines, and as one netCDF file."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dgdlb_jax.numerics.files import disk_errors, require_room, whole_file
from dgdlb_jax.studies.sweep import manifest
from dgdlb_jax.studies.sweep.measures import RESULTS, SENTENCES
from dgdlb_jax.studies.sweep.spec import Spec
from dgdlb_jax.studies.sweep.store import open_dataset
from dgdlb_jax.studies.verdict import Verdict

if TYPE_CHECKING:
    import xarray

_MOST_NAMED = 3  # cases of every kind of failure


def summary(store: Path) -> str:
    """How the cases ended, and quartiles of every measure, for people."""
    with open_dataset(store) as dataset:
        lines = []
        if "verdict" in dataset:
            lines.append("verdict: " + counts(dataset["verdict"].values, {v.words: int(v) for v in Verdict}))
        results = dataset["result"].values
        if np.any(results != 0):
            lines.append("result: " + counts(results, RESULTS))
            lines += failures(store, dataset)
        rows = quartile_rows(dataset)
    wide = max([len(name) for name, _, _ in rows] + [8])
    head = f"{'measure':{wide}}  {'lowest':>10} {'25 %':>10} {'median':>10} {'75 %':>10} {'highest':>10}"
    table = [
        f"{name:{wide}}  {' '.join(f'{value:>10.4g}' for value in values)} {'' if units == '1' else units}".rstrip()
        for name, values, units in rows
    ]
    return "\n".join([*lines, head, *table])


def failures(store: Path, dataset: "xarray.Dataset") -> list[str]:
    """A line for the first few cases of every kind of failure: which case it is, and what it failed for."""
    spec = Spec.from_document(json.loads(dataset.attrs["specification"]))
    results = np.asarray(dataset["result"].values)
    lines = []
    for code in np.unique(results[results > 0]):
        places = np.argwhere(results == code)
        for place in places[:_MOST_NAMED]:
            case = dataset["result"].isel(dict(zip(spec.dimensions, place, strict=True)))
            name = ", ".join(f"{axis} = {_text(case[axis])}" for one in spec.axes for axis in one.values) or "the case"
            lines.append(f"  {name}: {_sentence(store, spec, place, int(code))}")
        if len(places) > _MOST_NAMED:
            lines.append(f"  and {len(places) - _MOST_NAMED:,} more with result = {int(code)}")
    return lines


def _sentence(store: Path, spec: Spec, place: np.ndarray, code: int) -> str:
    """What a case failed for: noted with its chunk, or the same for all cases with this code."""
    if code in SENTENCES:
        return SENTENCES[code]
    block = [int(k) // size for k, size in zip(place, spec.block, strict=True)]
    chunk = int(np.ravel_multi_index(block, spec.blocks)) if block else 0
    region = spec.region(chunk)
    inside = [int(k) - part.start for k, part in zip(place, region, strict=True)]
    case = int(np.ravel_multi_index(inside, [part.stop - part.start for part in region])) if inside else 0
    refused = manifest.read_record(manifest.entries(store)[chunk])["refused"]
    return refused.get(str(case), "it was refused.")


def _text(value: "xarray.DataArray") -> str:
    found = value.item()
    return f"{found:.6g}" if isinstance(found, float) else str(found)


def quartile_rows(dataset: "xarray.Dataset") -> list[tuple[str, np.ndarray, str]]:
    """(measure, its lowest value, quartiles and highest value, units) for every measure that is a number."""
    return [
        (str(name), _quartiles(array.values), array.attrs["units"])
        for name, array in sorted(dataset.data_vars.items())
        if "flag_values" not in array.attrs and name not in ("time_step", "simulated_time")
    ]


def counts(codes: np.ndarray, names: dict[str, int]) -> str:
    """`12 settled, 3 oscillating`."""
    found = {name: int(np.sum(codes == code)) for name, code in names.items()}
    found["not computed"] = int(np.sum(~(codes >= 0)))
    return ", ".join(f"{count:,} {name.replace('_', ' ')}" for name, count in found.items() if count)


def write_netcdf(store: Path, file: Path) -> Path:
    """All of a store as one netCDF file: to a file beside it first, so that nothing is ever half-written.

    **Raises:** `InputError` when the file cannot be written.
    """
    with open_dataset(store) as dataset:
        plain = dataset.load().assign_coords(
            {name: array.astype(object) for name, array in dataset.coords.items() if array.dtype.kind in "OT"}
        )
    with disk_errors(str(file)), whole_file(file) as draft:
        require_room(draft.parent, plain.nbytes)
        plain.to_netcdf(draft, engine="h5netcdf")
    return file


def _quartiles(values: np.ndarray) -> np.ndarray:
    known = values[~np.isnan(values)]
    return np.quantile(known, [0, 0.25, 0.5, 0.75, 1], method="nearest") if known.size else np.full(5, np.nan)
