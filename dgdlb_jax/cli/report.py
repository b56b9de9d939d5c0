"""`dgdlb report`: a sweep as one HTML file."""

import argparse
from pathlib import Path

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
    option = parser.add_argument
    option("store", metavar="STORE", type=Path, help="folder that dgdlb sweep wrote")
    option("--x", metavar="INPUT", help="input to draw along (default: the step size if it varies)")
    option("--y", metavar="MEASURE", help="measure to draw (default: excess)")
    option("--by", metavar="INPUT", help="input that makes lines, or the other direction of heatmaps")
    option("--output", metavar="FILE", type=Path, help="the HTML file (default: STORE without .zarr, then .html)")


def report(options: argparse.Namespace) -> None:
    """Write the file, say where."""
    from dgdlb_jax.cli.common import notes, require

    require("matplotlib", "xarray", "zarr")
    from dgdlb_jax.reports.html import write_page
    from dgdlb_jax.reports.sweep_page import sweep_report

    file = options.output or Path(f"{str(options.store).removesuffix('/').removesuffix('.zarr')}.html")
    with notes():
        text = sweep_report(options.store, options.x, options.y, options.by)
    print(f"written: {write_page(file, text)}")
