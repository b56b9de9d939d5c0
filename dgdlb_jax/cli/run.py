"""`dgdlb run`: the verdict on a fleet."""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dgdlb_jax.cli.common import (
    NEWS_HELP,
    START,
    interrupt_heard,
    names,
    notes,
    positive,
    quick_compilation,
    require_extra,
    set_up_jax,
)
from dgdlb_jax.cli.failures import fail_in_turn
from dgdlb_jax.numerics.text import clipped, repeated
from dgdlb_jax.policies.registry import POLICIES

if TYPE_CHECKING:
    from dgdlb_jax.reports.fleet_run import Job

HEADLINE = ("small-models", "global-llm")
"""What `dgdlb run` runs when no fleet is named."""

_TINY = 64  # links up to which compiling would take longer than it saves

_ABOUT = """Find the optimal routing of a fleet, then let DGD-LB and the balancers in use today run in it from the
same start. Prints what each of them costs over the optimum, whether it settles, oscillates or lets queues grow
without end, and where each frontend should send its traffic. Writes run.nc (open it with xarray) and pictures."""

_EXAMPLES = """examples:
  dgdlb run
  dgdlb run small-models --start nearest
  dgdlb run my-fleet.toml --current now.csv --output results
  dgdlb run global-llm --demand trace
  dgdlb run my-fleet.toml --report --export envoy
  dgdlb run two-by-two --policies dgd-lb,least-latency --duration 60
  dgdlb run two-by-two --requests --scale 10
  dgdlb run small-models --fail each
  dgdlb run two-by-two --news interval=15,offset=random,lost=0.1
  dgdlb run two-by-two --json --no-files | jq '.balancers[] | [.balancer, .excess]'

words, about the last fifth of the run and the backends that get more than 0.1 % of the work:
  settled        no workload ranges over more than 2 % of its mean
  oscillating    one swings by more than that, up and down at least twice
  moving         one still drifts by more than that, or swings that get smaller: run longer
  diverging      a backend is sent more than it can ever serve; "short by" is what it lacks
  too short to judge   the run is too short to tell; a note below the table says what would do
  varying inputs       demand or capacity changes there, so nothing can settle
  failed               the computation did; a note says why
  settled after  from then on the latency stays within 0.1 % of the optimum, or twice the final excess
With an [autoscaler] in the fleet's file a table of its own tells what the balancers cost while replicas move, in latency and in replicas,
and whether these swing.
With [[events]] in the fleet's file all of these are about the end, after the last event; a table of its own tells for every event how the
balancers get over it.

--current is a CSV file with the columns frontend,backend,share; the shares of a frontend sum to 1:
  frontend,backend,share
  westeurope,northeurope,0.7
  westeurope,uksouth,0.3
or a file in any format of --export, as JSON (kubectl get -o json); routing.json#optimum is one of several in a file

exit codes: 0 done, 1 a computation did not converge, 2 something is wrong with the input (one sentence says what), 130 interrupted; nothing
is ever half-written. Compiled code is kept in $JAX_COMPILATION_CACHE_DIR, by default the user's cache folder."""


def add(commands) -> None:
    """Add the command."""
    run = commands.add_parser(
        "run",
        help="the verdict on a fleet",
        description=_ABOUT,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    run.set_defaults(command=run_fleets)
    _add_options(run)


def _add_options(run: argparse.ArgumentParser) -> None:
    add = run.add_argument
    usual = [key for key, entry in POLICIES.items() if entry.usual]
    others = [key for key in POLICIES if key not in usual]
    add(
        "fleets",
        nargs="*",
        metavar="FLEET",
        help=f"built-in fleet or path of a TOML file (default: {' and '.join(HEADLINE)})",
    )
    add(
        "--demand",
        metavar="NAME",
        default="mean",
        help="name of one of the fleet's demands over time, such as trace: run under that as well, against the moving "
        "quasi-static optimum (a reference, not a bound)",
    )
    add(
        "--policies",
        metavar="A,B,...",
        type=names,
        help=f"which balancers: {', '.join(usual)} (these by default), {', '.join(others)}, or one of your own (--import)",
    )
    add(
        "--current",
        metavar="FILE",
        type=Path,
        help="your own routing, as one more balancer: a CSV table, or any file that --export writes",
    )
    add(
        "--step-size",
        metavar="X",
        type=positive,
        help="step size of DGD-LB, 1/s^2 (default: a cautious one per frontend)",
    )
    add(
        "--start",
        choices=("proportional", "nearest", "uniform"),
        default=START,
        help="routing that all balancers start from (default: proportional to capacity)",
    )
    add("--dt", metavar="S", type=positive, help="time step, seconds (default: suggested from the fleet, and printed)")
    add(
        "--duration",
        metavar="S",
        type=positive,
        help="seconds to simulate (default: suggested from the fleet, and printed)",
    )
    add(
        "--output",
        metavar="DIR",
        type=Path,
        help="folder for run.nc and pictures (default: ./dgdlb-FLEET; with several "
        "fleets, a folder for each inside DIR)",
    )
    add(
        "--requests",
        action="store_true",
        help="run the balancers with whole requests at random as well, at the mean rates: mean latency with its error, percentiles, what "
        "noise costs",
    )
    add(
        "--scale",
        metavar="N",
        type=positive,
        help="with --requests: rates and replicas times N (default: 1, the fleet as it is)",
    )
    add("--seeds", metavar="N", type=int, help="with --requests: runs of each balancer (default: 16)")
    add(
        "--discipline",
        choices=("ps", "fcfs"),
        help="with --requests: processor sharing (default), or first come, first served",
    )
    add("--news", metavar="A=X,B=Y,...", help=NEWS_HELP)
    add(
        "--fail",
        metavar="A,B,...",
        type=names,
        help="instead: let each of these backends fail in turn, or with `each` all of them, and tell what the loss costs, who recovers "
        "and how fast (files: failures.json in --output, if given)",
    )
    add("--report", action="store_true", help="write report.html as well: tables and pictures in one file")
    add(
        "--export",
        choices=("envoy", "envoy-eds", "istio", "gateway-api", "csv", "json"),
        help="write the routing as well, at the optimum and under DGD-LB in the end: Envoy bootstrap with weighted clusters, Envoy "
        "endpoint discovery with locality weights, Istio DestinationRule, HTTPRoutes of the Gateway API, shares as CSV or JSON",
    )
    add("--no-files", action="store_true", help="write nothing")
    add("--json", action="store_true", help="print JSON on standard output, and nothing else there")
    add(
        "--quiet",
        action="store_true",
        help="say nothing on standard error while it computes",
    )


def run_fleets(options: argparse.Namespace) -> None:
    """Run, write, print."""
    from dgdlb_jax.numerics.results import InputError

    require_extra(options)
    if options.no_files and (options.report or options.export):
        raise InputError("--no-files contradicts --report and --export, which are files: keep one of them.")
    if (twice := repeated(options.fleets)) is not None:
        raise InputError(f"{clipped(twice)} is named twice: name every fleet once.")
    fleets: list[str] = options.fleets or list(HEADLINE)
    set_up_jax(host=True)
    if options.fail is not None:
        return fail_in_turn(options, fleets)
    from dgdlb_jax.reports.export import export_notes
    from dgdlb_jax.reports.fleet_run import Job, Settings, folders
    from dgdlb_jax.reports.status import status
    from dgdlb_jax.reports.text import side_by_side

    where = dict.fromkeys(fleets) if options.no_files else folders(fleets, options.output)
    chosen = ("demand", "policies", "current", "step_size", "start", "dt", "duration", "report", "export", "news")
    settings = Settings(**{name: getattr(options, name) for name in chosen}, **_about_requests(options))
    with notes():
        jobs = [Job(settings, fleet, where[fleet]) for fleet in fleets]  # complaints come before any work
    tiny = all(job.network.frontends * job.network.backends <= _TINY for job in jobs)
    with quick_compilation(tiny), status(options.quiet) as told:
        show = (lambda text: None) if options.json else told.show
        try:
            for k, job in enumerate(jobs):
                if k:
                    show("\n")
                job.run(told, show)
                if options.export and job.comparison is not None:
                    show("\n".join(export_notes(job.comparison, options.export)))
        except KeyboardInterrupt:
            interrupt_heard()
            _tell_what_is_known(jobs, options)
            raise
    if options.json:
        _print_json([job.document() for job in jobs], len(jobs) == 1)
    elif len(jobs) > 1:
        print(f"\n{side_by_side([job.comparison for job in jobs if job.comparison is not None])}")


def _about_requests(options: argparse.Namespace) -> dict[str, Any]:
    """The settings of runs with whole requests, as far as they were given."""
    from dgdlb_jax.numerics.results import InputError

    found = {
        name: getattr(options, name) for name in ("scale", "seeds", "discipline") if getattr(options, name) is not None
    }
    if found and not options.requests:
        raise InputError(f"--{next(iter(found))} is about whole requests: give --requests as well.")
    return {"requests": options.requests, **found}


def _tell_what_is_known(jobs: "list[Job]", options: argparse.Namespace) -> None:
    """The balancers that had ended when the command was interrupted."""
    known = [job for job in jobs if job.comparison is not None]
    if options.json:
        _print_json([job.document() | {"interrupted": True} for job in known], len(jobs) == 1)
        return
    for job in known:
        for found in filter(None, (job.comparison, job.trace)):
            print(
                f"\n{found.network.name or 'network'}: interrupted after {', '.join(found.runs)}; no files", flush=True
            )


def _print_json(documents: list[dict[str, Any]], single: bool) -> None:
    if documents or not single:
        print(json.dumps(documents[0] if single else documents, indent=2, allow_nan=False), flush=True)
