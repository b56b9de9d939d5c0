"""The store of a sweep: nothing is lost, nothing is doubled, whatever happens. (Damage: `faults/test_damage.py`.)"""

import errno
import json
import os
import signal
import threading
import time

import numpy as np
import pytest

from dgdlb_jax.numerics import device
from dgdlb_jax.numerics.results import InputError
from dgdlb_jax.studies.sweep import batches, read_spec, run, sweep
from dgdlb_jax.studies.sweep.batches import OutOfMemory
from dgdlb_jax.studies.sweep.store import Store
from sweeps import complete, files, small, start, write_toml

pytest.importorskip("zarr", reason="install the sweep extra")
xarray = pytest.importorskip("xarray", reason="install the sweep extra")
pytestmark = pytest.mark.usefixtures("quick_compilation")


@pytest.fixture(scope="module")
def finished(tmp_path_factory, quick_compilation):
    """A store that was never interrupted."""
    path = tmp_path_factory.mktemp("finished") / "small.zarr"
    sweep(small(), path, progress=False).close()
    return path


def test_xarray_opens_a_store_lazily_with_everything_inside(finished):
    with xarray.open_zarr(finished, chunks=None) as dataset:
        assert dict(dataset.sizes) == {"seed": 12, "step_size_over_default": 2}
        assert dataset["excess"].attrs == {"units": "1", "long_name": "mean latency over that of the optimum, minus 1"}
        assert not dataset["excess"].variable._in_memory
        assert dataset["excess"].sel(step_size_over_default=6.0).shape == (12,)
        assert str(dataset["family"].values) == "complete"
        assert not np.isnan(dataset["optimum_latency"]).any()
        assert json.loads(dataset.attrs["specification"]) == read_spec(small()).document()
        assert dataset.attrs["precision"] == "float64"
    entry = json.loads((finished / "manifest" / "chunk-0000000.json").read_text())
    assert {"jax", "dgdlb_jax"} <= entry["versions"].keys()


class Stop(Exception):
    pass


def test_a_sweep_that_stops_goes_on_and_ends_the_same(finished, tmp_path):
    path = tmp_path / "small.zarr"

    def stop(moment):
        if moment.chunks:
            raise Stop

    with pytest.raises(Stop):
        sweep(small(), path, progress=stop)
    assert complete(path) == 1
    with xarray.open_zarr(path, chunks=None) as dataset:  # what is there can be looked at
        assert np.isnan(dataset["optimum_latency"]).sum() == 16
    before = (path / "manifest" / "chunk-0000000.json").read_text()
    sweep(small(), path, progress=False).close()
    assert (path / "manifest" / "chunk-0000000.json").read_text() == before, "a complete chunk was computed again"
    assert files(path) == files(finished)


def kill_until_done(tmp_path, kills, rng, spec):
    """Kill the command at random moments, then let it finish. **Returns:** the store, and how often it was hit halfway."""
    toml, path = write_toml(tmp_path / "spec.toml", spec), tmp_path / "killed.zarr"
    halfway = 0
    for _ in range(kills):
        process = start("sweep", toml, "--output", path)
        before = complete(path)
        deadline = time.monotonic() + 120
        while process.poll() is None and complete(path) <= before and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.3))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        halfway += process.returncode == -signal.SIGKILL
    process = start("sweep", toml, "--output", path)
    _, error = process.communicate(timeout=300)
    assert process.returncode == 0, error
    return path, halfway


def test_killed_it_ends_the_same(tmp_path, rng):
    spec = small(seeds=120)  # 30 chunks: more than a run of a fraction of a second can finish
    path, halfway = kill_until_done(tmp_path, 1, rng, spec)
    assert halfway == 1
    assert not list(path.rglob("*.part*"))
    sweep(spec, tmp_path / "whole.zarr", progress=False).close()
    assert files(path) == files(tmp_path / "whole.zarr")


@pytest.mark.full
def test_killed_thirty_times_it_ends_the_same(tmp_path, rng):
    spec = small(seeds=2000, run={"chunk": 8, "batch": 8, "max_steps": 30_000})
    path, halfway = kill_until_done(tmp_path, 30, rng, spec)
    assert halfway == 30
    sweep(spec, tmp_path / "whole.zarr", progress=False).close()
    assert files(path) == files(tmp_path / "whole.zarr")


def test_ctrl_c_finishes_the_chunk_in_flight_and_says_how_to_go_on(tmp_path, finished):
    toml, path = write_toml(tmp_path / "spec.toml", small(seeds=200)), tmp_path / "stopped.zarr"
    process = start("sweep", toml, "--output", path)
    deadline = time.monotonic() + 120
    while complete(path) < 1 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130
    assert f"dgdlb sweep {toml} --output {path}" in error
    assert 1 <= complete(path) < 50
    assert not list(path.rglob("*.part*"))


def test_ctrl_c_leaves_the_chunk_in_flight_some_seconds_and_sigterm_all_it_needs(monkeypatch):
    monkeypatch.setattr(run, "_GRACE", 0.1)
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert 0.1 <= time.monotonic() - began < 10
    for number in (signal.SIGTERM, signal.SIGINT):
        with run._patience() as stop:
            signal.raise_signal(number)
            time.sleep(0.3 if number == signal.SIGTERM else 0)
            assert stop.is_set()
    time.sleep(0.3)  # nothing comes after the end


def interrupted():
    """What a chunk of 20 s is, to Ctrl-C."""
    with run._patience():
        signal.raise_signal(signal.SIGINT)
        for _ in range(1000):
            time.sleep(0.02)


def test_a_store_of_another_specification_is_named(finished):
    with pytest.raises(InputError, match=r"belongs to another specification \(fixed: load None there, 0.5 here\)"):
        sweep(small(fixed=small()["fixed"] | {"load": 0.5}), finished, progress=False)


@pytest.mark.parametrize("content", [None, "", "{}", '{"attributes": {}}', "[1]"])
def test_a_folder_that_is_no_store_is_named(tmp_path, content):
    folder = tmp_path / "other"
    folder.mkdir()
    if content is not None:
        (folder / "zarr.json").write_text(content)
    before = list(folder.iterdir())
    with pytest.raises(InputError, match="is no store of a sweep"):
        sweep(small(), folder, progress=False)
    assert list(folder.iterdir()) == before


def test_a_full_disk_is_one_sentence_and_the_store_goes_on(finished, tmp_path, monkeypatch):
    path = tmp_path / "small.zarr"
    zarr = pytest.importorskip("zarr")
    whole, calls = zarr.Array.__setitem__, []

    def full(self, *arguments):
        calls.append(1)
        if len(calls) == 9:  # in the middle of the second chunk
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        whole(self, *arguments)

    sweep(small(), tmp_path / "frame.zarr", progress=False).close()  # the frame itself is written without any trouble
    with monkeypatch.context() as patch:
        patch.setattr(Store, "create", classmethod(lambda cls, *arguments: _created(cls, arguments, patch, full)))
        with pytest.raises(InputError, match=r"the disk is full.*make room.*goes on from here"):
            sweep(small(), path, progress=False)
    assert complete(path) == 1
    sweep(small(), path, progress=False).close()
    assert files(path) == files(finished)


_create = Store.create.__func__


def _created(cls, arguments, patch, full):
    store = _create(cls, *arguments)
    patch.setattr(pytest.importorskip("zarr").Array, "__setitem__", full)
    return store


def test_a_second_sweep_on_the_same_store_is_refused(finished):
    store = Store(finished, read_spec(small()), run._facts(read_spec(small())))
    with store.lock(0):
        process = start("sweep", write_toml(finished.parent / "spec.toml", small()), "--output", finished)
        _, error = process.communicate(timeout=120)
        assert process.returncode == 2
        assert f"another sweep (process {os.getpid()} on " in error
        with pytest.raises(InputError, match="another sweep"), store.lock(0):
            pass
    with store.lock(0):  # free again
        pass


def test_what_a_killed_process_left_is_removed_but_not_what_another_one_writes(finished, tmp_path):
    path = tmp_path / "small.zarr"
    store = Store.create(path, read_spec(small()), run._facts(read_spec(small())))
    old, new = path / "manifest" / "chunk-0000002.json.1.part", path / "excess" / "c" / "0" / "0.abc.partial"
    new.parent.mkdir(parents=True)
    for file in (old, new):
        file.touch()
    os.utime(old, (0, 0))
    store.tidy(60)
    assert (old.exists(), new.exists()) == (False, True)
    sweep(small(), path, progress=False).close()
    assert files(path) == files(finished)


def test_a_read_only_folder_is_named_and_left_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(run.os, "access", lambda *_: False)  # root may write anywhere
    with pytest.raises(InputError, match="no permission to write"):
        sweep(small(), tmp_path / "new" / "small.zarr", progress=False)
    assert not list(tmp_path.iterdir())


def test_running_out_of_memory_takes_smaller_batches_and_says_so(finished, tmp_path, monkeypatch):
    whole = batches.run_batch

    def run_batch(batch, measures):
        if batch.width > 4:
            raise OutOfMemory
        return whole(batch, measures)

    monkeypatch.setattr(batches, "run_batch", run_batch)
    path = tmp_path / "small.zarr"
    with sweep(small(), path, progress=False) as found, xarray.open_zarr(finished, chunks=None) as expected:
        for name in expected.data_vars:
            np.testing.assert_allclose(found[name], expected[name], rtol=1e-9, atol=1e-12, err_msg=name)
    entry = json.loads((path / "manifest" / "chunk-0000000.json").read_text())
    assert entry["smaller_for_lack_of_memory"]
    assert entry["cases_side_by_side"] == 4


def test_what_says_that_memory_is_out():
    for error in (MemoryError(), RuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate")):
        with pytest.raises(OutOfMemory), batches._memory_errors():
            raise error
    with pytest.raises(RuntimeError, match="something else"), batches._memory_errors():
        raise RuntimeError("something else")


def test_more_memory_than_the_device_has_is_refused_before_anything_is_written(tmp_path):
    with device.assumed(memory=1e4), pytest.raises(InputError, match=r"needs about .* GB, the device has"):
        sweep(small(), tmp_path / "small.zarr", progress=False)
    assert not list(tmp_path.iterdir())


def test_chunks_of_a_dead_process_are_taken_over(finished, tmp_path):
    """Process 1 of 2 alone: process 0 never comes, so all chunks fall to it."""
    path = tmp_path / "small.zarr"
    sweep(small(), path, progress=False, process=1, processes=2).close()
    assert files(path) == files(finished)


def test_two_processes_share_one_store(finished, tmp_path):
    """Two threads, which the locks treat like processes; every chunk is computed once."""
    path, written = tmp_path / "small.zarr", []
    done = threading.Thread(
        target=lambda: sweep(
            small(), path, progress=lambda moment: written.append(moment), process=1, processes=2
        ).close()
    )
    done.start()
    sweep(small(), path, progress=False, process=0, processes=2).close()
    done.join()
    assert complete(path) == 3
    assert files(path).keys() == files(finished).keys()
