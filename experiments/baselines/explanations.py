"""Baselines that explain a rating by selecting an existing training text; nothing is generated.

`NearestExplanation` compares texts by the cosine of their TF-IDF vectors. These have length 1, so the mean cosine with
many texts is the product with the sum of their vectors, up to a factor that changes no comparison.
"""

import collections
import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from data_pipelines.corpus import TRAIN, Corpus
from data_pipelines.errors import DataError


class NearestExplanation:
    """Selects a training text about the item that is most similar to the user's own texts.

    Of the training texts about the item, it returns the one with the highest mean cosine with the user's own training
    texts (with all training texts for a user without any). If nobody wrote about the item, it returns the medoid of the
    user's own texts, or, if there are none either, that of all. Of equals it takes the first in the corpus.

    Attributes:
      constant: the medoid, the training text with the highest mean cosine with all training texts.
    """

    def __init__(self, corpus: Corpus):
        """Raises DataError if there are no training texts."""
        events, self._texts = training_texts(corpus)
        users = np.searchsorted(corpus.offsets, events, side="right") - 1
        self._vectors_TV = _vectors(self._texts)
        self._of_user, self._of_item = grouped(users), grouped(corpus.items[events])
        self._sum_V = self._vectors_TV.sum(axis=0)
        self._medoid = int(np.argmax(self._vectors_TV @ self._sum_V))
        self.constant = self._texts[self._medoid]

    def explain(self, users: np.ndarray, items: np.ndarray) -> list[str]:
        """Returns M texts for int [M] users and items."""
        return [self._texts[self._nearest(int(user), int(item))] for user, item in zip(users, items, strict=True)]

    def _nearest(self, user: int, item: int) -> int:
        """Returns the index of the selected text."""
        own = self._of_user.get(user, [])
        candidates = self._of_item.get(item, own)
        if not candidates:
            return self._medoid
        wanted_V = self._vectors_TV[own].sum(axis=0) if own else self._sum_V
        return candidates[int(np.argmax(self._vectors_TV[candidates] @ wanted_V))]


class ConsensusExplanation:
    """Selects, of the texts about the item and those by the user, the one that has most in common with all of them.

    This minimises the Bayes risk (Kumar and Byrne 2004) if each of these texts is equally likely to be written again,
    and the gain of a text is the F1 of its word stems with the written one. If there are no such texts, a sample of all
    texts replaces them.
    """

    name = "Consensus text"

    def __init__(self, corpus: Corpus, most: int = 32):
        """Uses the latest `most` texts about an item, and of a user; DataError if there are no training texts."""
        events, self._texts = training_texts(corpus)
        users = np.searchsorted(corpus.offsets, events, side="right") - 1
        self._of_user, self._of_item, self._most = grouped(users), grouped(corpus.items[events]), most
        self._some = np.linspace(0, len(events) - 1, min(most, len(events))).astype(int).tolist()
        from rouge_score.tokenizers import DefaultTokenizer  # imports NLTK as well

        self._stems, self._words = DefaultTokenizer(use_stemmer=True), dict[str, collections.Counter[str]]()

    def explain(self, users: np.ndarray, items: np.ndarray, own: Sequence[str] | None = None) -> list[str]:
        """Returns M texts for int [M] users and items; `own` has one more text for each, which may be selected too."""
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
    """Returns the F1 of the words that two texts have in common, 0 to 1."""
    return 2 * (one & other).total() / max(one.total() + other.total(), 1)


def grouped(groups: np.ndarray) -> dict[int, list[int]]:
    """Returns the indices of each group's members, ascending."""
    places: dict[int, list[int]] = {}
    for place, group in enumerate(groups.tolist()):
        places.setdefault(group, []).append(place)
    return places


def training_texts(corpus: Corpus) -> tuple[np.ndarray, list[str]]:
    """Returns the training interactions with a text, int64 [T] ascending, and their texts; DataError without any."""
    events = np.array(sorted(event for event in corpus.texts if corpus.splits[event] == TRAIN), np.int64)
    if not len(events):
        raise DataError("no training interaction has a text, so there is no explanation to answer with")
    return events, [corpus.texts[event] for event in events.tolist()]


def _vectors(texts: Iterable[str]) -> Any:
    """Returns TF-IDF vectors of words, of length 1, or 0 for a text without words: float64 csr_array [texts, words]."""
    import scipy.sparse  # here, because it takes most of a second, which `unimp generate` does not need

    texts = list(texts)
    if not any(re.search(r"\w", text) for text in texts):  # an error for the vectorizer
        return scipy.sparse.csr_array((len(texts), 1))
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectorizer = TfidfVectorizer(token_pattern=r"\b\w+\b")  # unlike the default, includes words of one letter
    return scipy.sparse.csr_array(vectorizer.fit_transform(texts))
