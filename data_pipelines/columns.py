"""The interactions of a prepared source as columns on disk, so that opening time does not grow with their number.

`unimp prepare` writes them beside the records, one user at a time. Numeric columns are memory-mapped and shared by all
processes of a host. Columns of records that have none are written to a temporary folder each time they are opened.
"""

import array
import contextlib
import hashlib
import json
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data_pipelines.corpus import Corpus, UserEvents, all_events, catalogue_of, refuse_repeats
from data_pipelines.errors import DataError
from data_pipelines.schema import Item, User

T = TypeVar("T")
FOLDER = "columns"
ABOUT, VERSION = "columns.json", 1
NUMBERS: dict[str, type[np.generic]] = {
    "offsets": np.int64,
    "items": np.int32,
    "times": np.int64,
    "ratings": np.float32,
    "splits": np.int8,
}
"""The arrays of a corpus that are each stored in a file of their own, as raw values."""
PAIR = pa.struct([("name", pa.string()), ("text", pa.string())])
ITEMS = pa.schema(
    {
        "item_id": pa.string(),
        "title": pa.string(),
        "attributes": pa.list_(PAIR),
        "categories": pa.list_(pa.string()),
        "has_image": pa.bool_(),
    }
)
USERS = pa.schema({"user_id": pa.string()})
TEXTS = pa.schema({"event": pa.int64(), "text": pa.string()})
ROWS = 10_000
"""The number of rows that are buffered before they are written."""


class Rows:
    """Writes an Arrow file in batches of rows."""

    def __init__(self, path: Path, schema: pa.Schema):
        self._schema, self._rows = schema, list[dict[str, Any]]()
        self._writer = pa.ipc.new_file(path, schema)

    def add(self, row: dict[str, Any]) -> None:
        self._rows.append(row)
        if len(self._rows) >= ROWS:
            self.flush()

    def flush(self) -> None:
        self._writer.write_batch(pa.RecordBatch.from_pylist(self._rows, self._schema))
        self._rows.clear()

    def close(self) -> None:
        self.flush()
        self._writer.close()


class Column(Sequence[T]):
    """A column of strings, or of lists of strings, on disk; each value is created when it is accessed."""

    def __init__(self, values: pa.ChunkedArray, made: Callable[[Any], T] = lambda value: value):
        self._values, self._made = values, made

    def __len__(self) -> int:
        return len(self._values)

    def __getitem__(self, number: Any) -> Any:
        if isinstance(number, slice):
            return [self[one] for one in range(*number.indices(len(self)))]
        return self._made(self._values[int(number)].as_py())

    def __iter__(self) -> Iterator[T]:
        for start in range(0, len(self), ROWS):
            yield from map(self._made, self._values.slice(start, ROWS).to_pylist())

    def __eq__(self, other: object) -> bool:
        """Returns whether it holds the same values as a list or another column."""
        if self is other or not isinstance(other, list | Column):
            return self is other
        return len(self) == len(other) and all(one == another for one, another in zip(self, other, strict=True))

    def __contains__(self, value: object) -> bool:
        return pc.index(self._values, value).as_py() >= 0

    def index(self, value: Any, start: int = 0, stop: int | None = None) -> int:
        """Like `list.index`, but the comparison is done by Arrow."""
        found = pc.index(self._values, value, start=start, end=stop).as_py()
        if found < 0:
            raise ValueError(f"{value!r} is not in the column")
        return int(found)


class Texts(Mapping[int, str]):
    """The texts of interactions, keyed by the ascending index of the interaction, stored on disk like a `Column`."""

    def __init__(self, events: np.ndarray, texts: Column[str]):
        self.events, self._texts = events, texts

    def __len__(self) -> int:
        return len(self.events)

    def __iter__(self) -> Iterator[int]:
        return iter(self.events.tolist())

    def __getitem__(self, event: int) -> str:
        place = int(np.searchsorted(self.events, event))
        if place == len(self) or self.events[place] != event:
            raise KeyError(event)
        text: str = self._texts[place]
        return text

    def values(self) -> Column[str]:  # type: ignore[override]
        """Returns the texts in the order of the interactions."""
        return self._texts

    def items(self) -> Iterator[tuple[int, str]]:  # type: ignore[override]
        """Iterates over (interaction index, text) pairs in the order of the interactions."""
        return zip(self, self._texts, strict=True)


def write_columns(items: Iterable[Item], users: Iterable[User], folder: Path) -> None:
    """Writes the columns of a source into a new folder.

    Memory holds the ids of all items, eight bytes for each user, and the buffered rows.

    Raises:
      DataError: as raised by `catalogue_of`, `all_events` and `refuse_repeats`.
    """
    folder.mkdir()
    with contextlib.ExitStack() as files:
        rows = files.enter_context(contextlib.closing(Rows(folder / "items.arrow", ITEMS)))

        def written() -> Iterator[Item]:
            for item in items:
                attributes = [{"name": name, "text": text} for name, text in item.attributes]
                rows.add(
                    {
                        "item_id": item.item_id,
                        "title": item.title,
                        "attributes": attributes,
                        "categories": item.categories,
                        "has_image": bool(item.image),
                    }
                )
                yield item

        index = catalogue_of(written())
        ids = files.enter_context(contextlib.closing(Rows(folder / "users.arrow", USERS)))
        texts = files.enter_context(contextlib.closing(Rows(folder / "texts.arrow", TEXTS)))
        numbers = {name: files.enter_context((folder / f"{name}.bin").open("wb")) for name in NUMBERS}
        numbers["offsets"].write(np.zeros(1, NUMBERS["offsets"]).tobytes())
        end, hashes = 0, array.array("q")
        for one in all_events(index, users):
            ids.add({"user_id": one.user_id})
            for number, text in one.texts.items():
                texts.add({"event": end + number, "text": text})
            end += len(one.items)
            hashes.append(hash(one.user_id))
            numbers["offsets"].write(np.array(end, NUMBERS["offsets"]).tobytes())
            for name in UserEvents.ARRAYS:
                numbers[name].write(np.asarray(getattr(one, name), NUMBERS[name]).tobytes())
    refuse_repeated_users(folder, np.frombuffer(hashes, np.int64))
    counts = {"items": len(index), "users": len(hashes), "interactions": end}
    about = {"version": VERSION, **counts, "digest": digest_of_files(folder)}
    (folder / ABOUT).write_text(json.dumps(about), encoding="utf-8")


def refuse_repeated_users(folder: Path, hashes: np.ndarray) -> None:
    """Raises DataError if a user id occurs twice; compares only ids whose hashes, int64 [U], occur more than once."""
    values, counts = np.unique(hashes, return_counts=True)
    if repeated := set(values[counts > 1].tolist()):
        ids = Column[str](table(folder / "users.arrow")["user_id"])
        refuse_repeats(user_id for user_id in ids if hash(user_id) in repeated)


def digest_of_files(folder: Path) -> str:
    """Returns the SHA-256 digests of the item file and of the file of users' texts."""
    digests = []
    for name in ("items.arrow", "texts.arrow"):
        with (folder / name).open("rb") as file:
            digests.append(hashlib.file_digest(file, "sha256").hexdigest())
    return " ".join(digests)


def digest_of_texts(folder: Path) -> str:
    """Returns the value of `digest_of_files`, which is computed if the columns were written before it was stored.

    Raises:
      OSError, ValueError: the columns cannot be read.
    """
    return json.loads((folder / ABOUT).read_text(encoding="utf-8")).get("digest") or digest_of_files(folder)


def read_columns(folder: Path) -> tuple[Corpus, np.ndarray] | None:
    """Returns the corpus and whether each item has an image (bool [I]); None if there are no columns of this version.

    Raises:
      DataError: a file is missing or truncated.
    """
    if not folder.exists():
        return None
    try:
        about = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
        if about["version"] != VERSION:
            return None
        lengths = dict.fromkeys(NUMBERS, about["interactions"]) | {"offsets": about["users"] + 1}
        arrays = {name: mapped(folder / f"{name}.bin", dtype, lengths[name]) for name, dtype in NUMBERS.items()}
        items, users, texts = (table(folder / f"{name}.arrow") for name in ("items", "users", "texts"))
        if (len(items), len(users)) != (about["items"], about["users"]):
            raise ValueError(f"{len(items)} items and {len(users)} users; expected {about}")
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as error:
        raise DataError(f"{folder} cannot be read ({error}); prepare the source again") from error
    corpus = Corpus(
        item_ids=Column(items["item_id"]),
        titles=Column(items["title"]),
        attributes=Column(items["attributes"], lambda row: tuple((one["name"], one["text"]) for one in row)),
        categories=Column(items["categories"], tuple),
        user_ids=Column(users["user_id"]),
        texts=Texts(texts["event"].to_numpy(), Column(texts["text"])),
        **arrays,
    )
    return corpus, items["has_image"].to_numpy()


def gathered(items: Iterable[Item], users: Iterable[User]) -> tuple[Corpus, np.ndarray]:
    """Returns what `read_columns` does for the columns of these records, whose mapped files are deleted already."""
    with tempfile.TemporaryDirectory() as folder:
        write_columns(items, users, Path(folder) / FOLDER)
        found = read_columns(Path(folder) / FOLDER)
    assert found is not None
    return found


def mapped(path: Path, dtype: type[np.generic], length: int) -> np.ndarray:
    """Memory-maps the array in a file, after checking its size."""
    size, right = path.stat().st_size, length * np.dtype(dtype).itemsize
    if size != right:
        raise ValueError(f"{path.name} has {size:,} bytes; expected {right:,}")
    return np.memmap(path, dtype, mode="r", shape=(length,)).view(np.ndarray)


def table(path: Path) -> pa.Table:
    """Memory-maps the table in an Arrow file."""
    with pa.memory_map(str(path)) as source:
        return pa.ipc.open_file(source).read_all()
