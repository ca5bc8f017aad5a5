"""Records on disk: what is written comes back, a failed or killed prepare leaves nothing that looks finished."""

import json
import math
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordWriter
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines.errors import DataError
from data_pipelines.prepare import prepare
from data_pipelines.record_features import ITEM_FEATURES, USER_FEATURES
from data_pipelines.records import (
    Records,
    allow_open_files,
    decode_item,
    decode_user,
    read_items,
    read_users,
)
from data_pipelines.schema import Interaction, Item, User
from data_pipelines.sources.staging import encode_part, table_of
from tests.data_pipelines.movielens_files import movielens_folder, user_line

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
items = st.builds(
    Item,
    item_id=texts,
    title=texts,
    attributes=st.lists(st.tuples(texts, texts), max_size=3).map(tuple),
    categories=st.lists(texts, max_size=3).map(tuple),
    image=st.binary(max_size=20) | st.just(b"\0\xff\0\0"),
)
interactions = st.builds(
    Interaction,
    item_id=texts,
    time=st.integers(-1, 2**63 - 1),
    rating=st.floats(width=32),
    text=texts,
    split=st.sampled_from(["", "train", "validation", "test"]),
)
users = st.builds(User, user_id=texts, interactions=st.lists(interactions, max_size=4).map(tuple))


def through_tfds(features: dict, record: dict) -> bytes:
    """What TFDS makes of a record when it writes it."""
    declared = tfds.features.FeaturesDict(features)
    serializer = tfds.core.example_serializer.ExampleSerializer(declared.get_serialized_info())
    return serializer.serialize_example(declared.encode_example(record))


@settings(deadline=None)
@given(items)
def test_an_item_comes_back(item: Item) -> None:
    (record,) = encode_part(table_of([item]))
    assert decode_item(through_tfds(ITEM_FEATURES, record)) == item


@settings(deadline=None)
@given(users)
def test_a_user_comes_back(user: User) -> None:
    columns = {name: [getattr(one, name) for one in user.interactions] for name in USER_FEATURES["interactions"]}
    back = decode_user(through_tfds(USER_FEATURES, {"user_id": user.user_id, "interactions": columns}))
    assert back.user_id == user.user_id
    assert len(back.interactions) == len(user.interactions)
    for found, wanted in zip(back.interactions, user.interactions, strict=True):
        assert (found.item_id, found.time, found.text, found.split) == (
            wanted.item_id,
            wanted.time,
            wanted.text,
            wanted.split,
        )
        np.testing.assert_equal(found.rating, wanted.rating)  # NaN equals NaN


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return movielens_folder(tmp_path / "source")


def test_records_are_read_by_number_and_in_order(source: Path, tmp_path: Path) -> None:
    prepare("movielens_small", tmp_path / "data", source)
    read = read_items("movielens_small", tmp_path / "data")
    assert len(read) == 6
    assert [item.item_id for item in read] == ["1", "2", "3", "4", "5", "6"]
    assert read[4].item_id == "5"
    assert read[0].image
    assert not read[5].image
    with pytest.raises(IndexError):
        read[6]
    users = read_users("movielens_small", tmp_path / "data")
    assert [len(user.interactions) for user in users] == [4, 1, 0]
    assert math.isclose(users[0].interactions[0].rating, 3.5)


@pytest.mark.parametrize("name", ["data[0:5]", "da*ta", "a=b c#1"])
def test_a_folder_is_no_pattern(source: Path, tmp_path: Path, name: str) -> None:
    prepare("movielens_small", tmp_path / name, source)
    assert len(read_items("movielens_small", tmp_path / name)) == 6


def test_files_are_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    """The 100,001st has six digits."""
    for number in ("99999", "100000"):
        writer = ArrayRecordWriter(str(tmp_path / f"many-records.array_record-{number}-of-00002"), "group_size:1")
        writer.write(number.encode())
        writer.close()
    assert [*Records[bytes](tmp_path, bytes)] == [b"99999", b"100000"]


def test_a_source_that_is_not_prepared_names_the_command(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"run `unimp prepare movielens_small"):
        read_items("movielens_small", tmp_path)


def test_a_missing_file_of_records_is_reported(source: Path, tmp_path: Path) -> None:
    prepare("movielens_small", tmp_path / "data", source)
    (file,) = (tmp_path / "data" / "movielens_small" / "items" / "1.0.0").glob("*.array_record-*")
    file.rename(file.with_name(file.name.replace("-of-00001", "-of-00002")))
    with pytest.raises(DataError, match=r"items/1.0.0: files of records are missing; prepare the source again"):
        read_items("movielens_small", tmp_path / "data")


def test_more_files_than_the_soft_limit_of_open_ones_are_read(tmp_path: Path) -> None:
    """They stay open: of a catalogue with 64 GB of images there are a thousand, which many systems' soft limit is."""
    count, (soft, hard) = 40, resource.getrlimit(resource.RLIMIT_NOFILE)
    for number in range(count):
        name = f"small-records.array_record-{number:05}-of-{count:05}"
        writer = ArrayRecordWriter(str(tmp_path / name), "group_size:1")
        writer.write(str(number).encode())
        writer.close()
    low = len(os.listdir("/proc/self/fd")) + count // 2
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (low, hard))
        records = Records[bytes](tmp_path, bytes)
        assert [*records] == [str(number).encode() for number in range(count)]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_more_files_than_a_process_may_open_are_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (64, 64))
    with pytest.raises(DataError, match=r"has 1,600 files, but a process may open only 64 here; raise `ulimit -Hn`"):
        allow_open_files(1600, tmp_path)


def test_the_account_counts_what_was_written(source: Path, tmp_path: Path) -> None:
    prepared = prepare("movielens_small", tmp_path / "data", source)
    assert (prepared.users, prepared.items, prepared.interactions, prepared.images) == (3, 6, 5, 5)
    assert prepared.never_evaluated == 2  # one with one interaction, one with none
    saved = json.loads((tmp_path / "data" / "movielens_small" / "prepared.json").read_text())
    assert saved["interactions"] == 5


def test_preparing_again_replaces_the_records(source: Path, tmp_path: Path) -> None:
    prepare("movielens_small", tmp_path / "data", source)
    (source / "movielens-small" / "users.jsonl").write_text(user_line(9, [1, 2, 3]))
    assert prepare("movielens_small", tmp_path / "data", source).users == 1
    assert [user.user_id for user in read_users("movielens_small", tmp_path / "data")] == ["9"]


def test_a_refused_source_leaves_nothing(source: Path, tmp_path: Path) -> None:
    (source / "movielens-small" / "users.jsonl").write_text(user_line(1, [1, 999]))
    with pytest.raises(DataError, match="item 999"):
        prepare("movielens_small", tmp_path / "data", source)
    assert not [path for path in (tmp_path / "data").glob("**/*") if path.is_file()]


def test_a_refused_source_keeps_the_earlier_records(source: Path, tmp_path: Path) -> None:
    prepare("movielens_small", tmp_path / "data", source)
    (source / "movielens-small" / "items.jsonl").write_text("{")
    with pytest.raises(DataError):
        prepare("movielens_small", tmp_path / "data", source)
    assert len(read_users("movielens_small", tmp_path / "data")) == 3


PREPARE = """
import sys
from pathlib import Path
from data_pipelines.prepare import prepare
{before}
prepare("movielens_small", Path(sys.argv[1]), Path(sys.argv[2]))
"""


def command(before: str, data: Path, source: Path) -> list[str]:
    return [sys.executable, "-c", PREPARE.format(before=before), str(data), str(source)]


def test_a_killed_prepare_leaves_nothing_that_looks_finished(tmp_path: Path) -> None:
    source = movielens_folder(tmp_path / "source", num_users=20_000)
    process = subprocess.Popen(command("", tmp_path / "data", source), cwd=Path(__file__).parents[2])
    deadline = time.monotonic() + 60
    while not any(  # os.walk passes over folders that vanish meanwhile
        "users" in f"{folder}/{name}" and "incomplete" in name
        for folder, folders, files in os.walk(tmp_path / "data")
        for name in (*folders, *files)
    ):
        assert process.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    with pytest.raises(DataError, match="unimp prepare"):
        read_users("movielens_small", tmp_path / "data")
    with pytest.raises(DataError, match="unimp prepare"):
        read_items("movielens_small", tmp_path / "data")


def test_no_room_for_the_records_is_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    """A limit on the size of files fails writes as a full disk does, with another errno."""
    source = movielens_folder(tmp_path / "source", num_users=3000)
    limit = "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
    limit += "resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))"
    done = subprocess.run(
        command(limit, tmp_path / "data", source), cwd=Path(__file__).parents[2], capture_output=True, text=True
    )
    assert done.returncode != 0
    assert "DataError" in done.stderr.splitlines()[-1]
    assert not list((tmp_path / "data").glob("movielens_small*"))
