"""MovieLens: with posters from a local folder or embedded (small), or without from the publisher's archive.

The local layout is

    FOLDER/posters.zip                         MOVIE_ID.jpg
    FOLDER/movielens-small/items.jsonl         item_id, title, year, genres, description
    FOLDER/movielens-small/users.jsonl         user, events: [time, item_id, rating, tags]
    FOLDER/movielens-1m/{items,users}.jsonl    the same items; users: user, history, validation, test

where each `.jsonl` may be a `.jsonl.gz`; times may be counted from 0 if only the order is known. The publisher's
archives are those of https://grouplens.org/datasets/movielens.
"""

import dataclasses
import functools
import itertools
import math
import re
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import tensorflow_datasets as tfds

from data_pipelines.atomic import atomic_folder
from data_pipelines.errors import DataError
from data_pipelines.schema import NO_TIME, Item
from data_pipelines.sources.builder import RecordBuilder
from data_pipelines.sources.checks import BadField, Faults, field, plain, stars, texts, whole, word
from data_pipelines.sources.images import StoredImages
from data_pipelines.sources.json_files import read_objects
from data_pipelines.sources.reading import is_there
from data_pipelines.sources.source import ALL_COLUMNS, Source
from data_pipelines.sources.stored import StoredSource, store
from data_pipelines.sources.tables import Table, frame_of, joined, read_csv, read_dat, text
from data_pipelines.sources.times import Clock

EMBEDDED = Path(__file__).parent / "embedded" / "movielens"
CORE = 5
MOVIE = ("movieId", "title", "genres")
SCALE = 0.5, 5.0
"""The lowest and the highest rating in stars."""
Event = tuple[str, int, float, str, str]
"""Movie, time, stars, tags and split: the columns that follow the user in a row of `ALL_COLUMNS`."""


def movie(movie_id: Any, title: str, year: Any, genres: tuple[str, ...], description: str) -> Item:
    """Returns the item of a movie, without its poster."""
    title, year, genres = plain(title), plain(str(year)), tuple(map(plain, genres))
    description = "\n".join(map(plain, description.split("\n")))
    attributes = (("Genres", ", ".join(genres)), ("Year", year), ("Title", title), ("Description", description))
    return Item(str(movie_id), title, attributes, genres)


def local_movielens(folder: Path, name: str, faults: Faults) -> Source:
    """Opens the source in a folder of the local layout; raises DataError if it has another layout, or its files are
    bad."""
    inside = folder / name
    if not inside.is_dir():
        raise DataError(f"{inside} does not exist; expected {name}/items.jsonl and {name}/users.jsonl there")
    images = StoredImages(folder / "posters", faults)
    movies: dict[str, tuple[Item, bool]] = {}  # with whether the record declares a poster
    users: set[str] = set()

    def read_movie(record: dict[str, Any]) -> None:
        movie_id = field(record, "item_id", int)
        if str(movie_id) in movies:
            raise BadField(f"item {movie_id} occurs twice")
        item = movie(
            movie_id,
            title=field(record, "title", str),
            year=field(record, "year", int, str, default=""),
            genres=texts(record, "genres"),
            description=field(record, "description", str, default=""),
        )
        movies[item.item_id] = item, field(record, "poster", bool, default=True)

    def read_user(record: dict[str, Any]) -> tuple[str, list[Event]]:
        user = word({"user": str(field(record, "user", int, str))}, "user")
        if user in users:
            raise BadField(f"user {user} occurs twice")
        events = list(_events(record, clock) if "events" in record else _sequence(record))
        users.add(user)
        return user, events

    def rows() -> Iterator[tuple[Any, ...]]:
        for place, (user, events) in read_objects(inside / "users.jsonl", faults, read_user):
            for number, event in enumerate(events):
                if event[0] in movies:
                    yield user, *event
                else:
                    faults.bad_record(
                        f"{place}: user {user}, interaction {number}: item {event[0]} is not in items.jsonl"
                    )
            if not any(event[0] in movies for event in events):
                yield user, *itertools.repeat(None, 5)

    def item_of(movie_id: str) -> Item:
        item, poster = movies[movie_id]
        return dataclasses.replace(item, image=images.read(f"{movie_id}.jpg") if poster else b"")

    for _ in read_objects(inside / "items.jsonl", faults, read_movie):
        pass
    clock = Clock.of(inside / "users.jsonl", "time", counted=True)
    return Source(frame_of(rows(), ALL_COLUMNS), item_of, item_ids=list(movies))


def _events(record: dict[str, Any], clock: Clock) -> Iterator[Event]:
    for event in field(record, "events", list):
        if not isinstance(event, dict):
            raise BadField(f"field 'events' contains a {type(event).__name__}; it must contain objects")
        movie_id, time = str(field(event, "item_id", int)), clock.seconds(event, "time", NO_TIME)
        yield movie_id, time, stars(event, "rating", *SCALE), ", ".join(map(plain, texts(event, "tags"))), ""


def _sequence(record: dict[str, Any]) -> Iterator[Event]:
    for item in map(whole, field(record, "history", list)):
        if not isinstance(item, int) or isinstance(item, bool):
            raise BadField(f"field 'history' contains {item!r}; it must contain item ids")
        yield str(item), NO_TIME, math.nan, "", "train"
    for split in ("validation", "test"):
        if record.get(split) is not None:
            yield str(field(record, split, int)), NO_TIME, math.nan, "", split


def title_and_year(text: str) -> tuple[str, str]:
    """Splits a title: `Toy Story (1995)` -> (`Toy Story`, `1995`)."""
    title = text.rstrip()
    year = re.fullmatch(r"\((\d{4})\)", title[-6:])
    return (title[:-6].rstrip(), year[1]) if year else (text, "")


def genres_of(text: str) -> tuple[str, ...]:
    """Splits the genres of a movie, which are separated by bars."""
    return tuple(genre for genre in text.split("|") if genre and genre != "(no genres listed)")


def official_movielens(folder: Path, faults: Faults, least: int, scratch: Path) -> Source:
    """Opens the source in an unpacked archive of the publisher: `.dat` files (1M) or `.csv` files (latest-small). Users
    and movies with fewer than `least` ratings are removed repeatedly until none is left, as in SASRec's version of the
    data; a movie that a user rated twice counts once, with its latest rating. Interactions are kept in `scratch`, an
    empty folder."""

    def read(name: str, *columns: str) -> Iterator[Table]:
        """Reads the columns of NAME.csv, or of NAME.dat, which has exactly these, in this order, and no header."""
        if is_there(folder / f"{name}.dat"):
            return read_dat(folder / f"{name}.dat", columns, faults)
        if is_there(folder / f"{name}.csv"):
            return read_csv(folder / f"{name}.csv", columns, faults, needed=name != "tags")
        raise DataError(f"{folder} has neither {name}.dat nor {name}.csv, so it is not a MovieLens archive")

    catalogue = joined(read("movies", *MOVIE), MOVIE).whole_numbers("movieId").distinct("movieId", "movie")
    rows = catalogue.rows.select(map(text, MOVIE))
    movies = {movie_id: (title, genres) for movie_id, title, genres in rows.iter_rows()}
    pair = {"user": text("userId"), "item": text("movieId")}
    ratings = read("ratings", "userId", "movieId", "rating", "timestamp")

    @functools.cache  # read after the first ratings were checked, so that their faults come first
    def tags() -> pl.DataFrame | None:
        if not is_there(folder / "tags.csv"):
            return None
        columns = ("userId", "movieId", "tag")
        given = joined(read("tags", *columns), columns).rows
        given = given.select(**pair, text=text("tag").map_elements(plain, pl.String))
        return given.group_by("user", "item", maintain_order=True).agg(pl.col("text").str.join(", "))

    def interactions() -> Iterator[pl.DataFrame]:
        for part in ratings:
            part = part.identifiers("userId").whole_numbers("movieId")
            part = part.keep(
                text("movieId").is_in(rows["movieId"].implode()),
                lambda row: f"user {row['userId']}: movie {row['movieId']} is not in movies",
            )
            part = part.ratings("rating", *SCALE).times("timestamp")
            table = part.rows.select(**pair, time="timestamp", rating=pl.col("rating").cast(pl.Float32))
            if (given := tags()) is not None:
                table = table.join(given, ["user", "item"], "left", maintain_order="left")
                table = table.with_columns(pl.col("text").fill_null(""))
            yield table
        tags()

    def item_of(movie_id: str) -> Item:
        title, year = title_and_year(movies[movie_id][0])
        return movie(movie_id, title, year, genres_of(movies[movie_id][1]), "")

    kept = store(interactions(), scratch, "last", least, least)
    rated = kept.firsts()
    return StoredSource(kept, item_of, [movie_id for movie_id in movies if movie_id in rated])


def unzipped(archive: Path) -> Path:
    """Returns a folder, beside a downloaded archive, with its files (unpacking by TFDS would require TensorFlow);
    raises DataError if the archive is damaged."""
    folder = archive.with_name(archive.name + ".unpacked")
    if not folder.exists():
        try:
            with zipfile.ZipFile(archive) as packed, atomic_folder(folder) as partial:
                packed.extractall(partial)
        except (zipfile.BadZipFile, RuntimeError, zlib.error, EOFError) as error:  # encrypted, unknown or truncated
            raise DataError(
                f"{archive} is not a complete zip archive ({error}); delete it to fetch it again"
            ) from error
    return folder


class MovielensSmall(RecordBuilder):
    """ml-latest-small: ratings with times and tags; the embedded version has posters."""

    name = "movielens_small"
    DESCRIPTION = "MovieLens latest-small (2016), the movies with a poster; https://grouplens.org/datasets/movielens"

    def open_source(self, downloads: tfds.download.DownloadManager) -> Source:
        folder = self.source_dir or EMBEDDED
        inside = folder / "ml-latest-small"
        if inside.is_dir() or is_there(folder / "ratings.csv"):
            return official_movielens(inside if inside.is_dir() else folder, self.faults, 1, self.scratch())
        return local_movielens(folder, "movielens-small", self.faults)


class Movielens1m(RecordBuilder):
    """MovieLens 1M in SASRec's version with posters, from a local folder; else the publisher's 5-core without any."""

    name = "movielens_1m"
    DESCRIPTION = "MovieLens 1M; https://grouplens.org/datasets/movielens/1m"
    ARCHIVE = "https://files.grouplens.org/datasets/movielens/ml-1m.zip"

    def open_source(self, downloads: tfds.download.DownloadManager) -> Source:
        folder = self.source_dir or unzipped(Path(downloads.download(self.ARCHIVE)))
        inside = folder / "ml-1m"
        if inside.is_dir() or self.source_dir is None or is_there(folder / "ratings.dat"):
            return official_movielens(inside if inside.is_dir() else folder, self.faults, CORE, self.scratch())
        return local_movielens(folder, "movielens-1m", self.faults)
