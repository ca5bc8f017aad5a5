"""Item-kNN: ranks items by the damped cosine of their users with those of the history's items (Sarwar et al. 2001).

The score of item i after a history of items h_1 (the latest), h_2, … is

    sum over j of  decay^(j - 1) * co[h_j, i] / ((n[h_j] + damping)^of_history * (n[i] + damping)^of_items)

where co counts the users who interacted with both in training, and n those who did with one. Apart from three numbers
chosen on validation users, nothing is learned.
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
    """Weights of co-occurrences; the cosine has .5 and .5."""

    decay: float = 0.9
    """The weight of an item of the history relative to the one after it."""
    of_history: float = 0.5
    """How much the popularity of items of the history reduces their weight."""
    of_items: float = 0.5
    """How much the popularity of recommended items reduces their score."""
    damping: float = 5.0
    """Added to counts, so that rare pairs do not dominate."""


GRID = tuple(
    ItemKNNConfig(decay=decay, of_history=of_history, of_items=of_items)
    for decay, (of_history, of_items) in itertools.product((1.0, 0.9, 0.7), ((0.5, 0.5), (0.5, 0.3), (0.0, 0.5)))
)


class ItemKNN:
    """Scores items by co-occurrence; those that never co-occurred with the history rank last, by popularity."""

    name = "item-kNN"

    def __init__(
        self,
        corpus: Corpus,
        config: ItemKNNConfig = ItemKNNConfig(),
        counted: scipy.sparse.csr_array | None = None,
    ):
        """`counted` is the result of `co_occurrences`, if it was computed before."""
        self.corpus, self.config = corpus, config
        counted = co_occurrences(corpus) if counted is None else counted
        users_I = counted.diagonal().astype(np.float64) + config.damping
        left_I, right_I = (users_I**-power for power in (config.of_history, config.of_items))
        self._weights_II: np.ndarray | scipy.sparse.csr_array
        if corpus.num_items**2 <= SCORES:  # dense products are several times faster, if all pairs fit into memory
            self._weights_II = counted.toarray()
            np.fill_diagonal(self._weights_II, 0)
            for weights_I, left in zip(
                self._weights_II, left_I, strict=True
            ):  # by rows, because float64 is twice as large
                weights_I[:] = left * weights_I * right_I
            least = self._weights_II.min(initial=1.0, where=self._weights_II > 0)
        else:
            met_together = (counted - scipy.sparse.diags_array(counted.diagonal())).tocsr()
            met_together.eliminate_zeros()
            left, right = scipy.sparse.diags_array(left_I), scipy.sparse.diags_array(right_I)
            self._weights_II = (left @ met_together @ right).astype(np.float32).tocsr()
            least = self._weights_II.data.min(initial=1.0)
        self._floor_I = popularity_below(corpus, float(least))

    def scores(self, users: np.ndarray, positions: np.ndarray) -> np.ndarray:
        scores_MI = decayed_histories(self.corpus, users, positions, self.config.decay) @ self._weights_II
        return (scores_MI.toarray() if scipy.sparse.issparse(scores_MI) else scores_MI) + self._floor_I


def choose_item_knn(corpus: Corpus, grid: Iterable[ItemKNNConfig] = GRID) -> ItemKNN:
    """Returns the one of the grid with the highest NDCG@10 in validation, seen items filtered; without users, the
    first."""
    counted = co_occurrences(corpus)
    return best_on_validation(corpus, (ItemKNN(corpus, config, counted) for config in grid))


def co_occurrences(corpus: Corpus) -> scipy.sparse.csr_array:
    """Returns the number of training users of each pair of items, and on the diagonal of each item: float32 [I, I]."""
    events = np.flatnonzero(corpus.splits == TRAIN)
    users = np.repeat(np.arange(corpus.num_users), np.diff(corpus.offsets))[events]
    met = scipy.sparse.csr_array(
        (np.ones(len(events), np.float32), (users, corpus.items[events])), (corpus.num_users, corpus.num_items)
    )
    met.data[:] = 1  # each user counts once
    return (met.T @ met).tocsr()
