"""A run as labelled arrays with units, and as a file."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dgdlb_jax.numerics.files import disk_errors, whole_file
from dgdlb_jax.numerics.results import InputError
from dgdlb_jax.numerics.versions import versions

if TYPE_CHECKING:
    import xarray

    from dgdlb_jax.simulation.plugins import Label
    from dgdlb_jax.simulation.trajectory import Trajectory

_SERIES = {
    "routing": (("time", "frontend", "backend"), "1", "share of a frontend's requests"),
    "workload": (("time", "backend"), "requests", "workload"),
    "arrival_rate": (("time", "frontend"), "requests/s", "arrival rate"),
    "cost_rate": (("time",), "requests", "workload plus network cost"),
    "in_flight": (("time",), "requests", "requests on their way to the backends"),
}
_STATISTICS = {
    "duration": ((), "s", "length of the window of the statistics"),
    "arrivals": ((), "requests", "requests that arrived in the window"),
    "mean_latency": ((), "s", "time-integrated cost over arrivals in the window"),
    "network_share": ((), "1", "part of the mean latency spent on the network"),
    "swing": ((), "1", "largest (max - min) / mean of a workload in the window"),
    "distance": ((), "1", "time mean of the relative distance to the reference workload"),
    "mean_workload": (("backend",), "requests", "time mean of the workload in the window"),
    "lowest_workload": (("backend",), "requests", "lowest workload in the window"),
    "highest_workload": (("backend",), "requests", "highest workload in the window"),
    "peak_workload": (("backend",), "requests", "highest workload of the whole run"),
    "mean_routing": (("frontend", "backend"), "1", "share of the requests that went this way in the window"),
}


def to_dataset(run: "Trajectory") -> "xarray.Dataset":
    """A run as an `xarray.Dataset` with dimensions (`batch`,) `time`, `frontend`, `backend`; statistics are `mean_of_window_...`.

    **Raises:** `InputError` when xarray is not installed.
    """
    xarray = _xarray()
    batch = ("batch",) if np.ndim(run.result) else ()
    variables: dict[str, Any] = {"result": (batch, run.result, "1", "how the run ended, a Result code")}
    for name in _SERIES:
        values, (dims, units, meaning) = getattr(run, name), _SERIES[name]
        if values is not None:
            variables[name] = ((*batch, *dims), values, units, meaning)
    if run.statistics is not None:
        for name, (dims, units, meaning) in _STATISTICS.items():
            values = getattr(run.statistics, name)
            if values is not None:
                variables[f"window_{name}"] = ((*batch, *dims), values, units, meaning)
    variables |= _of_plugins(run, batch)
    coordinates: dict[str, Any] = {
        "time": ((*batch, "time"), np.asarray(run.time), {"units": "s", "long_name": "time"})
    }
    coordinates |= {
        axis: list(names)
        for axis, names in (("frontend", run.frontend_names), ("backend", run.backend_names))
        if names is not None
    }
    if batch:
        coordinates["seconds"] = coordinates.pop("time")
    return xarray.Dataset(
        {
            name: (dims, np.asarray(values), {"units": units, "long_name": meaning})
            for name, (dims, values, units, meaning) in variables.items()
        },
        coords=coordinates,
        attrs={
            "source": f"dgdlb_jax {versions()['dgdlb_jax']}, jax {versions()['jax']}; DGD-LB after arXiv:2504.10693"
        },
    )


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

    **Raises:** `InputError` when the folder cannot be written.
    """
    path = Path(path)
    dataset = to_dataset(run)
    with disk_errors(str(path)), whole_file(path) as draft:
        dataset.to_netcdf(draft, engine="h5netcdf")
    return path


def _xarray():
    try:
        import h5netcdf  # noqa: F401
        import xarray
    except ImportError as error:
        raise InputError(f'{error.name} is not installed: type  pip install "dgdlb_jax[xarray]".') from error
    return xarray
