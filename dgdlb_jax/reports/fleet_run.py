"""What `dgdlb run` does with one fleet: load and check, compare, write, tell."""

import math
import os
import textwrap
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from dgdlb_jax.equilibrium.feasibility import require_traffic
from dgdlb_jax.equilibrium.optimum import solve_optimum
from dgdlb_jax.fleets import load_autoscaler, load_events, load_fleet, load_news, read_measured
from dgdlb_jax.fleets.document import about, counted
from dgdlb_jax.fleets.news import parse_news
from dgdlb_jax.model.network import Network
from dgdlb_jax.numerics.parallel import in_the_background
from dgdlb_jax.numerics.results import InputError
from dgdlb_jax.policies.base import AbstractPolicy
from dgdlb_jax.reports import autoscaling_text, requests_text, text
from dgdlb_jax.reports.export import export_notes, roundings, write_export
from dgdlb_jax.reports.policy_limits import policy_report
from dgdlb_jax.reports.routing_csv import read_routing
from dgdlb_jax.reports.stability_text import StabilityReport, stability_report
from dgdlb_jax.reports.status import Status
from dgdlb_jax.studies.autoscaling import AutoscalingStudy, AutoscalingStudyInProgress, slowest_part, write_runs
from dgdlb_jax.studies.balancers import DGD, check_keys
from dgdlb_jax.studies.compare import CURRENT, Comparison, ComparisonInProgress
from dgdlb_jax.studies.durations import check_span, check_times, natural_duration
from dgdlb_jax.studies.requests import SEEDS, RequestStudy, RequestStudyInProgress, check_seeds
from dgdlb_jax.studies.results import check_folder, to_json, whole_folder, write_dataset
from dgdlb_jax.studies.scatter import measure_scatter
from dgdlb_jax.studies.schedule import Schedule
from dgdlb_jax.studies.what_if import what_if


@dataclass(frozen=True)
class Settings:
    """What a person may choose; None leaves the choice to `compare`.

    - `demand`: `mean`, or the name of a demand over time in the fleet's file for a second comparison under that.
    - `policies`: keys of `BALANCERS`. `current`: path of the user's own routing table.
    - `step_size` in 1/s^2, `dt` and `duration` in seconds, `start`: as for `compare`.
    - `news`: how frontends get their reports, for `fleets.news.parse_news`; what the fleet's file says by default.
    - `requests`: run the balancers with whole requests as well, at this `scale`, this many `seeds` each, under this `discipline`.
    - `report`: write `report.html` as well. `export`: a format of `FORMATS` to write the routing in.
    """

    demand: str = "mean"
    policies: Sequence[str] | None = None
    current: Path | None = None
    step_size: float | None = None
    start: str = "proportional"
    dt: float | None = None
    duration: float | None = None
    news: str | None = None
    requests: bool = False
    scale: float = 1.0
    seeds: int = SEEDS
    discipline: str = "ps"
    report: bool = False
    export: str | None = None


class Job:
    """One fleet, from its file to its verdict.

    **Arguments:** `settings`; `fleet`, a name or a path; `folder` for the files, None to write none.

    **Raises:** `InputError` at once for whatever can be wrong with the inputs, before any work is done.
    """

    comparison: Comparison | None
    trace: Comparison | None
    stability: StabilityReport | None
    requests: RequestStudy | None
    autoscaling: AutoscalingStudy | None

    def __init__(self, settings: Settings, fleet: str, folder: Path | None):
        self.settings, self.folder = settings, folder
        self.comparison, self.trace, self.stability, self.requests, self.autoscaling = None, None, None, None, None
        self._policies: dict[str, AbstractPolicy] = {}
        self.network = load_fleet(fleet, demand="constant")
        self.settled = self.network  # after all events
        self.service = read_measured(fleet)
        self.events = load_events(fleet)
        self.news = load_news(fleet) if settings.news is None else parse_news(settings.news)
        self.autoscaler = load_autoscaler(fleet)
        self.traced = None if settings.demand == "mean" else load_fleet(fleet, demand=settings.demand)
        with about(fleet):
            require_traffic(self.network)
        self._check_options(fleet)
        given = [name for name in ("dt", "duration", "step_size", "seeds") if getattr(settings, name) is not None]
        self._about = partial(about, fleet, given)  # what is wrong with a fleet, or with an option in it
        with self._about():
            self._check_times()
            if settings.requests:
                check_seeds(self.network, settings.seeds)
        check_keys(settings.policies or ())
        self.also = {} if settings.current is None else {CURRENT: read_routing(settings.current, self.network)}
        if folder is not None:
            check_folder(folder)

    def _check_options(self, fleet: str) -> None:
        """Raise `InputError` for options that this fleet does not go with."""
        settings = self.settings
        if settings.requests and self.network.varies:
            raise InputError(
                f"--requests: the capacity of {self.network.name or fleet} moves in time; whole requests are compared at constant rates."
            )
        if settings.requests and self.autoscaler is not None:
            raise InputError(
                f"--requests: {fleet} has an [autoscaler], and whole requests know of no replicas that move: leave one of them out."
            )
        for option, given in (("--requests", settings.requests), ("--demand", self.traced is not None)):
            if given and self.events:
                raise InputError(
                    f"{option}: {fleet} has [[events]], which are compared at mean rates in the fluid model: leave it out."
                )

    def _check_times(self) -> None:
        """Raise `InputError` for what takes longer than can be run, or not long enough, and for a time step that is too long."""
        settings = self.settings
        if self.events:
            schedule = Schedule(self.network, self.events)
            if settings.duration is not None:
                schedule.check_duration(settings.duration)
            self.settled = schedule.network_at(schedule.last)
        check_span(self.network, settings.dt, self._lasting())
        check_times(self.network, settings.dt, settings.duration)

    def _lasting(self) -> dict[str, float]:
        """What has to be run through if no duration is given, seconds, by its place in the file."""
        found = {}
        if self.settings.duration is not None:
            return found
        if self.events:
            found["[[events]] at_s of the last one"] = max(event.at for event in self.events)
        if self.autoscaler is not None:
            found["[autoscaler] startup_s with interval and windows"] = slowest_part(self.autoscaler)
        if self.traced is not None:
            found[f"[demand.{self.settings.demand}] as a whole"] = natural_duration(self.traced, 0.0)
        return found

    def run(self, status: Status, show: Callable[[str], None]) -> None:
        """Compare at the mean rates, then under the trace if that was asked for, assess the stability, write the files.

        **Arguments:** `status` is told what goes on; `show` takes what a person reads, part by part, as soon as it is known. What
        is known by then stays in `comparison` and `trace` when it is interrupted.
        """
        with in_the_background() as later:
            with self._about():
                stability, limit = self._compare(later, status, show)
            # Whatever cannot be written, the fleet's file is not to blame.
            with nullcontext() if self.folder is None else whole_folder(self.folder) as draft:
                if draft is not None:
                    self._draw(draft)  # while the stability is still being assessed
                with self._about():
                    self._assess(stability, limit, status, show)
                if draft is not None:
                    status.phase(f"{self.network.name or 'fleet'}: writing files")
                    self._write(draft)
        if self.folder is not None:
            show(f"\n{self._written(self.folder)}")

    def _compare(
        self, later: Callable[[Callable[[], Any]], Future], status: Status, show: Callable[[str], None]
    ) -> tuple[Future | None, Future | None]:
        """The comparison at the mean rates; what assesses the stability meanwhile, with every report at once and with reports as they
        are."""
        chosen, name = self.settings, self.network.name or "fleet"
        show(text.network_facts(self.network))
        if self.autoscaler is not None:
            show("replicas as the file gives them; what balancers cost while the autoscaler moves them stands below")
        status.phase(f"{name}: optimum")
        best = solve_optimum(self.network)  # compiled here, before several threads ask for it
        # Both may take longer to compile than all balancers to run. The changes are only computed so that they are compiled.
        skip = self.network.varies or bool(self.events)
        changes = None if skip else later(lambda: what_if(self.network, best))
        current = self.also[CURRENT].routing if self.also else None
        scattered = None
        if not self.events:
            scattered = later(lambda: measure_scatter(self.network, best, self.service, current))
        stability = limit = None
        if chosen.policies is None or "dgd-lb" in chosen.policies:
            stability = later(partial(stability_report, self.settled, step_size=chosen.step_size, start=chosen.start))
        if stability is not None and self.news is not None:
            limit = later(lambda: policy_report(self.settled, "dgd-lb", {}, self.news))
        for comparison in self._compared(self.network, name, status, show, changes, scattered):
            self.comparison = comparison
        return stability, limit

    def _assess(
        self, stability: Future | None, limit: Future | None, status: Status, show: Callable[[str], None]
    ) -> None:
        """What comes after the comparison: stability, whole requests, autoscaler, inputs, the trace."""
        chosen, name = self.settings, self.network.name or "fleet"
        if stability is not None:
            status.phase(f"{name}: stability of {DGD}")
            self.stability = assessed = stability.result()
            at_once = "" if limit is None else ", with every report at once"
            show(f"\nStability of {DGD}{at_once} (more: dgdlb stability)\n{assessed.text()}")
            if limit is not None:
                show(f"\nand with reports as they are\n{limit.result().text()}")
        if chosen.requests:
            self._with_requests(name, status, show)
        if self.autoscaler is not None:
            self._with_autoscaler(name, status, show)
        for fit in self.service.fits.values():
            show("\n" + textwrap.fill(f"Measured curve {fit}", 100))
        show(f"\n{text.inputs(self.network, bool(self.events))}")
        if self.traced is not None:
            show(f"\n{name} under its demand {chosen.demand!r}")
            for comparison in self._compared(self.traced, f"{name}, {chosen.demand}", status, show):
                self.trace = comparison

    def _compared(
        self,
        network: Network,
        name: str,
        status: Status,
        show: Callable[[str], None],
        changes: Future | None = None,
        scattered: Future | None = None,
    ) -> Iterator[Comparison]:
        """The comparison after every balancer that has ended, its parts shown as they come."""
        chosen = self.settings
        status.phase(f"{name}: optimum")
        work = ComparisonInProgress(
            network, chosen.policies, also=self.also, step_size=chosen.step_size, dt=chosen.dt, start=chosen.start,
            duration=chosen.duration, alike=self.traced, news=self.news, events=self.events if network is self.network else (),
        )  # fmt: skip
        count = len(work.policies)
        if network is self.network:
            self._policies = dict(work.policies)
        status.phase(f"{name}: compiling {counted(count, 'balancer', 'balancers')}")
        work.compile()
        show("\n".join(text.run_facts(work.comparison)))
        status.say(self._takes(name, work))
        table, done, begun = text.growing_table(list(work.policies), work.moving), 0, False
        status.phase(f"{name}: 0 of {count} balancers done", work.estimate)
        for piece in work.finished():
            found = work.comparison
            yield found
            if not begun:
                show("\n".join([*text.reference_facts(found), "", table.head(), table.row(text.best_cells(found))]))
                begun = True
            if piece in found.runs:
                done += 1
                show(table.row(text.row_cells(found.outcomes[piece], work.moving)))
            status.phase(f"{name}: {done} of {count} balancers done", work.estimate * (1 - done / count))
        status.phase(f"{name}: conclusions")
        found = work.comparison
        if changes is not None:
            changes.result()
        if scattered is not None:
            found = replace(found, scatter=scattered.result())
        show("\n".join([*text.notes(found), text.resolution(found)]))
        for part in text.after_table(found):
            show(f"\n{part}")
        yield found

    def _takes(self, name: str, work: ComparisonInProgress) -> str:
        """How long a comparison takes, as far as it is known, and what comes after it."""
        several = counted(len(work.policies), "balancer takes", "balancers take")
        known = f"{'at least' if work.may_repeat else 'about'} {max(1.0, work.estimate):.0f} s"
        return f"{name}: {several} {known}{'; then all of them run again with the autoscaler' * (self.autoscaler is not None)}"

    def _with_requests(self, name: str, status: Status, show: Callable[[str], None]) -> None:
        """The same balancers with whole requests, each row shown as it comes."""
        assert self.comparison is not None
        chosen = self.settings
        work = RequestStudyInProgress(
            self.comparison, self._policies, scale=chosen.scale, seeds=chosen.seeds, discipline=chosen.discipline
        )
        table = requests_text.growing_table(work.names)
        show(f"\nWhole requests, at random\n{table.head()}")
        status.phase(f"{name}: whole requests, 0 of {len(work.names)} balancers done")
        for done, row in enumerate(work.finished(), start=1):
            self.requests = work.study
            show(table.row(requests_text.cells(row)))
            status.phase(f"{name}: whole requests, {done} of {len(work.names)} balancers done")
        self.requests = work.study
        show(f"  {requests_text.facts(work.study)}")
        show("\n" + textwrap.fill(" ".join(requests_text.sentences(work.study)), 100))

    def _with_autoscaler(self, name: str, status: Status, show: Callable[[str], None]) -> None:
        """The same balancers while replicas move, each row shown as it comes; under the demand over time if that was asked for."""
        chosen = self.settings
        assert self.autoscaler is not None
        network = self.network if self.traced is None else self.traced
        duration = chosen.duration
        if duration is None and self.traced is not None:
            assert self.trace is not None
            duration = self.trace.duration
        work = AutoscalingStudyInProgress(
            network, self.autoscaler, chosen.policies, also=self.also, step_size=chosen.step_size, duration=duration,
            start=chosen.start, events=self.events, news=self.news,
        )  # fmt: skip
        table = autoscaling_text.growing_table(work.names)
        show(f"\nWith the autoscaler: {autoscaling_text.title(self.autoscaler)}\n{table.head()}")
        several = counted(len(work.names), "balancer takes", "balancers take")
        status.say(f"{name}: with the autoscaler {several} at least {max(1.0, work.estimate):.0f} s")
        status.phase(f"{name}: autoscaler, 0 of {len(work.names)} balancers done")
        for done, row in enumerate(work.finished(), start=1):
            self.autoscaling = work.study
            show(table.row(autoscaling_text.cells(row)))
            status.phase(f"{name}: autoscaler, {done} of {len(work.names)} balancers done")
        self.autoscaling = work.study
        for note in autoscaling_text.notes(work.study):
            show(textwrap.fill(note, 100, initial_indent="  ", subsequent_indent="  "))

    def _written(self, folder: Path) -> str:
        shown = folder if folder.is_absolute() else f"{os.curdir}{os.sep}{folder}"
        wanted = (("report.html", self.settings.report), ("routing", self.settings.export))
        more = [name for name, asked in wanted if asked]
        return f"written: {shown}{os.sep} with {', '.join([*more, 'run.nc'])} and pictures"

    def document(self) -> dict[str, Any]:
        """What a script reads."""
        assert self.comparison is not None
        trace = None if self.trace is None else to_json(self.trace)
        stability = None if self.stability is None else self.stability.document()
        requests = None if self.requests is None else self.requests.document()
        more: dict[str, Any] = {
            "trace": trace, "stability": stability, "requests": requests, "output": self.folder and str(self.folder),
        }  # fmt: skip
        if self.autoscaling is not None:
            more["autoscaling"] = autoscaling_text.study_document(self.autoscaling)
        if self.settings.export:
            more["rounding"] = {
                name: one._asdict() | {"cost": one.cost if math.isfinite(one.cost) else None}
                for name, one in roundings(self.comparison, self.settings.export).items()
            }
            more["export_notes"] = export_notes(self.comparison, self.settings.export)
        return to_json(self.comparison) | more

    def _draw(self, draft: Path) -> None:
        """The pictures of the comparison."""
        assert self.comparison is not None
        from dgdlb_jax.reports.plots import save_pictures  # needs matplotlib, which a run without files does not

        save_pictures(self.comparison, draft)

    def _write(self, draft: Path) -> None:
        """All other files."""
        assert self.comparison is not None
        from dgdlb_jax.reports.axes import save_png
        from dgdlb_jax.reports.curve_plots import measured_curves
        from dgdlb_jax.reports.plots import save_pictures

        write_dataset(draft / "run.nc", self.comparison, self.trace)
        if self.service.fits:
            found = measured_curves(self.service, self.comparison.optimum)
            save_png(found, draft / "curves.png")
        if self.requests is not None:
            from dgdlb_jax.reports.request_plots import latency_distribution

            save_png(latency_distribution(self.requests), draft / "requests.png")
        if self.autoscaling is not None:
            from dgdlb_jax.reports.autoscaling_plots import replicas_over_time

            save_png(replicas_over_time(self.autoscaling), draft / "replicas.png")
            write_runs(draft / "run.nc", self.autoscaling)
        if self.settings.report:
            from dgdlb_jax.reports.html import comparison_report, write_page

            export = self.settings.export
            page = comparison_report(
                self.comparison, self.trace, stability=self.stability, service=self.service,
                weights=export_notes(self.comparison, export) if export else (), requests=self.requests,
                autoscaling=self.autoscaling,
            )  # fmt: skip
            write_page(draft / "report.html", page)
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
