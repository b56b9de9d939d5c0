"""The command line, `dgdlb`. Nothing heavy is imported before a command starts: help and version cost nothing."""

import argparse
import contextlib
import importlib.util
import json
import math
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from dgdlb_jax import __version__

HEADLINE = ("small-models", "global-llm")
"""What `dgdlb run` runs when no fleet is named."""

_ABOUT = """Where should each region send its requests, does a distributed rule find that point by itself despite
the network latencies, and what do the balancers in use today cost? Give a fleet, get a verdict."""

_EXAMPLES = """examples:
  dgdlb run                                  two built-in fleets side by side
  dgdlb run global-llm                       one of them
  dgdlb run my-fleet.toml                    your own: TOML + CSV tables, described in the README
  dgdlb run my-fleet.toml --current now.csv  ... against the routing table you use today
  dgdlb fleets                               what is built in

exit codes: 0 done, 2 something is wrong with the input (one sentence says what), 130 interrupted"""

_RUN_ABOUT = """Find the optimal routing of a fleet, then let DGD-LB and the balancers in use today run in it from the
same start. Prints what each of them costs over the optimum, whether it settles, oscillates or lets queues grow
without end, and where each frontend should send its traffic. Writes run.nc (open it with xarray) and pictures."""

_RUN_EXAMPLES = """examples:
  dgdlb run
  dgdlb run small-models --start nearest
  dgdlb run my-fleet.toml --current now.csv --output results
  dgdlb run global-llm --demand trace
  dgdlb run two-by-two --policies dgd-lb,least-latency --duration 60
  dgdlb run two-by-two --json --no-files | jq '.balancers[] | [.balancer, .excess]'

words:
  settled        no workload swings by more than 2 % of its mean over the last fifth of the run
  oscillating    one does
  diverging      some queue grows without end; "short by" is what the backends lack
  settled after  from then on the latency stays within 0.1 % of the optimum, or twice the final excess

--current is a CSV file with the columns frontend,backend,share; the shares of a frontend sum to 1:
  frontend,backend,share
  westeurope,northeurope,0.7
  westeurope,uksouth,0.3

exit codes: 0 done, 2 something is wrong with the input (one sentence says what), 130 interrupted; nothing
is ever half-written. Compiled code is kept in $JAX_COMPILATION_CACHE_DIR, by default the user's cache folder."""

_EXTRA = ("matplotlib", "xarray", "h5netcdf", "h5py", "rich")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command. **Returns:** the exit code."""
    options = build_parser().parse_args(arguments)
    try:
        return _answer(options)
    except KeyboardInterrupt:
        print("dgdlb: interrupted; no file is half-written.", file=sys.stderr, flush=True)
        os._exit(130)  # compiled code in other threads cannot be stopped, and a normal exit would wait for it
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the interpreter complains while it leaves
        return 0


def build_parser() -> argparse.ArgumentParser:
    """The parser of `dgdlb` with all its commands."""
    style = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="dgdlb", description=_ABOUT, epilog=_EXAMPLES, formatter_class=style)
    parser.add_argument("--version", action="version", version=f"dgdlb {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    run = commands.add_parser(
        "run", help="the verdict on a fleet", description=_RUN_ABOUT, epilog=_RUN_EXAMPLES, formatter_class=style
    )
    run.set_defaults(command=_run)
    _add_run_options(run)
    fleets = commands.add_parser("fleets", help="list the built-in fleets", description="List the built-in fleets.")
    fleets.set_defaults(command=_fleets)
    fleets.add_argument("--json", action="store_true", help="print JSON instead of a table")
    return parser


def _add_run_options(run: argparse.ArgumentParser) -> None:
    add = run.add_argument
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
        type=_names,
        help="which balancers (default: all): dgd-lb, least-latency, gmsr, "
        "least-workload, proportional, uniform, nearest",
    )
    add("--current", metavar="CSV", type=Path, help="your own routing table, as one more balancer")
    add(
        "--step-size",
        metavar="X",
        type=_positive,
        help="step size of DGD-LB, 1/s^2 (default: a cautious one per frontend)",
    )
    add(
        "--start",
        choices=("proportional", "nearest", "uniform"),
        default="proportional",
        help="routing that all balancers start from (default: proportional to capacity)",
    )
    add("--dt", metavar="S", type=_positive, help="time step, seconds (default: suggested from the fleet, and printed)")
    add(
        "--duration",
        metavar="S",
        type=_positive,
        help="seconds to simulate (default: suggested from the fleet, and printed)",
    )
    add(
        "--output",
        metavar="DIR",
        type=Path,
        help="folder for run.nc and pictures (default: ./dgdlb-FLEET; with several "
        "fleets, a folder for each inside DIR)",
    )
    add("--no-files", action="store_true", help="write nothing")
    add("--json", action="store_true", help="print JSON on standard output, and nothing else there")
    add(
        "--quiet",
        action="store_true",
        help="no progress bar (there is none anyway when standard error is not a terminal)",
    )


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value > 0):
        raise argparse.ArgumentTypeError(f"{text!r} is not a finite number above 0")
    return value


def _names(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        raise argparse.ArgumentTypeError("give at least one name")
    return list(dict.fromkeys(names))


def _answer(options: argparse.Namespace) -> int:
    from dgdlb_jax.numerics.results import InputError

    try:
        options.command(options)
    except InputError as error:
        print(f"dgdlb: error: {error}", file=sys.stderr)
        return 2
    return 0


def _fleets(options: argparse.Namespace) -> None:
    from dataclasses import asdict

    from dgdlb_jax.experiments.words import fleet_table
    from dgdlb_jax.model.fleets import list_fleets

    fleets = list_fleets()
    print(json.dumps([asdict(fleet) for fleet in fleets], indent=2) if options.json else fleet_table(fleets))


def _run(options: argparse.Namespace) -> None:
    _require_extra(options)
    _set_up_jax()
    from dgdlb_jax.experiments.job import Job, Settings, folders
    from dgdlb_jax.experiments.words import side_by_side

    fleets = list(dict.fromkeys(options.fleets)) or list(HEADLINE)
    where = dict.fromkeys(fleets) if options.no_files else folders(fleets, options.output)
    names = ("demand", "policies", "current", "step_size", "start", "dt", "duration")
    settings = Settings(**{name: getattr(options, name) for name in names})
    with _notes():
        jobs = [Job(settings, fleet, where[fleet]) for fleet in fleets]  # complaints come before any work
    for job in jobs:
        job.run(lambda what: _progress(options, what))
        if not options.json:
            print(job.text(), end="\n\n", flush=True)
    if options.json:
        documents = [job.document() for job in jobs]
        print(json.dumps(documents[0] if len(jobs) == 1 else documents, indent=2, allow_nan=False))
    elif len(jobs) > 1:
        print(side_by_side([job.comparison for job in jobs]))


def _require_extra(options: argparse.Namespace) -> None:
    from dgdlb_jax.numerics.results import InputError

    if options.no_files:
        return
    missing = [name for name in _EXTRA if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(f'{", ".join(missing)} missing; type: pip install "dgdlb_jax[cli]" (or use --no-files).')


def _set_up_jax() -> None:
    """Double precision, and compiled code kept between runs. An entry point may do this; the package never does."""
    import jax

    jax.config.update("jax_enable_x64", True)
    if jax.config.values["jax_compilation_cache_dir"] is None:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dgdlb_jax"
        with contextlib.suppress(OSError):  # a home that cannot be written only costs compile time
            folder.mkdir(parents=True, exist_ok=True)
            jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


@contextlib.contextmanager
def _notes() -> Iterator[None]:
    """Warnings about a fleet's tables as lines that a person can read."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        yield
    for text in dict.fromkeys(str(warning.message) for warning in caught if issubclass(warning.category, UserWarning)):
        print(f"dgdlb: note: {text}", file=sys.stderr)


@contextlib.contextmanager
def _progress(options: argparse.Namespace, what: str) -> Iterator[Callable[[int, int, str], None] | None]:
    """A bar on standard error with the time left; nothing when nobody watches."""
    if options.quiet or not sys.stderr.isatty() or importlib.util.find_spec("rich") is None:
        yield None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    parts = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(
        *parts, TextColumn("left:"), TimeRemainingColumn(), console=Console(stderr=True), transient=True
    ) as bar:
        task = bar.add_task(f"{what}: optimum", total=None)

        def report(done: int, total: int, last: str) -> None:
            bar.update(
                task, completed=done, total=total, description=f"{what}: {last} done" if done else f"{what}: running"
            )

        yield report
