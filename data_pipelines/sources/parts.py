"""Records of a source in parts: tables of some thousand that lie on disk and become a shard each, here or by Beam."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import polars as pl
import tensorflow_datasets as tfds
from tensorflow_datasets.core.download.download_manager import NonMatchingChecksumError

from data_pipelines.errors import DataError, reason_of
from data_pipelines.records import encode_item, encode_user
from data_pipelines.schema import Item, User
from data_pipelines.sources.interactions import USERS_A_PART, Tabled

ITEMS_A_PART = 16384
IMAGES_A_PART = 64 * 2**20
"""Bytes; a part ends with the image that reaches them."""
TEXTS = pl.List(pl.String)
ITEM_COLUMNS: dict[str, Any] = {
    "item_id": pl.String,
    "title": pl.String,
    "name": TEXTS,  # of the attributes
    "text": TEXTS,
    "categories": TEXTS,
    "image": pl.Binary,
}
USER_COLUMNS: dict[str, Any] = {
    "user_id": pl.String,
    "item_id": TEXTS,
    "time": pl.List(pl.Int64),
    "rating": pl.List(pl.Float32),
    "text": TEXTS,
    "split": TEXTS,
}


class Source(Protocol):
    """What a data set is to the rest: its items and its users. It may say what its files held: `read`, `Counts`."""

    def items(self) -> Iterator[Item]: ...

    def users(self) -> Iterator[User]: ...


def parts_of(source: Source, kind: str) -> Iterator[pl.DataFrame]:
    """All items or all users: a row a record, with `ITEM_COLUMNS` or `USER_COLUMNS`."""
    if kind == "items":
        for items in _item_batches(source.items()):
            yield _table([item | item["attributes"] for item in map(encode_item, items)], ITEM_COLUMNS)
    elif isinstance(source, Tabled):
        yield from source.histories()
    else:
        for users in _batched(source.users(), USERS_A_PART):
            yield _table([user | user["interactions"] for user in map(encode_user, users)], USER_COLUMNS)


@dataclasses.dataclass
class Tally:
    """What went by in parts.

    Attributes:
      lengths: interactions of each user.
    """

    items: int = 0
    images: int = 0
    rated: int = 0
    lengths: list[int] = dataclasses.field(default_factory=list)

    def count(self, part: pl.DataFrame) -> pl.DataFrame:
        """The part itself."""
        if "user_id" in part.columns:
            self.lengths += part["item_id"].list.len().to_list()
            self.rated += int(part["rating"].explode().is_not_nan().sum())
        else:
            self.items += len(part)
            self.images += int((part["image"].bin.size() > 0).sum())
        return part


def _item_batches(items: Iterator[Item]) -> Iterator[list[Item]]:
    batch, images = list[Item](), 0
    for item in items:
        batch.append(item)
        images += len(item.image)
        if len(batch) == ITEMS_A_PART or images >= IMAGES_A_PART:
            yield batch
            batch, images = [], 0
    if batch:
        yield batch


def _batched(users: Iterator[User], size: int) -> Iterator[list[User]]:
    while batch := list(itertools.islice(users, size)):
        yield batch


def _table(rows: list[dict[str, Any]], columns: dict[str, Any]) -> pl.DataFrame:
    return pl.DataFrame({name: [row[name] for row in rows] for name in columns}, columns)


def encode_part(part: pl.DataFrame) -> Iterator[dict[str, Any]]:
    """Each record of a part, as TFDS takes it."""
    for row in part.iter_rows(named=True):
        if "user_id" in row:
            yield {"user_id": row.pop("user_id"), "interactions": row}
        else:
            yield {"attributes": {"name": row.pop("name"), "text": row.pop("text")}, **row}


@contextlib.contextmanager
def reading(place: str) -> Iterator[None]:
    """Whatever fails in here is said of `place`, or of the file in it: not of where records are written.

    Raises:
      DataError: something failed; those of the sources, and of downloading, stand as they are.
    """
    try:
        yield
    except (DataError, tfds.download.DownloadError, NonMatchingChecksumError):
        raise
    except (Exception, pl.exceptions.PanicException) as error:
        file = getattr(error, "filename", None) or place
        raise DataError(f"{file} could not be read ({reason_of(error)})") from error


def read(parts: Iterator[pl.DataFrame], place: str) -> Iterator[pl.DataFrame]:
    """The parts, `reading`."""
    with reading(place):
        yield from parts


def stage(parts: Iterator[pl.DataFrame], folder: Path) -> list[tuple[int, str]]:
    """Writes parts as Parquet files; (number of its first record, path) of each."""
    folder.mkdir(parents=True)
    staged, first = [], 0
    for number, part in enumerate(parts):
        path = folder / f"{number:05}.parquet"
        part.write_parquet(path, compression="lz4")
        staged.append((first, str(path)))
        first += len(part)
    return staged


def read_part(staged: tuple[int, str]) -> Iterator[tuple[int, dict[str, Any]]]:
    """(number, record) of each record of a part on disk."""
    first, path = staged
    return enumerate(encode_part(pl.read_parquet(path)), start=first)
