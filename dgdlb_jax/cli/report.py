"""`dgdlb report`: a sweep as one HTML file."""

import argparse
from pathlib import Path

from dgdlb_jax.cli.common import add_sweep_axes, beside, notes, require

_ABOUT = (
    """Write a sweep as one self-contained HTML file, with pictures and tables: to send, to keep, to open anywhere."""
)

_EXAMPLES = """examples:
  dgdlb report quick-step-size.zarr
  dgdlb report load.zarr --y settle_time --output load.html"""


def add(commands) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "report",
        help="a sweep as one HTML file",
        description=_ABOUT,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(command=report)
    add_sweep_axes(parser)
    parser.add_argument(
        "--output", metavar="FILE", type=Path, help="the HTML file (default: STORE without .zarr, then .html)"
    )


def report(options: argparse.Namespace) -> None:
    """Write the file, say where."""
    require("matplotlib", "xarray", "zarr")
    from dgdlb_jax.reports.html import write_page
    from dgdlb_jax.reports.sweep_page import sweep_report

    file = options.output or beside(options.store, ".html")
    with notes():
        text = sweep_report(options.store, options.x, options.y, options.by)
    print(f"written: {write_page(file, text)}")
