"""Which inputs and measures of a sweep a picture or a table shows, and the numbers behind it."""

from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from dgdlb_jax.fleets.document import nearest
from dgdlb_jax.numerics.results import InputError
from dgdlb_jax.studies.balancers import BALANCERS

if TYPE_CHECKING:
    import xarray

    Dataset = xarray.Dataset
else:
    Dataset = object

SEEDS = ("seed", "start_seed")
"""Inputs that only repeat: medians are taken over them."""
MOST_LINES = 8
_MAIN = (
    "step_size_over_critical",
    "step_size_over_default",
    "step_size_over_sufficient",
    "step_size",
    "latency_scale",
    "load",
    "scale",
)


def quartiles_along(dataset: Dataset, x: str, y: str, by: str | None) -> dict[str | None, tuple[np.ndarray, ...]]:
    """The numbers behind `curves`: label of a line -> places along `x`, lower quartile, median, upper quartile of `y`."""
    return {label: quartiles(part, x, y) for label, part in groups(dataset, by)}


def varying(dataset: Dataset) -> list[str]:
    """The inputs that vary."""
    return [str(name) for name, values in dataset.coords.items() if values.ndim == 1 and values.size > 1]


def choose_x(dataset: Dataset, x: str | None) -> str:
    """The input to draw along: the one named, or a usual one."""
    if x is not None:
        x = checked_input(dataset, x, "x")
        if not is_numeric(dataset, x):
            raise InputError(f"--x {x} is not a number: use --by {x}.")
        return x
    numeric = [name for name in varying(dataset) if is_numeric(dataset, name)]
    usual = [name for name in _MAIN if name in numeric] + [name for name in numeric if name not in SEEDS] + numeric
    if not usual:
        raise InputError("No numeric input varies in this sweep: there is nothing to draw along.")
    return usual[0]


def choose_y(dataset: Dataset, y: str | None) -> str:
    """The measure to draw: the one named, or the excess, or the first."""
    measures = [str(name) for name in dataset.data_vars]
    if y is None:
        return next((name for name in ("excess", "mean_latency") if name in measures), measures[0])
    if y not in measures:
        raise InputError(f"--y {y} is no measure of this sweep: {nearest(y, measures)}")
    return y


def choose_by(dataset: Dataset, x: str) -> str | None:
    """The input that makes lines: a name, else a number with few values."""
    along = dataset[x].dims if x else ()
    others = [name for name in varying(dataset) if dataset[name].dims != along and name not in SEEDS]
    names = [name for name in others if not is_numeric(dataset, name)]
    few = [name for name in others if dataset[name].size <= MOST_LINES]
    return next(iter(names + few), None)


def checked_input(dataset: Dataset, name: str, option: str) -> str:
    known = varying(dataset)
    if name not in known:
        raise InputError(f"--{option} {name} is no input that varies in this sweep: {nearest(name, known)}")
    return name


def is_numeric(dataset: Dataset, name: str) -> bool:
    return dataset[name].dtype.kind in "iuf"


def values_of(dataset: Dataset, name: str) -> np.ndarray:
    return np.asarray(dataset[name].values)


def groups(dataset: Dataset, by: str | None, most: int | None = 4 * MOST_LINES):
    """(label, part of the dataset) for every value of an input; all of it without one."""
    if by is None:
        yield None, dataset
        return
    values = values_of(dataset, by)
    distinct = list(dict.fromkeys(values.tolist()))
    for value in distinct[:most]:
        label = BALANCERS[value].label if by == "policy" and value in BALANCERS else value
        label = value.replace("_", " ") if by == "family" else label
        yield (
            label if isinstance(label, str) else f"{label:g}",
            dataset.isel({dataset[by].dims[0]: np.flatnonzero(values == value)}),
        )


def along(dataset: Dataset, x: str, y: str) -> tuple[np.ndarray, list[Float[np.ndarray, " cases"]]]:
    """The values of an input, in order, and all values of a measure at each of them."""
    dimension, values = dataset[x].dims[0], values_of(dataset, x)
    table = dataset[y].transpose(dimension, ...).values.reshape(values.size, -1)
    places = np.unique(values)
    return places, [table[values == place].ravel() for place in places]


def quartiles(dataset: Dataset, x: str, y: str) -> tuple[np.ndarray, ...]:
    """The values of an input, and quartiles of a measure there; inf counts as large, NaN not at all."""
    places, rows = along(dataset, x, y)
    rows = [row[~np.isnan(row)] for row in rows]
    found = [np.quantile(row, [0.25, 0.5, 0.75], method="nearest") if row.size else np.full(3, np.nan) for row in rows]
    return places, *np.array(found).T
