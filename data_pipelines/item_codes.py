"""Semantic ids of a catalogue in a file: the codes that name each item."""

import dataclasses
import string
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data_pipelines.code_files import code_rows, places_of, read_rows, reading, stored_fact, write_rows
from data_pipelines.errors import DataError

LETTERS = string.ascii_lowercase


@dataclasses.dataclass(frozen=True, eq=False)
class ItemCodes:
    """I items, each named by one code of each level.

    Attributes:
      codes: int32 [I, depth], with distinct rows.
    """

    item_ids: tuple[str, ...]
    codes: np.ndarray
    sizes: tuple[int, ...]

    def __post_init__(self) -> None:
        shape = (len(self.item_ids), len(self.sizes))
        if self.codes.shape != shape:
            raise DataError(f"codes have shape {self.codes.shape}; expected [items, levels] = {shape}")
        if not 1 <= len(self.sizes) <= len(LETTERS):
            raise DataError(
                f"{len(self.sizes)} levels of codes; there must be 1 to {len(LETTERS)}, since each level has a letter"
            )
        if len(set(self.item_ids)) != len(self.item_ids):
            raise DataError("an item has two rows of codes")
        if (self.codes < 0).any() or (self.codes >= np.array(self.sizes)).any():
            raise DataError(f"a code is outside the range of its level; the levels have {self.sizes} codes")
        if len(np.unique(self.codes, axis=0)) != len(self.codes):
            raise DataError("two items have the same codes, so they cannot be distinguished")

    def tokens(self) -> list[str]:
        """Returns the names of all codes, level by level: <a_0>, <a_1>, …, <b_0>, …; unlike any catalogue text."""
        return [
            f"<{letter}_{code}>" for letter, size in zip(LETTERS, self.sizes, strict=False) for code in range(size)
        ]  # fmt: skip

    def token_numbers(self) -> np.ndarray:
        """Returns the index in `tokens` of every code: int64 [I, depth]."""
        return self.codes + np.cumsum([0, *self.sizes[:-1]])


def save_codes(path: Path, codes: ItemCodes, facts: dict[str, Any] | None = None) -> None:
    """Writes a Parquet file with the columns `item_id` and `codes`; `facts` describe how the codes were made."""
    write_rows(path, codes.item_ids, "codes", codes.codes, sizes=codes.sizes, facts=facts or {})


def load_codes(path: Path, item_ids: Sequence[str]) -> ItemCodes:
    """Returns the codes of the given items, in this order; the file may hold others too. Raises DataError if it is
    missing or damaged, or lacks an item."""
    with reading(path, "a file of item codes", "unimp ids"):
        table = read_rows(path, "codes")
        described = stored_fact(table, "sizes")
        if described is None:
            raise ValueError("the metadata lack the number of codes of each level")
        sizes = tuple(map(int, described))
        whole = ItemCodes(tuple(table["item_id"].to_pylist()), code_rows(table, len(sizes)), sizes)
    rows = places_of(item_ids, whole.item_ids)
    if missing := np.flatnonzero(rows < 0).tolist():
        raise DataError(
            f"{path} has no codes for {len(missing)} of the items, such as {item_ids[missing[0]]!r}; make it again "
            "with `unimp ids`"
        )
    return ItemCodes(tuple(item_ids), whole.codes[rows], sizes)
