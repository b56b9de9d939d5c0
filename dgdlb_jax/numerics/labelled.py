"""Arrays with dimensions, units and a meaning: said once, where the array is a field, and turned into `xarray` in one place."""

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from dgdlb_jax.numerics.results import InputError

if TYPE_CHECKING:
    import xarray

_LABEL = "label"


class Label(NamedTuple):
    """How an array is called, its dimensions without those of a batch, its units and what it means."""

    name: str
    dims: tuple[str, ...]
    units: str
    description: str

    def variable(self, values: Any, leading: tuple[str, ...] = ()) -> tuple[tuple[str, ...], Any, str, str]:
        """An entry of `to_dataset`, with more dimensions in front."""
        return (*leading, *self.dims), values, self.units, self.description


def label(*dims: str, units: str, meaning: str) -> dict[str, tuple]:
    """Metadata of a field with these dimensions, units and meaning: `eqx.field(metadata=label("backend", units="1", ...))`."""
    return {_LABEL: (dims, units, meaning)}


def labels(kind: type) -> dict[str, Label]:
    """Name -> label of the fields of a class that have one, and of the properties that its `derived` names."""
    own = {field.name: field.metadata[_LABEL] for field in dataclasses.fields(kind) if _LABEL in field.metadata}
    return {name: Label(name, *entry) for name, entry in (own | getattr(kind, "derived", {})).items()}


def to_dataset(
    variables: Mapping[str, tuple], coordinates: Mapping[str, Any], attributes: Mapping[str, Any]
) -> "xarray.Dataset":
    """Name -> (dimensions, values, units, meaning) as an `xarray.Dataset`; coordinates of this form, or lists of names.

    **Raises:** `InputError` when xarray is not installed.
    """
    try:
        import xarray
    except ImportError as error:
        raise InputError(f'{error.name} is not installed: type  pip install "dgdlb_jax[xarray]".') from error
    found = {name: _array(*variable) for name, variable in variables.items()}
    named = {name: _array(*values) if isinstance(values, tuple) else values for name, values in coordinates.items()}
    return xarray.Dataset(found, coords=named, attrs=dict(attributes))


def _array(dims: tuple[str, ...], values: Any, units: str, meaning: str) -> tuple:
    return dims, np.asarray(values), {"units": units, "long_name": meaning}
