"""Sources: what is read from a folder or a publisher's archive, and what is said where something is wrong."""

import functools
import hashlib
import http.server
import json
import math
import threading
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import tensorflow_datasets as tfds
from tensorflow_datasets.core.download.checksums import UrlInfo

from data_pipelines.corpus import TEST, VALIDATION, build_corpus
from data_pipelines.errors import DataError
from data_pipelines.prepare import prepare
from data_pipelines.records import read_items, read_users
from data_pipelines.schema import Item, User
from data_pipelines.sources import SOURCES, find_source
from data_pipelines.sources.checks import Faults
from data_pipelines.sources.movielens import (
    EMBEDDED,
    LocalMovieLens,
    Movielens1m,
    OfficialMovieLens,
    genres_of,
    k_core,
    title_and_year,
)
from tests.data_pipelines.small import picture

SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "movielens"
needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="the shared MovieLens folder is not beside the checkout")


def movie_line(number: int, **changed: object) -> str:
    record = {
        "item_id": number,
        "title": f"Film {number}",
        "year": 1990 + number,
        "genres": ["Drama"],
        "description": "",
    }
    return json.dumps(record | changed) + "\n"


def user_line(number: int, items: Sequence[object], **changed: object) -> str:
    events = [{"time": 1000 + place, "item_id": item, "rating": 3.5} for place, item in enumerate(items)]
    return json.dumps({"user": number, "events": events} | changed) + "\n"


def movielens_folder(folder: Path, num_users: int = 0) -> Path:
    """movielens-small of six films, five of them with a picture, and three users with 4, 1 and no interaction.

    With `num_users`, so many users with four interactions each instead.
    """
    inside = folder / "movielens-small"
    inside.mkdir(parents=True)
    (inside / "items.jsonl").write_text("".join(movie_line(number) for number in range(1, 7)), encoding="utf-8")
    histories: list[list[int]] = [[1, 2, 3, 4]] * num_users or [[1, 2, 3, 4], [5], []]
    lines = (user_line(number, history) for number, history in enumerate(histories, start=1))
    (inside / "users.jsonl").write_text("".join(lines), encoding="utf-8")
    with zipfile.ZipFile(folder / "posters.zip", "w") as posters:
        for number in range(1, 6):
            posters.writestr(f"{number}.jpg", picture(number))
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return movielens_folder(tmp_path / "source")


def local(folder: Path, faults: Faults | None = None, name: str = "movielens-small") -> LocalMovieLens:
    return LocalMovieLens(folder, name, faults or Faults())


def rewrite(folder: Path, file: str, text: str | bytes) -> None:
    path = folder / "movielens-small" / file
    path.write_bytes(text.encode() if isinstance(text, str) else text)


# --- names -----------------------------------------------------------------------------------------------------------


def test_sources_are_found_by_name_and_a_wrong_name_by_its_nearest() -> None:
    assert {"amazon_2023_sample", "hm", "movielens_1m", "movielens_small", "netflix", "sequences"} <= set(SOURCES)
    assert find_source("movielens_1m") is Movielens1m
    with pytest.raises(DataError, match=r"there is no source 'movielens_smal'; did you mean 'movielens_small'\?"):
        find_source("movielens_smal")


# --- a folder --------------------------------------------------------------------------------------------------------


def test_an_item_of_a_folder(folder: Path) -> None:
    rewrite(
        folder, "items.jsonl", movie_line(2, title="Stadt, Die (Œuvre)", genres=["Action", "Sci-Fi"], description="D")
    )
    (item,) = local(folder).items()
    assert item == Item(
        "2",
        "Stadt, Die (Œuvre)",
        (("Genres", "Action, Sci-Fi"), ("Year", "1992"), ("Title", "Stadt, Die (Œuvre)"), ("Description", "D")),
        ("Action", "Sci-Fi"),
        picture(2),
    )


def test_events_have_times_ratings_and_tags(folder: Path) -> None:
    events = [
        {"time": 5, "item_id": 1, "rating": 4, "tags": ["funny, very", "old"]},
        {"time": 9, "item_id": 3, "rating": 0.5},
    ]
    rewrite(folder, "users.jsonl", user_line(8, [], events=events))
    (user,) = local(folder).users()
    assert user.user_id == "8"
    assert [(one.item_id, one.time, one.rating, one.text, one.split) for one in user.interactions] == [
        ("1", 5, 4.0, "funny, very, old", ""),
        ("3", 9, 0.5, "", ""),
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
        ("users.jsonl", "[1, 2]", r"users.jsonl line 2: a list where an object should be"),
        ("users.jsonl", '{"events": []}', r"users.jsonl line 2: field 'user' is missing"),
        (
            "users.jsonl",
            '{"user": 2, "events": 7}',
            r"users.jsonl line 2: .*field 'events' is 7, a int; it must be list",
        ),
        ("users.jsonl", user_line(2, ["1"]), r"users.jsonl line 2: .*field 'item_id' is \"1\", a str; it must be int"),
        ("users.jsonl", user_line(2, [True]), r"users.jsonl line 2: .*field 'item_id' is true, a bool; it must be int"),
        ("users.jsonl", user_line(2, [1, 999]), r"users.jsonl line 2: user 2, .*: item 999 is not in items.jsonl"),
        ("users.jsonl", user_line(1, [2]), r"users.jsonl line 2: user 1 occurs a second time"),
        (
            "users.jsonl",
            '{"user": 2, "history": [1.5], "validation": null, "test": 1}',
            r"line 2: .*'history' holds 1.5",
        ),
        ("items.jsonl", movie_line(1), r"items.jsonl line 2: item 1 occurs a second time"),
        ("items.jsonl", movie_line(2, year=[]), r"items.jsonl line 2: .*field 'year' is \[\], a list; it must be"),
        ("items.jsonl", movie_line(2, genres="Drama"), r"items.jsonl line 2: .*field 'genres' is \"Drama\", a str"),
        ("items.jsonl", movie_line(2, genres=[1]), r"items.jsonl line 2: .*field 'genres' holds 1"),
    ],
)
def test_a_bad_line_is_refused_by_name_or_left_out(folder: Path, file: str, line: str, message: str) -> None:
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
    rewrite(folder, "users.jsonl", user_line(1, [], events=[{"time": 1, "item_id": 1}]))
    (user,) = local(folder).users()
    assert math.isnan(user.interactions[0].rating)


@pytest.mark.parametrize(
    "line",
    [
        user_line(2, [], events=[{"time": 2**63, "item_id": 1, "rating": 1}]),
        user_line(2, [], events=[{"time": -5, "item_id": 1, "rating": 1}]),
        user_line(2, [], events=[{"time": 1, "item_id": 1, "rating": math.inf}]),
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


@pytest.mark.parametrize("damage", [lambda packed: packed[: len(packed) // 2], lambda packed: b"not gzip"])
def test_a_damaged_gzip_file_is_named(folder: Path, damage: Callable[[bytes], bytes]) -> None:
    rewrite(folder, "users.jsonl.gz", damage((EMBEDDED / "movielens-small" / "users.jsonl.gz").read_bytes()))
    (folder / "movielens-small" / "users.jsonl").unlink()
    with pytest.raises(DataError, match=r"users.jsonl.gz is damaged"):
        list(local(folder, Faults("skip")).users())


def test_text_that_is_not_utf_8_is_named(folder: Path) -> None:
    rewrite(folder, "items.jsonl", movie_line(1).encode() + b'{"title": "\xe9"}')
    with pytest.raises(DataError, match=r"items.jsonl is damaged"):
        list(local(folder).items())


# --- pictures --------------------------------------------------------------------------------------------------------


def write_posters(folder: Path, posters: dict[str, bytes]) -> None:
    with zipfile.ZipFile(folder / "posters.zip", "w") as archive:
        for name, encoded in posters.items():
            archive.writestr(name, encoded)


def test_items_with_a_missing_or_truncated_picture_are_kept_and_listed(folder: Path) -> None:
    write_posters(folder, {"1.jpg": picture(1), "2.jpg": picture(2)[:-30], "3.jpg": b"", "4.jpg": picture(4)})
    faults = Faults()
    read = list(local(folder, faults).items())
    assert [bool(item.image) for item in read] == [True, False, False, True, False, False]
    told = "\n".join(faults.pictures)
    assert len(faults.pictures) == 4
    assert "2.jpg is broken" in told
    assert "3.jpg is broken" in told
    assert "5.jpg is missing" in told


def test_bytes_that_rot_in_the_zip_cost_one_picture(folder: Path) -> None:
    packed = bytearray((folder / "posters.zip").read_bytes())
    packed[packed.index(picture(3)) + 40] ^= 0xFF
    (folder / "posters.zip").write_bytes(packed)
    faults = Faults()
    assert [item.item_id for item in local(folder, faults).items() if not item.image] == ["3", "6"]
    assert "3.jpg is broken" in faults.pictures[0]


def test_a_truncated_zip_is_named(folder: Path) -> None:
    path = folder / "posters.zip"
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(DataError, match=r"posters.zip is not a whole zip archive"):
        local(folder)


def test_a_missing_zip_is_told(folder: Path) -> None:
    (folder / "posters.zip").unlink()
    faults = Faults()
    try:
        list(local(folder, faults).items())
    except DataError as error:
        assert "posters.zip" in str(error)  # noqa: PT017 (either way of telling will do)
    else:
        assert "posters.zip" in "\n".join(faults.pictures)


def test_an_item_that_says_it_has_no_poster_misses_none(folder: Path) -> None:
    rewrite(folder, "items.jsonl", movie_line(6, poster=False))
    faults = Faults()
    assert next(local(folder, faults).items()).image == b""
    assert faults.pictures == []


# --- the publisher's archives ----------------------------------------------------------------------------------------


def ratings_dat(users: int = 6, movies: int = 6) -> list[str]:
    return [
        f"{user}::{movie}::{1 + (user + movie) % 5}::{100 * movie}"
        for user in range(1, users + 1)
        for movie in range(1, movies + 1)
    ]


def archive_1m(folder: Path, ratings: list[str]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    titles = [
        "Toy Story (1995)",
        "Misérables, Les (1995)",
        "Cry, the Beloved Country (1995)",
        'He said "No" (1960)',
        "M",
        "Se7en (1995)",
        "Rare (2000)",
    ]
    movies = "".join(f"{number}::{title}::Action|Children's\n" for number, title in enumerate(titles, start=1))
    (folder / "movies.dat").write_bytes(movies.encode("latin-1"))
    (folder / "ratings.dat").write_text("\n".join(ratings) + "\n")
    (folder / "users.dat").write_text("1::F::1::10::48067\n")
    return folder


def official(folder: Path, core: int = 5, faults: Faults | None = None) -> OfficialMovieLens:
    return OfficialMovieLens(folder, faults or Faults(), core)


def test_the_1m_archive(tmp_path: Path) -> None:
    ratings = [*ratings_dat(), "7::1::5::1", "7::2::5::2", "1::7::5::900"]  # user 7 and movie 7 are below the core
    source = official(archive_1m(tmp_path / "ml-1m", ratings))
    items = list(source.items())
    assert [item.item_id for item in items] == ["1", "2", "3", "4", "5", "6"]
    assert items[1].title == "Misérables, Les"
    assert dict(items[1].attributes)["Year"] == "1995"
    assert items[1].categories == ("Action", "Children's")
    assert items[3].title == 'He said "No"'
    assert (items[4].title, dict(items[4].attributes)["Year"]) == ("M", "")
    users = list(source.users())
    assert [user.user_id for user in users] == ["1", "2", "3", "4", "5", "6"]
    first = users[0].interactions[0]
    assert (first.item_id, first.time, first.rating) == ("1", 100, 3.0)


def test_ties_in_time_keep_the_files_order(tmp_path: Path) -> None:
    ratings = [f"{user}::{movie}::4::50" for user in range(1, 6) for movie in (3, 1, 2, 5, 4)]
    user = next(official(archive_1m(tmp_path / "ml-1m", ratings)).users())
    assert [one.item_id for one in user.interactions] == ["3", "1", "2", "5", "4"]


def test_of_two_ratings_of_a_movie_the_latest_stands(tmp_path: Path) -> None:
    ratings = [*ratings_dat(), "1::2::5::9999", "1::3::1::1"]
    user = next(official(archive_1m(tmp_path / "ml-1m", ratings)).users())
    assert len(user.interactions) == 6
    stars = {one.item_id: (one.time, one.rating) for one in user.interactions}
    assert stars["2"] == (9999, 5.0)
    assert stars["3"] == (300, 5.0)  # as it was: (1 + (1 + 3) % 5) stars
    assert user.interactions[-1].item_id == "2"


def test_the_core_is_what_is_left_when_nothing_more_falls_away() -> None:
    chain: dict[str, dict[str, int]] = {"a": {"1": 0, "2": 0}, "b": {"2": 0, "3": 0}, "c": {"3": 0}, "d": {"1": 0}}
    assert k_core(chain, 1) == chain
    assert k_core(chain, 2) == {}
    square = {user: {"1": 0, "2": 0} for user in "ab"}
    assert k_core(chain | {"e": square["a"], "f": square["b"]}, 2) == {
        "a": {"1": 0, "2": 0},
        "e": {"1": 0, "2": 0},
        "f": {"1": 0, "2": 0},
    }


@pytest.mark.parametrize("row", ["1::2::five::3", "1::2::3", "1::99::3::4"])
def test_a_bad_row_of_an_archive_is_refused_or_left_out(tmp_path: Path, row: str) -> None:
    folder = archive_1m(tmp_path / "ml-1m", [*ratings_dat(), row])
    with pytest.raises(DataError, match="ratings"):
        list(official(folder).users())
    faults = Faults("skip")
    assert len(list(official(folder, faults=faults).users())) == 6
    assert len(faults.records) == 1


@pytest.mark.parametrize("row", ["1::2::five::3", "1::99::3::4", "1::2::inf::3"])
def test_a_bad_row_names_its_line(tmp_path: Path, row: str) -> None:
    folder = archive_1m(tmp_path / "ml-1m", [*ratings_dat(), row])
    with pytest.raises(DataError, match=r"ratings.dat line 37"):
        list(official(folder).users())


def test_a_movie_that_occurs_twice_is_refused(tmp_path: Path) -> None:
    folder = archive_1m(tmp_path / "ml-1m", ratings_dat())
    with (folder / "movies.dat").open("a", encoding="latin-1") as file:
        file.write("1::Another (1999)::Drama\n")
    with pytest.raises(DataError, match=r"movies.dat line 8"):
        list(official(folder).items())


def archive_small(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "movies.csv").write_text(
        "movieId,title,genres\n"
        "1,Toy Story (1995),Adventure|Animation\n"
        '2,"Misérables, Les (1995)",Drama\n'
        '3,"He said ""No"", twice (1960)",(no genres listed)\n',
        encoding="utf-8",
    )
    (folder / "ratings.csv").write_text("userId,movieId,rating,timestamp\n1,1,4.0,20\n1,2,2.5,10\n2,3,0.5,30\n")
    (folder / "tags.csv").write_text(
        'userId,movieId,tag,timestamp\n1,1,pixar,5\n1,1,"fun, for ""all""",6\n2,1,unrated by this user,7\n'
    )
    return folder


def test_the_small_archive(tmp_path: Path) -> None:
    source = official(archive_small(tmp_path / "ml-latest-small"), core=1)
    items = {item.item_id: item for item in source.items()}
    assert items["2"].title == "Misérables, Les"
    assert items["3"].title == 'He said "No", twice'
    assert items["3"].categories == ()
    assert dict(items["3"].attributes)["Genres"] == ""
    first, second = source.users()
    assert [(one.item_id, one.rating, one.text) for one in first.interactions] == [
        ("2", 2.5, ""),
        ("1", 4.0, 'pixar, fun, for "all"'),
    ]
    assert [one.text for one in second.interactions] == [""]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Toy Story (1995)", ("Toy Story", "1995")),
        ("Postman, The (Postino, Il) (1994)", ("Postman, The (Postino, Il)", "1994")),
        ("1984 (1956) ", ("1984", "1956")),
        ("Babylon 5", ("Babylon 5", "")),
        ("(500) Days of Summer (2009)", ("(500) Days of Summer", "2009")),
    ],
)
def test_titles_carry_years(text: str, expected: tuple[str, str]) -> None:
    assert title_and_year(text) == expected


def test_genres_are_split_at_bars() -> None:
    assert genres_of("Action|Sci-Fi") == ("Action", "Sci-Fi")
    assert genres_of("(no genres listed)") == ()


# --- downloads -------------------------------------------------------------------------------------------------------


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def publisher(tmp_path: Path) -> Iterator[tuple[str, bytes]]:
    """The URL of a small ml-1m.zip on this machine, and its bytes."""
    inside = archive_1m(tmp_path / "site" / "ml-1m", ratings_dat())
    path = tmp_path / "site" / "ml-1m.zip"
    with zipfile.ZipFile(path, "w") as packed:
        for file in inside.iterdir():
            packed.write(file, f"ml-1m/{file.name}")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(path.parent)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/ml-1m.zip", path.read_bytes()
    server.shutdown()
    server.server_close()


def serve(monkeypatch: pytest.MonkeyPatch, url: str, checksum: str, size: int) -> None:
    monkeypatch.setattr(Movielens1m, "ARCHIVE", url)
    monkeypatch.setattr(Movielens1m, "url_infos", {url: UrlInfo(size=size, checksum=checksum, filename="ml-1m.zip")})


def test_the_checksums_of_the_archives_are_registered() -> None:
    infos = {Path(url).name: (info.size, info.checksum) for url, info in Movielens1m.url_infos.items()}
    assert infos == {
        "ml-1m.zip": (5917549, "a6898adb50b9ca05aa231689da44c217cb524e7ebd39d264c56e2832f2c54e20"),
        "ml-latest-small.zip": (978202, "696d65a3dfceac7c45750ad32df2c259311949efec81f0f144fdfb91ebc9e436"),
    }
    assert Movielens1m.ARCHIVE in Movielens1m.url_infos


def test_the_archive_is_downloaded_and_prepared(
    publisher: tuple[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, packed = publisher
    serve(monkeypatch, url, hashlib.sha256(packed).hexdigest(), len(packed))
    prepared = prepare("movielens_1m", tmp_path / "data")
    assert (prepared.users, prepared.items, prepared.interactions, prepared.images) == (6, 6, 36, 0)


def test_an_archive_with_a_wrong_checksum_is_refused(
    publisher: tuple[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, packed = publisher
    serve(monkeypatch, url, "0" * 64, len(packed))
    with pytest.raises((tfds.download.download_manager.NonMatchingChecksumError, DataError), match="checksum"):
        prepare("movielens_1m", tmp_path / "data")
    with pytest.raises(DataError, match="unimp prepare"):
        read_items("movielens_1m", tmp_path / "data")


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
    assert prepared.bad_records == prepared.bad_pictures == []
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
