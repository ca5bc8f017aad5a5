"""Parquet files with a few codes for each item, used for semantic ids and for image codes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data_pipelines.atomic import atomic_file
from data_pipelines.errors import DataError

MISTAKES = (pa.ArrowException, OSError, KeyError, TypeError, ValueError)
"""The exceptions raised when a file is damaged or of another kind."""


def check_place(path: Path) -> None:
    """Creates the parent folder of the file, before anything is computed for it.

    Raises:
      DataError: the path is a folder.
    """
    if path.is_dir():
        raise DataError(f"{path} is a folder; name a file for the codes, such as {path / 'codes.parquet'}")
    path.parent.mkdir(parents=True, exist_ok=True)


def write_code_file(path: Path, item_ids: Sequence[str], codes: np.ndarray, **described: Any) -> None:
    """Writes a Parquet file with the columns `item_id` and `codes`, whole or not at all.

    Args:
      codes: int32 [I, n].
      described: facts about the codes, as JSON values.
    """
    rows = pa.FixedSizeListArray.from_arrays(pa.array(codes.reshape(-1), pa.int32()), codes.shape[1])
    table = pa.table({"item_id": pa.array(item_ids, pa.string()), "codes": rows})
    path.parent.mkdir(parents=True, exist_ok=True)
    metadata = {f"unimp.{name}": json.dumps(value) for name, value in described.items()}
    with atomic_file(path, shared=True) as temporary:
        pq.write_table(table.replace_schema_metadata(metadata), temporary)


def read_code_file(path: Path) -> pa.Table:
    """Reads the two columns, with the facts about the codes in the schema's metadata.

    Raises:
      FileNotFoundError: there is no such file.
      MISTAKES: it is another kind of file.
    """
    with pq.ParquetFile(path) as file:  # `read_table` would take a folder name such as `codes=8` for a partition column
        return file.read(columns=["item_id", "codes"])


def stored_fact(table: pa.Table, name: str) -> Any:
    """Returns the fact that the file holds under this name; None if there is none."""
    text = (table.schema.metadata or {}).get(f"unimp.{name}".encode())
    return None if text is None else json.loads(text)


def code_rows(table: pa.Table, length: int) -> np.ndarray:
    """Returns the codes as int32 [I, length].

    Raises:
      ValueError: the rows are of another type, or some are missing.
    """
    column, right = table["codes"], pa.list_(pa.int32(), length)
    if column.type != right:
        raise ValueError(f"column codes has type {column.type}; it must be {right}")
    # `to_numpy` would make pyarrow import pandas; this also fails for missing numbers.
    codes = np.from_dlpack(column.combine_chunks().flatten())
    return codes.reshape(len(table), length)
