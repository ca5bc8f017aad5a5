"""Content-kNN: ranks items by similarity to those of the history, including items without interactions.

The score of an item is the cosine between its features and the mean of those of the history, in which an item counts
`decay` as much as the one after it.
"""

from collections.abc import Sequence

import numpy as np

from data_pipelines.corpus import Corpus
from experiments.baselines.ranker import best_on_validation, decayed_histories

DECAYS = (1.0, 0.9, 0.7, 0.4, 0.0)
"""0 uses the latest item only."""


class ContentKNN:
    """Ranks items by features that are known without interactions."""

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
