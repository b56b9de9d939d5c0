"""`dgdlb stability`: how fast the frontends of a fleet may adapt."""

import argparse
import json
from pathlib import Path

from dgdlb_jax.cli.common import notes, require_extra, set_up_jax

_ABOUT = """How fast may the frontends of a fleet adapt before the network latencies make them oscillate? Prints per frontend
the recommended, the guaranteed and the critical step size of DGD-LB, which link and backend set the limit, the
oscillation one would see beyond it, how long small deviations last, and the largest step size that settled from
the run's own start. Writes a picture of the characteristic roots and one of the eigenvalues of the loop."""

_EXAMPLES = """examples:
  dgdlb stability two-by-two
  dgdlb stability my-fleet.toml --start nearest --output results
  dgdlb stability global-llm --json --no-files | jq .limit_over_recommended

words:
  recommended  the cautious default of dgdlb run
  guaranteed   proven: small deviations from the optimum die out (a start far away may still oscillate)
  critical     exact: just above it small deviations grow; all frontends sped up in proportion to recommended
  limit        critical over recommended

exit codes: 0 done, 1 a computation did not converge, 2 something is wrong with the input (one sentence says what), 130 interrupted"""


def add(commands) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "stability",
        help="how fast the frontends may adapt",
        description=_ABOUT,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(command=assess)
    parser.add_argument("fleet", metavar="FLEET", help="built-in fleet or path of a TOML file")
    parser.add_argument(
        "--start",
        choices=("proportional", "nearest", "uniform"),
        default="proportional",
        help="routing from which larger and larger step sizes are tried (default: proportional to capacity)",
    )
    parser.add_argument("--output", metavar="DIR", type=Path, help="folder for the pictures (default: ./dgdlb-FLEET)")
    parser.add_argument("--no-files", action="store_true", help="write nothing")
    parser.add_argument("--quiet", action="store_true", help="say nothing on standard error while it computes")
    parser.add_argument("--json", action="store_true", help="print JSON on standard output, and nothing else there")


def assess(options: argparse.Namespace) -> None:
    """Assess, write, print."""
    require_extra(options)
    set_up_jax(host=True)
    from dgdlb_jax.fleets import load_fleet
    from dgdlb_jax.reports.fleet_run import folders
    from dgdlb_jax.reports.stability_text import stability_report
    from dgdlb_jax.reports.status import status
    from dgdlb_jax.studies.results import check_folder, whole_folder

    folder = None if options.no_files else folders([options.fleet], options.output)[options.fleet]
    with notes():
        network = load_fleet(options.fleet, demand="constant")
    if folder is not None:
        check_folder(folder)
    with status(options.quiet) as told:
        told.phase(f"{network.name or 'fleet'}: stability of DGD-LB")
        report = stability_report(network, start=options.start)
        if not options.json:
            told.show(report.text())
        if folder is not None:
            told.phase("writing pictures")
            from dgdlb_jax.reports.stability_plots import save_stability_pictures

            with whole_folder(folder) as draft:
                save_stability_pictures(report, draft)
    if options.json:
        print(json.dumps(report.document() | {"output": folder and str(folder)}, indent=2, allow_nan=False))
    elif folder is not None:
        print(f"\nwritten: {folder} with roots.png and locus.png")
