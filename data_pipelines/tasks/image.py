"""Image: generate the image of the item that the query describes and that suits the user."""

import dataclasses

import numpy as np

from data_pipelines.tasks.base import Task, TaskData
from data_pipelines.tasks.query import Queries
from data_pipelines.tasks.texts import Part, PromptTexts
from data_pipelines.vocabulary import Vocabulary


class Image(Task):
    """The query is that of search; the answer is the codes of the item's image in row-major order.

    A fraction of the training questions is asked without history and query, as classifier-free guidance
    (arXiv:2207.12598) requires in decoding.
    """

    name = "image"
    question = "What is the generated image ID to the query based on the history?"
    share = 0.0
    needs_codes = True
    num_texts = 1
    texts_are_categories = True

    def unavailable(self, data: TaskData) -> str:
        return "" if data.can_generate.any() else "no item has both image codes and categories"

    def missing(self, data: TaskData, events: np.ndarray) -> np.ndarray:
        can_generate = data.can_generate[data.corpus.items[events]]
        return np.where(can_generate, "", "whose answer has no image codes or no categories")

    def sample(
        self, data: TaskData, asked: Queries, last: np.ndarray, rng: np.random.Generator
    ) -> tuple[Queries, np.ndarray]:
        unconditional = rng.random(len(asked)) < data.unconditional_rate
        return super().sample(data, dataclasses.replace(asked, unconditional=unconditional), last, rng)

    def prompt(self, texts: PromptTexts, asked: Queries) -> list[Part]:
        return [Part(texts.query, np.where(asked.unconditional, -1, 0)), texts.query_words(asked)]

    def answer(self, texts: PromptTexts, asked: Queries) -> list[Part]:
        return [Part(ImageTokens(texts.vocabulary), asked.right[:, 0])]

    def open_answer(self, vocabulary: Vocabulary) -> np.ndarray:
        return np.full(check_codes(vocabulary), vocabulary.eos, np.int32)

    def answer_tokens(self, vocabulary: Vocabulary) -> np.ndarray:
        return vocabulary.codes


class ImageTokens:
    """The tokens of the items' images, in row-major order of the image."""

    def __init__(self, vocabulary: Vocabulary):
        self._vocabulary = vocabulary

    def lengths_of(self, rows: np.ndarray) -> np.ndarray:
        return np.full(rows.shape, check_codes(self._vocabulary))

    def __getitem__(self, row: int) -> np.ndarray:
        return self._vocabulary.image_tokens(row)


def check_codes(vocabulary: Vocabulary) -> int:
    """Returns the number of codes of an image; raises ValueError if the vocabulary has no image codes."""
    if vocabulary.image_codes is None:
        raise ValueError("a question asks for an image, but the vocabulary has no image codes (vocabulary.image_codes)")
    return vocabulary.image_codes.codes_per_image
