"""The interface of baselines, which score the whole catalogue after a user's history, and the simplest baseline."""

import concurrent.futures
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, TypeVar

import jax
import numpy as np
from scipy.sparse import csr_array

from data_pipelines.content import training_counts
from data_pipelines.corpus import SPLITS, VALIDATION, Corpus
from data_pipelines.tasks.base import Split
from unimp_jax.evaluation.metrics import ranking_metrics
from unimp_jax.evaluation.ranking import ranks, seen_bitmap

BATCH = 512
"""Maximum number of users scored at a time."""
DAY = 24 * 60 * 60
"""Seconds."""
SCORES = 1 << 25
"""Maximum number of scores computed at a time."""


class Ranker(Protocol):
    """A ranker that is fitted on the training interactions of a corpus only."""

    name: str

    def scores(self, users: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """Returns scores of all items for users' `positions`-th interactions, given all interactions before them.

        Args:
          users, positions: int32 [M], as returned by `Corpus.held_out`.

        Returns:
          float32 [M, num_items], larger is better.
        """
        ...


class Popularity:
    """Scores an item by its number of training interactions."""

    name = "Popularity"

    def __init__(self, corpus: Corpus):
        self._scores_I = training_counts(corpus).astype(np.float32)

    def scores(self, users: np.ndarray, positions: np.ndarray) -> np.ndarray:
        return np.tile(self._scores_I, (len(users), 1))


def popularity_below(corpus: Corpus, least: float) -> np.ndarray:
    """Returns popularity scores of all items, far below `least`, the smallest of a ranker's own scores: float32 [I]."""
    popularity_I = training_counts(corpus)
    return (popularity_I * (1e-3 * least / max(popularity_I.max(), 1))).astype(np.float32)


def padded_histories(
    corpus: Corpus,
    users: np.ndarray,
    positions: np.ndarray,
    longest: int | None = None,
    values: np.ndarray | None = None,
) -> np.ndarray:
    """Returns the last `longest` (default: all) items before each position, or their `values` [E] instead, oldest
    first, padded by -1: int32 [M, S]."""
    values = corpus.items if values is None else values
    starts = corpus.offsets[users]
    lengths = positions if longest is None else np.minimum(positions, longest)
    steps = np.arange(lengths.max(initial=1) if longest is None else longest)
    events = np.minimum((starts + positions - lengths)[:, None] + steps, len(corpus.items) - 1)
    return np.where(steps < lengths[:, None], values[events], -1).astype(np.int32)


def decayed_histories(
    corpus: Corpus, users: np.ndarray, positions: np.ndarray, decay: float, earlier_days: float = 1.0
) -> csr_array:
    """Returns the weights of history items, each `decay` times that of the next one, and `earlier_days` times if it is
    of an earlier day than the latest item: float32 [M, num_items]."""
    histories_MS = padded_histories(corpus, users, positions)
    is_item = histories_MS >= 0
    back_MS = positions[:, None] - 1 - np.arange(histories_MS.shape[1])
    rows = np.repeat(np.arange(len(users)), is_item.sum(axis=1))
    weights = (decay ** back_MS[is_item]).astype(np.float32)
    if earlier_days != 1:
        days_MS = padded_histories(corpus, users, positions, values=corpus.times) // DAY
        latest_M = corpus.times[corpus.offsets[users] + np.maximum(positions - 1, 0)] // DAY
        weights[(days_MS < latest_M[:, None])[is_item]] *= np.float32(earlier_days)
    return csr_array((weights, (rows, histories_MS[is_item])), (len(users), corpus.num_items))


def scored_batches(
    ranker: Ranker, corpus: Corpus, users: np.ndarray, positions: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields (int64 [m], indices of some of the M users; float32 [m, num_items], their scores) until all are covered.
    The last batch wraps around to the first users, so that all batches have one shape and compile once. Their size is a
    multiple of 32, so that similar numbers of users share a program, unless so many scores do not fit into memory."""
    most = max(1, min(BATCH, SCORES // corpus.num_items))
    even = -(-len(users) // max(1, -(-len(users) // most)))
    size = min(most, -(-even // 32) * 32)
    for start in range(0, len(users), size):
        part = np.arange(start, start + size) % len(users)
        yield part, np.asarray(ranker.scores(users[part], positions[part]))


def rank_in_batches(
    ranker: Ranker, corpus: Corpus, users: np.ndarray, positions: np.ndarray, targets: np.ndarray,
    outside: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Returns the target items' ranks, with seen items (unfiltered, filtered): float32 [M] each. Scores and seen items
    are in memory for some users at a time.

    Args:
      users, positions, targets: int32 [M], the users, the positions in their histories, and the target items.
      outside: int [n], items that are filtered as if they were in the history; None: none.
    """
    none = np.empty(0, np.int64) if outside is None else outside
    unfiltered, filtered = (np.full(len(users), np.nan, np.float32) for _ in range(2))
    for part, scores in scored_batches(ranker, corpus, users, positions):
        moments = zip(users[part].tolist(), positions[part].tolist(), strict=True)
        seen = seen_bitmap([np.append(corpus.history(*moment), none) for moment in moments], corpus.num_items)
        unfiltered[part], filtered[part] = jax.device_get(ranks(scores, targets[part], seen))
        del scores  # to free memory before the next batch
    return unfiltered, filtered


def evaluate_ranker(ranker: Ranker, corpus: Corpus, split: Split) -> dict[str, np.ndarray]:
    """Ranks the target item in the whole catalogue for every user held out by the split.

    Returns:
      `users`, `positions`, `targets`: int32 [M]; `unfiltered`, `filtered`: float32 [M], the target items' ranks with
      seen items unfiltered and filtered. `unimp_jax.evaluation.metrics.ranking_metrics` computes metrics from them.
    """
    users, positions = corpus.held_out(SPLITS[split])
    targets = corpus.targets(users, positions)
    unfiltered, filtered = rank_in_batches(ranker, corpus, users, positions, targets)
    return {"users": users, "positions": positions, "targets": targets, "unfiltered": unfiltered, "filtered": filtered}


C = TypeVar("C")
R = TypeVar("R", bound=Ranker)


def best_on_validation(corpus: Corpus, configs: Sequence[C], make: Callable[[C], R]) -> R:
    """Returns the ranker whose configuration has the highest `validation_ndcg`, the first of equals; the first one
    without validation users. At most two rankers are in memory at a time."""
    if not len(corpus.held_out(VALIDATION)[0]):
        return make(configs[0])
    with concurrent.futures.ThreadPoolExecutor(2) as pool:  # SciPy releases the GIL
        qualities = list(pool.map(lambda config: validation_ndcg(make(config), corpus), configs))
    return make(configs[int(np.argmax(qualities))])


VALIDATED = 4096
"""Number of validation users, at most, by whom the configuration of a baseline is chosen; of more, every n-th."""


def validation_ndcg(ranker: Ranker, corpus: Corpus) -> float:
    """Returns the NDCG@10, seen items filtered, of at most `VALIDATED` validation users, of whom there must be some."""
    users, positions = (part[:: -(-len(part) // VALIDATED)] for part in corpus.held_out(VALIDATION))
    _, filtered = rank_in_batches(ranker, corpus, users, positions, corpus.targets(users, positions))
    return float(ranking_metrics(filtered)["NDCG@10"].mean())
