"""A Markov chain over the last few items that only counts transitions; apart from three numbers, nothing is learned.

The score of item i after a history is

    sum over j = 1 … last of  decay^(j - 1) * counts_j[h_j, i] / (sum over i of counts_j[h_j, i])^normalise
    counts_j[a, i] = sum over l = 1 … last of  spread^|l - j| * (how often, in training, i came l steps after a)

where h_j is the item j steps back. With spread 0 an item j steps back counts by transitions of j steps only, with
spread 1 by those of any number of steps up to `last`.
"""

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np
import scipy.sparse

from data_pipelines.co_occurrence import transition_counts
from data_pipelines.corpus import VALIDATION, Corpus
from experiments.baselines.ranker import best_on_validation, popularity_below


@dataclasses.dataclass(frozen=True)
class MarkovConfig:
    """How transitions are counted and weighted."""

    last: int = 5
    """Number of history items that are used."""
    spread: float = 0.6
    """The relative weight of transitions that are one step longer or shorter."""
    decay: float = 0.6
    """The weight of an item relative to the one after it."""
    normalise: float = 1.0
    """0 sums counts, 1 sums probabilities."""

    def __post_init__(self) -> None:
        if self.last < 1:
            raise ValueError(f"last is {self.last} and must be at least 1")
        if not 0 <= self.spread <= 1:
            raise ValueError(
                f"spread is {self.spread} and must be between 0 (the same lag only) and 1 (all lags alike)"
            )


GRID = tuple(
    MarkovConfig(spread=spread, decay=decay, normalise=normalise)
    for spread, decay, normalise in itertools.product((0.0, 0.3, 0.6, 1.0), (0.4, 0.6, 0.8), (0.5, 1.0))
)


class Markov:
    """Scores items by transitions; those that no counted transition leads to rank last, by popularity."""

    name = "Markov"

    def __init__(
        self,
        corpus: Corpus,
        config: MarkovConfig = MarkovConfig(),
        lag_counts: list[scipy.sparse.csr_array] | None = None,
    ):
        """`lag_counts` are the `transition_counts` of lags 1, 2, …, if they were computed before."""
        self.corpus, self.config = corpus, config
        lag_counts = lag_counts or [transition_counts(corpus, lag) for lag in range(1, config.last + 1)]
        self._weights_j = [self._weights(lag_counts[: config.last], back) for back in range(config.last)]
        least = min((matrix.data.min() for matrix in self._weights_j if matrix.nnz), default=np.float32(1))
        self._floor_I = popularity_below(corpus, float(least))

    def scores(self, users: np.ndarray, positions: np.ndarray) -> np.ndarray:
        recent_Mj = _newest_first(self.corpus, users, positions, self.config.last)
        scores_MI = np.tile(self._floor_I, (len(users), 1))
        for weights, items_M in zip(self._weights_j, recent_Mj.T, strict=True):
            known = np.flatnonzero(items_M >= 0)
            scores_MI[known] += weights[items_M[known]].toarray()
        return scores_MI

    def _weights(self, lag_counts: list[scipy.sparse.csr_array], back: int) -> scipy.sparse.csr_array:
        """Returns what an item with `back` items after it adds to the score of each item: float32 [I, I]."""
        counts = lag_counts[back]
        for lag, others in enumerate(lag_counts):
            if lag != back and self.config.spread:
                counts = counts + self.config.spread ** abs(lag - back) * others
        totals_I = counts.sum(axis=1)
        totals_I[totals_I == 0] = 1
        scale_I = self.config.decay**back / totals_I**self.config.normalise
        return (scipy.sparse.diags_array(scale_I) @ counts).astype(np.float32).tocsr()


def choose_markov(corpus: Corpus, grid: Sequence[MarkovConfig] = GRID) -> Markov:
    """Returns the best of the grid on the validation users; the default if there are no validation interactions."""
    if not len(corpus.held_out(VALIDATION)[0]):
        return Markov(corpus)
    lag_counts = [transition_counts(corpus, lag) for lag in range(1, max(config.last for config in grid) + 1)]
    return best_on_validation(corpus, grid, lambda config: Markov(corpus, config, lag_counts))


def _newest_first(corpus: Corpus, users: np.ndarray, positions: np.ndarray, last: int) -> np.ndarray:
    """Returns the items 1, 2, … `last` steps before each position, -1 before the first item: int32 [M, last]."""
    steps = np.arange(1, last + 1)
    events = corpus.offsets[users][:, None] + np.maximum(positions[:, None] - steps, 0)
    return np.where(steps <= positions[:, None], corpus.items[events], -1)
