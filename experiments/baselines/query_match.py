"""Baselines for search: items are ordered by their match with the query, then by a recommendation baseline."""

from collections.abc import Callable, Sequence

import numpy as np
import scipy.sparse

from experiments.baselines.ranker import Ranker

Matches = Callable[[np.ndarray, np.ndarray], np.ndarray]
EXACT = 1 << 24
"""Integers below this are exact in float32."""


class QueryMatch:
    """Orders items by how well they match the query, then by the scores of another ranker."""

    def __init__(self, base: Ranker, matches: Matches):
        """`matches(users, positions)` returns how well each item matches, int or bool [M, I] (`WordMatches`)."""
        self.base, self.matches = base, matches
        self.name = f"{base.name} + query"

    def scores(self, users: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """Returns places in the order by both criteria, exact in float32 up to 2^24 items; ties and NaN are kept."""
        from scipy.stats import rankdata  # here, because the import takes seconds and `unimp generate` does not need it

        base_MI = self.base.scores(users, positions)
        matches_MI = np.asarray(self.matches(users, positions), np.int64)
        if matches_MI.shape != base_MI.shape:
            raise ValueError(
                f"matches have shape {matches_MI.shape}, scores {base_MI.shape}; both must be [queries, items]"
            )
        ranked_MI = rankdata(np.nan_to_num(base_MI, nan=-np.inf, neginf=-np.inf, posinf=np.inf), "dense", axis=1)
        places_MI = matches_MI * (base_MI.shape[1] + 1) + ranked_MI
        if np.abs(places_MI).max(initial=0) >= EXACT:
            places_MI = rankdata(places_MI, "dense", axis=1)
        return np.where(np.isnan(base_MI), np.nan, places_MI).astype(np.float32)


class WordMatches:
    """Scores how well items match a query: first by the number of query words among an item's category words, ignoring
    case, then by how few other words it has, so that items with exactly the query's words come first."""

    def __init__(self, categories: Sequence[Sequence[str]], query_of: Callable[[int, int], Sequence[str]]):
        """Indexes the category words of each item; `query_of` returns the query words for (user, position)."""
        self._words = {
            word: column for column, word in enumerate(sorted({w.casefold() for c in categories for w in c}))
        }
        self._has_IW = self._rows(categories)
        self._query_of = query_of
        self._lengths_I = self._has_IW.sum(axis=1)

    def __call__(self, users: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """Returns the scores, int64 [M, I]; 0 or less if no word matches."""
        matched_MI = self.counts(users, positions)
        others_MI = self._lengths_I - matched_MI
        return np.where(matched_MI > 0, matched_MI * (1 + self._lengths_I.max(initial=0)) - others_MI, 0)

    def counts(self, users: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """Returns the number of query words among each item's category words: int64 [M, I]."""
        pairs = zip(users.tolist(), positions.tolist(), strict=True)
        asked_MW = self._rows([self._query_of(*pair) for pair in pairs])
        return (asked_MW @ self._has_IW.T).toarray().astype(np.int64)

    def _rows(self, texts: Sequence[Sequence[str]]) -> scipy.sparse.csr_array:
        """Returns 1 for each word of a text that some item has: int32 [texts, words]."""
        found = [{self._words[word.casefold()] for word in words if word.casefold() in self._words} for words in texts]
        columns = np.array([column for row in found for column in sorted(row)], np.int32)
        offsets = np.cumsum([0, *map(len, found)])
        shape = (len(found), len(self._words))
        return scipy.sparse.csr_array((np.ones(len(columns), np.int32), columns, offsets), shape=shape)
