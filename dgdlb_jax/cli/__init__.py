"""The command line, `dgdlb`: one module per command. Nothing heavy is imported before a command starts: help and version cost nothing."""

import argparse
import contextlib
import os
import signal
import sys
from collections.abc import Iterator, Sequence

from dgdlb_jax import __version__
from dgdlb_jax.cli import fleets, importing, plot, plugins, report, reproduce, run, stability, sweep

COMMANDS = (run, stability, sweep, reproduce, plot, report, fleets, importing)
"""Modules with `add(commands)`, which adds a parser whose default `command` is the function to call."""

_ABOUT = """Where should each region send its requests, does a distributed rule find that point by itself despite
the network latencies, and what do the balancers in use today cost? Give a fleet, get a verdict."""

_EXAMPLES = """examples:
  dgdlb run                                  two built-in fleets side by side
  dgdlb run global-llm                       one of them
  dgdlb run my-fleet.toml                    your own: TOML + CSV tables, described in the README
  dgdlb run my-fleet.toml --current now.csv  ... against the routing table you use today
  dgdlb import rtt.csv results/ --fleet f.toml   a fleet from your own measurements
  dgdlb stability global-llm                 how fast its frontends may adapt
  dgdlb sweep quick-step-size                many cases from a short specification
  dgdlb plot quick-step-size.zarr            its pictures; dgdlb report makes one HTML file of them
  dgdlb reproduce                            the claims of the paper, shown or refuted
  dgdlb fleets                               what is built in
  dgdlb --import mine.py run --policies dgd-lb,mine   with a balancer that mine.py registers

exit codes: 0 done, 1 a computation did not converge, 2 something is wrong with the input (one sentence says what), 130 interrupted"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command. **Returns:** the exit code."""
    options = build_parser().parse_args(arguments)
    try:
        with _interrupts_that_insist():
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
    parser.add_argument(
        "--import",
        dest="imports",
        metavar="MODULE",
        action="append",
        default=[],
        help="a Python module, or a .py file, that registers policies, service curves, topologies or demands of your own; may be repeated",
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for module in COMMANDS:
        module.add(commands)
    return parser


@contextlib.contextmanager
def _interrupts_that_insist() -> Iterator[None]:
    """Ctrl-C is raised again every three seconds until it is heard: Python drops one that arrives in a callback, such as those of the
    garbage collector that run when a long compilation ends."""
    if not hasattr(signal, "setitimer") or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return

    def interrupt(number, frame):
        del number, frame
        signal.setitimer(signal.ITIMER_REAL, 3.0)
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGALRM)}
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in before.items():
            signal.signal(number, handler)


def _answer(options: argparse.Namespace) -> int:
    from dgdlb_jax.numerics.results import ConvergenceError, InputError

    try:
        for name in options.imports:
            plugins.load(name)
        options.command(options)
    except InputError as error:
        print(f"dgdlb: error: {error}", file=sys.stderr)
        return 2
    except ConvergenceError as error:
        print(f"dgdlb: error: {error}", file=sys.stderr)
        return 1
    return 0
