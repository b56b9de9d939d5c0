"""What a command is doing: results as they come, and on standard error a sign of life whenever it would be silent."""

import contextlib
import importlib.util
import sys
import threading
import time
from collections.abc import Iterator

SILENCE = 4.0
"""Seconds of silence after which a line says what is going on, where no bar can."""


class Status:
    """Results on standard output, and nothing else. The other kinds say what happens as well."""

    def phase(self, what: str, left: float | None = None) -> None:
        """What is going on now, and how many seconds it will take at least where that is known."""
        del what, left

    def say(self, text: str) -> None:
        """A line on standard error."""
        del text

    def show(self, text: str) -> None:
        """A part of the results on standard output."""
        print(text, flush=True)


class Lines(Status):
    """Lines on standard error that is not a terminal: one for every phase that lasts, another after every few seconds of silence."""

    def __init__(self, silence: float = SILENCE) -> None:
        self._silence = silence
        self._what, self._left, self._began, self._last = "", None, time.monotonic(), time.monotonic()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._keep_talking, daemon=True, name="dgdlb-status")
        self._thread.start()

    def phase(self, what: str, left: float | None = None) -> None:
        """What is going on now."""
        self._what, self._left, self._began = what, left, time.monotonic()

    def say(self, text: str) -> None:
        """A line on standard error."""
        with contextlib.suppress(OSError, ValueError):  # nobody listens any more
            print(f"dgdlb: {text}", file=sys.stderr, flush=True)
        self._last = time.monotonic()

    def show(self, text: str) -> None:
        """A part of the results on standard output."""
        super().show(text)
        self._last = time.monotonic()

    def close(self) -> None:
        """Be silent from now on."""
        self._over.set()

    def _keep_talking(self) -> None:
        while not self._over.wait(0.5):
            now = time.monotonic()
            if self._what and now - self._last > self._silence:
                passed = now - self._began
                self.say(f"{self._what}, {_passed(passed)}{_remaining(self._left, passed)}")


class Bar(Status):
    """A line on a terminal that is always up to date, with lines above it."""

    def __init__(self, bar, console) -> None:
        self._bar, self._console = bar, console
        self._task = bar.add_task("", total=None, left="")

    def phase(self, what: str, left: float | None = None) -> None:
        """What is going on now."""
        self._bar.reset(self._task, total=None, description=what, left=_remaining(left, 0.0))

    def say(self, text: str) -> None:
        """A line on standard error."""
        self._console.print(f"dgdlb: {text}", highlight=False, markup=False)

    def show(self, text: str) -> None:
        """A part of the results on standard output, above the bar."""
        self._bar.stop()
        super().show(text)
        self._bar.start()


@contextlib.contextmanager
def status(quiet: bool = False, silence: float = SILENCE) -> Iterator[Status]:
    """The kind that suits standard error: a bar on a terminal, else lines, one after so many seconds of silence; nothing when asked to
    be quiet."""
    if quiet:
        yield Status()
    elif sys.stderr.isatty() and importlib.util.find_spec("rich") is not None:
        from rich.console import Console
        from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

        console = Console(stderr=True)
        columns = (
            SpinnerColumn(),
            TextColumn("{task.description}{task.fields[left]}", markup=False),
            TimeElapsedColumn(),
        )
        with Progress(*columns, console=console, transient=True, redirect_stdout=False) as bar:
            yield Bar(bar, console)
    else:
        lines = Lines(silence)
        try:
            yield lines
        finally:
            lines.close()


def _passed(seconds: float) -> str:
    return f"{seconds:.0f} s so far"


def _remaining(left: float | None, passed: float) -> str:
    if left is None or left < passed:
        return ""
    return f", at least {max(1.0, left - passed):.0f} s left"
