"""Rankers by nearest neighbours: item-kNN by co-occurrence, content-kNN by features.

Item-kNN ranks items by the damped cosine of their users with those of the history's items (Sarwar et al. 2001).

The score of item i after a history of items h_1 (the latest), h_2, … is

    sum over j of  w_j * (cos(h_j, i) + same_day * cos_day(h_j, i)),    w_j = decay^(j - 1) [* earlier_days],
    cos(h, i) = co[h, i] / ((n[h] + damping)^of_history * (n[i] + damping)^of_items)

where co counts the users who interacted with both in training, and n those who did with one. cos_day counts users' days
instead of users, and earlier_days is a factor for items from before the latest item's day, because many next items
complete a basket. Apart from five numbers chosen on validation users, nothing is learned.
"""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import scipy.sparse

from data_pipelines.corpus import TRAIN, Corpus
from experiments.baselines.ranker import DAY, SCORES, best_on_validation, decayed_histories, popularity_below


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
    same_day: float = 0.0
    """Weight of co-occurrences on the same day, relative to those at any time."""
    earlier_days: float = 1.0
    """Factor for the weights of history items of earlier days than the latest item's."""


GRID = (
    *(
        ItemKNNConfig(decay=decay, of_history=of_history, of_items=of_items)
        for decay, (of_history, of_items) in itertools.product((1.0, 0.9, 0.7), ((0.5, 0.5), (0.5, 0.3), (0.0, 0.5)))
    ),
    *(
        ItemKNNConfig(decay=decay, of_items=of_items, same_day=1.0, earlier_days=earlier_days)
        for decay, of_items, earlier_days in itertools.product((1.0, 0.9, 0.7), (0.5, 0.3), (1.0, 0.2))
    ),
)


class CoOccurrences(NamedTuple):
    """The number of users, and of users' days, of each pair of items, and on the diagonal of each item.

    Attributes:
      users, days: float32 [I, I], of training interactions; users or days with several of an item count once.
    """

    users: scipy.sparse.csr_array
    days: scipy.sparse.csr_array


class ItemKNN:
    """Scores items by co-occurrence; those that never co-occurred with the history rank last, by popularity."""

    name = "item-kNN"

    def __init__(self, corpus: Corpus, config: ItemKNNConfig = ItemKNNConfig(), counted: CoOccurrences | None = None):
        """`counted` is the result of `co_occurrences`, if it was computed before."""
        self.corpus, self.config = corpus, config
        counted = counted or co_occurrences(corpus, days=config.same_day > 0)
        self._weights_II = cosines(counted.users, config)
        if config.same_day:
            self._weights_II = self._weights_II + np.float32(config.same_day) * cosines(counted.days, config)
        weights = self._weights_II if isinstance(self._weights_II, np.ndarray) else self._weights_II.data
        self._floor_I = popularity_below(corpus, float(weights[weights > 0].min(initial=1.0)))

    def scores(self, users: np.ndarray, positions: np.ndarray) -> np.ndarray:
        history_MI = decayed_histories(self.corpus, users, positions, self.config.decay, self.config.earlier_days)
        scores_MI = history_MI @ self._weights_II
        return (scores_MI.toarray() if scipy.sparse.issparse(scores_MI) else scores_MI) + self._floor_I


def choose_item_knn(corpus: Corpus, grid: Sequence[ItemKNNConfig] = GRID) -> ItemKNN:
    """Returns the one with the highest NDCG@10 in validation, seen items filtered; without users, the first."""
    counted = co_occurrences(corpus)
    return best_on_validation(corpus, grid, lambda config: ItemKNN(corpus, config, counted))


def cosines(counted: scipy.sparse.csr_array, config: ItemKNNConfig) -> np.ndarray | scipy.sparse.csr_array:
    """Returns the damped cosine of each pair of different items, dense if all pairs fit into memory: float32 [I, I]."""
    counts_I = counted.diagonal().astype(np.float64) + config.damping
    left_I, right_I = (counts_I**-power for power in (config.of_history, config.of_items))
    if counted.shape[0] ** 2 <= SCORES:  # then products with it are several times faster
        weights_II = counted.toarray()
        np.fill_diagonal(weights_II, 0)
        for weights_I, left in zip(weights_II, left_I, strict=True):  # by rows, because float64 is twice as large
            weights_I[:] = left * weights_I * right_I
        return weights_II
    different = (counted - scipy.sparse.diags_array(counted.diagonal())).tocsr()
    different.eliminate_zeros()
    left, right = scipy.sparse.diags_array(left_I), scipy.sparse.diags_array(right_I)
    return (left @ different @ right).astype(np.float32).tocsr()


def co_occurrences(corpus: Corpus, *, days: bool = True) -> CoOccurrences:
    """Counts the co-occurrences of items in training; those on the same day are left empty without `days`."""
    events = np.flatnonzero(corpus.splits == TRAIN)
    users, items = np.repeat(np.arange(corpus.num_users), np.diff(corpus.offsets))[events], corpus.items[events]

    def together(groups: np.ndarray) -> scipy.sparse.csr_array:
        shape = int(groups.max(initial=-1)) + 1, corpus.num_items
        met = scipy.sparse.csr_array((np.ones(len(events), np.float32), (groups, items)), shape)
        met.data[:] = 1
        return (met.T @ met).tocsr()

    if not days:
        return CoOccurrences(
            together(users), scipy.sparse.csr_array((corpus.num_items, corpus.num_items), dtype=np.float32)
        )
    of_users = np.stack([users, corpus.times[events] // DAY])
    return CoOccurrences(together(users), together(np.unique(of_users, axis=1, return_inverse=True)[1]))


DECAYS = (1.0, 0.9, 0.7, 0.4, 0.0)
"""0 uses the latest item only."""


class ContentKNN:
    """Ranks items by features that are known without interactions, including new items.

    The score of an item is the cosine between its features and the mean of those of the history, in which an item
    counts `decay` as much as the one after it.
    """

    name = "content-kNN"

    def __init__(self, corpus: Corpus, features_IF: np.ndarray, decay: float):
        """`features_IF`: float32 [I, F]; items without features score 0."""
        self.corpus, self.decay, self._features_IF = corpus, decay, features_IF
        self._directions_IF = features_IF / np.maximum(np.linalg.norm(features_IF, axis=1, keepdims=True), 1e-12)

    def scores(self, users: np.ndarray, positions: np.ndarray) -> np.ndarray:
        mean_MF = decayed_histories(self.corpus, users, positions, self.decay) @ self._features_IF
        mean_MF /= np.maximum(np.linalg.norm(mean_MF, axis=1, keepdims=True), 1e-12)
        return (mean_MF @ self._directions_IF.T).astype(np.float32)


def choose_content_knn(corpus: Corpus, features_IF: np.ndarray, decays: Sequence[float] = DECAYS) -> ContentKNN:
    """Returns the one with the highest NDCG@10 in validation, seen items filtered; without users, the first."""
    return best_on_validation(corpus, decays, lambda decay: ContentKNN(corpus, features_IF, decay))
