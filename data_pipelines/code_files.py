"""Parquet files with a few numbers for each item: semantic ids, image codes and vectors."""

import contextlib
import json
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data_pipelines.atomic import atomic_file
from data_pipelines.errors import DataError, reason_of

MISTAKES = (pa.ArrowException, OSError, KeyError, TypeError, ValueError, zipfile.BadZipFile, EOFError)
"""The exceptions raised when a file is damaged or of another kind."""


def check_place(path: Path) -> None:
    """Creates the parent folder of the file, before anything is computed for it.

    Raises:
      DataError: the path is a folder.
    """
    if path.is_dir():
        raise DataError(f"{path} is a folder; name a file for the codes, such as {path / 'codes.parquet'}")
    path.parent.mkdir(parents=True, exist_ok=True)


@contextlib.contextmanager
def reading(path: Path, what: str, command: str) -> Iterator[None]:
    """Attributes what fails in its body to the file, by a DataError: it does not exist, or is not `what` the command
    writes."""
    try:
        yield
    except FileNotFoundError as error:
        raise DataError(f"{path} does not exist; `{command}` writes such a file") from error
    except MISTAKES as error:
        raise DataError(f"{path}: not {what} ({reason_of(error)})") from error


def write_rows(path: Path, item_ids: Sequence[str], name: str, rows: np.ndarray, **described: Any) -> None:
    """Writes a Parquet file with the columns `item_id` and `name`, whole or not at all.

    Args:
      rows: int32 or float32 [I, n].
      described: facts about the rows, as JSON values.
    """
    column = pa.FixedSizeListArray.from_arrays(pa.array(rows.reshape(-1)), rows.shape[1])
    table = pa.table({"item_id": pa.array(item_ids, pa.string()), name: column})
    path.parent.mkdir(parents=True, exist_ok=True)
    metadata = {f"unimp.{fact}": json.dumps(value) for fact, value in described.items()}
    with atomic_file(path, shared=True) as temporary:
        pq.write_table(table.replace_schema_metadata(metadata or None), temporary)


def read_rows(path: Path, name: str) -> pa.Table:
    """Reads the columns `item_id` and `name`, with the facts about the rows in the schema's metadata; raises
    FileNotFoundError, or one of `MISTAKES` if it is another kind of file."""
    with pq.ParquetFile(path) as file:  # `read_table` would take a folder name such as `codes=8` for a partition column
        return file.read(columns=["item_id", name])


def places_of(item_ids: Sequence[str], held: Sequence[str]) -> np.ndarray:
    """Returns the row of each item among those that a file holds, -1 for an item that it lacks: int64 [I]."""
    places = {item_id: place for place, item_id in enumerate(held)}
    return np.array([places.get(item_id, -1) for item_id in item_ids], np.int64)


def stored_fact(table: pa.Table, name: str) -> Any:
    """Returns the fact that the file holds under this name; None if there is none."""
    text = (table.schema.metadata or {}).get(f"unimp.{name}".encode())
    return None if text is None else json.loads(text)


def code_rows(table: pa.Table, length: int) -> np.ndarray:
    """Returns the codes as int32 [I, length]; raises ValueError if the rows are of another type, or some are
    missing."""
    column, right = table["codes"], pa.list_(pa.int32(), length)
    if column.type != right:
        raise ValueError(f"column codes has type {column.type}; it must be {right}")
    # `to_numpy` would make pyarrow import pandas; this also fails for missing numbers.
    codes = np.from_dlpack(column.combine_chunks().flatten())
    return codes.reshape(len(table), length)
