"""Stages the records of a source on disk in parts of some thousand rows, each of which becomes a shard."""

import array
import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import tensorflow_datasets as tfds
from tensorflow_datasets.core.download.download_manager import NonMatchingChecksumError

from data_pipelines.errors import DataError, reason_of
from data_pipelines.schema import Item
from data_pipelines.sources.source import Source

ITEMS_A_PART = 16384
IMAGES_A_PART = 64 * 2**20
"""The bytes of images after which a part ends."""
TEXTS = pl.List(pl.String)
ITEM_COLUMNS: dict[str, Any] = {
    "item_id": pl.String,
    "title": pl.String,
    "name": TEXTS,  # of the attributes
    "text": TEXTS,
    "categories": TEXTS,
    "image": pl.Binary,
}


def parts_of(source: Source, kind: str) -> Iterator[pl.DataFrame]:
    """Yields all items or users in parts, one row each, with `ITEM_COLUMNS` or the columns of `Source.histories`."""
    return source.histories() if kind == "users" else map(table_of, _batches(source.items()))


def table_of(items: list[Item]) -> pl.DataFrame:
    """Returns a table with one row per item and the columns `ITEM_COLUMNS`."""
    columns = (
        [item.item_id for item in items],
        [item.title for item in items],
        [[name for name, _ in item.attributes] for item in items],
        [[text for _, text in item.attributes] for item in items],
        [list(item.categories) for item in items],
        [item.image for item in items],
    )
    return pl.DataFrame(dict(zip(ITEM_COLUMNS, columns, strict=True)), ITEM_COLUMNS)


def _batches(items: Iterator[Item]) -> Iterator[list[Item]]:
    batch, images = list[Item](), 0
    for item in items:
        batch.append(item)
        images += len(item.image)
        if len(batch) == ITEMS_A_PART or images >= IMAGES_A_PART:
            yield batch
            batch, images = [], 0
    if batch:
        yield batch


@dataclasses.dataclass
class Tally:
    """Counts of the records that passed through; `lengths` are the numbers of interactions of each user."""

    items: int = 0
    images: int = 0
    rated: int = 0
    lengths: "array.array[int]" = dataclasses.field(default_factory=lambda: array.array("q"))

    def count(self, part: pl.DataFrame) -> pl.DataFrame:
        """Counts the records of a part, and returns the part."""
        if "user_id" in part.columns:
            self.lengths.extend(part["item_id"].list.len().to_list())
            self.rated += int(part["rating"].explode().is_not_nan().sum())
        else:
            self.items += len(part)
            self.images += int((part["image"].bin.size() > 0).sum())
        return part


def encode_part(part: pl.DataFrame) -> Iterator[dict[str, Any]]:
    """Yields each record of a part in the form expected by TFDS."""
    for row in part.iter_rows(named=True):
        if "user_id" in row:
            yield {"user_id": row.pop("user_id"), "interactions": row}
        else:
            yield {"attributes": {"name": row.pop("name"), "text": row.pop("text")}, **row}


@contextlib.contextmanager
def reading(place: str) -> Iterator[None]:
    """Attributes failures in its body to `place`, or to the file in the exception, rather than to the output folder, by
    a DataError; errors of sources and of downloads are passed on unchanged."""
    try:
        yield
    except (DataError, tfds.download.DownloadError, NonMatchingChecksumError):
        raise
    except (Exception, pl.exceptions.PanicException) as error:
        file = getattr(error, "filename", None) or place
        raise DataError(f"{file} could not be read ({reason_of(error)})") from error


def stage(parts: Iterator[pl.DataFrame], folder: Path, place: str) -> list[tuple[int, str]]:
    """Writes parts as Parquet files, inside `reading`; returns (number of its first record, path) of each."""
    folder.mkdir(parents=True)
    staged, first = list[tuple[int, str]](), 0
    while True:
        with reading(place):
            part = next(parts, None)
        if part is None:
            return staged
        path = folder / f"{len(staged):05}.parquet"
        part.write_parquet(path, compression="lz4")
        staged.append((first, str(path)))
        first += len(part)


def read_part(staged: tuple[int, str]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields (number, record) of each record of a part on disk."""
    first, path = staged
    return enumerate(encode_part(pl.read_parquet(path, glob=False)), start=first)
