"""Records encoded by Apache Beam are those encoded here, in the same order."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from data_pipelines.errors import DataError
from data_pipelines.prepare import prepare
from data_pipelines.record_features import USER_FEATURES
from data_pipelines.records import read_items, read_users
from data_pipelines.schema import Interaction, Item
from data_pipelines.sources import source as sources
from data_pipelines.sources import staging
from data_pipelines.sources.selection import SourceSelection
from data_pipelines.sources.staging import encode_part, parts_of, read_part, stage
from tests.data_pipelines.movielens_files import local, movielens_folder
from tests.data_pipelines.test_hm import opened, write


def item_of(record: dict[str, Any]) -> Item:
    attributes = tuple(zip(record["attributes"]["name"], record["attributes"]["text"], strict=True))
    return Item(record["item_id"], record["title"], attributes, tuple(record["categories"]), record["image"])


@pytest.mark.parametrize("kind", ["items", "users"])
def test_parts_on_disk_hold_the_same_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    monkeypatch.setattr(staging, "ITEMS_A_PART", 2)
    monkeypatch.setattr(sources, "USERS_A_PART", 2)
    source = local(movielens_folder(tmp_path / "source"))
    staged = stage(parts_of(source, kind), tmp_path / "staged", "the source")
    records = [record for part in staged for record in read_part(part)]
    assert len(staged) == {"items": 3, "users": 2}[kind]
    assert [number for number, _ in records] == list(range(len(records)))
    whole = [record for part in parts_of(source, kind) for record in encode_part(part)]
    assert str([record for _, record in records]) == str(whole)  # NaN is no equal of itself
    if kind == "items":
        assert [item_of(record) for record in whole] == list(source.items())
    else:
        assert [len(user["interactions"]["time"]) for user in whole] == [4, 1, 0]


def test_users_of_a_source_come_in_the_columns_of_the_record_format(tmp_path: Path) -> None:
    source = opened(write(tmp_path / "source"))
    (part,) = parts_of(source, "users")
    records, users = list(encode_part(part)), list(source.users())
    assert [record["user_id"] for record in records] == [user.user_id for user in users]
    for record, user in zip(records, users, strict=True):
        assert list(record["interactions"]) == list(USER_FEATURES["interactions"])
        columns = zip(*record["interactions"].values(), strict=True)
        assert str([Interaction(*row) for row in columns]) == str(list(user.interactions))


def test_without_beam_it_is_reported_what_to_install(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['apache_beam'] = None; from pathlib import Path\n"
        "from data_pipelines.prepare import prepare\n"
        "prepare('movielens_small', Path(sys.argv[1]), beam_options='--runner=DirectRunner')"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True)
    assert f"{DataError.__name__}: Apache Beam cannot be used" in done.stderr
    assert "pip install 'unimp_jax[beam]'" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("source", ["hm", "movielens_small"])
def test_records_of_a_pipeline_are_the_same(tmp_path: Path, source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("apache_beam", reason="Apache Beam is not installed")
    folder = write(tmp_path / "source") if source == "hm" else movielens_folder(tmp_path / "source", num_users=9000)
    selection = SourceSelection(item="product") if source == "hm" else SourceSelection()
    here = prepare(source, tmp_path / "data", folder, selection=selection)
    monkeypatch.setattr(staging, "ITEMS_A_PART", 1)
    there = prepare(
        source,
        tmp_path / "data",
        folder,
        selection=selection,
        name="beam",
        beam_options="--runner=DirectRunner --direct_num_workers=2 --direct_running_mode=multi_processing",
    )
    assert (there.users, there.items, there.interactions) == (here.users, here.items, here.interactions)
    assert there.images == here.images > 0
    assert list(read_items("beam", tmp_path / "data")) == list(read_items(source, tmp_path / "data"))
    assert str(list(read_users("beam", tmp_path / "data"))) == str(list(read_users(source, tmp_path / "data")))
    assert len(list((tmp_path / "data" / "beam" / "items").rglob("*.array_record*"))) > 1
    assert not list((tmp_path / "data").glob("*.partial"))
