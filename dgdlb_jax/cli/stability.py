"""`dgdlb stability`: how fast the frontends of a fleet may adapt."""

import argparse
import json
from pathlib import Path

from dgdlb_jax.cli.common import NEWS_HELP, START, notes, require_extra, set_up_jax

DGD = "dgd-lb"

_ABOUT = """How fast may the frontends of a fleet adapt before the network latencies make them oscillate? Prints per frontend
the recommended, the guaranteed and the critical step size of DGD-LB, which link and backend set the limit, the
oscillation one would see beyond it, how long small deviations last, and the largest step size that settled from
the run's own start. Writes a picture of the characteristic roots and one of the eigenvalues of the loop.

With --policy the limit of another balancer, in its own settings: between which values of each of them it is stable,
the period of the swings beyond, and the same edges by simulation. Writes a picture of the stable region.

With an [autoscaler] in the fleet's file also from which start-up delay on it swings by itself, in which intervals it does not, and how
fast DGD-LB may be beside it."""

_EXAMPLES = """examples:
  dgdlb stability two-by-two
  dgdlb stability small-models --policy envoy-load-aware --set local=none
  dgdlb stability my-fleet.toml --policy orca-weights --set weight_update_period=10
  dgdlb stability my-fleet.toml --start nearest --output results
  dgdlb stability small-models --news interval=15,offset=random
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
        default=START,
        help="routing from which larger and larger step sizes are tried (default: proportional to capacity)",
    )
    parser.add_argument(
        "--policy",
        metavar="NAME",
        default=DGD,
        help=f"whose limit: {DGD} (default), or another balancer of dgdlb run --policies",
    )
    parser.add_argument(
        "--set",
        metavar="NAME=VALUE",
        action="append",
        default=[],
        help="a setting of that balancer, by its own name; may be repeated",
    )
    parser.add_argument("--news", metavar="A=X,B=Y,...", help=f"{NEWS_HELP}: the limit of a gradient rule behind them")
    parser.add_argument("--output", metavar="DIR", type=Path, help="folder for the pictures (default: ./dgdlb-FLEET)")
    parser.add_argument("--no-files", action="store_true", help="write nothing")
    parser.add_argument("--quiet", action="store_true", help="say nothing on standard error while it computes")
    parser.add_argument("--json", action="store_true", help="print JSON on standard output, and nothing else there")


def assess(options: argparse.Namespace) -> None:
    """Assess, write, print."""
    require_extra(options)
    set_up_jax(host=True)
    from dgdlb_jax.equilibrium.feasibility import require_traffic
    from dgdlb_jax.fleets import load_autoscaler, load_fleet, load_news
    from dgdlb_jax.fleets.document import about
    from dgdlb_jax.fleets.news import parse_news
    from dgdlb_jax.numerics.results import InputError
    from dgdlb_jax.reports import autoscaling_text, policy_limits, stability_text
    from dgdlb_jax.reports.fleet_run import folders
    from dgdlb_jax.reports.status import status
    from dgdlb_jax.studies.durations import check_span
    from dgdlb_jax.studies.results import check_folder, whole_folder

    if options.set and options.policy == DGD:
        raise InputError(
            f"--set gives settings of another balancer: name it with --policy (its step sizes are what is looked for with {DGD})"
        )
    folder = None if options.no_files else folders([options.fleet], options.output)[options.fleet]
    settings = _settings(options.set)
    with notes():
        network = load_fleet(options.fleet, demand="constant")
        news = load_news(options.fleet) if options.news is None else parse_news(options.news)
    with about(options.fleet):
        require_traffic(network)
        check_span(network, None, {}, runs=len(stability_text.FRACTIONS))
    if folder is not None:
        check_folder(folder)
    with status(options.quiet) as told:
        told.phase(f"{network.name or 'fleet'}: stability of {options.policy}")
        if options.policy == DGD and news is None:
            report = stability_text.stability_report(network, start=options.start)
        else:
            report = policy_limits.policy_report(network, options.policy, settings, news)
        autoscaler = load_autoscaler(options.fleet)
        beside = None
        if autoscaler is not None:
            told.phase(f"{network.name or 'fleet'}: stability of the autoscaler")
            beside = autoscaling_text.autoscaler_report(network, autoscaler)
        if not options.json:
            told.show(report.text())
            if beside is not None:
                told.show(f"\nAutoscaler: {beside.text()}")
        written = []
        if folder is not None and policy_limits.drawable(report):
            told.phase("writing pictures")
            with whole_folder(folder) as draft:
                written = policy_limits.save_pictures(report, draft)
    if options.json:
        output = str(folder) if written else None
        more = {} if beside is None else {"autoscaler": beside.document()}
        print(json.dumps(report.document() | more | {"output": output}, indent=2, allow_nan=False))
    elif written:
        print(f"\nwritten: {folder} with {' and '.join(path.name for path in written)}")


def _settings(given: list[str]) -> dict[str, str]:
    """Name -> value of `--set NAME=VALUE`."""
    from dgdlb_jax.numerics.results import InputError

    settings = {}
    for each in given:
        name, equals, value = each.partition("=")
        if not equals or not name or not value:
            raise InputError(f"--set {each}: give NAME=VALUE, such as weight_update_period=10")
        if name in settings:
            raise InputError(f"--set {each}: {name} is set twice: leave one out.")
        settings[name] = value
    return settings
