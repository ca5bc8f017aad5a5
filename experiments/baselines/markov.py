"""A Markov chain over the last few items that only counts transitions; nothing is learned but two exponents.

The score of item i after a history is

    sum over j = 1 … last of  decay^(j - 1) * counts_j[h_j, i] / sum_i(counts_j[h_j, i])^normalise

where h_j is the item met j steps back and counts_j[a, i] says how often, in training, i was met exactly j steps after
a (lags "same"), or at most `last` steps after a (lags "any", the same counts for each j).
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable
from typing import Literal

import numpy as np
import scipy.sparse

from data_pipelines.corpus import TRAIN, Corpus
from experiments.baselines.popularity import training_counts
from experiments.baselines.ranker import evaluate_ranker
from unimp_jax.evaluation.metrics import ranking_metrics

Lags = Literal["same", "any"]


@dataclasses.dataclass(frozen=True)
class MarkovConfig:
    """How transitions are counted and weighed."""

    last: int = 5
    """How many items of the history count."""
    lags: Lags = "same"
    decay: float = 0.6
    """The weight of an item relative to the one after it."""
    normalise: float = 1.0
    """0 sums counts, 1 sums probabilities."""

    def __post_init__(self) -> None:
        if self.last < 1:
            raise ValueError(f"last is {self.last}: a chain needs at least the last item")


LAGS: tuple[Lags, ...] = ("same", "any")
GRID = tuple(
    MarkovConfig(lags=lags, decay=decay, normalise=normalise)
    for lags, decay, normalise in itertools.product(LAGS, (0.4, 0.6, 0.8, 1.0), (0.0, 0.5, 0.75, 1.0))
)


class Markov:
    """Items that no counted transition leads to stand below all others, by popularity."""

    name = "Markov"

    def __init__(self, corpus: Corpus, config: MarkovConfig = MarkovConfig()):
        self.corpus, self.config = corpus, config
        counts = [transition_counts(corpus, lag) for lag in range(1, config.last + 1)]
        if config.lags == "any":
            counts = [sum(counts[1:], start=counts[0])] * config.last
        self._weights_j = [
            _scaled(matrix, config.decay**steps_back, config.normalise) for steps_back, matrix in enumerate(counts)
        ]
        popularity_I = training_counts(corpus)
        least = min((matrix.data.min() for matrix in self._weights_j if matrix.nnz), default=np.float32(1))
        self._floor_I = (popularity_I * (1e-3 * least / max(popularity_I.max(), 1))).astype(np.float32)

    def scores(self, users: np.ndarray, positions: np.ndarray) -> np.ndarray:
        recent_Mj = _newest_first(self.corpus, users, positions, self.config.last)
        scores_MI = np.tile(self._floor_I, (len(users), 1))
        for weights, items_M in zip(self._weights_j, recent_Mj.T, strict=True):
            known = np.flatnonzero(items_M >= 0)
            scores_MI[known] += weights[items_M[known]].toarray()
        return scores_MI


def choose_markov(corpus: Corpus, grid: Iterable[MarkovConfig] = GRID) -> Markov:
    """The chain of the grid with the highest NDCG@10, seen filtered, on the validation users.

    Where nobody has a validation interaction, the default.
    """

    def score(chain: Markov) -> float:
        ranks = evaluate_ranker(chain, corpus, "validation")["filtered"]
        return float(ranking_metrics(ranks)["NDCG@10"].mean()) if len(ranks) else -np.inf

    best, best_score = Markov(corpus), -np.inf
    for config in grid:
        chain = Markov(corpus, config)
        if (found := score(chain)) > best_score:
            best, best_score = chain, found
    return best


def transition_counts(corpus: Corpus, lag: int) -> scipy.sparse.csr_array:
    """How often one item was met exactly `lag` steps after another in training: float32 [I, I], from row to column."""
    events = np.flatnonzero(corpus.splits == TRAIN)
    user_of = np.repeat(np.arange(corpus.num_users), np.diff(corpus.offsets))
    before, after = events[:-lag], events[lag:]
    same = user_of[before] == user_of[after]  # a user's training events are neighbours, the held-out ones come last
    rows, columns = corpus.items[before[same]], corpus.items[after[same]]
    ones = np.ones(len(rows), np.float32)
    counts = scipy.sparse.coo_array((ones, (rows, columns)), shape=(corpus.num_items, corpus.num_items))
    return counts.tocsr()


def _scaled(counts: scipy.sparse.csr_array, weight: float, normalise: float) -> scipy.sparse.csr_array:
    totals_I = np.maximum(counts.sum(axis=1), 1)
    scale_I = (weight / totals_I**normalise).astype(np.float32)
    return (scipy.sparse.diags_array(scale_I) @ counts).tocsr()


def _newest_first(corpus: Corpus, users: np.ndarray, positions: np.ndarray, last: int) -> np.ndarray:
    """The items 1, 2, … `last` steps before each position, -1 beyond the beginning: int32 [M, last]."""
    steps = np.arange(1, last + 1)
    events = corpus.offsets[users][:, None] + np.maximum(positions[:, None] - steps, 0)
    return np.where(steps <= positions[:, None], corpus.items[events], -1)
