"""Records on disk: TFDS features of the record format, and reading them back one at a time."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.proto import tf_example_pb2

from data_pipelines.errors import DataError
from data_pipelines.schema import Interaction, Item, User

KINDS = ("items", "users")
SPLIT = "records"
Record = TypeVar("Record")


def _column(kind: Any) -> tfds.features.Tensor:
    """As many values as there are, written at once; a `Sequence` would be checked and written value by value."""
    return tfds.features.Tensor(shape=(None,), dtype=kind)


ITEM_FEATURES = {
    "item_id": tfds.features.Text(),
    "title": tfds.features.Text(),
    "attributes": {"name": _column(np.object_), "text": _column(np.object_)},
    "categories": _column(np.object_),
    "image": tfds.features.Tensor(shape=(), dtype=np.object_),  # encoded bytes
}
USER_FEATURES = {
    "user_id": tfds.features.Text(),
    "interactions": {
        "item_id": _column(np.object_),
        "time": _column(np.int64),
        "rating": _column(np.float32),
        "text": _column(np.object_),
        "split": _column(np.object_),
    },
}


def columns(serialized: bytes) -> dict[str, Sequence[Any]]:
    """The values of a record by name, such as `interactions/time`, as TFDS writes them.

    TFDS's own decoding gives the same in four times the time, in which it checks shapes and makes arrays.
    """
    features = tf_example_pb2.Example.FromString(serialized).features.feature
    return {name: getattr(one, kind).value for name, one in features.items() if (kind := one.WhichOneof("kind"))}


def decode_item(serialized: bytes) -> Item:
    values = columns(serialized)
    names, texts = values.get("attributes/name", ()), values.get("attributes/text", ())
    return Item(
        item_id=values["item_id"][0].decode(),
        title=values["title"][0].decode(),
        attributes=tuple((name.decode(), text.decode()) for name, text in zip(names, texts, strict=True)),
        categories=tuple(word.decode() for word in values.get("categories", ())),
        image=values["image"][0],
    )


def decode_user(serialized: bytes) -> User:
    values = columns(serialized)
    names = ("item_id", "time", "rating", "text", "split")
    rows = zip(*(values.get(f"interactions/{name}", ()) for name in names), strict=True)
    return User(
        user_id=values["user_id"][0].decode(),
        interactions=tuple(
            Interaction(item.decode(), time, rating, text.decode(), split.decode())
            for item, time, rating, text, split in rows
        ),
    )


class Records(Sequence[Record], Generic[Record]):
    """Prepared records by number, each read from disk when asked for."""

    def __init__(self, folder: Path, decode: Callable[[bytes], Record]):
        self._folder: Path = folder
        self._decode = decode
        with quiet_tfds():
            self._source = tfds.builder_from_directory(str(folder)).as_data_source(
                SPLIT, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES
            )

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, number: Any) -> Any:
        if not 0 <= number < len(self):
            raise IndexError(number)
        try:
            return self._decode(self._source[number])
        except Exception as error:
            raise DataError(
                f"{self._folder}: record {number} cannot be read ({error}); prepare the source again"
            ) from error

    def __iter__(self) -> Iterator[Record]:
        return (self[number] for number in range(len(self)))


def record_folder(source: str, folder: Path, kind: str) -> Path:
    """Where the builder of a source has put one kind of records.

    Raises:
      DataError: the source is not prepared there.
    """
    versions = sorted((folder / source / kind).glob("[0-9]*"))
    if not versions:
        raise DataError(
            f"{folder} holds no prepared source {source!r}: run `unimp prepare {source} --folder {folder}`, or another "
            f"source's with --name {source}"
        )
    return versions[-1]


def read_items(source: str, folder: Path) -> Records[Item]:
    return Records(record_folder(source, folder, "items"), decode_item)


def read_users(source: str, folder: Path) -> Records[User]:
    return Records(record_folder(source, folder, "users"), decode_user)


@contextlib.contextmanager
def quiet_tfds() -> Iterator[None]:
    """TFDS without its progress bars and greetings."""
    tfds.disable_progress_bar()
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
            yield
    finally:
        logger.setLevel(level)
