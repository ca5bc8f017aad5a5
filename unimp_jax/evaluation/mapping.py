"""Applies one compiled function to many images, texts or codes, batch by batch."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from tqdm import tqdm

BATCH = 64
"""Number of rows that are encoded together."""


def batch_size(shards: int) -> int:
    """Returns the smallest multiple of `shards`, the number of batch shards on a mesh, that is at least `BATCH`."""
    return -(-BATCH // shards) * shards


def padded_batches(rows: np.ndarray, size: int = BATCH, *, progress: str = "") -> Iterator[tuple[np.ndarray, int]]:
    """Splits rows into batches of one size, so that one compilation is enough: yields ([size, ...], number of valid
    rows); the last batch is filled up by repeating its rows. `progress` is the label of a progress bar, "" for none."""
    for start in tqdm(range(0, len(rows), size), desc=progress, leave=False, disable=not progress):
        part = rows[start : start + size]
        yield np.resize(part, (size, *rows.shape[1:])), len(part)


def map_batches(
    function: Callable[[np.ndarray], Any], rows: np.ndarray, size: int = BATCH, *, progress: str = ""
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Calls `function` on each of the `padded_batches`.

    Args:
      function: [size, ...] -> [size, ...], on the host or a device.

    Yields:
      (some of the rows, [some, ...] the function's results for them), in order.
    """
    for batch, count in padded_batches(rows, size, progress=progress):
        yield batch[:count], np.asarray(function(batch))[:count]


def in_batches(function: Callable[[np.ndarray], Any], rows: np.ndarray, size: int | None = None) -> np.ndarray:
    """Returns the results of `function` for N rows, at least one, [N, ...]; by default few rows are one small batch."""
    size = min(BATCH, len(rows)) if size is None else size
    return np.concatenate([result for _, result in map_batches(function, rows, size)])
