"""Floors for search: items that match the query best, among equals the better recommendation."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from experiments.baselines.ranker import Ranker

Matches = Callable[[np.ndarray, np.ndarray], np.ndarray]


class QueryMatch:
    """Orders items by how many words of the query they match, then by the scores of another ranker."""

    def __init__(self, base: Ranker, matches: Matches):
        """`matches(users, positions)` gives the matched words of each item, int or bool [M, I] (`WordMatches`)."""
        self.base, self.matches = base, matches
        self.name = f"{base.name} + query"

    def scores(self, users: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """Matches times I plus the number of items with a lower base score: exact in float32, ties stay ties."""
        base_MI = self.base.scores(users, positions)
        matches_MI = np.asarray(self.matches(users, positions), np.int64)
        if matches_MI.shape != base_MI.shape:
            raise ValueError(f"matches are {matches_MI.shape}, scores {base_MI.shape}: both must be [queries, items]")
        if (matches_MI.max(initial=0) + 1) * base_MI.shape[1] > 2**24:
            raise ValueError("so many matches of so many items are not exact in float32")
        lower_MI = np.stack([np.searchsorted(np.sort(row), row) for row in base_MI])
        scores_MI = (matches_MI * base_MI.shape[1] + lower_MI).astype(np.float32)
        return np.where(np.isnan(base_MI), np.float32(np.nan), scores_MI)


class WordMatches:
    """Counts a query's words among each item's category words, whatever their case."""

    def __init__(self, categories: Sequence[Sequence[str]], query_of: Callable[[int, int], Sequence[str]]):
        """
        Args:
          categories: the words of each item (`Corpus.categories`).
          query_of: the words asked for by (user, position); for a held-out item, its category words.
        """
        self._words = {
            word: column for column, word in enumerate(sorted({w.casefold() for c in categories for w in c}))
        }
        self._has_IW = np.stack([self._row(words) for words in categories])
        self._query_of = query_of

    def __call__(self, users: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """int32 [M, I]."""
        pairs = zip(users.tolist(), positions.tolist(), strict=True)
        asked_MW = np.stack([self._row(self._query_of(*pair)) for pair in pairs])
        return (asked_MW @ self._has_IW.T).astype(np.int32)

    def _row(self, words: Sequence[str]) -> np.ndarray:
        row = np.zeros(len(self._words), np.float32)
        row[[self._words[word.casefold()] for word in words if word.casefold() in self._words]] = 1
        return row
