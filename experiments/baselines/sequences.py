"""Training histories as full rows: all users one after the other, cut every T transitions."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from data_pipelines.corpus import TRAIN, Corpus
from data_pipelines.errors import DataError


def training_rows(corpus: Corpus, length: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """One epoch: every transition from a training item to the next, once, in rows without padding.

    Users stand in random order, so each epoch cuts their histories elsewhere. A piece of a history is a segment of
    its row and sees nothing of the others.

    Returns:
      `items`, `targets` (-1 in the last row's padding), `segments`, `positions` (from 0 in each piece): int32 [R, T].

    Raises:
      DataError: no user has two training interactions.
    """
    num_train = np.add.reduceat(corpus.splits == TRAIN, corpus.offsets[:-1])
    users = rng.permutation(np.flatnonzero(num_train >= 2))
    if not len(users):
        raise DataError("no user has two interactions to train on: there is no transition to learn")
    lengths = num_train[users] - 1
    ends = np.cumsum(lengths)
    events = np.arange(ends[-1]) + np.repeat(corpus.offsets[users] - (ends - lengths), lengths)
    segments = np.repeat(np.arange(len(users)), lengths)

    def rows(values: np.ndarray, padding: int) -> np.ndarray:
        return np.pad(values, (0, -len(values) % length), constant_values=padding).reshape(-1, length).astype(np.int32)

    segments_RT = rows(segments, -1)
    steps = np.arange(length)
    begins_RT = np.diff(segments_RT, axis=1, prepend=-2) != 0
    positions_RT = steps - np.maximum.accumulate(np.where(begins_RT, steps, 0), axis=1)
    return {
        "items": rows(corpus.items[events], 0),
        "targets": rows(corpus.items[events + 1], -1),
        "segments": segments_RT,
        "positions": positions_RT.astype(np.int32),
    }


def training_batches(corpus: Corpus, length: int, rows: int, seed: int) -> Iterator[dict[str, np.ndarray]]:
    """Epoch after epoch of `rows` random rows; an epoch's last batch is filled up with rows from its beginning."""
    rng = np.random.default_rng(seed)
    while True:
        epoch = training_rows(corpus, length, rng)
        num_rows = len(epoch["items"])
        order = np.resize(rng.permutation(num_rows), -(-num_rows // rows) * rows).reshape(-1, rows)
        for chosen in order:
            yield {name: values[chosen] for name, values in epoch.items()}
