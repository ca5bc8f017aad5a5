"""Recommendation: predict the next item."""

from __future__ import annotations

import numpy as np

from data_pipelines.tasks.base import Task, item_tokens
from data_pipelines.tasks.query import Queries
from data_pipelines.tasks.texts import Part, PromptTexts
from data_pipelines.vocabulary import Vocabulary


class Recommendation(Task):
    """The answer is the id of the next item. Every interaction can be asked about."""

    name = "recommendation"
    question = "What is the next item recommended to the user?"
    loss_weight = 2.0
    asked_along = True
    begins_text = True
    continues_history = "recommendation_at"

    def answer(self, texts: PromptTexts, asked: Queries) -> list[Part]:
        return [Part(texts.names, asked.right[:, 0])]

    def answer_tokens(self, vocabulary: Vocabulary) -> np.ndarray:
        return item_tokens(vocabulary)
