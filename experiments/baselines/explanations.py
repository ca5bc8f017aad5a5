"""What a user will write about an item, answered by a text that was written before: nothing is generated.

Texts are compared by the cosine of their TF-IDF vectors. These have length 1, so the mean cosine with many texts is the
product with the sum of their vectors, but for a factor that changes no comparison.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

from data_pipelines.corpus import TRAIN, Corpus
from data_pipelines.errors import DataError

if TYPE_CHECKING:  # imported where it is used: it takes most of a second, which `unimp generate` can do without
    import scipy.sparse


class NearestExplanation:
    """What someone wrote about the item, in the words nearest to those in which the user writes.

    Of the training texts about the item, the one of highest mean cosine with the user's own training texts (with all
    training texts for a user who wrote none). Where nobody wrote about the item, the medoid of the user's own texts,
    and where there are none either, that of all. Of equals the first in the corpus is taken.

    Attributes:
      constant: the medoid, of all training texts the one of highest mean cosine with them all.
    """

    def __init__(self, corpus: Corpus):
        """Raises DataError where nothing was written in training."""
        events, self._texts = training_texts(corpus)
        users = np.searchsorted(corpus.offsets, events, side="right") - 1
        self._vectors_TV = _vectors(self._texts)
        self._by_user_UT = _members(users, corpus.num_users)
        self._by_item_IT = _members(corpus.items[events], corpus.num_items)
        self._user_sums_UV = (self._by_user_UT @ self._vectors_TV).tocsr()
        self._sum_V = self._vectors_TV.sum(axis=0)
        self._medoid = int(np.argmax(self._vectors_TV @ self._sum_V))
        self.constant = self._texts[self._medoid]

    def explain(self, users: np.ndarray, items: np.ndarray) -> list[str]:
        """M texts for int [M] users and items."""
        return [self._texts[self._nearest(int(user), int(item))] for user, item in zip(users, items, strict=True)]

    def _nearest(self, user: int, item: int) -> int:
        """The index of the text that answers."""
        own, about = _row(self._by_user_UT, user), _row(self._by_item_IT, item)
        candidates = about if len(about) else own
        if not len(candidates):
            return self._medoid
        wanted_V = self._user_sums_UV[[user]].toarray()[0] if len(own) else self._sum_V
        return int(candidates[np.argmax(self._vectors_TV[candidates] @ wanted_V)])


def training_texts(corpus: Corpus) -> tuple[np.ndarray, list[str]]:
    """The training interactions with a text, int64 [T] ascending, and their T texts.

    Raises:
      DataError: there are none.
    """
    events = np.array(sorted(event for event in corpus.texts if corpus.splits[event] == TRAIN), np.int64)
    if not len(events):
        raise DataError("no training interaction has a text: there is nothing to answer with")
    return events, [corpus.texts[event] for event in events.tolist()]


def _vectors(texts: Iterable[str]) -> scipy.sparse.csr_array:
    """TF-IDF of words, of length 1, 0 for a text without a word: float64 [texts, words]."""
    import scipy.sparse

    texts = list(texts)
    if not any(re.search(r"\w", text) for text in texts):  # for the vectorizer, an error
        return scipy.sparse.csr_array((len(texts), 1))
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectorizer = TfidfVectorizer(token_pattern=r"\b\w+\b")  # unlike the default, words of one letter count
    return scipy.sparse.csr_array(vectorizer.fit_transform(texts))


def _members(groups: np.ndarray, num_groups: int) -> scipy.sparse.csr_array:
    """1 where a text belongs to a group: float64 [groups, texts]."""
    import scipy.sparse

    places = (groups, np.arange(len(groups)))
    return scipy.sparse.csr_array((np.ones(len(groups)), places), shape=(num_groups, len(groups)))


def _row(matrix: scipy.sparse.csr_array, row: int) -> np.ndarray:
    """The columns of a row that hold something, ascending."""
    return matrix.indices[matrix.indptr[row] : matrix.indptr[row + 1]]
