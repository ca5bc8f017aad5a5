"""Interactions sorted on disk: the same users, items and counts as of a table in memory, whatever the sizes."""

import errno
import os
from pathlib import Path
from typing import Any, Literal

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_pipelines.errors import DataError
from data_pipelines.prepare import prepare
from data_pipelines.schema import NO_TIME, Item
from data_pipelines.sources import source, stored, tables
from data_pipelines.sources.checks import Faults
from data_pipelines.sources.hm import HM
from data_pipelines.sources.selection import SourceSelection
from data_pipelines.sources.source import COLUMNS, Counts, Source, core, without_repeats
from data_pipelines.sources.stored import StoredSource, store
from tests.data_pipelines.source_files import GOOD, Files, read, write_files

met = st.lists(st.tuples(st.sampled_from("abcdefg"), st.sampled_from("tuvwxyz"), st.integers(NO_TIME, 2)), max_size=60)


def make_small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every part of a file is a run, and there are more buckets and parts of users than one."""
    monkeypatch.setattr(stored, "RUN", 1)
    monkeypatch.setattr(stored, "BUCKETS", 3)
    monkeypatch.setattr(stored, "CORE_ROWS", 8)
    monkeypatch.setattr(source, "USERS_A_PART", 2)
    monkeypatch.setattr(tables, "BLOCK", 64)
    monkeypatch.setattr(tables, "CHUNK", 3)


def item_of(item_id: str) -> Item:
    return Item(item_id, item_id)


@settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(met, st.integers(1, 20), st.sampled_from(["first", "last"]), st.integers(1, 4), st.integers(1, 4))
def test_on_disk_is_as_in_memory(
    tmp_path_factory: pytest.TempPathFactory,
    rows: list[tuple[str, str, int]],
    a_part: int,
    keep: Literal["first", "last"],
    user_core: int,
    item_core: int,
) -> None:
    frame = pl.DataFrame([(*one, float(row), str(row)) for row, one in enumerate(rows)], COLUMNS, orient="row")
    kept = core(without_repeats(frame, keep), user_core, item_core)
    right = Source(kept, item_of, Counts.of(frame))
    with pytest.MonkeyPatch.context() as patch:
        make_small(patch)
        found = store(frame.iter_slices(a_part), tmp_path_factory.mktemp("stored"), keep, user_core, item_core)
        on_disk = StoredSource(found, item_of)
        assert list(on_disk.users()) == list(right.users())
        assert list(on_disk.items()) == list(right.items())
        assert on_disk.read == right.read
        assert all(frame["item"][row] == item for item, row in found.firsts().items())
        for one, other in zip(on_disk.histories(), right.histories(), strict=True):
            assert one.equals(other)


DAMAGE: dict[str, tuple[str, bytes, bytes]] = {
    "movielens_small": ("ratings.csv", b"\n2,3,", b"\n2,99,1,7\n\n2,3\n2,3,7,1\n2,3,"),
    "movielens_1m": ("ratings.dat", b"\n3::1::", b"\n3::1\n3::1::x::1\n3::1::"),
    "hm": ("transactions_train.csv", b"\n2020-07-21,", b'\n2020-02-31,c,0108775001,1,2\n"2020-07-21","c"\n2020-07-21,'),
    "amazon_2023": ("Books.jsonl", b"\n", b"\n{}\n[\n"),
}
"""File, what is replaced in it, and by what."""


@pytest.mark.parametrize("damaged", [False, True])
@pytest.mark.parametrize("name", DAMAGE)
def test_files_in_parts_are_read_as_whole_ones(
    name: str, damaged: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, before, after = DAMAGE[name]
    assert before in GOOD[name][file]
    changed: Files = {file: GOOD[name][file].replace(before, after, 1)} if damaged else {}
    folder = write_files(tmp_path / "files", {**GOOD[name], **changed})
    right_faults, faults = Faults("skip"), Faults("skip")
    right = read(folder, name, right_faults)
    make_small(monkeypatch)
    assert read(folder, name, faults) == right
    assert sorted(faults.records) == sorted(right_faults.records)  # those of a part come one check after another
    assert bool(faults.records) == damaged


def prepare_hm(tmp_path: Path) -> None:
    folder = tmp_path / "files"
    write_files(folder, GOOD["hm"])
    prepare("hm", tmp_path / "data", folder, selection=SourceSelection(user_core=2, item_core=2))


def test_nothing_else_is_left_of_a_prepare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    places = list[Path]()
    scratch = HM.scratch
    monkeypatch.setattr(HM, "scratch", lambda self: places.append(place := scratch(self)) or place)
    prepare_hm(tmp_path)
    (place,) = places
    assert place.parent.parent.name.endswith(".partial")  # which the next prepare removes if this one is killed
    assert sorted(path.name for path in (tmp_path / "data").iterdir()) == ["downloads", "hm"]
    assert not place.exists()


def test_a_full_disk_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(stored.pa.ipc, "new_file", full)
    with pytest.raises(DataError, match=r"interactions could not be written \(.*No space left.*\); nothing was kept$"):
        prepare_hm(tmp_path)
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["downloads"]
