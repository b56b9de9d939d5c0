"""Chunks computed elsewhere: by any `concurrent.futures.Executor`, or by the workers of a dask cluster.

A chunk is one task. A worker is sent what it needs (the specification, the fleets that it names, the precision), reads no files, and
returns values, which the process that submits them writes into the store. It computes as a sweep in one process would, so the store is
the same to the bit on equal machines with equal numbers of devices.
"""

import concurrent.futures
import contextlib
import itertools
import logging
import pickle
import queue
import socket
import threading
import time
from collections.abc import Callable, Generator, Iterator
from functools import lru_cache
from typing import Any

import jax
import numpy as np

from dgdlb_jax import __version__
from dgdlb_jax.fleets.document import counted
from dgdlb_jax.model.network import Network
from dgdlb_jax.numerics import device, parallel
from dgdlb_jax.numerics.results import InputError
from dgdlb_jax.studies.sweep.chunks import Finished, batch_of, check_possible, compute
from dgdlb_jax.studies.sweep.fleet import fleet_network, fleets_given
from dgdlb_jax.studies.sweep.inputs import INPUTS
from dgdlb_jax.studies.sweep.measures import MEASURES
from dgdlb_jax.studies.sweep.progress import say
from dgdlb_jax.studies.sweep.spec import Spec

Executor = concurrent.futures.Executor
Setup = Callable[[], None]

SCHEME = "dask://"
_CONNECTING, _JOINING = 10, 30  # seconds that a scheduler, and the first of its workers, may take
_AT_ONCE, _BYTES_AT_ONCE = 1024, 2**28  # of chunks that are handed over and not yet back: how many, and what they send
_POLL = 0.2  # seconds between two looks for Ctrl-C
_LOOK = 2.0  # seconds between two looks for workers, where nothing comes back
_GOES_ON = "what is finished is kept, and the same call goes on from there"


@contextlib.contextmanager
def connected(executor: Executor | str | None) -> Iterator[Executor | None]:
    """An executor as it is; for `dask://HOST:PORT` one for that scheduler, closed at the end.

    **Raises:** `InputError` for another address, without dask, and when no scheduler or no worker is there.
    """
    if not isinstance(executor, str):
        yield executor
        return
    host, _, port = executor.removeprefix(SCHEME).rpartition(":")
    if not executor.startswith(SCHEME) or not host or not (port.isdigit() and 0 < int(port) < 65536):
        raise InputError(f"The executor {executor!r} is no address: give dask://HOST:PORT, that of a dask scheduler.")
    try:
        import distributed
        from distributed.utils import silence_logging_cmgr
    except ImportError as error:
        raise InputError(f'{error.name} is not installed; type: pip install "dgdlb_jax[cluster]".') from error
    address = f"{host}:{port}"
    client = _in_time(lambda: distributed.Client(address, timeout=_CONNECTING, set_as_default=False))
    if client is None:
        raise InputError(
            f"No dask scheduler answers at {executor} within {_CONNECTING} s: start one with dask scheduler, or correct the address."
        )
    # What its log says in traces is said here in one sentence.
    with _of_client(executor), silence_logging_cmgr(logging.CRITICAL, root="distributed.client"), client:
        try:
            client.wait_for_workers(1, timeout=_JOINING)
        except TimeoutError as error:
            raise InputError(
                f"The dask scheduler at {executor} has no worker: start some with dask worker {address}."
            ) from error
        yield client.get_executor(pure=False)


@contextlib.contextmanager
def _of_client(executor: str) -> Iterator[None]:
    """What a client fails with when its scheduler is gone, told from what writing a file fails with."""
    try:
        yield
    except OSError as error:
        if "tcp://" not in str(error):
            raise
        raise InputError(f"The dask scheduler at {executor} does not answer any more: {_GOES_ON}.") from error


def _in_time(connect: Callable[[], Any]) -> Any:
    """A client, None where nobody answers in time: whoever listens there and says nothing would be waited for for ever."""
    answer: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def ask() -> None:
        try:
            answer.put(connect())
        except (OSError, ValueError):
            answer.put(None)

    threading.Thread(target=ask, daemon=True).start()
    try:
        return answer.get(timeout=_CONNECTING + 2)
    except queue.Empty:
        return None


def workers_of(executor: Executor) -> list[int] | None:
    """How many threads each of its workers has at present; None where it does not tell: one of dask does."""
    nthreads = getattr(getattr(executor, "_client", None), "nthreads", None)
    return None if nthreads is None else list(nthreads().values())


class _Absence:
    """Looks now and then whether any worker is left; says once when there is none, and when there is one again."""

    def __init__(self, executor: Executor):
        self._executor, self._said, self._next = executor, False, time.monotonic() + _LOOK

    def look(self, left: Callable[[], int]) -> None:
        """Nothing has come back for a moment; so many chunks are `left`."""
        if time.monotonic() < self._next:
            return
        workers = workers_of(self._executor)
        self._next = time.monotonic() + _LOOK
        if workers is None:
            return
        if not workers and not self._said:
            waiting = counted(left(), "chunk is", "chunks are")
            say(f"no worker is left: {waiting} open and wait for one to come; Ctrl-C stops, {_GOES_ON}.")
        elif workers and self._said:
            say(f"goes on with {counted(len(workers), 'worker', 'workers')}.")
        self._said = not workers


class Crew:
    """Those who compute the chunks of a sweep.

    **Arguments:** `setup`: called once in every worker before its first chunk; it registers there what the specification names.

    **Raises:** `InputError` when they cannot compute it: another version of this package, names that are not registered, a
    specification of which no case tried can be computed there (if `probe`).
    """

    def __init__(self, executor: Executor, spec: Spec, setup: Setup | None, probe: bool):
        self._executor, self._spec, self._absence = executor, spec, _Absence(executor)
        fleets = {name: jax.tree.map(np.asarray, fleet_network(name)) for name in map(str, spec.values_of("fleet"))}
        try:  # whatever `setup` registers has to be known to a worker before the rest is read
            self._job = pickle.dumps((setup, pickle.dumps((spec, fleets, parallel.settings()))))
        except (pickle.PicklingError, TypeError, AttributeError) as error:
            raise InputError(
                f"What the sweep needs cannot be sent to workers ({error}): define it in a module that they can import."
            ) from error
        with _failures(lambda: "No worker can compute this sweep"):
            self.batch = self._waited_for(self._submit(_greet, probe))

    def compute_missing(
        self, chunks: Iterator[int], stop: threading.Event, left: Callable[[], int] | None = None
    ) -> Generator[tuple[int, Finished], None, None]:
        """Compute chunks, and give each back as soon as it is done.

        **Arguments:** `chunks`: what to compute. `left`: how many are not done, those included that others compute.

        When `stop` is set what has not begun is cancelled and what has begun is waited for. However it ends, nothing goes on.

        **Raises:** `InputError` when a chunk fails, with its cases; or when its worker was lost too often.
        """
        ended: queue.SimpleQueue[concurrent.futures.Future] = queue.SimpleQueue()
        pending: dict[concurrent.futures.Future, int] = {}
        most = max(1, min(_AT_ONCE, _BYTES_AT_ONCE // len(self._job)))
        try:
            while True:
                if stop.is_set():
                    _cancel(pending)
                else:
                    for chunk in itertools.islice(chunks, most - len(pending)):
                        with _failures(lambda chunk=chunk: self._name(chunk)):
                            future = self._submit(_work, chunk, self.batch)
                        pending[future] = chunk
                        future.add_done_callback(ended.put)
                if not pending:
                    return
                try:
                    future = ended.get(timeout=_POLL)
                except queue.Empty:
                    self._absence.look(left or (lambda: len(pending)))
                    continue
                chunk = pending.pop(future)
                if stop.is_set() and future.cancelled():
                    continue
                with _failures(lambda chunk=chunk: self._name(chunk)):
                    found = future.result()
                yield chunk, found
        finally:
            _cancel(pending)

    def _waited_for(self, future: concurrent.futures.Future) -> Any:
        while not future.done():
            with contextlib.suppress(concurrent.futures.TimeoutError):
                return future.result(timeout=_POLL)
            self._absence.look(lambda: self._spec.chunks)
        return future.result()

    def _submit(self, function: Callable, *arguments: Any) -> concurrent.futures.Future:
        call = _Call(function, (__version__, self._job, *arguments))
        return self._executor.submit(pickle.loads, pickle.dumps(call))

    def _name(self, chunk: int) -> str:
        columns = self._spec.cases(self._spec.region(chunk))
        varying = [name for axis in self._spec.axes for name in axis.values]
        ends = (f"{name} = {_span(columns[name])}" for name in varying)
        return f"Chunk {chunk} ({', '.join(ends) or 'the only case'})"


class _Call:
    """A call that whoever unpickles it makes. A dask worker without this package ends when it is sent a function of it, and so does the
    sweep when the scheduler is; bytes hurt neither, and the worker says what it lacks."""

    def __init__(self, function: Callable, arguments: tuple):
        self._function, self._arguments = function, arguments

    def __reduce__(self) -> tuple[Callable, tuple]:
        return self._function, self._arguments


def _cancel(pending: dict[concurrent.futures.Future, int]) -> None:
    for future in list(pending):
        future.cancel()


def _span(values: np.ndarray) -> str:
    first, last = values[0].item(), values[-1].item()
    return f"{first}" if first == last else f"{first} to {last}"


@contextlib.contextmanager
def _failures(name: Callable[[], str]) -> Iterator[None]:
    """Whatever a worker or an executor ends with, as one sentence that begins with a name."""
    try:
        yield
    except Exception as error:
        raise InputError(f"{name()}{_why(error)}") from error


def _why(error: Exception) -> str:
    if isinstance(error, InputError):
        return f": {error}"
    if isinstance(error, concurrent.futures.CancelledError):
        return f": the executor has given it up; {_GOES_ON}."
    if isinstance(error, concurrent.futures.BrokenExecutor):
        return f": the executor has lost a worker and cannot go on; {_GOES_ON} with a new one."
    if isinstance(error, ModuleNotFoundError | AttributeError):
        return f": {error}; install dgdlb_jax {__version__} where workers run, and what your setup imports."
    if type(error).__name__ == "KilledWorker":  # of dask, which need not be installed
        return f": its worker was lost again and again; look whether its memory suffices (a smaller batch needs less); {_GOES_ON}."
    return f" failed: {type(error).__name__}: {str(error) or 'no reason given'}"


# In a worker.


_turn, _reading = threading.Lock(), threading.Lock()


def _greet(version: str, job: bytes, probe: bool) -> int:
    """Whether this worker can compute a sweep. **Returns:** how many cases it runs side by side."""
    with _at_work(version, job) as spec:
        if probe:
            check_possible(spec)
        return batch_of(spec)


def _work(version: str, job: bytes, chunk: int, batch: int) -> Finished:
    """A chunk."""
    with _at_work(version, job) as spec:
        return compute(spec, chunk, batch)


@contextlib.contextmanager
def _at_work(version: str, job: bytes) -> Iterator[Spec]:
    """The settings and fleets of the submitting process, for this thread alone; one at a time on an accelerator."""
    if version != __version__:
        raise InputError(
            f"the worker on {socket.gethostname()} has dgdlb_jax {__version__}, this is {version}: install the same."
        )
    with _reading:  # once in a worker, however many threads it has
        spec, fleets, settings = _content(job)
    turn = contextlib.nullcontext() if device.on_cpu() else _turn
    with parallel.with_settings(settings), fleets_given(fleets), turn:
        yield spec


@lru_cache(maxsize=4)
def _content(job: bytes) -> tuple[Spec, dict[str, Network], dict[str, Any]]:
    setup, content = pickle.loads(job)
    if setup is not None:
        setup()
    spec, fleets, settings = pickle.loads(content)
    named = [("measure", name, name in MEASURES) for name in spec.measures] + [
        (name, value, value in rule.choices)
        for name, rule in INPUTS.items()
        if rule.choices
        for value in spec.values_of(name)
    ]
    for kind, name, known in named:
        if not known:
            raise InputError(
                f"{name!r} ({kind}) is not known in the worker on {socket.gethostname()}: give a setup that registers it there."
            )
    return spec, fleets, settings
