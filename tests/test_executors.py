"""Chunks computed by threads, processes and dask make the store of one process, whatever happens to the workers."""

import concurrent.futures
import multiprocessing
import os
import pickle
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import jax
import numpy as np
import pytest

pytest.importorskip("zarr", reason="install the sweep extra")

from dgdlb_jax.cli import main, plugins
from dgdlb_jax.numerics.results import InputError
from dgdlb_jax.studies.sweep import dry_run, executors, read_spec, sweep
from dgdlb_jax.studies.sweep.fleet import fleet_network, fleets_given
from helpers import own_process
from sweeps import complete, files, small, write_toml

pytestmark = pytest.mark.usefixtures("quick_compilation")


@pytest.fixture(scope="module")
def finished(tmp_path_factory, quick_compilation):
    path = tmp_path_factory.mktemp("finished") / "small.zarr"
    sweep(small(), path, progress=False).close()
    return path


def refused(spec, executor, match, **keywords):
    with pytest.raises(InputError, match=match):
        sweep(spec, executor=executor, progress=False, **keywords)


@pytest.fixture
def threads():
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        yield pool


def test_threads_make_the_store_of_one_process(finished, tmp_path, threads):
    """With progress."""
    seen = []
    sweep(small(), tmp_path / "small.zarr", executor=threads, progress=seen.append).close()
    assert files(tmp_path / "small.zarr") == files(finished)
    assert [moment.done for moment in seen] == sorted(moment.done for moment in seen)
    assert (seen[-1].done, seen[-1].chunks) == (24, 3)


class Counting(concurrent.futures.Executor):
    """Runs tasks at once, in this thread, and fails where it is told to."""

    def __init__(self, fails=()):
        self.calls, self.fails = 0, dict(fails)

    def submit(self, fn, /, *args, **kwargs):
        future = concurrent.futures.Future()
        self.calls += 1
        try:
            if self.calls in self.fails:
                raise self.fails[self.calls]
            future.set_result(fn(*args, **kwargs))
        except BaseException as error:
            future.set_exception(error)
        return future


def test_what_fails_is_named_with_its_chunk_and_cases_and_the_store_goes_on(finished, tmp_path):
    path = tmp_path / "small.zarr"
    broken = concurrent.futures.BrokenExecutor("a process died")
    for error, sentence in (
        (
            ValueError("no good"),
            r"Chunk 1 \(seed = 4 to 7, step_size_over_default = 1.0 to 6.0\) failed: ValueError: no",
        ),
        (broken, r"Chunk 1 \(.*\): the executor has lost a worker and cannot go on; .* with a new one"),
        (concurrent.futures.CancelledError(), r"Chunk 1 \(.*\): the executor has given it up"),
        (type("KilledWorker", (Exception,), {})("x"), r"Chunk 1 \(.*\): its worker was lost again and again"),
        (
            ModuleNotFoundError("No module named 'mine'"),
            r"No module named 'mine'; install dgdlb_jax .* your setup imports",
        ),
    ):
        before = complete(path) if path.exists() else 0
        with pytest.raises(InputError, match=sentence):
            sweep(small(), path, executor=Counting({3 - bool(before): error}), progress=False)
        assert complete(path) == 1
    last = Counting()
    sweep(small(), path, executor=last, progress=False).close()
    assert last.calls == 3, "a greeting and what was missing"
    assert files(path) == files(finished)


def test_workers_that_cannot_compute_a_sweep_are_named(tmp_path, monkeypatch):
    path = tmp_path / "small.zarr"
    refused(small(axes={"policy.no_such": [1.0]}), Counting(), "No worker can .*no parameter 'no_such'", store=path)
    refused(small(), Counting(), "exclude each other", processes=2)
    with monkeypatch.context() as patch:
        patch.setattr(executors, "_greet", greeted_by_another)
        refused(small(), Counting(), r"has dgdlb_jax \S+, this is 0\.0\.9: install the same", store=path)
    refused(small(), Counting(), "cannot be sent to workers", worker_setup=lambda: None)
    spec, settings = read_spec(small()), {}
    changed = pickle.dumps(
        (None, pickle.dumps((spec.__class__(**{**vars(spec), "fixed": {"policy": "mine"}}), {}, settings)))
    )
    with pytest.raises(InputError, match=r"'mine' \(policy\) is not known in the worker on"):
        executors._content(changed)
    assert not list(tmp_path.iterdir())


greet = executors._greet


def greeted_by_another(version, *arguments):
    return greet("0.0.9", *arguments)


def test_ctrl_c_cancels_what_has_not_begun_and_keeps_what_has(threads, monkeypatch):
    """Four chunks, two of them running: these come back, the others never begin."""
    crew = executors.Crew(threads, read_spec(small(seeds=16)), None, probe=False)
    stop = threading.Event()
    monkeypatch.setattr(executors, "_work", noted)
    begun.clear()
    threading.Timer(0.2, stop.set).start()
    found = [chunk for chunk, _ in crew.compute_missing(iter(range(4)), stop)]
    assert sorted(found) == sorted(begun) == [0, 1]


begun: list[int] = []


def noted(version, job, chunk, batch):
    begun.append(chunk)
    time.sleep(1)
    return chunk


@pytest.mark.filterwarnings("ignore::dgdlb_jax.fleets.FleetWarning")  # of its tables
def test_a_fleet_is_sent_whole():
    """With curves that are tables, and with nothing of the folder where they lie."""
    network = fleet_network("aws-deepseek")
    sent = pickle.loads(pickle.dumps(jax.tree.map(np.asarray, network)))
    with fleets_given({"elsewhere.toml": sent}):
        found = fleet_network("elsewhere.toml")
    assert jax.tree.structure(found) == jax.tree.structure(network)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(network), strict=True):
        np.testing.assert_array_equal(one, other)


def test_what_was_imported_is_sent(tmp_path, monkeypatch):
    file = tmp_path / "mine_sent.py"
    file.write_text("import sys; sys.mine_sent = getattr(sys, 'mine_sent', 0) + 1")
    monkeypatch.setattr(plugins, "loaded", [str(file)])
    load = pickle.loads(pickle.dumps(plugins.for_workers()))
    file.unlink()
    load()
    load()
    assert sys.mine_sent == 1, "once in a worker"
    file.write_text("another = 1")
    monkeypatch.setattr(plugins, "loaded", [str(file)])
    with pytest.raises(InputError, match=r"imported another .* before: restart the workers"):
        plugins.for_workers()()


CHUNKS = 8


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.mark.parametrize(
    "address", ["ssh://here:1", "dask://here", "dask://:8786", "dask://here:port", "dask://here:99999"]
)
def test_an_address_that_is_none_is_named(address):
    refused(small(), address, "is no address: give dask://HOST:PORT")


def test_without_dask_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    refused(small(), "dask://localhost:8786", re.escape('type: pip install "dgdlb_jax[cluster]".'))


def test_a_scheduler_that_is_not_there_is_named(monkeypatch, tmp_path, capsys):
    pytest.importorskip("distributed", reason="install the cluster extra")
    monkeypatch.setattr(executors, "_CONNECTING", 1)
    toml = write_toml(tmp_path / "small.toml", small())
    assert main(["sweep", str(toml), "--executor", f"dask://127.0.0.1:{free_port()}"]) == 2
    error = capsys.readouterr().err
    assert "No dask scheduler answers at dask://127.0.0.1" in error
    assert error.count("\n") == 1


def test_a_port_where_somebody_listens_and_says_nothing_is_named(monkeypatch):
    pytest.importorskip("distributed", reason="install the cluster extra")
    monkeypatch.setattr(executors, "_CONNECTING", 1)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        refused(
            small(), f"dask://127.0.0.1:{listener.getsockname()[1]}", "No dask scheduler answers at dask://127.0.0.1"
        )


class Deserted(concurrent.futures.Executor):
    """As of dask: its workers are gone whenever something was submitted, and come back, and do it, at the third look."""

    def __init__(self):
        self._client, self.looks, self.open = SimpleNamespace(nthreads=self.nthreads), 0, []

    def submit(self, fn, /, *args, **kwargs):
        future = concurrent.futures.Future()
        self.open.append((future, fn, args))
        self.looks = 0
        return future

    def nthreads(self):
        self.looks += 1
        if self.looks < 3:
            return {}
        done, self.open = self.open, []
        for future, fn, args in done:
            threading.Timer(0.01, lambda future=future, fn=fn, args=args: future.set_result(fn(*args))).start()
        return {"a": 2, "b": 2}


def test_that_no_worker_is_left_is_said_once_and_that_the_sweep_goes_on(finished, tmp_path, monkeypatch, capsys):
    """While the first worker is greeted, and while chunks are open."""
    monkeypatch.setattr(executors, "_POLL", 0.01)
    monkeypatch.setattr(executors, "_LOOK", 0.1)
    sweep(small(), tmp_path / "small.zarr", executor=Deserted(), progress=False).close()
    said = capsys.readouterr().err.splitlines()
    assert said[0].startswith(
        "dgdlb: no worker is left: 3 chunks are open and wait for one to come; Ctrl-C stops, what is finished"
    )
    assert said == [said[0], "dgdlb: goes on with 2 workers."] * 2
    assert files(tmp_path / "small.zarr") == files(finished)


def test_a_dry_run_looks_for_the_workers(tmp_path, monkeypatch, capsys):
    """Whom a run would refuse it refuses, in the same sentence; whoever is there is counted."""
    monkeypatch.chdir(tmp_path)
    toml = write_toml(tmp_path / "small.toml", small(seeds=1))
    assert main(["sweep", str(toml), "--dry-run", "--executor", "dask://here"]) == 2
    assert "is no address: give dask://HOST:PORT" in capsys.readouterr().err
    with pytest.raises(InputError, match="No worker can compute this sweep failed: ValueError: no good"):
        dry_run.estimate(read_spec(small()), Counting({1: ValueError("no good")}))
    crowd = Counting()
    crowd._client = SimpleNamespace(nthreads=lambda: {"a": 2, "b": 1})
    found = dry_run.estimate(read_spec(small(seeds=1)), crowd)
    assert found.threads == (2, 1)
    assert "\nworkers:   2 workers with 3 threads; " in dry_run.text(read_spec(small(seeds=1)), found)
    assert dry_run.estimate(read_spec(small(seeds=1))).threads is None


def test_a_scheduler_that_is_gone_is_not_taken_for_a_full_disk():
    gone = "Timed out trying to connect to tcp://127.0.0.1:8786 after 10 s"
    with (
        pytest.raises(InputError, match="does not answer any more: what is finished is kept"),
        executors._of_client("it"),
    ):
        raise OSError(gone)
    with pytest.raises(OSError, match="No space left"), executors._of_client("it"):
        raise OSError("No space left on device")


def test_a_process_makes_the_store_of_another(finished, tmp_path, monkeypatch):
    """In the precision of the one that asks, which is not its own. When it dies the pool is broken, which is said."""
    for name, value in own_process().items():
        monkeypatch.setenv(name, value)
    path, spawn = tmp_path / "small.zarr", multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=spawn) as pool:
        assert pool.submit(eval, "__import__('jax').numpy.zeros(()).dtype.name").result() == "float32"
        sweep(small(), path, executor=pool, progress=False).close()
        for process in list(pool._processes.values()):
            os.kill(process.pid, signal.SIGKILL)
        refused(small(seeds=2), pool, "has lost a worker and cannot go on")
    assert files(path) == files(finished)


def dask(*arguments) -> subprocess.Popen:
    command = [sys.executable, "-m", "distributed.cli.dask_" + arguments[0], *map(str, arguments[1:])]
    return subprocess.Popen(command, env=own_process(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def test_a_dask_cluster_of_which_a_worker_is_killed_makes_the_store_of_one_process(tmp_path):
    """It is stopped first, so that it holds chunks for certain when it is killed: without them nothing gets complete."""
    pytest.importorskip("distributed", reason="install the cluster extra")
    spec, path, address = small(seeds=4 * CHUNKS), tmp_path / "dask.zarr", f"127.0.0.1:{free_port()}"
    quiet = "--no-dashboard", "--host", "127.0.0.1"
    scheduler = dask("scheduler", *quiet, "--port", address.split(":")[1])
    workers = [
        dask("worker", address, *quiet, "--nthreads", 1, "--no-nanny", "--local-directory", tmp_path / str(k))
        for k in range(2)
    ]
    with concurrent.futures.ThreadPoolExecutor(1) as thread:
        try:
            found = thread.submit(sweep, spec, path, executor=f"dask://{address}", progress=False)

            def wait_for(chunks):
                deadline = time.monotonic() + 100
                while complete(path) < chunks and not found.done() and time.monotonic() < deadline:
                    time.sleep(0.01)

            wait_for(1)
            workers[0].send_signal(signal.SIGSTOP)
            wait_for(CHUNKS - 2)  # a worker with one thread is given two at most
            assert not found.done(), "it ended without the chunks of the worker that was stopped"
            workers[0].kill()
            found.result(timeout=100).close()
        finally:
            for each in (*workers, scheduler):
                each.kill()
                each.wait()
    sweep(spec, tmp_path / "whole.zarr", progress=False).close()
    assert files(path) == files(tmp_path / "whole.zarr")
