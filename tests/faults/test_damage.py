"""Damage to a store is never silent: whatever reads it names what is damaged, and a repair makes every file what it was."""

import json
import os
import shutil
from pathlib import Path

import pytest

from dgdlb_jax import open_sweep
from dgdlb_jax.cli import main
from dgdlb_jax.numerics.results import InputError
from dgdlb_jax.studies.sweep import manifest, sweep
from sweeps import files, small, write_toml

pytest.importorskip("zarr", reason="install the sweep extra")

SPEC = small(axes={"seed": {"count": 8}, "load": [0.5, 0.7]})
CHUNK, ENTRY = "swing/c/1/0", "manifest/chunk-0000001.json"


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(bytes(content))


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-3])


def grow(file: Path) -> None:
    file.write_bytes(file.read_bytes() * 2)


def empty(file: Path) -> None:
    file.write_bytes(b"")


def folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


def pipe(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


def endless(file: Path) -> None:
    file.unlink()
    file.symlink_to("/dev/zero")


def dangling(file: Path) -> None:
    file.unlink()
    file.symlink_to(file.parent / "no-such-file")


def loop(file: Path) -> None:
    file.unlink()
    file.symlink_to(file)


def changed(**values):
    """A JSON file in which somebody has edited a value."""

    def change(file: Path) -> None:
        file.write_text(json.dumps(json.loads(file.read_text()) | values))

    return change


def deep(file: Path) -> None:
    file.write_text("[" * 100_000)


def binary(file: Path) -> None:
    file.write_bytes(b"\xff\xfe\x00" * 50)


def copied(source: str):
    """The content of another file of the store."""
    return lambda file: shutil.copy(file.parent / source, file)


def file_instead(file: Path) -> None:
    shutil.rmtree(file)
    file.write_text("not a folder")


DAMAGE = [
    (CHUNK, flip),
    (CHUNK, cut),
    (CHUNK, grow),
    (CHUNK, empty),
    (CHUNK, Path.unlink),
    (CHUNK, folder),
    (CHUNK, pipe),
    (CHUNK, endless),
    (CHUNK, dangling),
    (CHUNK, loop),
    (CHUNK, copied("../0/0")),
    ("swing/c/1", file_instead),
    ("swing", shutil.rmtree),
    ("load/c/0", Path.unlink),
    ("load/c/0", flip),
    ("load", shutil.rmtree),
    ("load/zarr.json", Path.unlink),
    ("load/zarr.json", changed(shape=[3])),
    ("seed/c/0", empty),
    ("excess/zarr.json", changed(shape=[8, 1])),
    ("excess/zarr.json", changed(fill_value=0.0)),
    ("excess/zarr.json", folder),
    ("zarr.json", Path.unlink),
    ("zarr.json", cut),
    ("zarr.json", changed(attributes={})),
    ("zarr.json", deep),
    ("manifest/frame.json", Path.unlink),
    ("manifest/frame.json", binary),
    ("manifest/frame.json", changed(chunks=1)),
    ("manifest", shutil.rmtree),
    ("manifest", file_instead),
    (ENTRY, cut),
    (ENTRY, binary),
    (ENTRY, folder),
    (ENTRY, changed(files={})),
    (ENTRY, changed(seconds="many")),
    (ENTRY, copied("chunk-0000000.json")),
]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    path = tmp_path_factory.mktemp("finished")
    sweep(SPEC, path / "small.zarr", progress=False).close()
    write_toml(path / "small.toml", SPEC)
    return path


@pytest.fixture
def store(finished, tmp_path, monkeypatch):
    """A copy of a finished store, in the current folder beside its specification."""
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "small.zarr"


def refusal(capsys, *arguments: str) -> str:
    """The one sentence with which a command refuses."""
    assert main(arguments) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1, message
    return message


@pytest.mark.parametrize(("place", "damage"), DAMAGE, ids=lambda one: getattr(one, "__name__", None) or str(one))
def test_damage_is_named_by_all_that_read_and_repaired_on_request(finished, store, capsys, place, damage):
    damage(store / place)
    named = "manifest/frame.json" if place == "manifest" else place
    for command in ("plot", "report"):
        message = refusal(capsys, command, "small.zarr")
        assert named in message, message
        assert "--recompute-corrupt" in message
    with pytest.raises(InputError, match=named):
        open_sweep(store)
    message = refusal(capsys, "sweep", "small.toml")
    assert named in message or (place == "manifest" and "manifest/lock" in message), message
    assert "--recompute-corrupt" in message
    assert not (store.parent / "small-pictures").exists()
    assert main(["sweep", "small.toml", "--recompute-corrupt"]) == 0
    assert files(store) == files(finished / "small.zarr")
    assert not list(manifest.find_damage(store))
    open_sweep(store).close()


def test_the_message_says_which_values_are_damaged(store, capsys):
    (store / "load" / "c" / "0").unlink()
    assert "load/c/0 (the values of load) is missing" in refusal(capsys, "plot", "small.zarr")
    assert main(["sweep", "small.toml", "--recompute-corrupt"]) == 0
    flip(store / CHUNK)
    assert "swing/c/1/0 (chunk 1) is not what was written" in refusal(capsys, "report", "small.zarr")


def test_repair_computes_only_what_is_damaged(store):
    kept = (store / "manifest" / "chunk-0000000.json").read_text()
    flip(store / "load" / "c" / "0")
    flip(store / CHUNK)
    sweep(SPEC, store, progress=False, recompute_corrupt=True).close()
    assert (store / "manifest" / "chunk-0000000.json").read_text() == kept


@pytest.mark.parametrize(
    "name", ["chunk-0000001 (copy).json", "chunk-1.json", "chunk-0000001.json~", ".DS_Store", "notes.txt"]
)
def test_other_files_in_a_store_are_nobodys_business(store, capsys, name):
    shutil.copy(store / ENTRY, store / "manifest" / name)
    assert main(["sweep", "small.toml"]) == 0
    open_sweep(store).close()


def test_a_stray_entry_stands_for_nothing(finished, store, capsys):
    shutil.copy(store / ENTRY, store / "manifest" / "chunk-0000099.json")
    assert "chunk-0000099.json (chunk 99) stands for another chunk" in refusal(capsys, "plot", "small.zarr")
    assert main(["sweep", "small.toml", "--recompute-corrupt"]) == 0
    assert files(store) == files(finished / "small.zarr")
    assert not (store / "manifest" / "chunk-0000099.json").exists()


def test_a_lost_entry_leaves_its_values_out(finished, store):
    """They may be half-written, and nothing vouches for them; the next sweep computes them again."""
    (store / ENTRY).unlink()
    flip(store / CHUNK)
    with pytest.warns(UserWarning, match="1 of 2 chunks are not complete"):
        found = open_sweep(store)
    assert found["swing"].isnull().sum() == 8
    assert found["swing"].isnull()[4:].all()
    assert found["result"].isnull()[4:].all()
    sweep(SPEC, store, progress=False).close()
    assert files(store) == files(finished / "small.zarr")


@pytest.mark.parametrize("damage", [folder, pipe, binary, Path.unlink], ids=lambda one: one.__name__)
def test_a_damaged_lock(finished, store, capsys, damage):
    damage(store / "manifest" / "lock")
    if damage in (folder, pipe):
        assert "manifest/lock" in refusal(capsys, "sweep", "small.toml")
    assert main(["sweep", "small.toml", "--recompute-corrupt"]) == 0
    assert files(store) == files(finished / "small.zarr")


def test_a_folder_of_somebody_elses_files_is_left_alone(store, capsys):
    folder(store / CHUNK)
    (store / CHUNK / "thesis.txt").write_text("years of work")
    message = refusal(capsys, "sweep", "small.toml", "--recompute-corrupt")
    assert "move it away" in message
    assert (store / CHUNK / "thesis.txt").read_text() == "years of work"


def test_a_store_that_nothing_identifies(store, capsys):
    for name in ("zarr.json", "manifest/frame.json"):
        flip(store / name)
    cut(store / "zarr.json")
    for command in (["plot", "small.zarr"], ["sweep", "small.toml"], ["sweep", "small.toml", "--recompute-corrupt"]):
        assert "nothing says what the store was made from" in refusal(capsys, *command)
