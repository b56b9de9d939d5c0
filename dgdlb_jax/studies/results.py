"""Comparisons as files: a dataset with inputs, units and versions, JSON, a folder written whole or not at all."""

import json
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from dgdlb_jax.model.network import Network
from dgdlb_jax.numerics import files, labelled
from dgdlb_jax.numerics.files import disk_errors, require_room
from dgdlb_jax.numerics.results import InputError
from dgdlb_jax.numerics.versions import versions
from dgdlb_jax.simulation.statistics import Statistics
from dgdlb_jax.simulation.trajectory import FIELDS, Trajectory
from dgdlb_jax.studies.assess import statistics_of
from dgdlb_jax.studies.conclusion import no_percentage
from dgdlb_jax.studies.event_results import event_variables, events_json
from dgdlb_jax.studies.news import news_json
from dgdlb_jax.studies.outcome import Outcome, backend_names, frontend_names
from dgdlb_jax.studies.verdict import Verdict
from dgdlb_jax.studies.worth import changes_json, scatter_json, switch_json, worth_json

if TYPE_CHECKING:
    import xarray

    from dgdlb_jax.studies.compare import Comparison

_ARC, _FRONT, _BACK = ("frontend", "backend"), ("frontend",), ("backend",)
_CURVE_POINTS = 200


def to_dataset(comparison: "Comparison") -> "xarray.Dataset":
    """A comparison as an `xarray.Dataset`.

    Dimensions `balancer`, `time` (s), `frontend`, `backend`, `curve_point`. Runs, figures of the table, optimum and
    inputs are variables with units; demand, service parameters, versions and settings are attributes (nested ones as
    JSON text).

    **Raises:** `InputError` when xarray is not installed.
    """
    network = comparison.network
    variables = {
        **_series(comparison), **_figures(comparison), **_optimum(comparison), **_inputs(comparison), **event_variables(comparison),
    }  # fmt: skip
    first = next(iter(comparison.runs.values()))
    return labelled.to_dataset(
        variables,
        {
            "balancer": list(comparison.runs),
            "time": (("time",), first.time, "s", "time since the start"),
            "frontend": list(frontend_names(network)),
            "backend": list(backend_names(network)),
        },
        {
            "title": f"Load balancers in {network.name or 'a network'}",
            "conclusion": comparison.conclusion,
            "dt": comparison.dt,
            "dt_units": "s",
            "duration": comparison.duration,
            "duration_units": "s",
            "settling_time": comparison.settling,
            "settling_time_units": "s",
            "start": comparison.start,
            "optimum_mean_latency": float(comparison.optimum.mean_latency),
            "optimum_mean_latency_units": "s",
            "optimum_network_share": float(comparison.optimum.network_share),
            "optimum_relative_gap": float(comparison.optimum.gap),
            "largest_latency_times_service_slope": comparison.steepest_latency,
            "demand": _parameters(network.demand),
            "service": _parameters(network.service),
            "capacity": "constant" if network.capacity is None else _parameters(network.capacity),
            "precision": str(first.time.dtype),
            "device": str(jax.devices()[0].device_kind),
            "versions": json.dumps(versions()),
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "source": "dgdlb_jax; DGD-LB after arXiv:2504.10693",
        },
    )


def to_json(comparison: "Comparison") -> dict[str, Any]:
    """The figures of a comparison as plain numbers and strings; infinite and NaN are None, with a reason beside."""
    network, best = comparison.network, comparison.optimum
    names = frontend_names(network)
    found: dict[str, Any] = {
        "fleet": network.name,
        "arrival_rate": float(network.arrival_rate.sum()),
        "load": float(network.load),
        "dt": comparison.dt,
        "duration": comparison.duration,
        "settling_time": comparison.settling,
        "start": comparison.start,
        "step_size": dict(zip(names, map(float, comparison.step_size), strict=True)),
        "largest_latency_times_service_slope": comparison.steepest_latency,
        "optimum": {
            "mean_latency": float(best.mean_latency),
            "network_share": float(best.network_share),
            "relative_gap": float(best.gap),
            "workload": dict(zip(backend_names(network), map(float, best.workload), strict=True)),
            "routing": _routing(network, best.routing),
        },
        "shadow_prices": worth_json(network, comparison.prices),
        "changes": changes_json(comparison.changes),
        "verdicts": {verdict.name: verdict.meaning for verdict in Verdict},
        "balancers": [_row(comparison, row) for row in comparison.table()],
        "switch": switch_json(comparison.switch),
        "scatter": scatter_json(comparison.scatter),
        "conclusion": comparison.conclusion,
        "units": {"time": "s", "rate": "requests/s", "workload": "requests", "step_size": "1/s^2"},
    }
    if comparison.news is not None:
        found["news"] = news_json(comparison.news)
    if comparison.phases:
        found["events"] = events_json(comparison)
    if comparison.reference is not None:
        found["reference"] = {
            "what": "moving quasi-static optimum: a reference, not a bound",
            "mean_latency": comparison.reference.mean_latency,
            "instants_without_optimum": comparison.reference.missing,
        }
    for entry, run in zip(
        found["balancers"], (comparison.judged[row.balancer] for row in comparison.table()), strict=True
    ):
        entry["mean_routing"] = _routing(network, statistics_of(run).mean_routing)
    return found


def write_dataset(path: Path, comparison: "Comparison", trace: "Comparison | None" = None) -> None:
    """Write a comparison as netCDF; the one under a trace goes into the group `trace` of the same file."""
    for group, found in ((None, comparison), ("trace", trace)):
        if found is not None:
            dataset = to_dataset(found)
            big = {
                name: {"zlib": True, "complevel": 2} for name, values in dataset.data_vars.items() if values.size > 1000
            }
            require_room(path.parent, dataset.nbytes)
            dataset.to_netcdf(path, mode="w" if group is None else "a", group=group, engine="h5netcdf", encoding=big)


def check_folder(folder: Path) -> None:
    """Raise `InputError` when a folder cannot be written; creates nothing."""
    existing = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    if not existing.is_dir():
        raise InputError(f"--output {folder}: {existing} is a file, not a folder; name another folder.")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise InputError(f"--output {folder}: no permission to write in {existing}; name another folder.")


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """`files.whole_folder` for the option `--output`.

    **Raises:** `InputError` when the disk refuses.
    """
    with disk_errors(f"--output {folder}", "name another folder or make room"), files.whole_folder(folder) as draft:
        yield draft


def _series(comparison: "Comparison") -> dict[str, tuple]:
    runs = list(comparison.runs.values())

    def stacked(name: str) -> np.ndarray:
        return np.stack([np.asarray(getattr(run, name)) for run in runs])

    known = labelled.labels(Trajectory)
    found = {name: known[name].variable(stacked(name), ("balancer",)) for name in FIELDS if name != "arrival_rate"}
    found["mean_latency"] = ("balancer", "time"), stacked("mean_latency"), "s", "momentary mean latency"
    found["arrival_rate"] = known["arrival_rate"].variable(runs[0].arrival_rate)
    if comparison.phases:
        found["lost"] = known["lost"].variable(stacked("lost"), ("balancer",))
    return found


def _figures(comparison: "Comparison") -> dict[str, tuple]:
    rows = [comparison.outcomes[name] for name in comparison.runs]
    table = (
        ("final_latency", "mean_latency", "s", "mean latency over the window of the statistics; inf when diverging"),
        ("excess", "excess", "1", "mean latency over that of the optimum or reference, minus 1"),
        ("network_share", "network_share", "1", "part of the mean latency spent on the network"),
        ("short_by", "short_by", "requests/s", "what overloaded backends lack"),
        ("settle_time", "settle_time", "s", "time to settle; NaN when the run did not"),
        ("swing", "swing", "1", "largest (max - min) / mean of a workload that matters, in the last fifth"),
        ("drift", "drift", "1", "the same of a workload that moves in one direction; 0 without one"),
        ("judged_after", "duration", "s", "how long the run was that these figures are those of the end of"),
    )
    found: dict[str, tuple] = {
        name: (("balancer",), [getattr(row, attribute) for row in rows], *rest) for name, attribute, *rest in table
    }
    for name, values, missing, units, meaning in (
        ("time_step", comparison.time_steps, comparison.dt, "s", "time step of the run"),
        (
            "accuracy",
            comparison.accuracy,
            math.nan,
            "1",
            "change of the mean latency with twice the time step; NaN where that is too long",
        ),
    ):
        found[name] = ("balancer",), [values.get(balancer, missing) for balancer in comparison.runs], units, meaning
    found["verdict"] = (("balancer",), [row.verdict.name for row in rows], "", _verdicts())
    found["reason"] = (
        ("balancer",),
        [row.reason or "" for row in rows],
        "",
        "why it can not be called settled or oscillating",
    )
    routing = np.stack([np.asarray(statistics_of(run).mean_routing) for run in comparison.judged.values()])
    found["mean_routing"] = labelled.labels(Statistics)["mean_routing"].variable(routing, ("balancer",))
    return found


def _verdicts() -> str:
    return "; ".join(f"{verdict.name}: {verdict.meaning}" for verdict in Verdict)


def _optimum(comparison: "Comparison") -> dict[str, tuple]:
    best, prices = comparison.optimum, comparison.prices
    found = {
        "optimum_routing": (_ARC, best.routing, "1", "share of a frontend's requests at the optimum"),
        "optimum_workload": (_BACK, best.workload, "requests", "workload at the optimum"),
        "optimum_multiplier": (_FRONT, best.multiplier, "s", "marginal latency of one more request at the optimum"),
        "price_request": (_FRONT, prices.request, "s^2", "mean latency per request/s more here, at the optimum"),
        "price_latency": (
            _ARC,
            prices.latency,
            "1",
            "mean latency per second of latency more on this arc, at the optimum",
        ),
        "price_replica": (_BACK, prices.replica, "s", "mean latency per replica more here, at the optimum"),
    }
    if comparison.reference is not None:
        moving, axis = comparison.reference, ("reference_time",)
        found["reference_time"] = (axis, moving.time, "s", "instants of the quasi-static optimum")
        found["reference_latency"] = (
            axis,
            moving.latency,
            "s",
            "mean latency of the quasi-static optimum: a reference",
        )
        found["reference_rate"] = (axis, moving.total_rate, "requests/s", "total arrival rate")
    return found


def _inputs(comparison: "Comparison") -> dict[str, tuple]:
    network = comparison.network
    highest = np.max([np.asarray(statistics_of(run).peak_workload) for run in comparison.runs.values()], axis=0)
    top = np.maximum(2 * np.asarray(comparison.optimum.workload), np.where(np.isfinite(highest), highest, 0)) + 1e-9
    workload = np.linspace(0, 1, _CURVE_POINTS)[:, None] * top
    rate = jax.vmap(network.service.rate)(jnp.asarray(workload))
    return {
        "mean_arrival_rate": (_FRONT, network.arrival_rate, "requests/s", "mean arrival rate"),
        "latency": (_ARC, network.latency, "s", "forward latency, one way"),
        "feedback_latency": (_ARC, network.feedback_latency, "s", "age of what a frontend sees of a backend"),
        "cost_latency": (_ARC, network.cost_latency, "s", "network time charged to a request"),
        "mask": (_ARC, network.mask, "1", "which arcs exist"),
        "nominal_capacity": (_BACK, network.nominal_capacity, "requests/s", "nominal capacity"),
        "step_size": (_FRONT, comparison.step_size, "1/s^2", "step size of DGD-LB"),
        "curve_workload": (
            ("curve_point", *_BACK),
            workload,
            "requests",
            "workload at which the service curve is sampled",
        ),
        "curve_rate": (("curve_point", *_BACK), rate, "requests/s", "service rate there"),
    }


def _parameters(module: Any) -> str:
    leaves = jax.tree_util.tree_leaves_with_path(module)
    values = {jax.tree_util.keystr(path).lstrip("."): np.asarray(leaf).tolist() for path, leaf in leaves}
    return json.dumps({"kind": type(module).__name__, **values})


def _routing(network: Network, shares) -> dict[str, dict[str, float]]:
    names, shares = backend_names(network), np.asarray(shares)
    rows = zip(frontend_names(network), shares, strict=True)
    return {frontend: {names[j]: float(row[j]) for j in np.flatnonzero(row > 1e-9)} for frontend, row in rows}


def _row(comparison: "Comparison", row: Outcome) -> dict[str, Any]:
    name = row.balancer
    found = asdict(row) | {
        "time_step": comparison.time_steps.get(name, comparison.dt),
        "accuracy": comparison.accuracy.get(name, math.nan),
    }
    found["verdict"] = row.verdict.name
    found["result"] = row.result.name
    reasons = {}
    for name, value in found.items():
        if isinstance(value, float) and not math.isfinite(value):
            found[name] = None
            reasons[name] = row.reason or "the run did not settle, or demand moves"
    if "excess" in reasons and comparison.unmeasurable is not None:
        reasons["excess"] = no_percentage(comparison)
    if "accuracy" in reasons:
        reasons["accuracy"] = "twice the time step is too long for the fastest backend, so it was not tried"
    if reasons:
        found["null_because"] = reasons
    return found
