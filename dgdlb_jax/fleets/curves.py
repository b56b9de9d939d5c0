"""The `[curves]` and `[backends]` sections: from kinds and figures to one service curve."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from dgdlb_jax.fleets.document import Folder, Section, clipped, nearest
from dgdlb_jax.fleets.importers import Options, read_curve, workload
from dgdlb_jax.model.service import (
    CURVES,
    AbstractService,
    Replicas,
    ServiceFit,
    Tabulated,
    concatenate,
    fit_service,
)


class Service(NamedTuple):
    """The curve over all backends, and what it was made of: for each backend the name of its curve, by name the curves and fits (None
    for those that were not measured), and the replicas."""

    curve: AbstractService
    chosen: tuple[str, ...]
    parts: dict[str, tuple[AbstractService, ServiceFit | None]]
    replicas: np.ndarray | None

    @property
    def fits(self) -> dict[str, ServiceFit]:
        """Curve name -> fit, of those that were measured."""
        return {name: fit for name, (_, fit) in self.parts.items() if fit is not None}

    def refitted(self, fits: Mapping[str, ServiceFit]) -> AbstractService:
        """The curve over all backends with other fits of some curves: of the same shape as it was, so that compiled code serves both,
        unless a fit has more components than usual."""
        curves = {name: curve for name, (curve, _) in self.parts.items()} | {
            name: fit.service for name, fit in fits.items()
        }
        curve = concatenate([curves[name] for name in self.chosen])
        return curve if self.replicas is None else Replicas(curve, self.replicas)


def read_service(document: Section, backends: Section, names: tuple[str, ...], folder: Folder) -> Service:
    """One curve over all backends, with replicas."""
    known = document.section("curves").sections()
    chosen = _chosen_curves(backends, names, known)
    used = {name: known[name] for name in dict.fromkeys(chosen)}
    read = {name: _read_curve(section, folder) for name, section in used.items()}
    for name, section in known.items():
        if name not in used:
            _read_curve(section, folder)  # a curve nobody uses is still held to the rules
    curve, replicas = concatenate([read[name][0] for name in chosen]), None
    if "replicas" in backends:
        replicas = np.array(backends.numbers("replicas", len(names), above=True))
        curve = backends.build(Replicas, curve, replicas)
    return Service(curve, chosen, read, replicas)


def _chosen_curves(backends: Section, names: tuple[str, ...], known: dict[str, Section]) -> tuple[str, ...]:
    if isinstance(backends.content.get("curve"), str):
        return (backends.choice("curve", known),) * len(names)
    chosen = backends.names("curve", len(names))
    for name in chosen:
        if name not in known:
            raise backends.error("curve", f'contains "{name}", and there is no [curves.{name}]', nearest(name, known))
    return chosen


def _read_curve(section: Section, folder: Folder) -> tuple[AbstractService, ServiceFit | None]:
    kinds: Mapping[str, Callable[[Section, Folder], tuple[AbstractService, ServiceFit | None]]]
    kinds = dict.fromkeys(CURVES, _formula) | {"measured": _measured, "mixture": _mixture}
    return kinds[section.choice("kind", kinds)](section, folder)


def _formula(section: Section, folder: Folder) -> tuple[AbstractService, None]:
    del folder
    curve = CURVES[section.content["kind"]]
    section.only("kind", *curve.parameters, *curve.may_be_left_out)
    given = [key for key in curve.may_be_left_out if key in section]
    values = {key: [section.number(key, above=True)] for key in (*curve.parameters, *given)}
    return section.build(curve.maker, **values), None


def _measured(section: Section, folder: Folder) -> tuple[AbstractService, ServiceFit]:
    section.only("kind", "table", "workload", "throughput", "rate_scale", "capacity", "tokens_per_request", "select")
    for key in ("workload", "throughput") if "table" in section else ("tokens_per_request", "select"):
        if key in section:
            what = "stands beside table" if "table" in section else "is about a table, and there is none"
            raise section.error(key, what, "remove it.")
    if "table" in section:
        name, held, throughput = _from_table(section, folder)
    else:
        name = section.place
        held = section.numbers("workload", above=True)
        throughput = section.numbers("throughput", len(held), above=True)
    rate = np.array(throughput) * section.number("rate_scale", 1.0, above=True)
    fit = section.build(fit_service, held, rate, name=name)
    curve = fit.service
    if "capacity" in section:
        capacity = [section.number("capacity", above=True)]
        curve = section.build(Tabulated, curve.weights, curve.scales, capacity, curve.measured_workload)
    return curve, fit


def _from_table(section: Section, folder: Folder) -> tuple[str, list[float], list[float]]:
    """The measurements in a table, or in the results of a load test: name, workloads and throughputs."""
    name = section.text_of("table")
    select = section.section("select", {})
    options = Options(
        tokens_per_request=section.number("tokens_per_request", above=True)
        if "tokens_per_request" in section
        else None,
        select={key: select.text_of(key) for key in select.content},
    )
    curve = read_curve(folder, name, section.place, options)
    if "tokens_per_request" in options.unused:
        raise section.error("tokens_per_request", f"changes nothing in how {clipped(name)} is read", "remove it.")
    section.notes.extend(f"{name}: {note}." for note in curve.notes)
    return name, [workload(point) or 0.0 for point in curve.points], [point.throughput for point in curve.points]


def _mixture(section: Section, folder: Folder) -> tuple[AbstractService, None]:
    del folder
    section.only("kind", "weights", "scales", "capacity", "measured_workload")
    weights = section.numbers("weights")
    scales = section.numbers("scales", len(weights), above=True)
    bounds = {
        argument: [section.number(key, above=True)]
        for argument, key in (("capacity", "capacity"), ("measured", "measured_workload"))
        if key in section
    }
    return section.build(Tabulated, np.array(weights)[:, None], np.array(scales)[:, None], **bounds), None
