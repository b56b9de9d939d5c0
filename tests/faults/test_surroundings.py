"""Special files, missing homes, closed outputs, signals and threads: an answer or one sentence, always an exit code."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from dgdlb_jax.cli import common, main
from dgdlb_jax.fleets import document
from helpers import own_process

posix = pytest.mark.skipif(sys.platform == "win32", reason="pipes and devices of POSIX")


def command(*arguments, stdout=subprocess.PIPE, remove=(), **environment):
    """`dgdlb ...` as a process of its own, which has ended."""
    settings = {name: value for name, value in (own_process() | environment).items() if name not in remove}
    words = [sys.executable, "-m", "dgdlb_jax", *map(str, arguments)]
    return subprocess.run(words, env=settings, stdout=stdout, stderr=subprocess.PIPE, text=True, timeout=120)


@posix
@pytest.mark.parametrize("kind", ["pipe", "device", "folder", "loop", "large", "missing", "binary"])
@pytest.mark.parametrize("option", ["fleet", "current", "spec", "store", "table"])
def test_special_files_are_one_sentence(tmp_path, capsys, kind, option):
    path = tmp_path / ("x.csv" if option in ("current", "table") else "x.toml")
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "folder":
        path.mkdir()
    elif kind == "loop":
        path.symlink_to(path)
    elif kind == "large":
        path.touch()
        os.truncate(path, document.LARGEST_FILE + 1)  # with nothing in it, so that it takes no room
    elif kind == "binary":
        path.write_bytes(b"\xff\xfe\x00" * 9)
    arguments = {
        "fleet": ["run", str(path), "--no-files"],
        "current": ["run", "two-by-two", "--no-files", "--current", str(path)],
        "spec": ["sweep", str(path)],
        "store": ["report", str(path)],
    }
    if option == "table":
        fleet = tmp_path / "fleet.toml"
        fleet.write_text(
            '[frontends]\nnames=["a"]\nrate=[1.0]\n[backends]\nnames=["b"]\ncurve="c"\n[curves.c]\nkind="measured"\ntable="x.csv"\n[latency]\none_way_s=[[0.1]]\n'
        )
        arguments["table"] = ["run", str(fleet), "--no-files"]
    assert main(arguments[option]) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert path.name in message


@posix
def test_a_full_standard_output_is_one_sentence():
    with open("/dev/full", "w") as full:
        done = command("fleets", stdout=full)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "No space left" in done.stderr


@posix
@pytest.mark.parametrize("closed", [">&- 2>&-", pytest.param("| true", marks=pytest.mark.full)])
def test_a_closed_standard_output_is_no_traceback(closed):
    words = f"{sys.executable} -m dgdlb_jax fleets {closed}"
    done = subprocess.run(words, shell=True, env=own_process(), capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr + done.stdout


@posix
def test_no_home_and_no_entry_in_passwd(tmp_path):
    """As in a container that runs under a number nobody knows."""
    arguments = (
        "run",
        "two-by-two",
        "--no-files",
        "--quiet",
        "--policies",
        "uniform",
        "--duration",
        "2",
        "--dt",
        "0.05",
    )
    lost = "import os, sys, pwd; pwd.getpwuid = lambda uid: {}[uid]; from dgdlb_jax.cli import main; sys.exit(main(sys.argv[1:]))"
    settings = {
        name: value for name, value in own_process().items() if name not in ("HOME", "JAX_COMPILATION_CACHE_DIR")
    }
    words = [sys.executable, "-c", lost, *arguments]
    settings["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"  # nothing is cached, so everything is compiled
    done = subprocess.run(words, env=settings, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""


def test_a_cache_that_cannot_be_written_costs_only_time(tmp_path, monkeypatch):
    """Neither a folder that cannot be made, nor one without permission, nor no home at all."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert common._cache_folder() == tmp_path / "dgdlb_jax"
    with monkeypatch.context() as patch:
        patch.setattr(os, "access", lambda *_: False)
        assert common._cache_folder() is None
    (tmp_path / "dgdlb_jax").rmdir()
    (tmp_path / "dgdlb_jax").write_text("a file where the folder should be")
    assert common._cache_folder() is None
    for name in ("XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name)
    monkeypatch.setattr("pathlib.Path.home", no_home)
    assert common._cache_folder() is None


def no_home():
    raise RuntimeError("Could not determine home directory.")


@pytest.mark.parametrize("surroundings", [{"TERM": "dumb"}, {"COLUMNS": "20"}, {"TERM": "", "COLUMNS": "1"}])
def test_poor_terminals(surroundings, monkeypatch, capsys):
    for name, value in surroundings.items():
        monkeypatch.setenv(name, value)
    assert main(["fleets"]) == 0
    assert main(["run", "no-such-fleet", "--no-files"]) == 2
    with pytest.raises(SystemExit, match="0"):
        main(["run", "--help"])
    assert "--no-files" in capsys.readouterr().out


def interrupted(delay: float) -> tuple[int, str]:
    words = [sys.executable, "-m", "dgdlb_jax", "run", "two-by-two", "--no-files"]
    process = subprocess.Popen(words, env=own_process(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    time.sleep(delay)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    return process.returncode, error


@posix
@pytest.mark.parametrize("count", [3, pytest.param(60, marks=pytest.mark.full)])
def test_an_interrupt_during_imports_is_quiet(rng, count):
    """From when the interpreter itself has started (before that, it is Python's to answer)."""
    for delay in rng.uniform(0.3, 2.0, count):
        code, error = interrupted(delay)
        assert (code, "Traceback" in error) == (130, False), error


@posix
def test_an_interrupt_waits_where_an_exception_does_harm():
    """jaxlib's modules call Python while they are imported, and abort the process (SIGABRT) when that raises; what is raised in the hook
    that reports exceptions of finalisers is shown with a traceback."""
    code = """
import os, signal, time
from dgdlb_jax.cli import Interrupts

class ExtensionFileLoader:
    def exec_module(self):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.1)
        print("imported")

with Interrupts():
    try:
        ExtensionFileLoader().exec_module()
        time.sleep(20)
    except KeyboardInterrupt:
        print("then")

class Finalised:
    def __del__(self):
        raise ValueError

def report(dropped):
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(0.1)
    print("reported")

with Interrupts() as heard:
    heard._report = report
    try:
        Finalised()
        time.sleep(20)
    except KeyboardInterrupt:
        print("then")
"""
    done = subprocess.run([sys.executable, "-c", code], env=own_process(), capture_output=True, text=True)
    assert (done.stdout.split(), done.stderr) == (["imported", "then", "reported", "then"], "")


@posix
def test_an_interrupt_that_python_drops_comes_again_quietly():
    """One that arrives while an object is finalised is dropped, with a traceback, unless somebody sees to it."""
    code = """
import os, signal, time
from dgdlb_jax.cli import Interrupts

class Finalised:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.1)

with Interrupts() as heard:
    item = Finalised()
    del item
    print(heard.any)
    try:
        time.sleep(20)
    except KeyboardInterrupt:
        print("again")
"""
    done = subprocess.run([sys.executable, "-c", code], env=own_process(), capture_output=True, text=True)
    assert (done.stdout.split(), done.stderr) == (["True", "again"], "")


def test_the_command_line_in_a_thread_of_somebody_else(capsys):
    found = []
    thread = threading.Thread(target=lambda: found.append(main(["fleets"])))
    thread.start()
    thread.join()
    assert found == [0]
    assert "two-by-two" in capsys.readouterr().out
