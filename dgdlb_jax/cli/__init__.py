"""The command line, `dgdlb`: one module per command. Nothing heavy is imported before a command starts: help and version cost nothing."""

import argparse
import contextlib
import contextvars
import os
import signal
import sys
import threading
import types
from collections.abc import Sequence

from dgdlb_jax import __version__
from dgdlb_jax.cli import fleets, importing, plot, plugins, report, reproduce, run, stability, sweep
from dgdlb_jax.cli.parser import Parser
from dgdlb_jax.numerics.text import clipped, printable

COMMANDS = (run, stability, sweep, reproduce, plot, report, fleets, importing)
"""Modules with `add(commands)`, which adds a parser whose default `command` is the function to call."""

LONGEST_MESSAGE = 1000
"""Letters of a sentence on the terminal; more is left out in its middle."""

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

compiled programs are kept for later runs in dgdlb_jax under XDG_CACHE_HOME or ~/.cache, or in JAX_COMPILATION_CACHE_DIR; the folder
may be deleted at any time, DGDLB_KEEP_PROGRAMS=0 keeps only what JAX does

exit codes: 0 done, 1 a computation did not converge, 2 something is wrong with the input (one sentence says what), 130 interrupted"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command. **Returns:** the exit code."""
    options = build_parser().parse_args(arguments)
    heard = Interrupts()
    try:
        with heard:
            code = _answer(options)
            if sys.stdout is not None:
                sys.stdout.flush()  # a full disk shows now, and not when the interpreter leaves
            return code
    except BrokenPipeError:
        _forget_output()
        return 0
    except OSError as error:
        _forget_output()
        what = clipped(str(error.filename)) if error.filename else "Standard output, or a file,"
        return _refuse(
            f"{what} cannot be used ({error.strerror or error}): make room, choose another name, or correct its permissions."
        )
    except BaseException as error:  # what an import or a library makes of an interrupt may be another exception
        if not (heard.any or isinstance(error, KeyboardInterrupt)):
            raise
        _say("dgdlb: interrupted; no file is half-written.")
        os._exit(130)  # compiled code in other threads cannot be stopped, and a normal exit would wait for it


def build_parser() -> Parser:
    """The parser of `dgdlb` with all its commands."""
    style = argparse.RawDescriptionHelpFormatter
    parser = Parser(prog="dgdlb", description=_ABOUT, epilog=_EXAMPLES, formatter_class=style)
    parser.add_argument("--version", action="version", version=f"dgdlb {__version__}")
    parser.add_argument(
        "--import",
        dest="imports",
        metavar="MODULE",
        action="append",
        default=[],
        help="a Python module, or a .py file, that registers policies, service curves, topologies or demands of your own; may be repeated",
    )
    commands = parser.add_commands(title="commands", metavar="COMMAND", required=True)
    for module in COMMANDS:
        module.add(commands)
    return parser


class Interrupts:
    """Ctrl-C is raised again every three seconds until it is heard: Python drops one that arrives in a callback, such as those of the
    garbage collector that run when a long compilation ends, and says so with a traceback, which nobody needs. It waits where an exception
    does harm (see `_UNTOUCHABLE`). Does nothing in a thread, which is never interrupted."""

    def __init__(self) -> None:
        self.any, self._before = False, {}

    def __enter__(self) -> "Interrupts":
        in_main = threading.current_thread() is threading.main_thread()
        if in_main and hasattr(signal, "setitimer") and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            self._before = {number: signal.signal(number, self._raise) for number in (signal.SIGINT, signal.SIGALRM)}
            self._report, sys.unraisablehook = sys.unraisablehook, self._dropped
        return self

    def __exit__(self, *_) -> None:
        if self._before:
            signal.setitimer(signal.ITIMER_REAL, 0)
            sys.unraisablehook = self._report
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _raise(self, number: int, frame: types.FrameType | None) -> None:
        del number
        self.any = True
        waits = _is_within(frame, _UNTOUCHABLE)
        signal.setitimer(signal.ITIMER_REAL, 0.02 if waits else 3.0)
        if not waits:
            raise KeyboardInterrupt

    def _dropped(self, dropped: "sys.UnraisableHookArgs") -> None:
        if not issubclass(dropped.exc_type, KeyboardInterrupt):
            self._report(dropped)


_UNTOUCHABLE = (
    "ExtensionFileLoader.",  # jaxlib's extension modules abort the process when an exception passes through their import
    "Interrupts._dropped",  # an exception in this hook is reported with a traceback
)


def _is_within(frame: types.FrameType | None, functions: tuple[str, ...]) -> bool:
    """Whether one of the functions, by the beginning of their qualified names, is being run in this frame or by what called it."""
    while frame is not None:
        if frame.f_code.co_qualname.startswith(functions):
            return True
        frame = frame.f_back
    return False


def _answer(options: argparse.Namespace) -> int:
    from dgdlb_jax.numerics.results import ConvergenceError, InputError

    try:
        for name in options.imports:
            plugins.load(name)
        contextvars.copy_context().run(options.command, options)  # what it sets up ends with it
    except InputError as error:
        return _refuse(str(error))
    except ConvergenceError as error:
        _refuse(str(error))
        return 1
    except (MemoryError, RuntimeError) as error:  # XLA has no class of its own for it
        if isinstance(error, RuntimeError) and "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return _refuse(
            "The memory of this machine does not suffice: raise dt, shorten the run, or use a smaller fleet."
        )
    return 0


def _refuse(sentence: str) -> int:
    _say(f"dgdlb: error: {printable(sentence, LONGEST_MESSAGE)}")
    return 2


def _say(text: str) -> None:
    """A line on standard error, if anybody can hear it."""
    with contextlib.suppress(OSError, ValueError):
        print(text, file=sys.stderr, flush=True)


def _forget_output() -> None:
    """Nothing more is written to standard output, or the interpreter would complain while it leaves."""
    with contextlib.suppress(OSError, ValueError, AttributeError):  # a stream that is no file, or none at all
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
