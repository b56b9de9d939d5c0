"""Disks that are full, slow to say so, or read-only: one sentence, exit code 2, nothing half-written, and going on later."""

import errno
import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest

from dgdlb_jax.cli import common, main
from helpers import own_process
from sweeps import files, small, write_toml

pytest.importorskip("zarr", reason="install the sweep extra")
pytest.importorskip("h5netcdf", reason="install the xarray extra")

SPEC = small(axes={"seed": {"count": 8}, "load": [0.5, 0.7]})
RUN = ("two-by-two", "--policies", "uniform", "--duration", "2", "--dt", "0.05", "--output", "out", "--quiet")
COMMANDS = {
    "sweep": ["sweep", "small.toml", "--output", "new.zarr"],
    "netcdf": ["sweep", "small.toml", "--netcdf", "small.nc"],
    "plot": ["plot", "small.zarr"],
    "report": ["report", "small.zarr"],
    "run": ["run", *RUN, "--report", "--export", "csv"],
    "envoy": ["run", *RUN, "--export", "envoy"],
    "stability": ["stability", "two-by-two", "--output", "out", "--quiet"],
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    path = tmp_path_factory.mktemp("finished")
    write_toml(path / "small.toml", SPEC)
    assert main(["sweep", str(path / "small.toml"), "--output", str(path / "small.zarr"), "--quiet"]) == 0
    return path


@pytest.fixture
def here(finished, tmp_path, monkeypatch):
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


class Disk:
    """Lets `before` files below a folder be opened for writing, then says that something is wrong."""

    def __init__(self, folder: Path, before: int, error: int):
        self.folder, self.left, self.error, self.refused = folder, before, error, False

    def open(self, whole):
        def opened(file, mode="r", *arguments, **options):
            if isinstance(mode, str) and set(mode) & set("wax+"):
                self.count(file)
            return whole(file, mode, *arguments, **options)

        return opened

    def os_open(self, whole):
        def opened(path, flags, *arguments, **options):
            if flags & (os.O_WRONLY | os.O_RDWR):
                self.count(path)
            return whole(path, flags, *arguments, **options)

        return opened

    def count(self, file) -> None:
        if isinstance(file, int) or not Path(os.fsdecode(file)).absolute().is_relative_to(self.folder):
            return
        self.left -= 1
        if self.left < 0:
            self.refused = True
            raise OSError(self.error, os.strerror(self.error), str(file))


@pytest.mark.parametrize(
    "error",
    [errno.ENOSPC, *(pytest.param(code, marks=pytest.mark.full) for code in (errno.EROFS, errno.EACCES, errno.EIO))],
)
@pytest.mark.parametrize("before", [1, *(pytest.param(count, marks=pytest.mark.full) for count in (0, 2, 5))])
@pytest.mark.parametrize(
    "command",
    [pytest.param(name, marks=[pytest.mark.full] * (name == "envoy")) for name in COMMANDS if name != "stability"],
)
def test_files_that_cannot_be_opened(here, monkeypatch, capsys, command, before, error):
    """Every place that opens a file for writing, Python's own and those that go through the system's call."""
    disk, was_there = Disk(here, before, error), set(here.rglob("*"))
    with monkeypatch.context() as patch:
        patch.setattr("io.open", disk.open(open))
        patch.setattr("builtins.open", disk.open(open))
        patch.setattr("os.open", disk.os_open(os.open))
        code = main(COMMANDS[command])
    message = capsys.readouterr().err
    assert code == (2 if disk.refused else 0), message
    if disk.refused:
        assert message.count("\n") == 1, message
        assert "Traceback" not in message
    left = {path for path in set(here.rglob("*")) - was_there if path.is_file()}
    assert not [path for path in left if path.name.startswith(".") or ".part" in path.name], "half-written"
    assert main(COMMANDS[command]) == 0, "with room, the same command goes on"
    if command == "sweep":
        assert files(here / "new.zarr") == files(here / "small.zarr")


DISK = Path("/tmp") / "dgdlb-small-disk"


def on_a_small_disk(kilobytes: int, script: str) -> subprocess.CompletedProcess:
    """A shell script whose current folder is a file system of its own, seen by nobody else."""
    inside = f"mount -t tmpfs -o size={kilobytes}k none . && cd $PWD && {script}"
    words = ["unshare", "-rm", "sh", "-c", inside]
    return subprocess.run(words, env=own_process(), capture_output=True, text=True, timeout=500, cwd=DISK)


@pytest.fixture
def small_disk():
    DISK.mkdir(exist_ok=True)
    if shutil.which("unshare") is None or on_a_small_disk(100, "true").returncode != 0:
        pytest.skip("no file systems for ordinary users here")
    yield
    shutil.rmtree(DISK, ignore_errors=True)


def test_a_full_cache_is_not_worth_a_word(capsys):
    """Compiled code that cannot be kept costs time, and nothing else."""
    with common.notes():
        warnings.warn("Error writing persistent compilation cache entry for 'jit_f': OSError", stacklevel=1)
        warnings.warn("worth a word", stacklevel=1)
    assert capsys.readouterr().err == "dgdlb: note: worth a word\n"


@pytest.mark.parametrize("free", [0, 10**9])
def test_there_is_room_before_a_netcdf_file_is_written(here, monkeypatch, capsys, free):
    """A full disk ends the process within HDF5."""
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=free))
    assert main(COMMANDS["run"]) == (0 if free else 2)
    said = capsys.readouterr().err
    assert ("No space left on device" in said) == (not free), said
    assert not list(here.rglob(".*part*"))


@pytest.mark.full
@pytest.mark.parametrize("kilobytes", [40, 200, 260, 400])
def test_a_run_on_a_disk_that_fills_up(small_disk, kilobytes):
    """A real one: a sentence, and nothing left behind, or all of it."""
    done = on_a_small_disk(
        kilobytes,
        f"{sys.executable} -m dgdlb_jax run two-by-two --duration 20 --policies dgd-lb --quiet; echo code $?; ls -A",
    )
    assert done.stdout.split("code")[-1].split() in (["2"], ["0", "dgdlb-two-by-two"]), done.stdout + done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.full
@pytest.mark.parametrize("kilobytes", [40, 200, 400, 600])
def test_a_disk_that_fills_up(finished, small_disk, tmp_path, kilobytes):
    """A real one: the sweep stops with one sentence; once there is room it ends as if nothing had been, and is reported."""
    dgdlb = f"{sys.executable} -m dgdlb_jax"
    script = f"""
        {dgdlb} sweep {finished}/small.toml --output s.zarr; echo code $?
        mount -o remount,size=50m .
        {dgdlb} sweep {finished}/small.toml --output s.zarr && {dgdlb} report s.zarr && {dgdlb} plot s.zarr
        echo code $?; {dgdlb} sweep {finished}/small.toml --output {tmp_path}/whole.zarr
        diff -r -x manifest s.zarr {tmp_path}/whole.zarr; echo code $?; ls -A
    """
    done = on_a_small_disk(kilobytes, script)
    assert "Traceback" not in done.stderr
    assert done.stdout.count("code 0") >= 2, done.stdout + done.stderr
    assert ("code 2" in done.stdout) == ("dgdlb: error:" in done.stderr)
    assert done.stderr.count("\n") <= 1, done.stderr
    assert set(done.stdout.split("code 0")[-1].split()) == {"s.zarr", "s.html", "s-pictures"}


@pytest.mark.full
def test_a_finished_store_on_a_read_only_disk(finished, small_disk, tmp_path):
    dgdlb = f"{sys.executable} -m dgdlb_jax"
    script = f"""
        cp -r {finished}/small.zarr s.zarr; mount -o remount,ro .
        {dgdlb} report s.zarr --output {tmp_path}/s.html; echo code $?
        {dgdlb} plot s.zarr --output {tmp_path}/pictures; echo code $?
        {dgdlb} report s.zarr; echo code $?
    """
    done = on_a_small_disk(5000, script)
    assert [line for line in done.stdout.splitlines() if "code" in line] == ["code 0", "code 0", "code 2"], done.stderr
    assert done.stderr.count("\n") == 1
    assert (tmp_path / "s.html").exists()
