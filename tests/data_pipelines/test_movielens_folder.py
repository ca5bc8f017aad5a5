"""MovieLens from a folder in the local layout, and embedded: what is read, and what is said of what is wrong."""

import json
import math
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from data_pipelines.corpus import TEST, VALIDATION, build_corpus
from data_pipelines.errors import DataError
from data_pipelines.prepare import prepare
from data_pipelines.records import read_items, read_users
from data_pipelines.schema import Item, User
from data_pipelines.sources.checks import Faults
from data_pipelines.sources.movielens import (
    EMBEDDED,
)
from tests.data_pipelines.movielens_files import local, movie_line, movielens_folder, rewrite, user_line
from tests.data_pipelines.small import START, image

SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "movielens"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="the shared MovieLens folder is not beside the checkout")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return movielens_folder(tmp_path / "source")


def test_an_item_of_a_folder(folder: Path) -> None:
    rewrite(
        folder, "items.jsonl", movie_line(2, title="Stadt, Die (Œuvre)", genres=["Action", "Sci-Fi"], description="D")
    )
    rewrite(folder, "users.jsonl", user_line(1, [2]))
    (item,) = local(folder).items()
    assert item == Item(
        "2",
        "Stadt, Die (Œuvre)",
        (("Genres", "Action, Sci-Fi"), ("Year", "1992"), ("Title", "Stadt, Die (Œuvre)"), ("Description", "D")),
        ("Action", "Sci-Fi"),
        image(2),
    )


def test_events_have_times_ratings_and_tags(folder: Path) -> None:
    events = [
        {"time": START + 5, "item_id": 1, "rating": 4, "tags": ["funny, very", "old"]},
        {"time": START + 9, "item_id": 3, "rating": 0.5},
    ]
    rewrite(folder, "users.jsonl", user_line(8, [], events=events))
    (user,) = local(folder).users()
    assert user.user_id == "8"
    assert [(one.item_id, one.time, one.rating, one.text, one.split) for one in user.interactions] == [
        ("1", START + 5, 4.0, "funny, very, old", ""),
        ("3", START + 9, 0.5, "", ""),
    ]


def test_histories_have_prescribed_splits_and_nothing_else(folder: Path) -> None:
    lines = [
        {"user": 1, "history": [1, 2], "validation": 3, "test": 4},
        {"user": 2, "history": [1], "validation": None, "test": 4},
    ]
    rewrite(folder, "users.jsonl", "\n".join(map(json.dumps, lines)))
    first, second = local(folder).users()
    assert [(one.item_id, one.split) for one in first.interactions] == [
        ("1", "train"),
        ("2", "train"),
        ("3", "validation"),
        ("4", "test"),
    ]
    assert [one.split for one in second.interactions] == ["train", "test"]
    assert all(math.isnan(one.rating) and one.time == -1 for one in first.interactions)


def test_gzipped_lines_are_read_as_plain_ones() -> None:
    assert next(iter(local(EMBEDDED).users())).user_id == "1"


GOOD = user_line(1, [1])


@pytest.mark.parametrize(
    ("file", "line", "message"),
    [
        ("users.jsonl", '{"user": 2, "events"', r"users.jsonl line 2: not JSON"),
        ("users.jsonl", "[1, 2]", r"users.jsonl line 2: a list instead of an object"),
        ("users.jsonl", '{"events": []}', r"users.jsonl line 2: field 'user' is missing"),
        (
            "users.jsonl",
            '{"user": 2, "events": 7}',
            r"users.jsonl line 2: .*field 'events' is 7, a int; it must be list",
        ),
        ("users.jsonl", user_line(2, ["1"]), r"users.jsonl line 2: .*field 'item_id' is \"1\", a str; it must be int"),
        ("users.jsonl", user_line(2, [True]), r"users.jsonl line 2: .*field 'item_id' is true, a bool; it must be int"),
        ("users.jsonl", user_line(2, [1, 999]), r"users.jsonl line 2: user 2, .*: item 999 is not in items.jsonl"),
        ("users.jsonl", user_line(1, [2]), r"users.jsonl line 2: user 1 occurs twice"),
        (
            "users.jsonl",
            '{"user": 2, "history": [1.5], "validation": null, "test": 1}',
            r"line 2: .*'history' contains 1.5",
        ),
        ("items.jsonl", movie_line(1), r"items.jsonl line 2: item 1 occurs twice"),
        ("items.jsonl", movie_line(2, year=[]), r"items.jsonl line 2: .*field 'year' is \[\], a list; it must be"),
        ("items.jsonl", movie_line(2, genres="Drama"), r"items.jsonl line 2: .*field 'genres' is \"Drama\", a str"),
        ("items.jsonl", movie_line(2, genres=[1]), r"items.jsonl line 2: .*field 'genres' contains 1"),
    ],
)
def test_a_bad_line_is_refused_by_name_or_left_out(folder: Path, file: str, line: str, message: str) -> None:
    rewrite(folder, "users.jsonl", GOOD)
    rewrite(folder, file, (GOOD if file == "users.jsonl" else movie_line(1)) + line)

    def read(faults: Faults) -> list[Item] | list[User]:
        source = local(folder, faults)
        return list(source.users()) if file == "users.jsonl" else list(source.items())

    with pytest.raises(DataError, match=message) as caught:
        read(Faults("refuse"))
    assert len(str(caught.value).splitlines()) == 1
    skipping = Faults("skip")
    kept = read(skipping)
    assert len(skipping.records) == 1
    assert kept[0] == read(Faults("skip"))[0]
    assert len(kept) == (2 if "999" in line else 1)
    if "999" in line:
        assert isinstance(kept[1], User)
        assert [one.item_id for one in kept[1].interactions] == ["1"]


def test_a_rating_may_be_absent(folder: Path) -> None:
    rewrite(folder, "users.jsonl", user_line(1, [], events=[{"time": START, "item_id": 1}]))
    (user,) = local(folder).users()
    assert math.isnan(user.interactions[0].rating)


@pytest.mark.parametrize(
    "line",
    [
        user_line(2, [], events=[{"time": 2**63, "item_id": 1, "rating": 1}]),
        user_line(2, [], events=[{"time": -5, "item_id": 1, "rating": 1}]),
        user_line(2, [], events=[{"time": START, "item_id": 1, "rating": math.inf}]),
        '{"user": "\\ud800", "events": []}',
        '{"user": 2, "events": ' + "[" * 100_000 + "}",
    ],
)
def test_values_that_no_record_can_hold_are_refused(folder: Path, line: str) -> None:
    rewrite(folder, "users.jsonl", GOOD + line)
    with pytest.raises(DataError, match=r"users.jsonl line 2"):
        list(local(folder).users())


def test_a_missing_folder_tells_the_layout(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"movielens-small does not exist; expected movielens-small/items.jsonl"):
        local(tmp_path)
    with pytest.raises(DataError, match="is not a folder"):
        prepare("movielens_small", tmp_path / "data", tmp_path / "nowhere")


@pytest.mark.parametrize("file", ["items.jsonl", "users.jsonl"])
def test_a_missing_file_is_named(folder: Path, file: str) -> None:
    (folder / "movielens-small" / file).unlink()
    with pytest.raises(DataError, match=f"{file} does not exist"):
        list(local(folder).users())


@pytest.mark.parametrize("damage", [lambda packed: packed[: len(packed) // 2], lambda packed: packed[:2] + b"no gzip"])
def test_a_damaged_gzip_file_is_named(folder: Path, damage: Callable[[bytes], bytes]) -> None:
    rewrite(folder, "users.jsonl.gz", damage((EMBEDDED / "movielens-small" / "users.jsonl.gz").read_bytes()))
    (folder / "movielens-small" / "users.jsonl").unlink()
    with pytest.raises(DataError, match=r"users.jsonl.gz is damaged"):
        list(local(folder, Faults("skip")).users())


def test_text_that_is_not_utf_8_is_named(folder: Path) -> None:
    rewrite(folder, "items.jsonl", movie_line(1).encode() + b'{"title": "\xe9"}')
    with pytest.raises(DataError, match=r"^items.jsonl line 2: byte 12 is 0xe9, not UTF-8; .*iconv -f latin1 -t utf-8"):
        list(local(folder).items())


# --- images --------------------------------------------------------------------------------------------------------


def write_posters(folder: Path, posters: dict[str, bytes]) -> None:
    with zipfile.ZipFile(folder / "posters.zip", "w") as archive:
        for name, encoded in posters.items():
            archive.writestr(zipfile.ZipInfo(name), encoded)


def test_items_with_a_missing_or_truncated_image_are_kept_and_listed(folder: Path) -> None:
    write_posters(folder, {"1.jpg": image(1), "2.jpg": image(2)[:-30], "3.jpg": b"", "4.jpg": image(4)})
    faults = Faults()
    read = list(local(folder, faults).items())
    assert [bool(item.image) for item in read] == [True, False, False, True, False, False]
    told = "\n".join(faults.images)
    assert len(faults.images) == 4
    assert "2.jpg is broken" in told
    assert "3.jpg is broken" in told
    assert "5.jpg is missing" in told


def test_bytes_that_rot_in_the_zip_cost_one_image(folder: Path) -> None:
    packed = bytearray((folder / "posters.zip").read_bytes())
    packed[packed.index(image(3)) + 40] ^= 0xFF
    (folder / "posters.zip").write_bytes(packed)
    faults = Faults()
    assert [item.item_id for item in local(folder, faults).items() if not item.image] == ["3", "6"]
    assert "3.jpg is broken" in faults.images[0]


def test_a_truncated_zip_is_named(folder: Path) -> None:
    path = folder / "posters.zip"
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(DataError, match=r"posters.zip is not a complete zip archive"):
        local(folder)


def test_a_missing_zip_is_reported(folder: Path) -> None:
    (folder / "posters.zip").unlink()
    faults = Faults()
    try:
        list(local(folder, faults).items())
    except DataError as error:
        assert "posters.zip" in str(error)  # noqa: PT017 (either way of telling will do)
    else:
        assert "posters.zip" in "\n".join(faults.images)


def test_an_item_that_says_it_has_no_poster_misses_none(folder: Path) -> None:
    rewrite(folder, "items.jsonl", movie_line(6, poster=False))
    rewrite(folder, "users.jsonl", user_line(1, [6]))
    faults = Faults()
    assert next(local(folder, faults).items()).image == b""
    assert faults.images == []


# --- real data -------------------------------------------------------------------------------------------------------


def held_out_apart(source: str, data: Path) -> tuple[int, int]:
    corpus = build_corpus(read_items(source, data), read_users(source, data))
    asked = [set(zip(*corpus.held_out(split), strict=True)) for split in (VALIDATION, TEST)]
    assert not asked[0] & asked[1]
    return len(asked[0]), len(asked[1])


def test_the_embedded_data(tmp_path: Path) -> None:
    assert sum(path.stat().st_size for path in EMBEDDED.rglob("*") if path.is_file()) < 12_000_000
    assert (EMBEDDED / "movielens-small" / "LICENSE-ml-latest-small.txt").is_file()
    prepared = prepare("movielens_small", tmp_path)
    assert (prepared.users, prepared.items, prepared.interactions, prepared.images) == (671, 3160, 67_006, 3160)
    assert prepared.bad_records == prepared.bad_images == []
    assert held_out_apart("movielens_small", tmp_path) == (669, 670)  # one has two interactions, one has one


@needs_shared
def test_the_embedded_data_say_what_the_folder_they_were_made_of_says() -> None:
    for found, wanted in zip(local(EMBEDDED).users(), local(SHARED).users(), strict=True):
        assert found == wanted


@pytest.mark.slow
@needs_shared
def test_movielens_1m_whole(tmp_path: Path) -> None:
    prepared = prepare("movielens_1m", tmp_path, SHARED)
    assert (prepared.users, prepared.items, prepared.interactions, prepared.images) == (6040, 3416, 994_083, 3412)
    assert prepared.bad_records == []
    assert held_out_apart("movielens_1m", tmp_path) == (512, 6040)
