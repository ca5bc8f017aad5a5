"""Reads records from disk one at a time. TFDS writes them (`data_pipelines.record_features`) but is not needed here."""

import contextlib
import resource
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

import grain

from data_pipelines.errors import DataError
from data_pipelines.example_message import Example
from data_pipelines.local_copy import local_copy
from data_pipelines.object_store import is_remote, marked
from data_pipelines.schema import Interaction, Item, User

KINDS = ("items", "users")
SPLIT = "records"
Record = TypeVar("Record")


def columns(serialized: bytes) -> dict[str, Sequence[Any]]:
    """Returns the values of a record by name, such as `interactions/time`, as written by TFDS.

    TFDS's own decoder gives the same result but takes four times as long, because it checks shapes and creates arrays.
    """
    features = Example.FromString(serialized).features.feature
    return {name: getattr(one, kind).value for name, one in features.items() if (kind := one.WhichOneof("kind"))}


def decode_item(serialized: bytes) -> Item:
    """Returns the item of a serialized record."""
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
    """Returns the user of a serialized record."""
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
    """The records in a prepared folder, indexed by number; each is read from disk when it is accessed."""

    def __init__(self, folder: Path, decode: Callable[[bytes], Record]):
        """Opens the records, which `decode` converts from the bytes written by TFDS; raises DataError if some of the
        files are missing, or there are more than a process may open."""
        self._folder: Path = folder
        self._decode = decode
        files = [*folder.glob(f"*-{SPLIT}.array_record-*")]  # …-00000-of-00001
        files.sort(key=lambda file: (len(file.name), file.name))  # numbers have five digits, or six from 100,000 on
        if not files or not files[-1].name.endswith(f"-of-{len(files):05}"):
            raise DataError(f"{folder}: files of records are missing; prepare the source again")
        allow_open_files(len(files), folder)
        self._source = grain.sources.ArrayRecordDataSource(files)

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


def allow_open_files(count: int, folder: Path) -> None:
    """Raises this process's limit of open files as far as it may, because files of records stay open once read; raises
    DataError if the system allows fewer than the `count` files of a folder."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with contextlib.suppress(OSError, ValueError):  # the system may allow less than the limit that it names
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if hard != resource.RLIM_INFINITY and count >= hard:
        raise DataError(f"{folder} has {count:,} files, but a process may open only {hard:,} here; raise `ulimit -Hn`")


def source_folder(source: str, folder: Path) -> Path:
    """Returns the folder of a prepared source on local disk, after copying it from an object store if necessary.

    Raises:
      DataError: the object store does not hold the complete source, or there is no disk space for the copy.
    """
    if is_remote(folder) and not marked(folder / source):
        raise DataError(not_prepared(source, folder))
    return local_copy(folder / source)


def not_prepared(source: str, folder: Path) -> str:
    """Returns the error message for a source that is not prepared in `folder`."""
    return (
        f"{folder} has no prepared source {source!r}; run `unimp prepare {source} --folder {folder}`, or prepare "
        f"another source with --name {source}"
    )


def record_folder(source: str, folder: Path, kind: str) -> Path:
    """Returns the folder in which the builder of a source stored one kind of records; raises DataError if there is
    none."""
    versions = sorted((source_folder(source, folder) / kind).glob("[0-9]*"))
    if not versions:
        raise DataError(not_prepared(source, folder))
    return versions[-1]


def read_items(source: str, folder: Path) -> Records[Item]:
    """Opens the items of a prepared source."""
    return Records(record_folder(source, folder, "items"), decode_item)


def read_users(source: str, folder: Path) -> Records[User]:
    """Opens the users of a prepared source."""
    return Records(record_folder(source, folder, "users"), decode_user)
