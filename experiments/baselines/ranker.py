"""What every baseline is: something that scores the whole catalogue for moments in users' histories."""

from __future__ import annotations

from typing import Literal, Protocol

import jax
import numpy as np

from data_pipelines.corpus import SPLITS, Corpus
from unimp_jax.evaluation.ranking import ranks

Split = Literal["validation", "test"]


class Ranker(Protocol):
    """Fitted on a corpus's training interactions and nothing else."""

    name: str

    def scores(self, users: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """Scores of all items for users' `positions`-th interactions, given all that each had met before.

        Args:
          users, positions: int32 [M], as `Corpus.held_out` gives them.

        Returns:
          float32 [M, num_items], larger is better.
        """
        ...


def padded_histories(
    corpus: Corpus, users: np.ndarray, positions: np.ndarray, longest: int | None = None
) -> np.ndarray:
    """The last `longest` (default: all) items before each position, oldest first, -1 after them: int32 [M, S]."""
    starts = corpus.offsets[users]
    lengths = positions if longest is None else np.minimum(positions, longest)
    steps = np.arange(lengths.max(initial=1) if longest is None else longest)
    events = np.minimum((starts + positions - lengths)[:, None] + steps, len(corpus.items) - 1)
    return np.where(steps < lengths[:, None], corpus.items[events], -1).astype(np.int32)


def evaluate_ranker(ranker: Ranker, corpus: Corpus, split: Split, batch: int = 512) -> dict[str, np.ndarray]:
    """Ranks the right item in the whole catalogue for every user that the split asks about, `batch` users at a time.

    Returns:
      `users`, `positions`, `targets`: int32 [M]; `kept`, `filtered`: float32 [M], the right item's rank with seen
      items kept and filtered. `unimp_jax.evaluation.metrics.ranking_metrics` makes figures of ranks.
    """
    users, positions = corpus.held_out(SPLITS[split])
    targets = corpus.targets(users, positions)
    seen = padded_histories(corpus, users, positions)
    kept, filtered = (np.full(len(users), np.nan, np.float32) for _ in range(2))
    for start in range(0, len(users), batch):
        part = np.arange(start, start + batch) % len(users)  # the last batch starts over: one shape, compiled once
        scores = ranker.scores(users[part], positions[part])
        kept[part], filtered[part] = jax.device_get(ranks(scores, targets[part], seen[part]))
    return {"users": users, "positions": positions, "targets": targets, "kept": kept, "filtered": filtered}
