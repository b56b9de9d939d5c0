"""A run as labelled arrays with units, and as a file."""

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dgdlb_jax.numerics import labelled
from dgdlb_jax.numerics.files import disk_errors, require_room, whole_file
from dgdlb_jax.numerics.results import InputError
from dgdlb_jax.numerics.versions import versions

if TYPE_CHECKING:
    import xarray

    from dgdlb_jax.numerics.labelled import Label
    from dgdlb_jax.simulation.trajectory import Trajectory


def to_dataset(run: "Trajectory") -> "xarray.Dataset":
    """A run as an `xarray.Dataset` with dimensions (`batch`,) `time`, `frontend`, `backend`; statistics are `window_...`.

    **Raises:** `InputError` when xarray is not installed.
    """
    batch = ("batch",) if np.ndim(run.result) else ()
    variables = _fields(run, batch, "") | _fields(run.statistics, batch, "window_") | _of_plugins(run, batch)
    coordinates: dict[str, Any] = {"seconds" if batch else "time": ((*batch, "time"), run.time, "s", "time")}
    coordinates |= {
        axis: list(names)
        for axis, names in (("frontend", run.frontend_names), ("backend", run.backend_names))
        if names is not None
    }
    source = f"dgdlb_jax {versions()['dgdlb_jax']}, jax {versions()['jax']}; DGD-LB after arXiv:2504.10693"
    return labelled.to_dataset(variables, coordinates, {"source": source})


def _fields(record: Any, batch: tuple[str, ...], prefix: str) -> dict[str, tuple]:
    """Everything in a record that has a label and was kept."""
    if record is None:
        return {}
    known = {name: (label, getattr(record, name)) for name, label in labelled.labels(type(record)).items()}
    return {
        f"{prefix}{name}": label.variable(values, batch)
        for name, (label, values) in known.items()
        if values is not None
    }


def _of_plugins(run: "Trajectory", batch: tuple[str, ...]) -> dict[str, Any]:
    """What the user observed and measured. Several arrays of one plug-in are told apart by their place in its result."""
    labels, found = list(run.labels), {}
    if run.observed is not None:
        found |= _labelled(labels.pop(0), run.observed, (*batch, "time"), "")
    for label in labels:
        found |= _labelled(label, run.measured[label.name], batch, "window_")
    return found


def _labelled(label: "Label", values: Any, leading: tuple[str, ...], prefix: str) -> dict[str, Any]:
    import jax

    leaves = jax.tree_util.tree_leaves_with_path(values)
    found = {}
    for path, leaf in leaves:
        own = np.ndim(leaf) - len(leading)
        # Without labels that fit, axes are numbered.
        name = prefix + label.name + "".join(f"_{_key(key)}" for key in path)
        dims = label.dims if len(label.dims) == own else tuple(f"{name}_axis_{axis}" for axis in range(own))
        found[name] = ((*leading, *dims), leaf, label.units, label.description)
    return found


def _key(key: Any) -> str:
    return next(str(getattr(key, name)) for name in ("key", "name", "idx") if hasattr(key, name))


def write(run: "Trajectory", path: str | Path) -> Path:
    """Write a run as netCDF: to a file beside it first, so that nothing is ever half-written.

    **Raises:** `InputError` when the folder cannot be written, or h5netcdf is not installed.
    """
    path = Path(path)
    if importlib.util.find_spec("h5netcdf") is None:
        raise InputError('h5netcdf is not installed: type  pip install "dgdlb_jax[xarray]".')
    dataset = to_dataset(run)
    with disk_errors(str(path)), whole_file(path) as draft:
        require_room(draft.parent, dataset.nbytes)
        dataset.to_netcdf(draft, engine="h5netcdf")
    return path
