"""Search: predict the next item among those that the query describes."""

import numpy as np

from data_pipelines.corpus import Corpus
from data_pipelines.tasks.base import Task, TaskData
from data_pipelines.tasks.query import Queries
from data_pipelines.tasks.texts import Part, PromptTexts


class Search(Task):
    """The query is the categories of the item to be found, or a user's words; the answer is the item's id."""

    name = "search"
    question = "What is the related item ID to the query based on the history?"
    asked_along = True
    num_texts = 1
    texts_are_categories = True

    def unavailable(self, data: TaskData) -> str:
        return "" if data.corpus.has_categories.any() else "no item has categories"

    def can_ask_about(self, corpus: Corpus, items: np.ndarray) -> np.ndarray:
        return corpus.has_categories[items]

    def missing(self, data: TaskData, events: np.ndarray) -> np.ndarray:
        has_categories = self.can_ask_about(data.corpus, data.corpus.items[events])
        return np.where(has_categories, "", "whose answer has no categories to search by")

    def prompt(self, texts: PromptTexts, asked: Queries) -> list[Part]:
        return [Part(texts.query, 0), texts.query_words(asked)]
