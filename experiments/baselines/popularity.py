"""The same list for everyone: items by how often they were met in training."""

from __future__ import annotations

import numpy as np

from data_pipelines.corpus import TRAIN, Corpus


def training_counts(corpus: Corpus) -> np.ndarray:
    """How often each item was met in training: int64 [num_items]."""
    return np.bincount(corpus.items[corpus.splits == TRAIN], minlength=corpus.num_items)


class Popularity:
    """Scores an item by its number of training interactions."""

    name = "Popularity"

    def __init__(self, corpus: Corpus):
        self._scores_I = training_counts(corpus).astype(np.float32)

    def scores(self, users: np.ndarray, positions: np.ndarray) -> np.ndarray:
        return np.tile(self._scores_I, (len(users), 1))
