"""The zarr hierarchy of a sweep without any results: dimensions, coordinates, empty measures, attributes."""

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from dgdlb_jax.studies.sweep.inputs import INPUTS, PARAMETERS
from dgdlb_jax.studies.sweep.measures import Measure, wanted
from dgdlb_jax.studies.sweep.spec import Spec


def write_frame(path: Path, spec: Spec, facts: dict[str, Any]) -> None:
    """Write it into a folder; the same specification and facts make the same files.

    **Arguments:** `facts`: what else the results depend on, kept as attributes.
    """
    import zarr

    names = [name for axis in spec.axes for name in axis.values] + list(spec.fixed)
    attributes = {
        "title": f"Sweep {spec.name}",
        "description": spec.description,
        "specification": json.dumps(spec.document()),
        "cases": spec.size,
        "chunks": spec.chunks,
        "source": "dgdlb_jax; DGD-LB after arXiv:2504.10693",
        "coordinates": " ".join(sorted(names)),
        **facts,
    }
    group = zarr.create_group(path, zarr_format=3, attributes=attributes)
    for axis in spec.axes:
        for name, values in axis.values.items():
            _coordinate(group, name, np.array(values), (axis.name,))
    for name, value in spec.fixed.items():
        _coordinate(group, name, np.array(value), ())
    for name, measure in wanted(spec.measures).items():
        kind: Any = np.int8 if measure.flags else np.float64
        group.create_array(
            name, shape=spec.shape, chunks=spec.block, dtype=kind, fill_value=measure.fill,
            dimension_names=spec.dimensions, attributes=_attributes(measure),
        )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore"
        )  # consolidated metadata are outside the zarr standard so far, but every reader has them
        zarr.consolidate_metadata(path)


def _coordinate(group: Any, name: str, values: np.ndarray, dimensions: tuple[str, ...]) -> None:
    rule = INPUTS.get(name)
    meaning = rule.meaning if rule else f"{PARAMETERS[name.split('.')[0]]}: {name.split('.')[1]}"
    text = values.dtype.kind == "U"
    kind: Any = str if text else values.dtype
    array = group.create_array(
        name, shape=values.shape, chunks=values.shape, dtype=kind, dimension_names=dimensions,
        attributes={"units": rule.units if rule else "", "long_name": meaning},
    )  # fmt: skip
    array[...] = values.astype(object) if text else values


def _attributes(measure: Measure) -> dict[str, Any]:
    found: dict[str, Any] = {"units": measure.units, "long_name": measure.meaning}
    if measure.flags:
        found |= {
            "flag_values": list(measure.flags.values()),
            "flag_meanings": " ".join(measure.flags),
            "_FillValue": -1,
        }
    return found
