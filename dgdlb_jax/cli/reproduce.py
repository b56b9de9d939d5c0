"""`dgdlb reproduce`: the claims of the paper's abstract, shown or refuted."""

import argparse
import json
import sys
from pathlib import Path

from dgdlb_jax.cli.common import notes, require_extra, set_up_jax

_ABOUT = """Show or refute the claims of the paper's abstract, claim by claim: what was measured, over how many topologies, and whether
the claim holds in this model. Writes the table as CSV, the raw results of the sweeps as zarr stores that xarray opens, one
figure per claim, and the case that speaks most clearly against a claim as a fleet file that dgdlb run takes."""

_EXAMPLES = """examples:
  dgdlb reproduce                            all claims, quick (a minute or two)
  dgdlb reproduce --size full                all of them on many more topologies (an hour or so)
  dgdlb reproduce 5 6 --size full            two of them
  dgdlb reproduce --list                     what the claims say

Sweeps that are complete in the output folder are not run again: the same command goes on where an earlier one ended.
Exit codes: 0 done (whatever the verdicts), 2 something is wrong with the input, 130 interrupted."""


def add(commands) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "reproduce",
        help="the claims of the paper, shown or refuted",
        description=_ABOUT,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(command=show_claims, no_files=False)
    option = parser.add_argument
    option("claims", nargs="*", metavar="CLAIM", help="number of a claim, or words of its title (default: all)")
    option("--size", choices=("quick", "full"), default="quick", help="how much is computed (default: quick)")
    option("--output", metavar="DIR", type=Path, help="folder for the results (default: ./dgdlb-claims-SIZE)")
    option("--list", action="store_true", help="say what the claims are, and run nothing")
    option("--json", action="store_true", help="print JSON on standard output, and nothing else there")
    option(
        "--quiet",
        action="store_true",
        help="no progress bar (there is none anyway when standard error is not a terminal)",
    )


def show_claims(options: argparse.Namespace) -> None:
    """Run, judge, write, print."""
    require_extra(options)
    set_up_jax(all_cores=True)
    from dgdlb_jax.reports.reproduce import reproduce, table
    from dgdlb_jax.studies.claims.spec import read_claims
    from dgdlb_jax.studies.sweep.run import require_extra as require_store

    if options.list:
        for claim in read_claims(options.claims, options.size):
            cases = sum(spec.size for spec in claim.sweeps.values())
            print(f"{claim.key}  {claim.title}: {claim.statement} ({cases:,} runs, {options.size})")
        return
    require_store()
    folder = options.output or Path(f"dgdlb-claims-{options.size}")
    with notes():
        rows = reproduce(options.claims, size=options.size, output=folder, progress=not options.quiet)
    if options.json:
        print(json.dumps([_document(row) for row in rows], indent=2, allow_nan=False))
        return
    print(table(rows))
    print(
        f"\nwritten: {folder}{'' if sys.platform == 'win32' else '/'} with claims.csv, numbers.csv, figures and stores"
    )


def _document(row) -> dict:
    judged = row.judgement
    numbers = {
        name: value if value == value and abs(value) != float("inf") else None for name, value in judged.numbers.items()
    }
    return {
        "claim": row.claim.key,
        "title": row.claim.title,
        "statement": row.claim.statement,
        "measured": judged.measured,
        "topologies": judged.topologies,
        "verdict": str(judged.verdict),
        "numbers": numbers,
        "counterexample": row.command or None,
        "files": list(row.files),
    }
