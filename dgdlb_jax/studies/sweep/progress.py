"""How far a sweep is: counts, rates, time left, compile time apart."""

import contextlib
import importlib.util
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import jax


@dataclass(frozen=True)
class Progress:
    """A moment of a sweep.

    - `done`, `total`: cases that are finished (those of earlier runs included), and all. `chunks`: chunks finished.
    - `rate`: cases per second since this process began, compiling left out; 0 as long as there is none.
    - `left`: seconds until the end at that rate; inf as long as there is none.
    - `elapsed`, `compiling`: seconds since this process began, and how many of them were spent compiling.
    """

    done: int
    total: int
    chunks: int
    rate: float
    left: float
    elapsed: float
    compiling: float

    def __str__(self) -> str:
        """One line for people."""
        return f"{self.rate:,.3g} cases/s, {duration(self.left)} left, {duration(self.compiling)} compiling"


Told = Callable[[Progress], None]


class Meter:
    """Counts finished cases and makes `Progress` of them."""

    def __init__(self, total: int, before: int, told: Told | None):
        self._total, self._done, self._computed, self._chunks, self._told = total, before, 0, 0, told
        self._began, self._compiled = time.perf_counter(), compile_seconds()
        self._tell()

    def cases(self, count: int) -> None:
        """Some cases have been computed, but not yet stored."""
        self._computed += count
        self._tell()

    def chunk(self, done: int) -> None:
        """A chunk has been stored: `done` cases are finished altogether."""
        self._done, self._chunks = done, self._chunks + 1
        self._tell()

    def now(self) -> Progress:
        """This moment."""
        elapsed, compiling = time.perf_counter() - self._began, compile_seconds() - self._compiled
        working = elapsed - compiling
        rate = self._computed / working if self._computed and working > 0 else 0.0
        left = (self._total - self._done) / rate if rate else float("inf")
        return Progress(self._done, self._total, self._chunks, rate, left, elapsed, compiling)

    def _tell(self) -> None:
        if self._told is not None:
            self._told(self.now())


@contextlib.contextmanager
def shown(what: str, quiet: bool = False) -> Iterator[Told | None]:
    """A bar on standard error, or below the cell of a notebook; nothing when nobody watches."""
    if quiet or not (sys.stderr.isatty() or in_notebook()) or importlib.util.find_spec("rich") is None:
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bar

    console = Console() if in_notebook() else Console(stderr=True)
    columns = TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}")
    with Bar(*columns, console=console, transient=not in_notebook()) as bar:
        task = bar.add_task("starting", total=None)
        yield lambda moment: bar.update(task, completed=moment.done, total=moment.total, description=str(moment))


def say(text: str) -> None:
    """A line on standard error, above the bar if there is one, for what somebody has to know who does not look at progress."""
    print(f"dgdlb: {text}", file=sys.stderr, flush=True)


def in_notebook() -> bool:
    """Whether this runs in a Jupyter kernel."""
    shell = sys.modules.get("IPython")
    return shell is not None and type(shell.get_ipython()).__name__ == "ZMQInteractiveShell"


def duration(seconds: float) -> str:
    """`12 s`, `3 min`, `2.5 h`, `?`."""
    if seconds == float("inf"):
        return "?"
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


_seconds: list[float] = []


def compile_seconds() -> float:
    """Seconds this process has spent tracing and compiling since the first call."""
    if not _seconds:
        _seconds.append(0.0)
        jax.monitoring.register_event_duration_secs_listener(_listen)
    return _seconds[0]


def _listen(event: str, duration_secs: float, **_) -> None:
    if event.startswith("/jax/core/compile/") and event.endswith("_duration"):
        _seconds[0] += duration_secs
