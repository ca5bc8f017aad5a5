"""Tables of tokenised texts, created in batches and cached on disk, from where they are memory-mapped."""

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np

from data_pipelines.columns import mapped
from data_pipelines.disk_cache import DiskCache
from data_pipelines.tasks.examples import Ragged

T = TypeVar("T")
BATCH = 10_000
"""The number of texts that are tokenised at once, on all cores; the tokenizer's output takes about a kilobyte for each
text."""
TOKENS, LENGTHS, OFFSETS = "tokens.bin", "lengths.bin", "offsets.bin"


def tokenised(texts: Iterable[T], encode: Callable[[Sequence[T]], Sequence[Sequence[int]]], cache: DiskCache) -> Ragged:
    """Returns a table with one row of tokens for each text; `texts` can be iterated more than once. `cache` is keyed by
    what determines the rows, and `encode` is not called if they are in it."""

    def batches() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yields the concatenated tokens of some texts, int32, and the number of tokens of each text, int64."""
        rest = iter(texts)
        while batch := [*itertools.islice(rest, BATCH)]:
            rows = encode(batch)
            lengths = np.fromiter(map(len, rows), np.int64, len(rows))
            yield np.fromiter(itertools.chain.from_iterable(rows), np.int32, lengths.sum()), lengths

    def write(folder: Path) -> None:
        lengths = [np.zeros(0, np.int64)]
        with (folder / TOKENS).open("wb") as file:
            for tokens, of_batch in batches():
                tokens.tofile(file)
                lengths.append(of_batch)
        made = Ragged(np.zeros(0, np.int32), np.concatenate(lengths))
        made.lengths_and_end.tofile(folder / LENGTHS)
        made.offsets.tofile(folder / OFFSETS)

    rows = cache.get(write, read_rows)
    if rows is not None:
        return rows
    made_here = [(np.zeros(0, np.int32), np.zeros(0, np.int64)), *batches()]
    return Ragged(*(np.concatenate(arrays) for arrays in zip(*made_here, strict=True)))


def read_rows(folder: Path) -> Ragged:
    """Memory-maps the rows written by `tokenised`; raises OSError or ValueError if a file is missing or truncated."""
    count = (folder / OFFSETS).stat().st_size // np.dtype(np.int64).itemsize
    offsets, lengths = (mapped(folder / name, np.int64, count) for name in (OFFSETS, LENGTHS))
    size = int(offsets[-1])
    tokens = mapped(folder / TOKENS, np.int32, size) if size else np.zeros(0, np.int32)  # mmap refuses empty files
    return Ragged.of_arrays(tokens, offsets, lengths)
