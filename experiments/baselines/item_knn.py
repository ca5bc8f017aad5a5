"""Item-kNN: items that the same users met as those of the history (Sarwar et al. 2001), by damped cosine.

The score of item i after a history of items h_1 (the latest), h_2, … is

    sum over j of  decay^(j - 1) * co[h_j, i] / ((n[h_j] + damping)^of_history * (n[i] + damping)^of_items)

where co counts the users who met both in training, and n those who met one. Nothing is learned but three numbers.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable

import numpy as np
import scipy.sparse

from data_pipelines.corpus import TRAIN, Corpus
from experiments.baselines.ranker import SCORES, best_on_validation, decayed_histories, popularity_below


@dataclasses.dataclass(frozen=True)
class ItemKNNConfig:
    """How co-occurrences are weighed; cosine is .5 and .5."""

    decay: float = 0.9
    """The weight of an item of the history relative to the one after it."""
    of_history: float = 0.5
    """How far items of the history that many met count less."""
    of_items: float = 0.5
    """How far recommended items that many met count less."""
    damping: float = 5.0
    """Added to counts, so that rare pairs do not lead."""


GRID = tuple(
    ItemKNNConfig(decay=decay, of_history=of_history, of_items=of_items)
    for decay, (of_history, of_items) in itertools.product((1.0, 0.9, 0.7), ((0.5, 0.5), (0.5, 0.3), (0.0, 0.5)))
)


class ItemKNN:
    """Items that nobody met together with one of the history stand below all others, by popularity."""

    name = "item-kNN"

    def __init__(
        self,
        corpus: Corpus,
        config: ItemKNNConfig = ItemKNNConfig(),
        counted: scipy.sparse.csr_array | None = None,
    ):
        """`counted` spares the counting where it was done before (`co_occurrences`)."""
        self.corpus, self.config = corpus, config
        counted = co_occurrences(corpus) if counted is None else counted
        users_I = counted.diagonal().astype(np.float64) + config.damping
        met_together = (counted - scipy.sparse.diags_array(counted.diagonal())).tocsr()
        met_together.eliminate_zeros()
        left, right = (scipy.sparse.diags_array(users_I**-power) for power in (config.of_history, config.of_items))
        weights_II = (left @ met_together @ right).astype(np.float32).tocsr()
        self._floor_I = popularity_below(corpus, float(weights_II.data.min(initial=1.0)))
        # Dense products are several times faster, where all pairs of items fit.
        self._weights_II = weights_II.toarray() if corpus.num_items**2 <= SCORES else weights_II

    def scores(self, users: np.ndarray, positions: np.ndarray) -> np.ndarray:
        scores_MI = decayed_histories(self.corpus, users, positions, self.config.decay) @ self._weights_II
        return (scores_MI.toarray() if scipy.sparse.issparse(scores_MI) else scores_MI) + self._floor_I


def choose_item_knn(corpus: Corpus, grid: Iterable[ItemKNNConfig] = GRID) -> ItemKNN:
    """That of the grid with the highest NDCG@10, seen filtered, on the validation users; without any, the first."""
    counted = co_occurrences(corpus)
    return best_on_validation(corpus, (ItemKNN(corpus, config, counted) for config in grid))


def co_occurrences(corpus: Corpus) -> scipy.sparse.csr_array:
    """How many users met both of two items in training, and on the diagonal who met one: float32 [I, I]."""
    events = np.flatnonzero(corpus.splits == TRAIN)
    users = np.repeat(np.arange(corpus.num_users), np.diff(corpus.offsets))[events]
    met = scipy.sparse.csr_array(
        (np.ones(len(events), np.float32), (users, corpus.items[events])), (corpus.num_users, corpus.num_items)
    )
    met.data[:] = 1  # once, however often
    return (met.T @ met).tocsr()
