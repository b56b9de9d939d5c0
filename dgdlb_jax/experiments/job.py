"""What `dgdlb run` does with one fleet: load and check, compare, write, tell."""

import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dgdlb_jax.analysis.feasibility import require_traffic
from dgdlb_jax.experiments.balancers import DGD
from dgdlb_jax.experiments.compare import CURRENT, Comparison, Progress, compare
from dgdlb_jax.experiments.export import write_export
from dgdlb_jax.experiments.results import check_folder, to_json, whole_folder, write_dataset
from dgdlb_jax.experiments.routing_csv import read_routing
from dgdlb_jax.experiments.stability_report import StabilityReport, stability_report
from dgdlb_jax.experiments.words import report
from dgdlb_jax.model.fleets import load_fleet
from dgdlb_jax.numerics.results import InputError


@dataclass(frozen=True)
class Settings:
    """What a person may choose; None leaves the choice to `compare`.

    - `demand`: `mean`, or the name of a demand over time in the fleet's file for a second comparison under that.
    - `policies`: keys of `BALANCERS`. `current`: path of the user's own routing table.
    - `step_size` in 1/s^2, `dt` and `duration` in seconds, `start`: as for `compare`.
    - `report`: write `report.html` as well. `export`: a format of `FORMATS` to write the routing in.
    """

    demand: str = "mean"
    policies: Sequence[str] | None = None
    current: Path | None = None
    step_size: float | None = None
    start: str = "proportional"
    dt: float | None = None
    duration: float | None = None
    report: bool = False
    export: str | None = None


class Job:
    """One fleet, from its file to its verdict.

    **Arguments:** `settings`; `fleet`, a name or a path; `folder` for the files, None to write none.

    **Raises:** `InputError` at once for whatever can be wrong with the inputs, before any work is done.
    """

    comparison: Comparison
    trace: Comparison | None
    stability: StabilityReport | None

    def __init__(self, settings: Settings, fleet: str, folder: Path | None):
        self.settings, self.folder, self.trace, self.stability = settings, folder, None, None
        self.network = load_fleet(fleet, demand="constant")
        self.traced = None if settings.demand == "mean" else load_fleet(fleet, demand=settings.demand)
        require_traffic(self.network)
        self.also = {} if settings.current is None else {CURRENT: read_routing(settings.current, self.network)}
        if folder is not None:
            check_folder(folder)

    def run(self, progress: Callable[[str], AbstractContextManager[Progress | None]]) -> None:
        """Compare at the mean rates, then under the trace if that was asked for, and write the files."""
        chosen, name = self.settings, self.network.name or "fleet"
        common: dict[str, Any] = {"also": self.also, "start": chosen.start, "duration": chosen.duration}
        with progress(name) as told:
            self.comparison = found = compare(
                self.network, chosen.policies, step_size=chosen.step_size, dt=chosen.dt, progress=told, **common
            )
        if self.traced is not None:
            with progress(f"{name}, trace") as told:
                self.trace = compare(
                    self.traced, chosen.policies, step_size=found.step_size, dt=found.dt, progress=told, **common
                )
        if DGD in found.runs:
            self.stability = stability_report(self.network, step_size=chosen.step_size, start=chosen.start)
        if self.folder is not None:
            self._write(self.folder)

    def text(self) -> str:
        """What a person reads."""
        parts = [report(self.comparison)]
        if self.trace is not None:
            parts.append(report(self.trace))
        if self.stability is not None:
            parts.append(f"Stability of {DGD} (more: dgdlb stability)\n{self.stability.summary()}")
        if self.folder is not None:
            shown = self.folder if self.folder.is_absolute() else f"{os.curdir}{os.sep}{self.folder}"
            more = [
                name
                for name, wanted in (("report.html", self.settings.report), ("routing", self.settings.export))
                if wanted
            ]
            parts.append(f"written: {shown}{os.sep} with {', '.join([*more, 'run.nc'])} and pictures")
        return "\n\n".join(parts)

    def document(self) -> dict[str, Any]:
        """What a script reads."""
        trace = None if self.trace is None else to_json(self.trace)
        stability = None if self.stability is None else self.stability.document()
        more = {"trace": trace, "stability": stability, "output": self.folder and str(self.folder)}
        return to_json(self.comparison) | more

    def _write(self, folder: Path) -> None:
        from dgdlb_jax.experiments.plots import save_pictures  # needs matplotlib, which a run without files does not

        with whole_folder(folder) as draft:
            write_dataset(draft / "run.nc", self.comparison, self.trace)
            save_pictures(self.comparison, draft)
            if self.settings.report:
                from dgdlb_jax.experiments.report import comparison_report, write_page

                write_page(draft / "report.html", comparison_report(self.comparison, self.trace))
            if self.settings.export is not None:
                write_export(draft, self.comparison, self.settings.export)
            if self.trace is not None:
                save_pictures(self.trace, draft, prefix="trace-")


def folders(fleets: Sequence[str], output: Path | None) -> dict[str, Path]:
    """Where the files of each fleet go: `output` itself for one fleet, folders inside it for several.

    **Raises:** `InputError` when two fleets would share a folder.
    """
    names = {fleet: Path(fleet).stem if fleet.endswith(".toml") else Path(fleet).name for fleet in fleets}
    for fleet, name in names.items():
        twins = [other for other in fleets if names[other] == name]
        if len(twins) > 1:
            raise InputError(f"{fleet} and {twins[1]} would both be written as {name!r}; run them one at a time.")
    if output is None:
        return {fleet: Path(f"dgdlb-{name}") for fleet, name in names.items()}
    return {fleet: output if len(fleets) == 1 else output / name for fleet, name in names.items()}
