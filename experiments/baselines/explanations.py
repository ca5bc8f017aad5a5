"""What a user will write about an item, answered by a text that was written before: nothing is generated.

Texts are compared by the cosine of their TF-IDF vectors. These have length 1, so the mean cosine with many texts is the
product with the sum of their vectors, but for a factor that changes no comparison.
"""

from __future__ import annotations

import collections
import re
from collections.abc import Iterable, Sequence
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


class ConsensusExplanation:
    """Of what was written about the item and what the user wrote, the text that has most in common with all of it.

    This is the choice of least Bayes risk (Kumar and Byrne 2004) where each of these texts is as likely to be written
    again, and a text is worth the F1 of its words' stems with what is written. Where there are none, some of all texts
    take their place.
    """

    name = "Consensus text"

    def __init__(self, corpus: Corpus, most: int = 32):
        """
        Args:
          most: so many texts about an item, and as many of a user, count: the latest in the corpus.

        Raises:
          DataError: nothing was written in training.
        """
        events, self._texts = training_texts(corpus)
        users = np.searchsorted(corpus.offsets, events, side="right") - 1
        self._of_user, self._of_item, self._most = grouped(users), grouped(corpus.items[events]), most
        self._some = np.linspace(0, len(events) - 1, min(most, len(events))).astype(int).tolist()
        from rouge_score.tokenizers import DefaultTokenizer  # which takes NLTK along

        self._stems, self._words = DefaultTokenizer(use_stemmer=True), dict[str, collections.Counter[str]]()

    def explain(self, users: np.ndarray, items: np.ndarray, own: Sequence[str] | None = None) -> list[str]:
        """M texts for int [M] users and items.

        Args:
          own: of each, a text more that may be chosen, and that the others are compared with.
        """
        chosen = []
        for number, (user, item) in enumerate(zip(users.tolist(), items.tolist(), strict=True)):
            known = self._of_item.get(item, [])[-self._most :] + self._of_user.get(user, [])[-self._most :]
            texts = [self._texts[place] for place in dict.fromkeys(known or self._some)]
            texts += [] if own is None else [own[number]]
            words = [self._counted(text) for text in texts]
            worth = [sum(f1(one, other) for other in words) - f1(one, one) for one in words]
            chosen.append(texts[int(np.argmax(worth))])
        return chosen

    def _counted(self, text: str) -> collections.Counter[str]:
        if text not in self._words:
            self._words[text] = collections.Counter(self._stems.tokenize(text))
        return self._words[text]


def f1(one: collections.Counter[str], other: collections.Counter[str]) -> float:
    """Of the words that two texts have in common, 0 to 1."""
    return 2 * (one & other).total() / max(one.total() + other.total(), 1)


def grouped(groups: np.ndarray) -> dict[int, list[int]]:
    """The places of each group, ascending."""
    places: dict[int, list[int]] = {}
    for place, group in enumerate(groups.tolist()):
        places.setdefault(group, []).append(place)
    return places


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
