"""Writing a network as a fleet file that `load_fleet` reads back, figure by figure to the last bit."""

import csv
import io
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from dgdlb_jax.model.demand import AbstractDemand, Constant, Jumps
from dgdlb_jax.model.demand_kinds import DEMANDS
from dgdlb_jax.model.service import CURVES, AbstractService, PerBackend, Replicas, Tabulated
from dgdlb_jax.numerics.files import disk_errors, write_texts
from dgdlb_jax.numerics.results import InputError, is_concrete

if TYPE_CHECKING:
    from dgdlb_jax.model.network import Network

Fields = dict[str, Any]


class _Names(NamedTuple):
    stem: str
    frontends: tuple[str, ...]
    backends: tuple[str, ...]


def write_fleet(network: "Network", path: str | Path) -> Path:
    """Write `path` (a `.toml`) and its tables beside it, `<stem>.latency.csv` and so on; existing ones are replaced.

    Everything is composed before the first byte is written, and each file appears at once, the TOML file last.

    **Raises:** `InputError` for a batch, for traced values, for a curve or demand of the user's own making, for a path
    that is no `.toml` file or cannot be written.
    """
    path = Path(path)
    if path.suffix != ".toml":
        raise InputError(f"to_toml({str(path)!r}): give a path that ends in .toml.")
    if not is_concrete(network):
        raise InputError("to_toml writes values and cannot run inside jit, grad or vmap: call it outside.")
    if network.batch is not None:
        raise InputError(f"to_toml writes one network, and this is a batch of {network.batch}: write batch[k].")
    names = _Names(
        path.stem,
        network.frontend_names or tuple(f"frontend {i}" for i in range(network.frontends)),
        network.backend_names or tuple(f"backend {j}" for j in range(network.backends)),
    )
    _check_names(names)
    files: dict[str, str] = {}
    document = _document(network, names, files)
    files[path.name] = "\n\n".join(_section(name, fields) for name, fields in document.items() if fields) + "\n"
    with disk_errors(str(path.parent), "create the folder or choose another path"):
        write_texts(path.parent, files)
    return path


def _check_names(names: _Names) -> None:
    for kind, known in (("frontend", names.frontends), ("backend", names.backends)):
        for k, name in enumerate(known):
            if name in known[:k] or name != name.strip() or not name.isprintable() or name[:1] in ("", "#"):
                raise InputError(
                    f"to_toml: the {kind} name {name!r} is empty, repeated, starts with # or has spaces around it: rename it."
                )


def _document(network: "Network", names: _Names, files: dict[str, str]) -> dict[str, Fields]:
    """All sections by name; tables are added to `files`."""
    chosen, count, curves = _curves(network.service)
    demand = _pattern(network.demand, names.frontends, f"{names.stem}.demand.csv", files)
    kind = "constant" if type(_plain(network.demand)) is Constant else "written"
    # A demand that never changes is its mean rates; every other one is written under a name of its own.
    document: dict[str, Fields] = {
        "": {} if network.name is None else {"name": network.name},
        "frontends": {"names": list(names.frontends), "rate": network.arrival_rate, **_overload(network)},
        "backends": {"names": list(names.backends), "curve": chosen} | ({} if count is None else {"replicas": count}),
        **{f"curves.{name}": fields for name, fields in curves.items()},
        "latency": _latencies(network, names, files),
        "arcs": _arcs(network, names, files),
        "demand": {} if kind == "constant" else {"use": kind},
        f"demand.{kind}": {} if kind == "constant" else demand,
    }
    if network.capacity is not None:
        document["capacity"] = _capacity(network.capacity, names, files)
    return document


def _overload(network: "Network") -> Fields:
    most = np.where(network.backend_mask, network.service.supremum, 0).sum()
    return {"allow_overload": True} if float(network.arrival_rate.sum()) >= most else {}


def _curves(service: AbstractService) -> tuple[list[str], list[float] | None, dict[str, Fields]]:
    """Which curve each backend has, its replicas (None: nobody has any), and the curves by name, equal ones once."""
    resolved = [_resolve(service.take(np.array([j]))) for j in range(service.backends)]
    described = [_describe(curve) for curve, _ in resolved]
    distinct = {repr(fields): fields for fields in described}
    names = {key: f"curve-{k}" for k, key in enumerate(distinct)}
    counts = [count for _, count in resolved]
    replicas = None if all(count is None for count in counts) else [1.0 if count is None else count for count in counts]
    return [names[repr(fields)] for fields in described], replicas, {names[key]: distinct[key] for key in distinct}


def _resolve(curve: AbstractService) -> tuple[AbstractService, float | None]:
    """The innermost curve of a single backend, and how many replicas there are of it."""
    if isinstance(curve, PerBackend):
        return _resolve(curve.curves[int(curve.index[0])])
    if isinstance(curve, Replicas):
        inner, count = _resolve(curve.curve)
        return inner, float(curve.count[0]) * (1.0 if count is None else count)
    return curve, None


def _describe(curve: AbstractService) -> Fields:
    capacity = {"capacity": float(curve.nominal_capacity[0])}
    if type(curve) is Tabulated:
        measured = float(curve.measured_workload[0])
        bound = {"measured_workload": measured} if np.isfinite(measured) else {}
        weights, scales = (np.asarray(leaf)[:, 0].tolist() for leaf in (curve.weights, curve.scales))
        return {"kind": "mixture", "weights": weights, "scales": scales} | capacity | bound
    for kind, known in CURVES.items():
        if type(curve) is known.maker:
            stated = capacity if "capacity" in known.may_be_left_out else {}
            parameters = (*known.parameters, *known.optional)
            return {"kind": kind} | {name: float(getattr(curve, name)[0]) for name in parameters} | stated
    raise InputError(
        f"to_toml cannot write a curve of the kind {type(curve).__name__}: "
        f"a fleet file holds {', '.join(CURVES)}, mixtures (Tabulated) and replicas of these."
    )


def _latencies(network: "Network", names: _Names, files: dict[str, str]) -> Fields:
    """The forward latency as a table, the others only where they differ from it."""
    matrices = {"table": network.latency, "feedback": network.feedback_latency, "cost": network.cost_latency}
    file_names = {"table": "latency", "feedback": "feedback", "cost": "cost"}
    fields: Fields = {}
    for key, matrix in matrices.items():
        if key != "table" and np.array_equal(matrix, network.latency):
            continue
        if key == "cost" and np.array_equal(matrix, 2 * np.asarray(network.latency)):
            fields[key] = "round trip"
            continue
        name = f"{names.stem}.{file_names[key]}.csv"
        arcs = _arc_rows(names, np.asarray(network.mask))
        files[name] = csv_text(["from", "to", "one_way_s"], [[i, j, float(matrix[at])] for i, j, at in arcs])
        fields[key] = name
    return fields


def _arcs(network: "Network", names: _Names, files: dict[str, str]) -> Fields:
    mask = np.asarray(network.mask)
    if mask.all():
        return {}
    name = f"{names.stem}.arcs.csv"
    files[name] = csv_text(["from", "to"], [[i, j] for i, j, _ in _arc_rows(names, mask)])
    return {"allowed": name}


def _arc_rows(names: _Names, mask: np.ndarray) -> list[tuple[str, str, tuple[int, int]]]:
    return [(names.frontends[i], names.backends[j], (int(i), int(j))) for i, j in np.argwhere(mask)]


def _pattern(demand: AbstractDemand, names: tuple[str, ...], table: str, files: dict[str, str]) -> Fields:
    """The section that describes a demand."""
    demand = _plain(demand)
    known = next((entry for entry in DEMANDS.values() if type(demand) is entry.maker), None)
    if known is None:
        raise InputError(
            f"to_toml cannot write a demand of the kind {type(demand).__name__}: "
            f"a fleet file holds {', '.join(DEMANDS)} (register_demand adds one)."
        )
    fields = {"kind": known.key} | known.write(demand)
    if "table" in fields:
        files[table] = csv_text(list(names), np.asarray(fields["table"]).tolist())
        fields["table"] = table
    return fields


def _plain(demand: AbstractDemand) -> AbstractDemand:
    """Jumps that never happen are constant rates."""
    return Constant(demand.mean_rate) if type(demand) is Jumps and demand.times.shape[0] == 0 else demand


def _capacity(capacity: AbstractDemand, names: _Names, files: dict[str, str]) -> Fields:
    return _pattern(capacity, names.backends, f"{names.stem}.capacity.csv", files)


def csv_text(columns: list[str], rows: list[list[str | float]]) -> str:
    """A table; floats in full, so that they read back as the same number."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([columns, *rows])
    return text.getvalue()


def _section(name: str, fields: Fields) -> str:
    lines = [f"[{name}]"] if name else []
    return "\n".join([*lines, *(f"{key} = {toml_value(value)}" for key, value in fields.items())])


def toml_value(value: Any) -> str:
    if isinstance(value, str):
        return _quoted(value)
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        return f"[{', '.join(toml_value(entry) for entry in value)}]"
    if isinstance(value, float):
        return repr(value)
    return toml_value(np.asarray(value, float).tolist())


def _quoted(text: str) -> str:
    """A basic TOML string."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return '"' + "".join(c if c.isprintable() else f"\\U{ord(c):08x}" for c in escaped) + '"'


def check_not_inputs(outputs: Iterable[Path], inputs: Iterable[Path]) -> None:
    """Raise `InputError` when a file would be replaced that was just read."""
    read = {path.resolve() for path in inputs}
    for path in outputs:
        if path.resolve() in read:
            raise InputError(f"{path} was read and would be replaced: write to another folder or name.")


def write_all(folder: Path, files: dict[str, str]) -> None:
    """Texts by name into a folder, which is made where it is missing, all of them or none."""
    with disk_errors(str(folder), "create the folder or choose another path"):
        folder.mkdir(parents=True, exist_ok=True)
        write_texts(folder, files)
