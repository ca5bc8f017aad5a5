"""Semantic ids of a catalogue in a file: which codes name each item."""

from __future__ import annotations

import dataclasses
import json
import os
import string
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data_pipelines.errors import DataError

SIZES = b"unimp.sizes"
LETTERS = string.ascii_lowercase


@dataclasses.dataclass(frozen=True, eq=False)
class ItemCodes:
    """I items named by one code of each level.

    Attributes:
      item_ids: I strings, no two alike.
      codes: int32 [I, depth], no two rows alike.
      sizes: how many codes each level has.
    """

    item_ids: tuple[str, ...]
    codes: np.ndarray
    sizes: tuple[int, ...]

    def __post_init__(self) -> None:
        shape = (len(self.item_ids), len(self.sizes))
        if self.codes.shape != shape:
            raise DataError(f"codes are of shape {self.codes.shape}: {shape}, items and levels, is right")
        if not 1 <= len(self.sizes) <= len(LETTERS):
            raise DataError(f"{len(self.sizes)} levels of codes: 1 to {len(LETTERS)}, a letter each, is right")
        if len(set(self.item_ids)) != len(self.item_ids):
            raise DataError("an item has two rows of codes")
        if (self.codes < 0).any() or (self.codes >= np.array(self.sizes)).any():
            raise DataError(f"a code is not within the sizes of its level, {self.sizes}")
        if len(np.unique(self.codes, axis=0)) != len(self.codes):
            raise DataError("two items have the same codes: nothing would tell them apart")

    def tokens(self) -> list[str]:
        """The names of all codes, level by level: <a_0>, <a_1>, …, <b_0>, …; no text of a catalogue reads so."""
        return [
            f"<{letter}_{code}>" for letter, size in zip(LETTERS, self.sizes, strict=False) for code in range(size)
        ]  # fmt: skip

    def token_numbers(self) -> np.ndarray:
        """The place in `tokens` of every code: int64 [I, depth]."""
        return self.codes + np.cumsum([0, *self.sizes[:-1]])


def save_codes(path: Path, codes: ItemCodes, facts: dict[str, Any] | None = None) -> None:
    """Parquet with the columns `item_id` and `codes`, whole or not at all; `facts` say how the codes came to be."""
    rows = pa.FixedSizeListArray.from_arrays(pa.array(codes.codes.reshape(-1), pa.int32()), len(codes.sizes))
    table = pa.table({"item_id": pa.array(codes.item_ids, pa.string()), "codes": rows})
    metadata = {SIZES: json.dumps(codes.sizes), b"unimp.facts": json.dumps(facts or {})}
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        pq.write_table(table.replace_schema_metadata(metadata), temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def load_codes(path: Path, item_ids: Sequence[str]) -> ItemCodes:
    """The codes of these items, in this order; a file may hold others too.

    Raises:
      DataError: the file is missing or damaged, or lacks an item.
    """
    try:
        with pq.ParquetFile(path) as file:  # `read_table` would take the name of a folder, `codes=8`, for a column
            table = file.read(columns=["item_id", "codes"])
        sizes, codes = _read_codes(table)
        whole = ItemCodes(tuple(table["item_id"].to_pylist()), codes, sizes)
    except FileNotFoundError as error:
        raise DataError(f"{path} does not exist: `unimp ids` makes such a file") from error
    except (pa.ArrowException, OSError, KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path}: not a file of item codes ({str(error).splitlines()[0]})") from error
    places = {item_id: place for place, item_id in enumerate(whole.item_ids)}
    missing = [item_id for item_id in item_ids if item_id not in places]
    if missing:
        raise DataError(f"{path} has no codes for {len(missing)} of the items, such as {missing[0]!r}: make it anew")
    return ItemCodes(tuple(item_ids), codes[[places[item_id] for item_id in item_ids]], sizes)


def _read_codes(table: pa.Table) -> tuple[tuple[int, ...], np.ndarray]:
    """(how many codes each level has, int32 [rows, levels])."""
    described = (table.schema.metadata or {}).get(SIZES)
    if described is None:
        raise ValueError("nothing says how many codes each level has")
    sizes = tuple(map(int, json.loads(described)))
    column, right = table["codes"], pa.list_(pa.int32(), len(sizes))
    if column.type != right:
        raise ValueError(f"column codes is of {column.type}: {right} is right")
    codes = column.combine_chunks().flatten().to_numpy(zero_copy_only=True)  # which missing numbers forbid
    return sizes, codes.reshape(len(table), len(sizes))
