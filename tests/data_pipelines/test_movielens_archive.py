"""MovieLens as its publisher packs it: archives from a folder, and downloaded."""

import functools
import hashlib
import http.server
import tempfile
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tensorflow_datasets as tfds
from tensorflow_datasets.core.download.checksums import UrlInfo

from data_pipelines.errors import DataError
from data_pipelines.prepare import prepare
from data_pipelines.records import read_items
from data_pipelines.sources.checks import Faults
from data_pipelines.sources.movielens import (
    Movielens1m,
    genres_of,
    official_movielens,
    title_and_year,
)
from data_pipelines.sources.source import Source
from tests.data_pipelines.small import START


def ratings_dat(users: int = 6, movies: int = 6) -> list[str]:
    return [
        f"{user}::{movie}::{1 + (user + movie) % 5}::{START + 100 * movie}"
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


def official(folder: Path, core: int = 5, faults: Faults | None = None) -> Source:
    return official_movielens(folder, faults or Faults(), core, Path(tempfile.mkdtemp(dir=folder)))


def test_the_1m_archive(tmp_path: Path) -> None:
    ratings = [
        *ratings_dat(),
        f"7::1::5::{START}",
        f"7::2::5::{START}",
        f"1::7::5::{START + 900}",
    ]  # user 7 and movie 7 are below the core
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
    assert (first.item_id, first.time, first.rating) == ("1", START + 100, 3.0)


def test_ties_in_time_keep_the_files_order(tmp_path: Path) -> None:
    ratings = [f"{user}::{movie}::4::{START}" for user in range(1, 6) for movie in (3, 1, 2, 5, 4)]
    user = next(official(archive_1m(tmp_path / "ml-1m", ratings)).users())
    assert [one.item_id for one in user.interactions] == ["3", "1", "2", "5", "4"]


def test_of_two_ratings_of_a_movie_the_latest_stands(tmp_path: Path) -> None:
    ratings = [*ratings_dat(), f"1::2::5::{START + 9999}", f"1::3::1::{START + 1}"]
    user = next(official(archive_1m(tmp_path / "ml-1m", ratings)).users())
    assert len(user.interactions) == 6
    stars = {one.item_id: (one.time, one.rating) for one in user.interactions}
    assert stars["2"] == (START + 9999, 5.0)
    assert stars["3"] == (START + 300, 5.0)  # as it was: (1 + (1 + 3) % 5) stars
    assert user.interactions[-1].item_id == "2"


@pytest.mark.parametrize("row", ["1::2::five::1000000003", "1::2::3", "1::99::3::1000000004"])
def test_a_bad_row_of_an_archive_is_refused_or_left_out(tmp_path: Path, row: str) -> None:
    folder = archive_1m(tmp_path / "ml-1m", [*ratings_dat(), row])
    with pytest.raises(DataError, match="ratings"):
        list(official(folder).users())
    faults = Faults("skip")
    assert len(list(official(folder, faults=faults).users())) == 6
    assert len(faults.records) == 1


@pytest.mark.parametrize("row", ["1::2::five::1000000003", "1::99::3::1000000004", "1::2::inf::1000000003"])
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
    (folder / "ratings.csv").write_text(
        "userId,movieId,rating,timestamp\n1,1,4.0,1000000020\n1,2,2.5,1000000010\n2,3,0.5,1000000030\n"
    )
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
        ("(1984)", ("", "1984")),
        ("Alien\n(1979)\n", ("Alien", "1979")),
        (" " * 2**20 + "M", (" " * 2**20 + "M", "")),
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
