"""Full-text search: BM25 (Robertson and Zaragoza 2009, "The probabilistic relevance framework: BM25 and beyond")."""

from collections.abc import Callable
from typing import Any

import numpy as np
import scipy.sparse

from data_pipelines.corpus import Corpus

SATURATION = 1.2
"""k1: how soon another occurrence of a word in a text counts for less."""
LENGTH = 0.75
"""b: how much long texts are discounted."""


class BM25:
    """Ranks items by how well their titles, attributes and categories match the words of a query, whoever asks.

    The score of a text with f occurrences of a word that is in n of I texts is the sum over the query's words of

        ln(1 + (I - n + 0.5) / (n + 0.5)) (1 + k1) f / (f + k1 (1 - b + b length / mean length))

    which stands for the logarithm of the odds that the text is what was meant.
    """

    name = "BM25"

    def __init__(self, corpus: Corpus, query_of: Callable[[int, int], str]):
        """Indexes the texts of all items; `query_of` returns the query for (user, position)."""
        self._query_of = query_of
        self._vectorizer = word_counter()
        texts = [
            " ".join(dict.fromkeys([title, *(text for _, text in attributes), *categories]))
            for title, attributes, categories in zip(corpus.titles, corpus.attributes, corpus.categories, strict=True)
        ]
        self._vectorizer.fit([*texts, "word"])  # some text needs a word
        counts_IW = scipy.sparse.csr_array(self._vectorizer.transform(texts), dtype=np.float64)
        in_texts_W = np.bincount(counts_IW.indices, minlength=counts_IW.shape[1])
        lengths_I = counts_IW.sum(axis=1)
        damping_I = SATURATION * (1 - LENGTH + LENGTH * lengths_I / max(lengths_I.mean(), 1))
        rarity_W = np.log1p((len(texts) - in_texts_W + 0.5) / (in_texts_W + 0.5))
        counts_IW.data /= counts_IW.data + np.repeat(damping_I, np.diff(counts_IW.indptr))
        self._weights_WI = (counts_IW * ((1 + SATURATION) * rarity_W)).T.tocsr()

    def scores(self, users: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """Returns the scores, float32 [M, I]; 0 for an item with none of the words."""
        pairs = zip(users.tolist(), positions.tolist(), strict=True)
        asked_MW = scipy.sparse.csr_array(self._vectorizer.transform([self._query_of(*pair) for pair in pairs]))
        return (asked_MW @ self._weights_WI).toarray().astype(np.float32)


def word_counter() -> Any:
    """Returns a counter of the words of texts, which are in lower case, have two letters or digits, or more, and are no
    English stop words."""
    from sklearn.feature_extraction.text import CountVectorizer  # here, because the import takes seconds

    return CountVectorizer(stop_words="english")
