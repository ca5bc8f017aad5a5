"""Rating: predict the stars that the user gives an item, and the explanation."""

import numpy as np

from data_pipelines.corpus import Corpus
from data_pipelines.tasks.base import Task, TaskData
from data_pipelines.tasks.query import Queries, Query
from data_pipelines.tasks.texts import Part, PromptTexts
from data_pipelines.vocabulary import Vocabulary


class Rating(Task):
    """The item is shown with its image and attributes; the answer is a rating token and the user's explanation."""

    name = "rating"
    question = "What is the rating and explanation for the item?"
    rated_history = True
    continues_history = "rating_at"
    num_texts = 1

    def unavailable(self, data: TaskData) -> str:
        return "" if data.corpus.rating_levels else "no training interaction has a rating"

    def missing(self, data: TaskData, events: np.ndarray) -> np.ndarray:
        if not data.corpus.rating_levels:
            return np.full(
                len(events), "whose rating cannot be predicted, because no training interaction has a rating"
            )
        return np.where(np.isnan(data.corpus.ratings[events]), "whose answer has no rating", "")

    def is_open(self, corpus: Corpus, query: Query) -> bool:
        return bool(corpus.offsets[query.user] + query.position >= corpus.offsets[query.user + 1])

    def prompt(self, texts: PromptTexts, asked: Queries) -> list[Part]:
        return texts.item(asked.right[:, 0])

    def continuation(self, texts: PromptTexts, asked: Queries) -> list[Part]:
        return [Part(texts.names, asked.right[:, 0])]

    def answer(self, texts: PromptTexts, asked: Queries) -> list[Part]:
        events = texts.corpus.offsets[asked.users] + asked.positions
        levels = texts.vocabulary.nearest_levels(texts.corpus.ratings[events])
        return [Part(texts.ratings, levels), Part(texts.explanations, texts.explanation_rows(events), is_text=True)]

    def answer_tokens(self, vocabulary: Vocabulary) -> None:
        return None  # the rating is followed by arbitrary user text
