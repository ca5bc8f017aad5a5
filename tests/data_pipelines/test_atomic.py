"""Files and folders are written whole or not at all."""

import errno
import json
import os

import pytest

from data_pipelines.atomic import atomic_file, atomic_folder, write_json


@pytest.mark.parametrize("shared", [False, True])
def test_an_error_leaves_the_earlier_file_and_nothing_else(tmp_path, shared):
    path = tmp_path / "file.json"
    write_json(path, {"a": 1}, shared=shared)
    with pytest.raises(TypeError):
        write_json(path, object(), shared=shared)
    with pytest.raises(UnicodeEncodeError), atomic_file(path, shared=shared) as partial, partial.open("w") as file:
        file.write("half" * 10_000 + "\ud800")
    assert json.loads(path.read_text()) == {"a": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_what_a_killed_process_left_gives_way(tmp_path):
    (tmp_path / ".file.partial").write_text("half of something longer")
    with atomic_file(tmp_path / "file") as partial:
        partial.write_text("whole")
    (tmp_path / ".folder.partial").mkdir()
    (tmp_path / ".folder.partial" / "stray").touch()
    with atomic_folder(tmp_path / "folder") as partial:
        (partial / "file").touch()
    assert (tmp_path / "file").read_text() == "whole"
    assert sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")) == [
        "file", "folder", "folder/file",
    ]  # fmt: skip


def test_of_those_that_write_at_the_same_time_the_last_one_counts(tmp_path):
    path = tmp_path / "file"
    with atomic_file(path, shared=True) as first:
        first.write_text("fir")
        with atomic_file(path, shared=True) as second:
            second.write_text("second")
        assert path.read_text() == "second"
        first.write_text("first")
    assert path.read_text() == "first"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_is_replaced_only_where_that_is_asked_for(tmp_path):
    folder = tmp_path / "new" / "folder"
    with atomic_folder(folder) as partial:
        (partial / "old").touch()
        assert not folder.exists()
    with pytest.raises(OSError) as refused, atomic_folder(folder) as partial:
        (partial / "file").touch()
    assert refused.value.errno == errno.ENOTEMPTY
    with pytest.raises(KeyError), atomic_folder(folder, replaces=True):
        raise KeyError
    assert [path.name for path in folder.iterdir()] == ["old"]
    with atomic_folder(folder, replaces=True, shared=True) as partial:
        (partial / "file").touch()
    assert [path.name for path in folder.iterdir()] == ["file"]
    assert list(folder.parent.iterdir()) == [folder]


def test_content_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    """A machine that loses its power otherwise leaves an empty file under the name, on XFS for one."""
    path, flushed = tmp_path / "file.json", []
    monkeypatch.setattr(os, "fsync", lambda descriptor: flushed.append((os.fstat(descriptor).st_ino, path.exists())))
    write_json(path, {"a": 1})
    assert flushed == [(path.stat().st_ino, False)]
