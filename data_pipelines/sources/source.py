"""A source: all interactions as one table, with functions for cores and repeats, and its items."""

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Literal, Self

import numpy as np
import polars as pl
from scipy.sparse import csr_array

from data_pipelines.schema import NO_TIME, Interaction, Item, User

COLUMNS = {"user": pl.String, "item": pl.String, "time": pl.Int64, "rating": pl.Float32, "text": pl.String}
"""The columns of a table of interactions, in the source's order: time `NO_TIME`, rating NaN and text "" if unknown.

User and item may be categoricals. Rating and text may be absent if all are unknown; `split`, a string, is added if the
source prescribes splits.
"""
ALL_COLUMNS = {**COLUMNS, "split": pl.String}
USERS_A_PART = 4096
ABSENT = {"rating": pl.lit(math.nan, pl.Float32), "text": pl.lit(""), "split": pl.lit("")}


@dataclasses.dataclass(frozen=True)
class Counts:
    """The numbers of users, items and interactions in the files of a source, before anything is dropped."""

    users: int
    items: int
    interactions: int

    @classmethod
    def of(cls, frame: pl.DataFrame) -> Self:
        return cls(frame["user"].n_unique(), frame["item"].n_unique(), len(frame))


def codes(column: pl.Series) -> tuple[np.ndarray, pl.Series]:
    """Returns each value's number in order of first appearance, int64 [E], and the numbered values, [N]."""
    column = column.cast(pl.Categorical)
    names = column.unique(maintain_order=True)
    known, first = column.to_physical().to_numpy(), names.to_physical().to_numpy()
    numbers = np.empty(known.max(initial=0) + 1, np.int64)
    numbers[first] = np.arange(len(first))
    return numbers[known], names.cast(pl.String)


def k_core(users: np.ndarray, items: np.ndarray, user_core: int, item_core: int) -> np.ndarray:
    """Selects the largest subset of rows in which each user has `user_core` rows and each item `item_core`: bool [E],
    from the numbers of users and of items, int [E] from 0 on. The time is linear in E for any number of rounds, as each
    round visits only the rows of nodes removed in the previous one."""
    ends, cores = (users, items), (user_core, item_core)
    degrees = [np.bincount(end) for end in ends]
    fallen = [np.flatnonzero(degree < core) for degree, core in zip(degrees, cores, strict=True)]
    kept = np.ones(len(users), bool)
    if all((degree[few] == 0).all() for degree, few in zip(degrees, fallen, strict=True)):
        return kept
    rows_of = [_rows_of(end, len(degree)) for end, degree in zip(ends, degrees, strict=True)]
    first_at = [np.empty(len(degree), np.int64) for degree in degrees]
    while len(fallen[0]) or len(fallen[1]):
        for side, other in ((0, 1), (1, 0)):
            rows = _gather(*rows_of[side], fallen[side])
            rows = rows[kept[rows]]
            kept[rows] = False
            met, degree = ends[other][rows], degrees[other]
            stood = degree[met] >= cores[other]
            np.subtract.at(degree, met, 1)
            falling = met[stood & (degree[met] < cores[other])]
            places = np.arange(len(falling))
            first_at[other][falling] = places
            falling = falling[first_at[other][falling] == places]  # removes duplicates
            fallen[side], fallen[other] = falling[:0], np.concatenate([fallen[other], falling])
    return kept


def _rows_of(end: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns (offsets [count + 1], rows [E]): the rows of node n are rows[offsets[n] : offsets[n + 1]]."""
    table = csr_array((np.ones(len(end), bool), (end, np.arange(len(end)))), shape=(count, len(end)))
    return table.indptr, table.indices


def _gather(offsets: np.ndarray, rows: np.ndarray, nodes: np.ndarray) -> np.ndarray:
    """Returns the rows of all `nodes`."""
    starts, lengths = offsets[nodes], offsets[nodes + 1] - offsets[nodes]
    ends = np.cumsum(lengths)
    return rows[np.repeat(starts - (ends - lengths), lengths) + np.arange(ends[-1] if len(ends) else 0)]


def core(frame: pl.DataFrame, user_core: int, item_core: int) -> pl.DataFrame:
    """Returns the largest part of a table in which each user has `user_core` rows and each item `item_core`."""
    if max(user_core, item_core) <= 1:
        return frame
    return frame.filter(k_core(codes(frame["user"])[0], codes(frame["item"])[0], user_core, item_core))


def without_repeats(frame: pl.DataFrame, keep: Literal["first", "last"]) -> pl.DataFrame:
    """Keeps each user's first or last interaction with an item by time, or by row if times tie or are unknown."""
    pairs = frame.select("user", "item", times_of(frame)).with_row_index("row")
    kept = pairs.sort("time", maintain_order=True).unique(["user", "item"], keep=keep, maintain_order=True)
    return frame if len(kept) == len(frame) else frame[kept["row"].sort()]


def times_of(frame: pl.DataFrame) -> pl.Series:
    """Returns the times to sort by; users with unknown times have only `NO_TIME`, which keeps the table's order."""
    unknown = (pl.col("time") == NO_TIME).any().over("user")
    if not (frame["time"] == NO_TIME).any():
        return frame["time"]
    return frame.select(pl.when(unknown).then(NO_TIME).otherwise("time").alias("time"))["time"]


def histories_of(rows: pl.DataFrame) -> pl.DataFrame:
    """Returns one row per user, with `user_id` and a list for each field of `Interaction`; rows are in order."""
    rows = rows.with_columns(ABSENT[name].alias(name) for name in ABSENT if name not in rows.columns)
    texts = (pl.col(name).cast(pl.String).alias(f"{name}_id") for name in ("user", "item"))
    history = rows.select(*texts, "time", "rating", "text", "split")
    history = history.group_by("user_id", maintain_order=True).agg(pl.all())
    return history.with_columns(pl.exclude("user_id").list.drop_nulls())


class Source:
    """The interface of a data set: a table of interactions, and a function that returns its items.

    Attributes:
      frame: with the columns in `COLUMNS`; a user without interactions is a row of `ALL_COLUMNS` with nulls in all
        others.
      read: the numbers in the files, if known.
    """

    def __init__(
        self,
        frame: pl.DataFrame,
        item_of: Callable[[str], Item],
        read: Counts | None = None,
        item_ids: Iterable[str] | None = None,
    ):
        """Wraps the data; `item_ids` are all items in order, None: those with interactions, in order of first
        appearance."""
        self.frame, self.read, self._item_of, self._item_ids = frame, read, item_of, item_ids

    def items(self) -> Iterator[Item]:
        """Yields all items."""
        return map(self._item_of, codes(self.frame["item"])[1] if self._item_ids is None else self._item_ids)

    def users(self) -> Iterator[User]:
        """Yields users in order of first appearance, with interactions in order of time (stable for ties)."""
        for part in self.histories():
            for user, items, times, ratings, texts, splits in part.iter_rows():
                known = (math.nan if math.isnan(rating) else rating for rating in ratings)  # one NaN, equal to itself
                yield User(user, tuple(map(Interaction, items, times, known, texts, splits)))

    def histories(self) -> Iterator[pl.DataFrame]:
        """Yields the users in parts of `USERS_A_PART`, in the form of `histories_of`."""
        numbers, _ = codes(self.frame["user"])
        keys = pl.DataFrame({"user": numbers, "time": times_of(self.frame)}).with_row_index("row")
        rows = keys.sort("user", "time", maintain_order=True)["row"]
        ends = np.cumsum(np.bincount(numbers))[USERS_A_PART - 1 :: USERS_A_PART].tolist()
        for start, end in itertools.pairwise(dict.fromkeys([0, *ends, len(rows)])):
            yield histories_of(self.frame[rows[start:end]])
