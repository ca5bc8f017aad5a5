"""Rating: how many stars will the user give an item, and why?"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from data_pipelines.corpus import Corpus
from data_pipelines.tasks.base import Query, Segment, Task, TaskData
from data_pipelines.tasks.examples import int32
from data_pipelines.tasks.texts import PromptTexts
from data_pipelines.vocabulary import Vocabulary


class Rating(Task):
    """The item is shown with its image and attributes; the answer is a rating token and the user's explanation."""

    name = "rating"
    question = "What is the rating and explanation for the item?"
    rated_history = True
    continues_history = "rating_at"
    num_texts = 1

    def unavailable(self, data: TaskData) -> str:
        return "" if data.corpus.rating_levels else "no rating is among what is to train on"

    def missing(self, data: TaskData, event: int) -> str:
        if not data.corpus.rating_levels:
            return "whose rating cannot be predicted, for no rating is among what was to train on"
        return "whose answer has no rating" if np.isnan(data.corpus.ratings[event]) else ""

    def is_open(self, corpus: Corpus, query: Query) -> bool:
        return bool(corpus.offsets[query.user] + query.position >= corpus.offsets[query.user + 1])

    def texts(self, texts: PromptTexts, query: Query) -> list[np.ndarray]:
        event = int(texts.corpus.offsets[query.user]) + query.position
        explanation = [] if self.is_open(texts.corpus, query) else [texts.explanations.get(event, int32())]
        return [texts.attributes[query.right[0]], *explanation]

    def prompt(self, texts: PromptTexts, query: Query, shown: Sequence[np.ndarray]) -> list[Segment]:
        return [Segment(texts.item(query.right[0], shown[0]), query.right[0])]

    def continuation(self, vocabulary: Vocabulary, query: Query) -> np.ndarray:
        return vocabulary.items[query.right[0]]

    def answer(self, texts: PromptTexts, query: Query, shown: Sequence[np.ndarray]) -> np.ndarray:
        event = int(texts.corpus.offsets[query.user]) + query.position
        return np.concatenate([int32(texts.vocabulary.rating_token(texts.corpus.ratings[event])), shown[-1]])

    def answer_tokens(self, vocabulary: Vocabulary) -> None:
        return None  # behind the rating, whatever a user wrote
