"""A finished sweep in a few lines, and as one netCDF file."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dgdlb_jax.experiments.sweep.measures import RESULTS
from dgdlb_jax.experiments.sweep.store import open_dataset
from dgdlb_jax.experiments.verdict import Verdict
from dgdlb_jax.numerics.files import disk_errors, whole_file

if TYPE_CHECKING:
    import xarray


def summary(store: Path) -> str:
    """How the cases ended, and quartiles of every measure, for people."""
    with open_dataset(store) as dataset:
        lines = []
        if "verdict" in dataset:
            lines.append("verdict: " + counts(dataset["verdict"].values, {v.words: int(v) for v in Verdict}))
        results = dataset["result"].values
        if np.any(results != 0):
            lines.append("result: " + counts(results, RESULTS))
        rows = quartile_rows(dataset)
    wide = max([len(name) for name, _, _ in rows] + [8])
    head = f"{'measure':{wide}}  {'lowest':>10} {'25 %':>10} {'median':>10} {'75 %':>10} {'highest':>10}"
    table = [
        f"{name:{wide}}  {' '.join(f'{value:>10.4g}' for value in values)} {'' if units == '1' else units}".rstrip()
        for name, values, units in rows
    ]
    return "\n".join([*lines, head, *table])


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
        plain.to_netcdf(draft, engine="h5netcdf")
    return file


def _quartiles(values: np.ndarray) -> np.ndarray:
    known = values[~np.isnan(values)]
    return np.quantile(known, [0, 0.25, 0.5, 0.75, 1], method="nearest") if known.size else np.full(5, np.nan)
