"""Search: which item that the query describes comes next?"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from data_pipelines.corpus import Corpus
from data_pipelines.tasks.base import Query, Segment, Task, TaskData, item_tokens
from data_pipelines.tasks.texts import PromptTexts
from data_pipelines.vocabulary import Vocabulary


class Search(Task):
    """The query is the categories of the item to be found, or a user's words; the answer is the item's id."""

    name = "search"
    question = "What is the related item ID to the query based on the history?"
    asked_along = True
    num_texts = 1
    texts_are_categories = True

    def unavailable(self, data: TaskData) -> str:
        return "" if any(data.corpus.categories) else "no item has categories"

    def can_ask_about(self, corpus: Corpus, item: int) -> bool:
        return bool(corpus.categories[item])

    def missing(self, data: TaskData, event: int) -> str:
        has_categories = self.can_ask_about(data.corpus, int(data.corpus.items[event]))
        return "" if has_categories else "whose answer has no categories to search by"

    def texts(self, texts: PromptTexts, query: Query) -> list[np.ndarray]:
        return [texts.query_words(query.words, query.right)]

    def prompt(self, texts: PromptTexts, query: Query, shown: Sequence[np.ndarray]) -> list[Segment]:
        return [Segment(texts.query), Segment(shown[0])]

    def answer(self, texts: PromptTexts, query: Query, shown: Sequence[np.ndarray]) -> np.ndarray:
        return texts.vocabulary.items[query.right[0]]

    def answer_tokens(self, vocabulary: Vocabulary) -> np.ndarray:
        return item_tokens(vocabulary)
