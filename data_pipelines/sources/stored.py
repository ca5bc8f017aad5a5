"""Interactions of a large source on disk, sorted there, so that memory does not grow with their number.

Rows are written in runs as they are read, each run in groups: buckets of users, by a hash of their ids. A bucket holds
all rows of its users, so that their repeats, their number and their order by time are found in one bucket at a time. It
is written in groups again, one for each part of `Source.histories`, which gathers those of a part from all buckets.

Memory holds a run, a bucket or a part; the ids of all items, with two numbers each; and a number for each user.
"""

import contextlib
import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import polars as pl
import pyarrow as pa

from data_pipelines.errors import DataError, reason_of
from data_pipelines.schema import Item
from data_pipelines.sources import source
from data_pipelines.sources.source import Counts, Source, histories_of, k_core, times_of, without_repeats

RUN = 2**25
"""The bytes of rows that are held before they are written."""
BUCKETS = 256
"""The number of buckets, unless there is only one run, which is one bucket."""
CORE_ROWS = 2**21
"""The number of rows of which the core is taken in memory; while there are more, each round reads those on disk."""
NEVER = np.iinfo(np.int64).max


@dataclasses.dataclass(frozen=True)
class Stored:
    """Interactions on disk, without repeats and cut to their core.

    Attributes:
      files: of the buckets; a group holds the rows of a part, sorted by user (`first`, the number of the user's first
        row, gives the order) and time, with `item` as a number.
      items: the id of each item of the source's files by its number.
      first_rows: the row in which an item first appears in what was kept, or `NEVER`; int64 [I].
    """

    files: tuple[Path, ...]
    parts: int
    items: pl.Series
    first_rows: np.ndarray
    read: Counts

    def firsts(self) -> dict[str, int]:
        """Returns, by item in order of first appearance, the row (from 0 on, as read) in which it first appears."""
        order = np.argsort(self.first_rows, kind="stable")
        order = order[self.first_rows[order] < NEVER]
        return dict(zip(self.items[order], self.first_rows[order].tolist(), strict=True))

    def histories(self) -> Iterator[pl.DataFrame]:
        """Yields the users in parts, as `Source.histories`."""
        with contextlib.ExitStack() as files:
            buckets = [files.enter_context(pa.OSFile(str(path))) for path in self.files]
            readers = [pa.ipc.open_file(bucket) for bucket in buckets]
            for number in range(self.parts):
                rows = read_group(readers, number).sort("first", maintain_order=True)
                yield histories_of(rows.with_columns(self.items[rows["item"]].alias("item")))


class StoredSource(Source):
    """A source whose interactions are on disk."""

    def __init__(self, stored: Stored, item_of: Callable[[str], Item], item_ids: Iterable[str] | None = None):
        """Wraps the interactions; the arguments are as for `Source`."""
        self._stored, self.read, self._item_of = stored, stored.read, item_of
        self._item_ids = stored.firsts() if item_ids is None else item_ids

    def histories(self) -> Iterator[pl.DataFrame]:
        return self._stored.histories()


def store(
    parts: Iterable[pl.DataFrame], folder: Path, keep: Literal["first", "last"], user_core: int = 1, item_core: int = 1
) -> Stored:
    """Writes interactions to an empty folder, in which the files of the result stay; raises DataError if it cannot be
    written. `parts` are tables as for `Source`, all with the same columns, an interaction each row; of the interactions
    of a user with an item one is kept as by `without_repeats`; the cores are as for `core`."""
    numbers: dict[str, int] = {}
    runs, buckets, count = list[Path](), list[Path](), 0
    for rows, count in _runs(parts, numbers):
        runs.append(folder / f"run-{len(runs):06}")
        write_groups(rows, (rows["user"].hash() % count).to_numpy(), count, runs[-1])
    users = total = left = 0  # the latter: of rows without repeats
    for number in range(count):
        rows = read_group((pa.ipc.open_file(pa.OSFile(str(path))) for path in runs), number)  # one open at a time
        users, total = users + rows["user"].n_unique(), total + len(rows)
        rows = without_repeats(rows, keep)
        left += len(rows)
        who = rows.select(pl.col("user").unique()).with_row_index("who")
        buckets.append(folder / f"bucket-{number:06}")
        with writing(folder):
            rows.join(who, "user", "left", maintain_order="left").write_parquet(buckets[-1], compression="lz4")
    for path in runs:
        path.unlink()
    stays = items_of_core(buckets, len(numbers), left, user_core, item_core)
    first_users, first_rows = [np.zeros(0, np.int64)], np.full(len(numbers), NEVER)
    for path in buckets:
        rows = _kept(path, stays, user_core)
        first_users.append(rows.group_by("user").agg(pl.col("row").min())["row"].to_numpy())
        np.minimum.at(first_rows, rows["item"].to_numpy(), rows["row"].to_numpy())
    starts = np.sort(np.concatenate(first_users))[:: source.USERS_A_PART]
    files = list[Path]()
    for path in buckets:
        rows = _kept(path, stays, user_core)
        rows = rows.with_columns(times_of(rows).alias("at"), first=pl.col("row").min().over("user"))
        rows = rows.sort("first", "at", maintain_order=True).drop("at", "row", "who")
        files.append(folder / f"sorted-{len(files):06}")
        write_groups(rows, np.searchsorted(starts, rows["first"].to_numpy(), "right") - 1, len(starts), files[-1])
        path.unlink()
    items = pl.Series(list(numbers), dtype=pl.String)
    return Stored(tuple(files), len(starts), items, first_rows, Counts(users, len(numbers), total))


def _runs(parts: Iterable[pl.DataFrame], numbers: dict[str, int]) -> Iterator[tuple[pl.DataFrame, int]]:
    """Yields the rows in runs, each with the number of buckets: the columns of the parts, with `item` as its number in
    `numbers`, to which new ids are added, and `row`, the number of the row."""
    held, size, read, count = list[pl.DataFrame](), 0, 0, 1
    for part in parts:
        if size >= RUN:
            count = BUCKETS
            yield pl.concat(held), count
            held, size = [], 0
        if part.is_empty():
            continue
        ids = part["item"].unique().cast(pl.String)
        places = [numbers.setdefault(item, len(numbers)) for item in ids]
        rows = pl.int_range(read, read + len(part), dtype=pl.Int64, eager=True)
        item = pl.col("item").cast(pl.String).replace_strict(ids, places, return_dtype=pl.UInt32)
        held.append(part.with_columns(pl.col("user").cast(pl.String), item, rows.alias("row")))
        read += len(part)
        size += int(held[-1].estimated_size())
    if held:
        yield pl.concat(held), count


def _kept(path: Path, stays: np.ndarray, user_core: int) -> pl.DataFrame:
    """Returns the rows of a bucket that are in the core, of the items that are."""
    rows = pl.read_parquet(path, glob=False)
    rows = rows.filter(stays[rows["item"].to_numpy()])
    return rows.filter(pl.len().over("user") >= user_core)


def items_of_core(buckets: Sequence[Path], items: int, rows: int, user_core: int, item_core: int) -> np.ndarray:
    """Returns whether each item is in the core, bool [I], from the columns `item` and `who`, the number of the user, of
    buckets."""
    stays = np.ones(items, bool)
    if max(user_core, item_core) <= 1:
        return stays
    while rows > CORE_ROWS:
        degrees, rows = np.zeros(items, np.int64), 0
        for _, met in _met(buckets, stays, user_core):
            np.add.at(degrees, met, 1)
            rows += len(met)
        before, stays = stays, degrees >= max(item_core, 1)
        if (stays == before).all():
            return stays
    users, mets, count = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)], 0
    for who, met in _met(buckets, stays, user_core):
        users.append(who + count)
        mets.append(met)
        count += int(who.max(initial=-1)) + 1
    met = np.concatenate(mets)
    stays = np.zeros(items, bool)
    stays[met[k_core(np.concatenate(users), met, user_core, item_core)]] = True
    return stays


def _met(buckets: Sequence[Path], stays: np.ndarray, user_core: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields (user, item), int64 [E], of each bucket's rows of items that stay and users who have enough of them."""
    for path in buckets:
        met = pl.read_parquet(path, columns=["who", "item"], glob=False).cast(pl.Int64)
        users, items = met["who"].to_numpy(), met["item"].to_numpy()
        rows = stays[items]
        rows &= (np.bincount(users[rows], minlength=int(users.max(initial=-1)) + 1) >= user_core)[users]
        yield users[rows], items[rows]


# --- files of groups -------------------------------------------------------------------------------------------------


def write_groups(rows: pl.DataFrame, group: np.ndarray, count: int, path: Path) -> None:
    """Writes rows as an Arrow file with a batch for each of `count` groups, in their order; `group`, int [E], is the
    number of each row's group. Raises DataError if the file cannot be written."""
    order = np.argsort(group, kind="stable")
    ends = np.searchsorted(group[order], np.arange(count + 1))
    table = rows[order].to_arrow(compat_level=pl.CompatLevel.oldest())
    batch = pa.RecordBatch.from_arrays([column.combine_chunks() for column in table.columns], schema=table.schema)
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    with writing(path.parent), pa.ipc.new_file(path, table.schema, options=options) as file:
        for start, end in itertools.pairwise(ends.tolist()):
            file.write_batch(batch.slice(start, end - start))


def read_group(readers: Iterable[pa.ipc.RecordBatchFileReader], number: int) -> pl.DataFrame:
    """Returns the rows of a group in all files, one file after the other."""
    return pl.DataFrame(pl.from_arrow(pa.Table.from_batches([reader.get_batch(number) for reader in readers])))


@contextlib.contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Attributes failures to write in its body to the folder, by a DataError."""
    try:
        yield
    except OSError as error:
        raise DataError(
            f"{folder}: interactions could not be written ({reason_of(error)}); nothing was kept"
        ) from error
