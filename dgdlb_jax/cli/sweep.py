"""`dgdlb sweep`: many cases from a short specification."""

import argparse
import shlex
import sys
from pathlib import Path

from dgdlb_jax.cli import cluster, plugins
from dgdlb_jax.cli.common import notes, set_up_jax

_ABOUT = """Compute many cases from a short specification: every combination of some inputs (topologies or fleets, sizes,
latencies, load, step size, balancer, start, any parameter), and for each of them some measures (excess over the optimum,
verdict, time to settle, ...). The results are a zarr folder that xarray opens. It is written chunk by chunk: whatever
stops a sweep, the same command goes on where it ended."""

_EXAMPLES = """examples:
  dgdlb sweep --list                         sweeps that come with the package
  dgdlb sweep quick-step-size                one of them
  dgdlb sweep my-sweep.toml --dry-run        how many cases, shapes, how much memory and time
  dgdlb sweep my-sweep.toml --output big.zarr
  dgdlb plot big.zarr                        pictures
  srun dgdlb sweep my-sweep.toml             on a cluster: every process computes chunks of its own
  dgdlb sweep my-sweep.toml --executor dask://host:8786      on the workers of a dask scheduler

a specification:
  name = "my-sweep"
  measures = ["excess", "verdict", "settle_time"]
  [axes]
  seed = { count = 100 }
  step_size_over_default = { from = 0.1, to = 10, count = 9, spacing = "log" }
  [fixed]
  family = "complete"

Ctrl-C finishes the chunk in flight if that takes seconds only; a second one does not wait. Exit codes: 0 done, 2 something
is wrong with the input (one sentence says what), 130 interrupted."""


def add(commands) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "sweep",
        help="many cases from a short specification",
        description=_ABOUT,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(command=run_sweep)
    option = parser.add_argument
    option("spec", nargs="?", metavar="SPEC", help="TOML file, or name of a ready sweep")
    option("--list", action="store_true", help="list the ready sweeps, inputs and measures")
    option(
        "--output",
        metavar="STORE",
        type=Path,
        help="folder for the results (default: ./NAME.zarr, with the name in the specification, or else of its file)",
    )
    option("--dry-run", action="store_true", help="try a few cases, say what all would take, write nothing")
    option("--netcdf", metavar="FILE", type=Path, help="in the end, write the results as one netCDF file as well")
    option("--recompute-corrupt", action="store_true", help="compute damaged chunks again")
    option(
        "--quiet",
        action="store_true",
        help="no progress bar (there is none anyway when standard error is not a terminal)",
    )
    option(
        "--executor",
        metavar="dask://HOST:PORT",
        help="let the workers of this dask scheduler compute the chunks; files of --import are sent to them, their neighbours are not",
    )
    cluster.add_options(parser)


def run_sweep(options: argparse.Namespace) -> None:
    """Compute, or say what it would take."""
    from dgdlb_jax.numerics.results import InputError

    if options.list:
        print(_listing())
        return
    if options.spec is None:
        raise InputError("dgdlb sweep needs a specification: a TOML file, or a name from dgdlb sweep --list.")
    set_up_jax(all_cores=options.executor is None)
    process, processes = cluster.join(options)
    from dgdlb_jax.studies.sweep import read_spec, sweep
    from dgdlb_jax.studies.sweep.run import require_extra

    require_extra()
    spec = read_spec(options.spec)
    if options.dry_run:
        from dgdlb_jax.studies.sweep.dry_run import estimate, text

        with notes():
            print(text(spec, estimate(spec, options.executor, plugins.for_workers())))
        return
    store = options.output or Path(f"{spec.name}.zarr")
    try:
        with notes():
            sweep(
                spec,
                store,
                progress=not options.quiet,
                recompute_corrupt=options.recompute_corrupt,
                process=process,
                processes=processes,
                executor=options.executor,
                worker_setup=plugins.for_workers(),
            ).close()
    except KeyboardInterrupt:
        imports = [word for name in options.imports for word in ("--import", name)]
        elsewhere = [] if options.executor is None else ["--executor", options.executor]
        again = shlex.join(["dgdlb", *imports, "sweep", options.spec, "--output", str(store), *elsewhere])
        print(f"dgdlb: stopped; what is finished is kept. To go on: {again}", file=sys.stderr)
        raise
    if process == 0:
        _finish(options, spec.size, store)


def _finish(options: argparse.Namespace, size: int, store: Path) -> None:
    from dgdlb_jax.studies.sweep.summary import summary, write_netcdf

    print(summary(store))
    print(f"written: {store}, {size:,} cases (open it with xarray.open_zarr)")
    if options.netcdf is not None:
        print(f"written: {write_netcdf(store, options.netcdf)}")


def _listing() -> str:
    from dgdlb_jax.studies.sweep.inputs import INPUTS, PARAMETERS
    from dgdlb_jax.studies.sweep.measures import MEASURES
    from dgdlb_jax.studies.sweep.spec import ready_sweeps

    parts = {
        "ready sweeps": ready_sweeps(),
        "inputs": {name: f"{rule.meaning} ({rule.units})" for name, rule in INPUTS.items()}
        | {f'"{name}.PARAMETER"': meaning for name, meaning in PARAMETERS.items()},
        "measures": {name: f"{measure.meaning} ({measure.units})" for name, measure in MEASURES.items()},
    }
    lines = []
    for title, entries in parts.items():
        wide = max(map(len, entries))
        lines += [f"{title}:", *(f"  {name:{wide}}  {meaning}" for name, meaning in entries.items()), ""]
    return "\n".join(lines).rstrip()
