"""What `prepare` replaces, what it never touches, whatever it is interrupted by, and whom it blames."""

import contextlib
import errno
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from data_pipelines import folder_replacement
from data_pipelines.errors import DataError
from data_pipelines.folder_replacement import LOCK, replace_folder, temporary_folder
from data_pipelines.prepare import prepare
from data_pipelines.records import read_items, read_users
from data_pipelines.schema import Item
from data_pipelines.sources import staging
from data_pipelines.sources.selection import SourceSelection
from data_pipelines.sources.source import Source
from tests.data_pipelines.amazon_files import product_2023, review_2023, write
from tests.data_pipelines.movielens_files import movielens_folder, user_line

NAME = "movielens_small"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return movielens_folder(tmp_path / "source")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return tmp_path / "data"


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def names(folder: Path) -> list[str]:
    """What is in a folder; TFDS makes `downloads`, whatever it downloads."""
    return sorted(path.name for path in folder.iterdir() if path.name != "downloads")


def refused(message: str, *args: Any, **kwargs: Any) -> None:
    with pytest.raises(DataError, match=message) as told:
        prepare(NAME, *args, **kwargs)
    assert len(str(told.value).splitlines()) == 1


# --- what is not touched ---------------------------------------------------------------------------------------------


def test_what_others_put_beside_the_records_survives(source: Path, data: Path) -> None:
    for name in (f"{NAME}.old", f"{NAME}.partial", ".cache.partial", f".{NAME}.abc.partial"):
        (data / name).mkdir(parents=True)
        (data / name / "backup.txt").write_text("x")
    before = contents(data)
    prepare(NAME, data, source)
    prepare(NAME, data, source)
    (source / "movielens-small" / "users.jsonl").write_text("{")
    refused("users.jsonl", data, source)
    assert {name: data for name, data in contents(data).items() if not name.startswith(f"{NAME}/")} == before
    assert len(read_items(NAME, data)) == 6


def test_a_folder_that_it_did_not_make_is_refused(source: Path, data: Path) -> None:
    (data / "notes").mkdir(parents=True)
    (data / "empty").mkdir()
    (data / "notes" / "thesis.txt").write_text("x")
    refused(
        r"notes was not made by `unimp prepare` \(it contains thesis.txt, and there is no prepared.json\)",
        data,
        source,
        name="notes",
    )
    refused(r"empty was not made by .* \(it is empty.*another --name", data, source, name="empty")
    assert contents(data) == {"notes/thesis.txt": b"x"}
    assert names(data) == ["empty", "notes"]


def test_a_folder_of_records_with_something_of_others_is_refused(source: Path, data: Path) -> None:
    prepare(NAME, data, source)
    (data / NAME / ".DS_Store").write_text("x")
    prepare(NAME, data, source)
    (data / NAME / "ids.parquet").write_text("x")
    before = contents(data)
    refused(r"also contains ids.parquet, which `unimp prepare` did not make", data, source)
    assert contents(data) == before


def test_a_file_or_a_link_in_the_place_is_refused(source: Path, data: Path, tmp_path: Path) -> None:
    prepare(NAME, tmp_path / "elsewhere", source)
    data.mkdir()
    (data / "file").write_text("x")
    (data / "link").symlink_to(tmp_path / "elsewhere" / NAME)
    (data / "nowhere").symlink_to(tmp_path / "nothing")
    for name, what in (("file", "not a folder"), ("link", "a link"), ("nowhere", "a link")):
        refused(f"{name} is {what}", data, source, name=name)
    assert len(read_items(NAME, tmp_path / "elsewhere")) == 6
    assert (data / "file").read_text() == "x"
    assert (data / "link").is_symlink()


def test_a_source_is_not_replaced_by_its_records(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (source / "prepared.json").write_text("{}")
    (source.parent / "prepared.json").write_text("{}")
    before = contents(source)
    refused("contains the source's own files", source.parent, source, name="source")
    monkeypatch.chdir(source)
    refused("contains the source's own files", Path(".."), Path(), name="source")
    refused("movielens-small was not made by", Path(), Path(), name="movielens-small")
    monkeypatch.chdir(source.parent)
    refused("contains the source's own files", Path(), source / ".." / "source", name="source")
    assert contents(source) == before
    prepare(NAME, source, source)
    assert {name: data for name, data in contents(source).items() if not name.startswith(f"{NAME}/")} == before


def no_room(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_where_nothing_can_be_written_it_is_one_line(
    source: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("x")
    refused("file: records could not be written", tmp_path / "file", source)
    refused("no/run: records could not be written", Path("/proc/no/run"), source)
    refused("File name too long", data, source, name="x" * 300)
    prepare(NAME, data, source)
    for function in ("tempfile.mkdtemp", "polars.DataFrame.write_parquet", "pathlib.Path.write_text"):
        with monkeypatch.context() as context:
            context.setattr(function, no_room)
            refused(
                rf"^{data}: records could not be written \(No space left on device\); nothing was saved$", data, source
            )
        assert len(read_items(NAME, data)) == 6
        assert names(data) == [NAME]


# --- the old or the new ----------------------------------------------------------------------------------------------


def folders(tmp_path: Path) -> Path:
    """The place of an old folder."""
    place = tmp_path / "place"
    place.mkdir()
    (place / "is").write_text("old")
    return place


def new_beside(place: Path) -> Iterator[Path]:
    with temporary_folder(place) as work:
        (work / "made").mkdir()
        (work / "made" / "is").write_text("new")
        yield work / "made"


@pytest.mark.parametrize("exchanges", [True, False])
def test_the_new_takes_the_place_of_the_old(tmp_path: Path, exchanges: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    place = folders(tmp_path)
    if not exchanges:
        monkeypatch.setattr(folder_replacement, "_exchange", lambda *_: False)
    for new in new_beside(place):
        replace_folder(new, place)
        assert (place / "is").read_text() == "new"
    assert contents(tmp_path) == {"place/is": b"new"}
    assert list(tmp_path.iterdir()) == [place]


@pytest.mark.parametrize("fails", [0, 1, 2])
def test_a_failure_while_folders_change_places_leaves_the_old(
    tmp_path: Path, fails: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, rename, calls = folders(tmp_path), os.rename, []

    def failing(*names: Any) -> None:
        calls.append(names)
        if len(calls) == fails + 1:
            raise OSError(errno.EIO, "Input/output error")
        rename(*names)

    monkeypatch.setattr(folder_replacement, "_exchange", lambda *_: False)
    monkeypatch.setattr(os, "rename", failing)
    told = pytest.raises(OSError, match="Input/output") if fails < 2 else contextlib.nullcontext()
    with told, temporary_folder(place) as work:
        (work / "is").write_text("new")
        replace_folder(work, place)
    assert contents(tmp_path) == {"place/is": b"new" if fails == 2 else b"old"}


KILLED = """
import os, signal, sys
from pathlib import Path
from data_pipelines import folder_replacement
place, at, exchanges = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3] == "True"
calls = 0
def before(function):
    def called(*args, **kwargs):
        global calls
        calls += 1
        if calls == at:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args, **kwargs)
    return called
real = folder_replacement._exchange
folder_replacement._exchange = before(real if exchanges else lambda *_: False)
os.rename, os.rmdir, os.unlink = before(os.rename), before(os.rmdir), before(os.unlink)
with folder_replacement.temporary_folder(place) as work:
    before(lambda: None)()
    (work / "made").mkdir()
    (work / "made" / "is").write_text("new")
    folder_replacement.replace_folder(work / "made", place)
print(calls)
"""


@pytest.mark.parametrize("exchanges", [True, False])
def test_killed_at_any_moment_there_is_the_old_or_the_new(tmp_path: Path, exchanges: bool) -> None:
    for at in range(1, 20):
        folder = tmp_path / str(at)
        folder.mkdir()
        place = folders(folder)
        done = subprocess.run(
            [sys.executable, "-c", KILLED, str(place), str(at), str(exchanges)],
            cwd=Path(__file__).parents[2],
            capture_output=True,
            text=True,
        )
        if exchanges:
            assert (place / "is").read_text() in ("old", "new")
        for new in new_beside(place):  # as the next prepare does
            assert (place / "is").read_text() in ("old", "new")
            del new
        assert [left for left in folder.iterdir() if os.listdir(left)] == [place]  # one that is empty tells of nobody
        assert list(place.iterdir()) == [place / "is"]
        if done.returncode == 0:
            assert (place / "is").read_text() == "new"
            break
        assert done.returncode == -signal.SIGKILL, done.stderr
    assert at >= 4


PREPARE = """
import sys
from pathlib import Path
from data_pipelines.prepare import prepare
print(prepare("movielens_small", Path(sys.argv[1]), Path(sys.argv[2])).users)
"""


def test_a_prepare_that_is_killed_keeps_the_old_and_the_next_one_cleans_up(data: Path, tmp_path: Path) -> None:
    source, large = movielens_folder(tmp_path / "source"), movielens_folder(tmp_path / "large", num_users=30_000)
    prepare(NAME, data, source)
    running = subprocess.Popen([sys.executable, "-c", PREPARE, str(data), str(large)], cwd=Path(__file__).parents[2])
    deadline = time.monotonic() + 120
    while not list(data.glob(f".{NAME}.*.partial/new/{NAME}/users/*")):
        assert running.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.002)
    refused(f"{NAME} is being prepared by another process", data, source)
    assert len(read_users(NAME, data)) == 3
    running.send_signal(signal.SIGKILL)
    running.wait()
    assert len(read_users(NAME, data)) == 3
    assert len(names(data)) == 2
    (source / "movielens-small" / "users.jsonl").write_text(user_line(9, [1, 2, 3]))
    prepare(NAME, data, source, name="another")
    assert len(names(data)) == 3
    assert prepare(NAME, data, source).users == 1
    assert names(data) == ["another", NAME]


def test_a_folder_that_only_looks_left_behind_is_not_cleaned_up(tmp_path: Path) -> None:
    place = folders(tmp_path)
    for number, said in enumerate(["other", "place of", ""]):
        left = tmp_path / f".place.{number}.partial"
        left.mkdir()
        (left / LOCK).write_text(said)
    for _ in new_beside(place):
        pass
    assert len(list(tmp_path.glob(".place.*.partial"))) == 3


# --- whom it blames --------------------------------------------------------------------------------------------------


def raising(error: BaseException, after: int = 0) -> Any:
    def items(self: Source) -> Iterator[Item]:
        yield from (Item(str(number), "a title") for number in range(after))
        raise error

    return items


@pytest.mark.parametrize("after", [0, 3])
@pytest.mark.parametrize(
    ("error", "message"),
    [
        (RuntimeError("two\nlines"), r"^{source} could not be read \(two lines\)$"),
        (MemoryError(), r"^{source} could not be read \(MemoryError\)$"),
        (OSError(5, "Input/output error", "/x/movies.csv"), r"^/x/movies.csv could not be read \(Input/output "),
        (staging.pl.exceptions.PanicException("overflow"), r"^{source} could not be read \(overflow\)$"),
    ],
)  # fmt: skip
def test_what_fails_while_reading_is_said_of_the_source(
    source: Path, data: Path, error: BaseException, message: str, after: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Source, "items", raising(error, after))
    monkeypatch.setattr(staging, "ITEMS_A_PART", 1)
    refused(message.format(source=re.escape(str(source))), data, source)
    assert names(data) == []


def test_what_fails_while_the_source_is_opened_is_said_of_it(
    source: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise KeyError("title")

    monkeypatch.setattr(Source, "__init__", fails)
    refused(rf"^{source} could not be read \('title'\)$", data, source)


def test_a_bug_while_reading_the_embedded_source_names_it(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Source, "items", raising(RuntimeError("x")))
    refused(rf"^the source {NAME} could not be read \(x\)$", data)


def test_what_fails_while_writing_is_said_of_the_folder(
    source: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(staging.pl.DataFrame, "write_parquet", no_room)
    refused(rf"^{data}: records could not be written", data, source)


# --- the account -----------------------------------------------------------------------------------------------------


def test_as_many_items_are_without_an_image_as_it_says(tmp_path: Path, data: Path) -> None:
    reviews = [review_2023("U1", f"B{number}") for number in range(6)]
    folder = write(tmp_path / "source", "amazon_2023", reviews, [product_2023(f"B{number}") for number in range(6)])
    selection = SourceSelection(user_core=1, item_core=1)
    prepared = prepare("amazon_2023", data, folder, selection=selection)
    assert prepared.bad_images == [f"{folder / 'images'} does not exist, so no item has an image"]
    assert "6 items without image:" in str(prepared).splitlines()
    saved = json.loads((data / "amazon_2023" / "prepared.json").read_text())
    assert saved["items"] - saved["images"] == 6


def test_of_a_source_without_images_nothing_is_said(tmp_path: Path, data: Path) -> None:
    folder = tmp_path / "source"
    folder.mkdir()
    (folder / "Beauty.txt").write_text("1 1 2 3\n")
    (folder / "Beauty_item2attributes.json").write_text("{}")
    assert "image:" not in str(prepare("sequences", data, folder))
