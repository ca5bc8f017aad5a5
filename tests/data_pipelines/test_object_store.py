"""Object stores: what is a URL, what is whole, what is copied to the disk and stays there."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from data_pipelines import local_copy as copies
from data_pipelines import object_store
from data_pipelines.atomic import atomic_file, atomic_folder, write_json
from data_pipelines.errors import DataError
from data_pipelines.local_copy import local_copy
from data_pipelines.object_store import URLError, is_there, make_path, put_folder, reached, whole
from data_pipelines.prepare import prepare
from data_pipelines.records import read_items, read_users
from experiments import cli
from tests.experiments.tiny_run import write_source
from tests.object_store import environment


@pytest.fixture
def place(server, request):
    """A folder of the store of this test's own."""
    server.fault, server.requests[:] = (lambda *_: None), []
    yield make_path(f"s3://bucket/{request.node.name.replace('[', '-').replace(']', '')}")
    server.fault = lambda *_: None


@pytest.fixture
def staging(tmp_path, monkeypatch):
    monkeypatch.setenv("UNIMP_STAGING", str(tmp_path / "staged"))
    monkeypatch.setattr(copies, "_used", {})
    yield tmp_path / "staged"
    for descriptor in copies._used.values():
        os.close(descriptor)


def folder_of(path: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_text(text)
    return path


FILES = {"a.txt": "first", "inside/b.txt": "second", "inside/c.txt": ""}


@pytest.mark.parametrize("text", ["data", "/data/x", "./s3:/b", "a:b", "C:/data", ".", "a b://c"])
def test_all_that_is_no_url_is_a_local_path(text):
    assert make_path(text) == Path(text)
    assert isinstance(make_path(text), Path)


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("gs:/bucket/x", "malformed URL; it must be gs://BUCKET/FOLDER, with two slashes"),
        ("s3:///x", "malformed URL; it must be s3://BUCKET/FOLDER, with two slashes"),
        ("s3://bucket/run[1]", r"s3://BUCKET/FOLDER, with two slashes and no \*, \? or \["),
        ("gs://bucket/a*/b", r"gs://BUCKET/FOLDER, with two slashes and no \*, \? or \["),
        ("gs://bucket/really?", r"gs://BUCKET/FOLDER, with two slashes and no \*, \? or \["),
        ("s4://bucket/x", "use s3://BUCKET/FOLDER or gs://BUCKET/FOLDER"),
        ("http://x/y", "use s3://BUCKET/FOLDER or gs://BUCKET/FOLDER"),
    ],
)
def test_a_url_that_is_none_is_refused(text, right):
    with pytest.raises(URLError, match=right):
        make_path(text)


def test_a_package_that_is_missing_is_named(monkeypatch):
    monkeypatch.setattr(object_store.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(URLError, match=r"^s3://b/x needs s3fs: pip install 'unimp_jax\[s3\]'$"):
        make_path("s3://b/x")


def test_a_bucket_that_is_not_there_is_named(server):
    with pytest.raises(URLError, match="s3://other cannot be reached"):
        reached(make_path("s3://other/x"))
    assert reached(make_path("s3://bucket/x")) == make_path("s3://bucket/x")


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ("--folder gs:/bucket", "unimp: gs:/bucket: malformed URL; it must be gs://BUCKET/FOLDER, with two slashes"),
        ("--folder s3://other/x", "unimp: s3://other cannot be reached"),
        ("--source-dir s3://bucket/x", "unimp: s3://bucket/x: this option needs a path on the local disk, not a URL"),
    ],
)
def test_the_command_says_it_in_one_line(server, options, line, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["unimp", "prepare", "movielens_small", *options.split()])
    monkeypatch.setattr(cli, "use_compilation_cache", lambda _: None)
    monkeypatch.setattr(cli, "use_all_cores", lambda: None)
    with pytest.raises(SystemExit, match="2"):
        cli.main()
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith(line)


def test_paths_of_a_store_are_used_as_local_ones(place):
    write_json(place / "a.json", {"x": 1})
    assert (place / "a.json").read_text() == '{\n "x": 1\n}'
    assert place.exists()
    assert not (place / "b").exists()
    assert [file.name for file in place.glob("*")] == ["a.json"]
    assert place.absolute() == place.resolve() == place
    with pytest.raises(FileNotFoundError):
        (place / "b").read_bytes()


def test_a_file_that_is_not_finished_is_not_there(place):
    with pytest.raises(UnicodeEncodeError), atomic_file(place / "file") as partial:
        partial.write_text("half" * 10_000 + "\ud800")
    assert not place.exists()


def test_a_folder_comes_back_as_it_was(place, tmp_path, staging):
    put_folder(folder_of(tmp_path / "made", FILES), place)
    copy = local_copy(place)
    assert {name: (copy / name).read_text() for name in FILES} == FILES
    assert local_copy(tmp_path) == tmp_path


def test_a_request_that_fails_once_is_repeated(server, place, tmp_path, staging):
    failures = iter([503, 500])
    server.fault = lambda method, path: next(failures, None) if method == "PUT" and path.endswith("b.txt") else None
    put_folder(folder_of(tmp_path / "made", FILES), place)
    assert (local_copy(place) / "inside/b.txt").read_text() == "second"
    assert [path for method, path in server.requests if method == "PUT"].count(f"/bucket/{place.name}/inside/b.txt") > 1


@pytest.mark.parametrize("name", ["a.txt", "inside/c.txt", "whole.json"])
def test_a_folder_with_a_file_that_cannot_be_written_is_never_whole(server, place, tmp_path, staging, name):
    """Nor is an earlier one that it was to replace, for its files are gone; written again, it is whole."""
    made = folder_of(tmp_path / "made", FILES)
    put_folder(made, place)
    marks = []

    def fault(method: str, path: str) -> int | None:
        if method != "PUT" or not path.endswith(name):
            return None
        marks.append(path)
        return None if name == "whole.json" and len(marks) == 1 else 403

    server.fault = fault
    with pytest.raises(OSError):
        put_folder(made, place)
    server.fault = lambda *_: None
    assert not is_there(place)
    with pytest.raises(DataError, match="is incomplete: its writer is running or was killed"):
        local_copy(place)
    with atomic_folder(place) as partial:
        folder_of(partial, {"d.txt": "third"})
    assert [file.name for file in local_copy(place).iterdir()] == ["d.txt"]


KILLED = """
import os, sys
from pathlib import Path
from data_pipelines.object_store import make_path, put_folder, store
place = make_path(sys.argv[2])
put_file = type(store(place))._put_file
async def killed(self, file, *rest, **options):
    if file.endswith("c.txt"):
        os.kill(os.getpid(), 9)
    await put_file(self, file, *rest, **options)
type(store(place))._put_file = killed
put_folder(Path(sys.argv[1]), place)
"""


def test_a_process_that_is_killed_between_objects_leaves_nothing_whole(server, place, tmp_path):
    made = folder_of(tmp_path / "made", FILES)
    command = [sys.executable, "-c", KILLED, str(made), str(place)]
    assert subprocess.run(command, env=environment(server), timeout=120).returncode == -9
    assert place.exists()
    assert not is_there(place)
    put_folder(made, place)
    assert whole(place)["files"] == {name: len(text) for name, text in FILES.items()}


def test_a_folder_is_removed_from_its_mark_on(server, place, tmp_path):
    put_folder(folder_of(tmp_path / "made", FILES), place)
    deletions = iter([None])
    server.fault = lambda method, path: next(deletions, 403) if method == "POST" else None
    with pytest.raises(OSError):
        place.rmtree()
    server.fault = lambda *_: None
    assert (place / "a.txt").exists()
    assert not (place / "whole.json").exists()


def test_of_two_that_write_one_folder_the_first_is_told(place, tmp_path, monkeypatch):
    made = folder_of(tmp_path / "made", FILES)
    mark = object_store.mark

    def overtaken(place: Path, told: dict) -> None:
        mark(place, told)
        mark(place, {"writer": "another"})

    monkeypatch.setattr(object_store, "mark", overtaken)
    with pytest.raises(DataError, match="is being written by another process"):
        put_folder(made, place)
    assert not is_there(place)


def test_one_that_changes_while_it_is_read_is_not_taken(place, tmp_path, staging, monkeypatch):
    put_folder(folder_of(tmp_path / "made", FILES), place)
    (place / "a.txt").write_text("longer than before")
    with pytest.raises(DataError, match="was changed while it was read"):
        local_copy(place)
    (place / "a.txt").unlink()
    with pytest.raises(DataError, match="or files are missing"):
        local_copy(place)
    assert [path.name for path in staging.iterdir() if path.is_dir()] == []


def test_processes_of_a_host_share_one_copy(server, place, tmp_path, staging):
    put_folder(folder_of(tmp_path / "made", FILES), place)
    program = "import sys; from data_pipelines.local_copy import *; from data_pipelines.object_store import make_path\n"
    program += "print(local_copy(make_path(sys.argv[1])))"
    command = [sys.executable, "-c", program, str(place)]
    server.requests.clear()
    together = [subprocess.Popen(command, env=environment(server), stdout=subprocess.PIPE, text=True) for _ in range(3)]
    said = {process.communicate(timeout=120)[0] for process in together}
    assert said == {f"{local_copy(place)}\n"}
    read = [path for method, path in server.requests if method == "GET" and path.endswith("b.txt")]
    assert len(read) == 1


def test_the_copy_that_was_not_used_for_longest_gives_way(place, tmp_path, staging, monkeypatch):
    """None that is used does, and of those that there is no room for nothing stays."""
    monkeypatch.setenv("UNIMP_STAGING_GB", "2500e-9")
    for name in "abcd":
        put_folder(folder_of(tmp_path / name, {"file": 1000 * name}), place / name)

    def copied() -> list[str]:
        return sorted(path.name[0] for path in staging.iterdir() if path.is_dir())

    local_copy(place / "a")
    copy = local_copy(place / "b")
    with pytest.raises(
        DataError,
        match=r"has no room for .*d of 1,000 bytes: copies in use take 2,000 bytes, the limit of all copies is 2,500",
    ):
        local_copy(place / "d")
    assert copied() == ["a", "b"]
    os.close(copies._used.pop(copy))
    local_copy(place / "c")
    assert copied() == ["a", "c"]
    os.close(copies._used.pop(local_copy(place / "c")))
    os.close(copies._used.pop(local_copy(place / "a")))
    for number, path in enumerate(sorted(staging.glob("[ac]-*"))):
        os.utime(path, (time.time() - number, time.time() - number))
    local_copy(place / "d")
    assert copied() == ["a", "d"]  # c was the older one


def test_a_copy_that_is_being_removed_is_none(place, tmp_path, staging, monkeypatch):
    monkeypatch.setenv("UNIMP_STAGING_GB", "1500e-9")
    for name in "ab":
        put_folder(folder_of(tmp_path / name, {"file": 1000 * name}), place / name)
    os.close(copies._used.pop(local_copy(place / "a")))
    with monkeypatch.context() as patch:
        patch.setattr(copies.shutil, "rmtree", lambda *_, **__: sys.exit("killed"))
        with pytest.raises(SystemExit):
            local_copy(place / "b")
    assert not list(staging.glob("a-*"))
    local_copy(place / "b")
    assert sorted(path.name[0] for path in staging.iterdir() if path.is_dir()) == ["b"]


def test_a_limit_that_is_no_number_is_named(place, tmp_path, staging, monkeypatch):
    monkeypatch.setenv("UNIMP_STAGING_GB", "much")
    put_folder(folder_of(tmp_path / "made", FILES), place)
    with pytest.raises(DataError, match="UNIMP_STAGING_GB is 'much'; it must be a number"):
        local_copy(place)


def test_records_of_a_store_are_those_of_a_disk(place, tmp_path, staging):
    source = write_source(tmp_path / "source", users=8, items=12)
    said = [prepare("movielens_small", folder, source, name="few") for folder in (tmp_path / "data", place)]
    assert (said[0].users, said[0].interactions) == (said[1].users, said[1].interactions)
    for read in (read_items, read_users):
        assert list(read("few", place)) == list(read("few", tmp_path / "data"))
    columns = local_copy(place / "few") / "columns"
    for file in (tmp_path / "data" / "few" / "columns").glob("*.bin"):
        np.testing.assert_array_equal(np.fromfile(file, np.uint8), np.fromfile(columns / file.name, np.uint8))


def test_what_prepare_did_not_make_is_left_alone(place, tmp_path, staging):
    (place / "few" / "mine.txt").write_text("mine")
    with pytest.raises(DataError, match="was not made by `unimp prepare`"):
        prepare("movielens_small", place, write_source(tmp_path / "source", users=4, items=12), name="few")
    assert (place / "few" / "mine.txt").read_text() == "mine"
    put_folder(folder_of(tmp_path / "export", FILES), place / "export")
    with pytest.raises(DataError, match="was not made by `unimp prepare`"):
        prepare("movielens_small", place, tmp_path / "source", name="export")
    assert len(whole(place / "export")["files"]) == len(FILES)
    with pytest.raises(DataError, match="has no prepared source 'few'; run `unimp prepare few --folder s3://bucket"):
        read_items("few", place)
    with pytest.raises(DataError, match="--beam-options needs a --folder on a disk"):
        prepare("movielens_small", place, name="other", beam_options="--runner=DirectRunner")


def test_prepared_anew_it_is_copied_anew(place, tmp_path, staging):
    for users in (4, 7):
        source = write_source(tmp_path / f"source{users}", users=users, items=12)
        prepare("movielens_small", place, source, name="few")
        assert len(read_users("few", place)) == users
        shutil.rmtree(source)


def test_a_user_without_a_home_has_a_place_too(tmp_path, monkeypatch):
    for name in ("HOME", "XDG_CACHE_HOME", "UNIMP_STAGING"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "getuid", lambda: 4_242_424)
    monkeypatch.setattr(copies.tempfile, "tempdir", str(tmp_path))
    assert copies.staging_place() == tmp_path / ".cache" / "unimp_jax" / "staged"


def test_the_cache_of_tokens_is_no_copy(place, tmp_path, staging, monkeypatch):
    """It stands beside the copies where records cannot be written, and limits itself."""
    monkeypatch.setenv("UNIMP_STAGING_GB", "1500e-9")
    (staging / "cache" / "entry").mkdir(parents=True)
    (staging / "cache" / "entry" / "file").write_text(1400 * "x")
    for name in "ab":
        put_folder(folder_of(tmp_path / name, {"file": 1000 * name}), place / name)
        os.close(copies._used.pop(local_copy(place / name)))
    assert sorted(path.name[0] for path in staging.iterdir() if path.is_dir()) == ["b", "c"]
    assert (staging / "cache" / "entry" / "file").exists()
