"""MovieLens: with posters from a local folder, embedded (the small one), or bare from the publisher's archive.

The local layout is

    FOLDER/posters.zip                         MOVIE_ID.jpg
    FOLDER/movielens-small/items.jsonl         item_id, title, year, genres, description
    FOLDER/movielens-small/users.jsonl         user, events: [time, item_id, rating, tags]
    FOLDER/movielens-1m/{items,users}.jsonl    the same items; users: user, history, validation, test

where each `.jsonl` may be a `.jsonl.gz`; times may be counted from 0 where only the order is known. The publisher's
archives are those of https://grouplens.org/datasets/movielens.
"""

from __future__ import annotations

import re
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import polars as pl
import tensorflow_datasets as tfds

from data_pipelines.atomic import atomic_folder
from data_pipelines.errors import DataError
from data_pipelines.schema import NO_TIME, Interaction, Item, User
from data_pipelines.sources.builder import RecordBuilder, Source
from data_pipelines.sources.checks import BadField, Faults, field, plain, stars, texts, whole
from data_pipelines.sources.columns import identifiers, ratings, times, whole_numbers
from data_pipelines.sources.images import StoredImages
from data_pipelines.sources.interactions import Counts, Tabled, without_repeats
from data_pipelines.sources.interactions import core as core_of
from data_pipelines.sources.json_files import read_objects
from data_pipelines.sources.reading import is_there, read_lines
from data_pipelines.sources.reviews import word
from data_pipelines.sources.tables import Table, by_record, read_csv, text
from data_pipelines.sources.times import Clock

EMBEDDED = Path(__file__).parent / "embedded" / "movielens"
CORE = 5
SCALE = 0.5, 5.0
"""The least and the most stars."""


def movie(movie_id: Any, title: str, year: Any, genres: tuple[str, ...], description: str, image: bytes) -> Item:
    title, year, genres = plain(title), plain(str(year)), tuple(map(plain, genres))
    description = "\n".join(map(plain, description.split("\n")))
    attributes = (("Genres", ", ".join(genres)), ("Year", year), ("Title", title), ("Description", description))
    return Item(str(movie_id), title, attributes, genres, image)


class LocalMovieLens:
    """Items and users of a folder in the local layout."""

    def __init__(self, folder: Path, name: str, faults: Faults):
        """
        Raises:
          DataError: the folder does not have the layout.
        """
        self._folder, self._faults = folder / name, faults
        if not self._folder.is_dir():
            raise DataError(f"{self._folder} does not exist; expected {name}/items.jsonl and {name}/users.jsonl there")
        self._images = StoredImages(folder / "posters", faults)

    def _movies(self) -> Iterator[tuple[dict[str, Any], bool]]:
        """Each movie's fields, and whether it says it has a poster."""
        known: set[int] = set()
        for place, record in read_objects(self._folder / "items.jsonl", self._faults):
            try:
                movie_id = field(record, "item_id", int)
                if movie_id in known:
                    raise BadField(f"item {movie_id} occurs a second time")
                checked = {
                    "movie_id": movie_id,
                    "title": field(record, "title", str),
                    "year": field(record, "year", int, str, default=""),
                    "genres": texts(record, "genres"),
                    "description": field(record, "description", str, default=""),
                }
                poster = field(record, "poster", bool, default=True)
            except BadField as fault:
                self._faults.bad_record(f"{place}: {fault}")
                continue
            known.add(movie_id)
            yield checked, poster

    def items(self) -> Iterator[Item]:
        for record, poster in self._movies():
            yield movie(**record, image=self._images.read(f"{record['movie_id']}.jpg") if poster else b"")

    def users(self) -> Iterator[User]:
        quietly = Faults("skip")
        catalogue, self._faults = self._faults, quietly  # items were complained about when they were read
        known = {record["movie_id"] for record, _ in self._movies()}
        self._faults = catalogue
        seen: set[str] = set()
        clock = Clock.of(self._folder / "users.jsonl", "time", counted=True)
        for place, record in read_objects(self._folder / "users.jsonl", self._faults):
            try:
                user = str(field(record, "user", int, str))
                word({"user": user}, "user")
                if user in seen:
                    raise BadField(f"user {user} occurs a second time")
                events = list(self._events(record, clock))
            except BadField as fault:
                self._faults.bad_record(f"{place}: {fault}")
                continue
            seen.add(user)
            kept = []
            for number, event in enumerate(events):
                if int(event.item_id) in known:
                    kept.append(event)
                else:
                    self._faults.bad_record(
                        f"{place}: user {user}, interaction {number}: item {event.item_id} is not in items.jsonl"
                    )
            yield User(user, tuple(kept))

    def _events(self, record: dict[str, Any], clock: Clock) -> Iterator[Interaction]:
        if "events" not in record:
            yield from self._sequence(record)
            return
        for event in field(record, "events", list):
            if not isinstance(event, dict):
                raise BadField(f"field 'events' holds a {type(event).__name__}; it must hold objects")
            yield Interaction(
                str(field(event, "item_id", int)),
                time=clock.seconds(event, "time", NO_TIME),
                rating=stars(event, "rating", *SCALE),
                text=", ".join(map(plain, texts(event, "tags"))),
            )

    def _sequence(self, record: dict[str, Any]) -> Iterator[Interaction]:
        for item in map(whole, field(record, "history", list)):
            if not isinstance(item, int) or isinstance(item, bool):
                raise BadField(f"field 'history' holds {item!r}; it must hold item ids")
            yield Interaction(str(item), split="train")
        if record.get("validation") is not None:
            yield Interaction(str(field(record, "validation", int)), split="validation")
        if record.get("test") is not None:
            yield Interaction(str(field(record, "test", int)), split="test")


def title_and_year(text: str) -> tuple[str, str]:
    """`Toy Story (1995)` -> (`Toy Story`, `1995`)."""
    title = text.rstrip()
    year = re.fullmatch(r"\((\d{4})\)", title[-6:])
    return (title[:-6].rstrip(), year[1]) if year else (text, "")


def genres_of(text: str) -> tuple[str, ...]:
    return tuple(genre for genre in text.split("|") if genre and genre != "(no genres listed)")


class OfficialMovieLens(Tabled):
    """Items and users of a publisher's archive, unpacked: `.dat` files (1M) or `.csv` files (latest-small).

    Users and movies with fewer than `core` ratings are left out, again and again until none is left, as SASRec's
    version of the data does; a movie rated twice by a user counts once, at its latest rating.
    """

    def __init__(self, folder: Path, faults: Faults, core: int):
        self._folder, self._faults = folder, faults
        movies = whole_numbers(self._read("movies", ("movieId", "title", "genres")).some(), "movieId")
        again = text("movieId").is_first_distinct()
        movies = movies.keep(again, lambda row: f"movie {row['movieId']} occurs a second time")
        rows = movies.rows.select(map(text, ("movieId", "title", "genres")))
        self._movies = {movie_id: (title, genres) for movie_id, title, genres in rows.iter_rows()}
        table = self._table()
        super().__init__(core_of(without_repeats(table, "last"), core, core), self._item, Counts.of(table))

    def _read(self, name: str, columns: tuple[str, ...]) -> Table:
        """Those columns of NAME.csv, or of NAME.dat, which has them in this order, all of them and no header.

        Raises:
          DataError: there is neither.
        """
        if not is_there(self._folder / f"{name}.dat"):
            if not is_there(self._folder / f"{name}.csv"):
                raise DataError(f"{self._folder} holds neither {name}.dat nor {name}.csv: not a MovieLens archive")
            return read_csv(self._folder / f"{name}.csv", columns, self._faults)
        lines = (line for line in read_lines(self._folder / f"{name}.dat", other="latin-1") if line.text.strip())
        records = ((line, line.text.split("::")) for line in lines)
        return Table(f"{name}.dat", by_record(records, columns, columns, self._faults), self._faults)

    def _table(self) -> pl.DataFrame:
        """All ratings, with the tags that their users gave."""
        movies = pl.Series(self._movies.keys(), dtype=pl.String).implode()
        given = self._read("ratings", ("userId", "movieId", "rating", "timestamp")).some()
        given = whole_numbers(identifiers(given, "userId"), "movieId").keep(
            text("movieId").is_in(movies), lambda row: f"user {row['userId']}: movie {row['movieId']} is not in movies"
        )
        given = times(ratings(given, "rating", *SCALE), "timestamp")
        frame = given.rows.select(
            text("userId").alias("user"),
            text("movieId").alias("item"),
            pl.col("timestamp").alias("time"),
            pl.col("rating").cast(pl.Float32),
        )
        if not is_there(self._folder / "tags.csv"):
            return frame.with_columns(text=pl.lit(""))
        tags = self._read("tags", ("userId", "movieId", "tag")).rows.select(
            text("userId").alias("user"),
            text("movieId").alias("item"),
            text("tag").map_elements(plain, pl.String).alias("text"),
        )
        tags = tags.group_by("user", "item", maintain_order=True).agg(pl.col("text").str.join(", "))
        return frame.join(tags, ["user", "item"], "left", maintain_order="left").with_columns(
            pl.col("text").fill_null("")
        )

    def _item(self, movie_id: str) -> Item:
        known, genres = self._movies[movie_id]
        title, year = title_and_year(known)
        return movie(movie_id, title, year, genres_of(genres), "", b"")

    def items(self) -> Iterator[Item]:
        """In the order of the catalogue."""
        rated = set(self.frame["item"])
        return (self._item(movie_id) for movie_id in self._movies if movie_id in rated)


def unzipped(archive: Path) -> Path:
    """The folder beside a downloaded archive that holds its files (TFDS's own way to unpack asks for TensorFlow).

    Raises:
      DataError: the archive is damaged.
    """
    folder = archive.with_name(archive.name + ".unpacked")
    if not folder.exists():
        try:
            with zipfile.ZipFile(archive) as packed, atomic_folder(folder) as partial:
                packed.extractall(partial)
        except (zipfile.BadZipFile, RuntimeError, zlib.error, EOFError) as error:  # encrypted, unknown or cut off
            raise DataError(f"{archive} is not a whole zip archive ({error}); remove it, to fetch it again") from error
    return folder


def unpacked(folder: Path, names: Iterable[str]) -> Path:
    """The folder inside an unpacked archive that holds the files."""
    for name in names:
        if (folder / name).is_dir():
            return folder / name
    return folder


class MovielensSmall(RecordBuilder):
    """ml-latest-small: ratings with times and tags; embedded with posters."""

    name = "movielens_small"
    DESCRIPTION = "MovieLens latest-small (2016), the movies with a poster; https://grouplens.org/datasets/movielens"
    ARCHIVE = "https://files.grouplens.org/datasets/movielens/ml-latest-small.zip"

    def open_source(self, downloads: tfds.download.DownloadManager) -> Source:
        folder = self.source_dir or EMBEDDED
        if is_there(folder / "ratings.csv") or (folder / "ml-latest-small").is_dir():
            return OfficialMovieLens(unpacked(folder, ["ml-latest-small"]), self.faults, core=1)
        return LocalMovieLens(folder, "movielens-small", self.faults)


class Movielens1m(RecordBuilder):
    """MovieLens 1M in SASRec's version, with posters, from a local folder; else the publisher's, 5-core, without."""

    name = "movielens_1m"
    DESCRIPTION = "MovieLens 1M; https://grouplens.org/datasets/movielens/1m"
    ARCHIVE = "https://files.grouplens.org/datasets/movielens/ml-1m.zip"

    def open_source(self, downloads: tfds.download.DownloadManager) -> Source:
        folder = self.source_dir or unzipped(Path(downloads.download(self.ARCHIVE)))
        if self.source_dir is None or is_there(folder / "ratings.dat") or (folder / "ml-1m").is_dir():
            return OfficialMovieLens(unpacked(folder, ["ml-1m"]), self.faults, CORE)
        return LocalMovieLens(folder, "movielens-1m", self.faults)
