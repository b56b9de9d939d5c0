"""`dgdlb run FLEET --fail each`: every backend fails in turn."""

import argparse
import json
import textwrap
from pathlib import Path

from dgdlb_jax.cli.common import START, notes, quick_compilation
from dgdlb_jax.numerics.text import did_you_mean

_ALL = ["each"]


def fail_in_turn(options: argparse.Namespace, fleets: list[str]) -> None:
    """Load and check, run, print, write."""
    _refuse_others(options)
    from dgdlb_jax.equilibrium.feasibility import require_traffic
    from dgdlb_jax.fleets import load_autoscaler, load_events, load_fleet, load_news
    from dgdlb_jax.fleets.document import about
    from dgdlb_jax.fleets.news import parse_news
    from dgdlb_jax.reports import failures_text, text
    from dgdlb_jax.reports.status import status
    from dgdlb_jax.studies.durations import check_span, check_times
    from dgdlb_jax.studies.failures import FailuresInProgress
    from dgdlb_jax.studies.news import news_json, news_words

    documents = []
    with notes():
        networks = [load_fleet(fleet, demand="constant") for fleet in fleets]
        own = [load_events(fleet, demand="constant") for fleet in fleets]
        autoscaled = [load_autoscaler(fleet) is not None for fleet in fleets]
        given = None if options.news is None else parse_news(options.news)
        news = [load_news(fleet) if options.news is None else given for fleet in fleets]
        for fleet, network in zip(fleets, networks, strict=True):
            _check_names(options.fail, network.backend_names or ())
            with about(fleet, [name for name in ("dt", "duration") if getattr(options, name) is not None]):
                require_traffic(network)
                check_span(
                    network, options.dt, {}, runs=network.backends if options.fail == _ALL else len(options.fail)
                )
                check_times(network, options.dt, options.duration)
    chosen = None if options.fail == _ALL else options.fail
    with quick_compilation(True), status(options.quiet) as told:
        show = (lambda words: None) if options.json else told.show
        for network, events, scaled, reports in zip(networks, own, autoscaled, news, strict=True):
            name = network.name or "fleet"
            show(text.network_facts(network))
            if reports is not None:
                show(f"news: {news_words(reports)}")
            if events:
                show(f"its own {len(events)} [[events]] are left out here")
            if scaled:
                show("its [autoscaler] is left out here: replicas stay as they are")
            told.phase(f"{name}: optima without each backend, time steps")
            work = FailuresInProgress(
                network, options.policies, chosen=chosen, duration=options.duration, dt=options.dt, news=reports
            )
            told.phase(f"{name}: 0 of {len(work.balancers)} balancers done")
            for done, _ in enumerate(work.finished(), start=1):
                told.phase(f"{name}: {done} of {len(work.balancers)} balancers done")
            found = work.failures
            ending = textwrap.fill(failures_text.sentences(found), 100)
            show("\n\n".join([failures_text.facts(found), failures_text.table(found), f"{ending}\n"]))
            documents.append(failures_text.document(found) | ({} if reports is None else {"news": news_json(reports)}))
    result = documents[0] if len(documents) == 1 else documents
    if options.output is not None and not options.no_files:
        _write(options.output, result)
    if options.json:
        print(json.dumps(result, indent=2, allow_nan=False), flush=True)


def _refuse_others(options: argparse.Namespace) -> None:
    from dgdlb_jax.numerics.results import InputError

    for option in ("report", "export", "requests", "current", "step_size", "start", "scale", "seeds", "discipline"):
        if getattr(options, option) not in (None, False, START):
            raise InputError(
                f"--fail lets backends fail, and --{option.replace('_', '-')} has no part in that: leave one of them out."
            )
    if options.demand != "mean":
        raise InputError("--fail lets backends fail at the mean rates: leave --demand out.")


def _check_names(chosen: list[str], known: tuple[str, ...]) -> None:
    from dgdlb_jax.numerics.results import InputError

    for name in [] if chosen == _ALL else chosen:
        if name not in known:
            hint = did_you_mean(name, known, ".")
            raise InputError(f"--fail {name}: there is no such backend: give each, or some of {', '.join(known)}{hint}")


def _write(folder: Path, result: object) -> None:
    from dgdlb_jax.model.document import write_all

    write_all(folder, {"failures.json": json.dumps(result, indent=2, allow_nan=False) + "\n"})
