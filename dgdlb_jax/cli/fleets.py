"""`dgdlb fleets`: what is built in."""

import argparse
import json


def add(commands) -> None:
    """Add the command."""
    parser = commands.add_parser("fleets", help="list the built-in fleets", description="List the built-in fleets.")
    parser.set_defaults(command=list_them)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")


def list_them(options: argparse.Namespace) -> None:
    """Print names, sizes and origins."""
    from dataclasses import asdict

    from dgdlb_jax.fleets import list_fleets
    from dgdlb_jax.reports.text import fleet_table

    fleets = list_fleets()
    print(json.dumps([asdict(fleet) for fleet in fleets], indent=2) if options.json else fleet_table(fleets))
