"""What prompts say of items, tokenised once: attributes, categories and explanations."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Sequence
from typing import Self

import numpy as np

from data_pipelines.corpus import Corpus
from data_pipelines.plain_text import shortened
from data_pipelines.tasks.examples import Ragged, int32
from data_pipelines.vocabulary import Vocabulary

QUERY, SELECT = "Query:", "Select from:"


class PromptTexts:
    """The tokenised texts of a catalogue and of its users' explanations, from which tasks make their questions.

    Attributes:
      corpus: the interactions and the items.
      vocabulary: the tokens.
      has_image: bool [I], the items that are shown with an image.
      query, select: int32 [t], the words before a query and before items to select from.
      attributes: of each item, its attributes.
      categories: of each item, its categories, as a query.
      explanations: by the number of an interaction, what the user wrote.
    """

    def __init__(
        self,
        corpus: Corpus,
        vocabulary: Vocabulary,
        *,
        attributes: Sequence[str],
        has_image: np.ndarray,
        explanation_words: int,
        explanation_tokens: int,
        show_ids: bool,
        image_tokens: int = 1,
    ):
        """
        Args:
          attributes: what a prompt says of each item.
          explanation_words, explanation_tokens: explanations are cut to so many.
          show_ids: whether items that are asked about are named by their ids.
          image_tokens: so many tokens stand for an image.
        """
        self.corpus, self.vocabulary, self.has_image = corpus, vocabulary, has_image
        self._show_ids = show_ids
        self.image_at = vocabulary.image_marker.index(vocabulary.image)
        marker = ([id] * (image_tokens if id == vocabulary.image else 1) for id in vocabulary.image_marker)
        self.image_marker = tuple(itertools.chain.from_iterable(marker))
        self.query, self.select = vocabulary.encode_phrase(QUERY), vocabulary.encode_phrase(SELECT)
        self.attributes = Ragged(vocabulary.encode_all(attributes))
        if vocabulary.categories:
            self.categories = Ragged([vocabulary.encode_query(words) for words in corpus.categories])
        else:
            categories = [vocabulary.space + shortened(", ".join(words)) for words in corpus.categories]
            self.categories = Ragged(vocabulary.encode_all(categories))
        written = vocabulary.encode_all([shortened(text, explanation_words) for text in corpus.texts.values()])
        rows = zip(corpus.texts, written, strict=True)
        self.explanations = {event: int32(*row[:explanation_tokens]) for event, row in rows}

    def of(self, corpus: Corpus) -> Self:
        """The texts of other users' histories of the same items; nothing is tokenised again."""
        other = copy.copy(self)
        other.corpus = corpus
        return other

    def blank(self) -> Self:
        """As if no item had any text."""
        other = copy.copy(self)
        other.attributes = other.categories = Ragged([()] * self.corpus.num_items)
        other.explanations = {}
        return other

    def image(self, item: int) -> tuple[int, ...]:
        """The item, where it is shown with an image."""
        return (item,) if self.has_image[item] else ()

    def marker(self, image: tuple[int, ...]) -> np.ndarray:
        """The tokens that stand for an item's image, or nothing: int32 [t]."""
        return int32(*self.image_marker * len(image))

    def item(self, item: int, text: np.ndarray, *name: int) -> np.ndarray:
        """An item that is asked about, or offered under a name: its image, its name, its id and its text, int32 [t]."""
        shown_id = self.vocabulary.items[item] if self._show_ids else int32()
        return np.concatenate([self.marker(self.image(item)), int32(*name), shown_id, text])

    def query_words(self, words: str | None, right: tuple[int, ...]) -> np.ndarray:
        """What is searched for, a user's words or else the categories of the right item: int32 [t]."""
        if words is None:
            return self.categories[right[0]]
        return int32(*self.vocabulary.encode_query(self.vocabulary.split_query(words)))
