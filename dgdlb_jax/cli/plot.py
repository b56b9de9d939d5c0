"""`dgdlb plot`: pictures of a sweep."""

import argparse
from pathlib import Path

from dgdlb_jax.cli.common import add_sweep_axes, beside, notes, require

_ABOUT = """Draw the pictures that suit a sweep: its main measure along an input (medians, in bands between the quartiles; for
step sizes with the critical and the sufficient one), how the runs end, heatmaps over two inputs, distributions."""

_EXAMPLES = """examples:
  dgdlb plot quick-step-size.zarr
  dgdlb plot quick-step-size.zarr --y settle_time
  dgdlb plot load.zarr --x load --y excess --by policy --output pictures"""


def add(commands) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "plot",
        help="pictures of a sweep",
        description=_ABOUT,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(command=plot)
    add_sweep_axes(parser)
    parser.add_argument(
        "--output",
        metavar="DIR",
        type=Path,
        help="folder for the pictures (default: STORE without .zarr, then -pictures)",
    )


def plot(options: argparse.Namespace) -> None:
    """Draw, write, say where."""
    require("matplotlib", "xarray", "zarr")
    from dgdlb_jax.reports.sweep_plots import save_pictures, standard_pictures
    from dgdlb_jax.studies.sweep import open_sweep

    folder = options.output or beside(options.store, "-pictures")
    with notes(), open_sweep(options.store) as dataset:
        figures = standard_pictures(dataset.load(), options.x, options.y, options.by)
    for path in save_pictures(figures, folder):
        print(f"written: {path}")
