"""Files that appear whole or not at all."""

import pytest

from dgdlb_jax.numerics.files import disk_errors, whole_file, whole_folder, write_text, write_texts
from dgdlb_jax.numerics.results import InputError


def fail(context):
    def write_half():
        with context as draft:
            (draft / "half" if draft.is_dir() else draft).write_text("half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        write_half()


def test_a_file_is_replaced_by_a_whole_one_only(tmp_path):
    path = tmp_path / "a.txt"
    fail(whole_file(path))
    assert list(tmp_path.iterdir()) == []
    write_text(path, "old")
    fail(whole_file(path))
    assert (path.read_text(), list(tmp_path.iterdir())) == ("old", [path])
    write_text(path, "é\n")
    assert (path.read_bytes(), list(tmp_path.iterdir())) == (b"\xc3\xa9\n", [path])


def test_two_writers_of_one_file_do_not_disturb_each_other(tmp_path):
    path = tmp_path / "a.txt"
    with whole_file(path) as first:
        write_text(path, "second")
        first.write_text("first")
    assert (path.read_text(), list(tmp_path.iterdir())) == ("first", [path])


def test_of_several_files_none_appears_before_all_are_written(tmp_path):
    (tmp_path / "b.txt").mkdir()  # a folder in the place of the file that appears last
    with pytest.raises(OSError):
        write_texts(tmp_path, {"a.txt": "a", "c" * 300: "", "b.txt": "b"})
    assert [path.name for path in tmp_path.iterdir()] == ["b.txt"]
    (tmp_path / "b.txt").rmdir()
    write_texts(tmp_path, {"a.txt": "a", "b.txt": "b"})
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"a.txt": "a", "b.txt": "b"}


def test_a_folder_and_its_parents(tmp_path):
    target = tmp_path / "new" / "out"
    fail(whole_folder(target))
    assert list(tmp_path.iterdir()) == []
    for name in ("one", "two"):
        with whole_folder(target) as draft:
            (draft / name).write_text("")
    assert sorted(path.name for path in target.iterdir()) == ["one", "two"]
    assert list(target.parent.iterdir()) == [target]


def test_a_disk_that_refuses_is_one_sentence(tmp_path):
    with (
        pytest.raises(
            InputError, match=r"page cannot be written \(No such file or directory\): choose another place\.$"
        ),
        disk_errors("page"),
    ):
        write_text(tmp_path / "missing" / "page.html", "text")
