"""Image: what does the item that the query describes, and that this user wants, look like?"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from data_pipelines.tasks.base import Query, Segment, Task, TaskData
from data_pipelines.tasks.texts import PromptTexts
from data_pipelines.vocabulary import Vocabulary


class Image(Task):
    """The query is as in search; the answer is the codes of the item's image, row by row.

    A share of the training questions is asked bare, without history and query, which classifier-free guidance
    (arXiv:2207.12598) needs in decoding.
    """

    name = "image"
    question = "What is the generated image ID to the query based on the history?"
    share = 0.0
    needs_codes = True
    num_texts = 1
    texts_are_categories = True

    def unavailable(self, data: TaskData) -> str:
        return "" if data.can_generate.any() else "no item has both codes of an image and categories"

    def missing(self, data: TaskData, event: int) -> str:
        can_generate = data.can_generate[int(data.corpus.items[event])]
        return "" if can_generate else "whose answer has no codes of an image, or no categories"

    def sample(self, data: TaskData, user: int, position: int, last: int, rng: np.random.Generator) -> Query | None:
        query = super().sample(data, user, position, last, rng)
        if not isinstance(query, Query):
            return None
        return dataclasses.replace(query, unconditional=rng.random() < data.unconditional_rate)

    def texts(self, texts: PromptTexts, query: Query) -> list[np.ndarray]:
        return [] if query.unconditional else [texts.query_words(query.words, query.right)]

    def prompt(self, texts: PromptTexts, query: Query, shown: Sequence[np.ndarray]) -> list[Segment]:
        return [] if query.unconditional else [Segment(texts.query), Segment(shown[0])]

    def answer(self, texts: PromptTexts, query: Query, shown: Sequence[np.ndarray]) -> np.ndarray:
        check_codes(texts.vocabulary)
        return texts.vocabulary.image_tokens(query.right[0])

    def open_answer(self, vocabulary: Vocabulary) -> np.ndarray:
        return np.full(check_codes(vocabulary), vocabulary.eos, np.int32)

    def answer_tokens(self, vocabulary: Vocabulary) -> np.ndarray:
        return vocabulary.codes


def check_codes(vocabulary: Vocabulary) -> int:
    """The number of codes of an image.

    Raises:
      ValueError: the vocabulary has no codes of images.
    """
    if vocabulary.image_codes is None:
        raise ValueError("an image is asked for, but the vocabulary knows none (vocabulary.image_codes)")
    return vocabulary.image_codes.codes_per_image
