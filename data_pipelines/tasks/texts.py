"""What prompts say of items, tokenised once: attributes, categories and explanations."""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterable, Sequence
from typing import NamedTuple, Protocol, Self

import numpy as np

from data_pipelines.corpus import Corpus
from data_pipelines.disk_cache import DiskCache
from data_pipelines.plain_text import shortened
from data_pipelines.tasks.examples import Ragged, TokenSpan, int32
from data_pipelines.tasks.query import Queries
from data_pipelines.tasks.token_tables import tokenised
from data_pipelines.vocabulary import Vocabulary

QUERY, SELECT = "Query:", "Select from:"
NO_EVENT = np.iinfo(np.int64).max
"""Behind the numbers of all interactions."""


class Table(Protocol):
    """Rows of tokens, as `Ragged` has them; row -1 is empty."""

    def lengths_of(self, rows: np.ndarray) -> np.ndarray: ...

    def __getitem__(self, row: int) -> np.ndarray: ...


class Part(NamedTuple):
    """What a table says in each of n questions, or answers; the size of a question is known without writing it.

    Attributes:
      table: rows of tokens.
      rows: int [n], which row each question has, -1 for nothing; or one number, for all of them.
      is_text: whether it is a text, which is cut where there is no room for it.
      is_image: whether the rows are those of items, and the tokens stand for their images.
      at_most: so many tokens of a row, the others are left out.
    """

    table: Table
    rows: np.ndarray | int
    is_text: bool = False
    is_image: bool = False
    at_most: int = sys.maxsize

    def lengths(self, count: int) -> np.ndarray:
        """The tokens of each of `count` questions: int64 [count]."""
        lengths = self.table.lengths_of(np.broadcast_to(np.asarray(self.rows), count))
        return lengths if self.at_most == sys.maxsize else np.minimum(lengths, self.at_most)

    def of_one(self, most: int) -> np.ndarray:
        """The tokens of the one question that there is, a text cut to `most`: int32 [t]."""
        tokens = self.table[self.row]
        return tokens[: min(self.at_most, most if self.is_text else sys.maxsize)]

    @property
    def row(self) -> int:
        """That of the one question that there is."""
        return self.rows if isinstance(self.rows, int) else int(self.rows[0])


class PromptTexts:
    """The tokenised texts of a catalogue and of its users' explanations, from which tasks make their questions.

    Attributes:
      corpus: the interactions and the items.
      vocabulary: the tokens.
      has_image: bool [I], the items that are shown with an image.
      query, select: the words before a query and before items to select from, one row each.
      markers: of each item, what stands for its image, if it is shown with one.
      marker_at: which token of that is where the image is seen.
      names: of each item, its id.
      ratings: of each level, its token.
      selections: of each place among items to select from, its token.
      attributes: of each item, its attributes.
      categories: of each item, its categories, as a query.
      explanations: what users wrote, by the rows of `explanation_rows`.
    """

    def __init__(
        self,
        corpus: Corpus,
        vocabulary: Vocabulary,
        *,
        attributes: Iterable[str],
        has_image: np.ndarray,
        explanation_words: int,
        explanation_tokens: int,
        show_ids: bool,
        image_tokens: int = 1,
        cache: DiskCache = DiskCache(),
    ):
        """
        Args:
          attributes: what a prompt says of each item; can be gone through more than once.
          explanation_words, explanation_tokens: explanations are cut to so many.
          show_ids: whether items that are asked about are named by their ids.
          image_tokens: so many tokens stand for an image.
          cache: what determines the corpus and `attributes`, and where their tokens are kept.
        """
        self.corpus, self.vocabulary, self.has_image = corpus, vocabulary, has_image
        self._show_ids = show_ids
        self.query, self.select = (Ragged.of([vocabulary.encode_phrase(said).tolist()]) for said in (QUERY, SELECT))
        self.marker_at = vocabulary.image_marker.index(vocabulary.image)
        marker = np.array(vocabulary.image_marker, np.int32)
        marker = np.repeat(marker, np.where(marker == vocabulary.image, image_tokens, 1))
        self.markers = Ragged(np.tile(marker, int(has_image.sum())), has_image * len(marker))
        self.names, self.ratings, self.selections = (
            Ragged(tokens.astype(np.int32).ravel(), np.full(len(tokens), tokens[:1].size))
            for tokens in (vocabulary.items, vocabulary.ratings, vocabulary.selections)
        )
        digest = vocabulary.tokenizer_digest
        cache = DiskCache() if digest is None else cache.of(digest)

        def queries(items: Sequence[Sequence[str]]) -> Sequence[Sequence[int]]:
            if vocabulary.categories:
                return [vocabulary.encode_query(words) for words in items]
            return vocabulary.encode_all([vocabulary.space + shortened(", ".join(words)) for words in items])

        def explanations(texts: Sequence[str]) -> Sequence[Sequence[int]]:
            rows = vocabulary.encode_all([shortened(text, explanation_words) for text in texts])
            return [row[:explanation_tokens] for row in rows]

        self.attributes = tokenised(attributes, vocabulary.encode_all, cache.of("attributes"))
        self.categories = tokenised(corpus.categories, queries, cache.of("categories", dict(vocabulary.categories)))
        of_texts = cache.of("explanations", explanation_words, explanation_tokens)
        self.explanations = tokenised(corpus.texts.values(), explanations, of_texts)
        self._explained = np.append(corpus.text_events, NO_EVENT)

    def of(self, corpus: Corpus) -> Self:
        """The texts of other users' histories of the same items; nothing is tokenised again."""
        other = copy.copy(self)
        other.corpus = corpus
        return other

    def blank(self) -> Self:
        """As if no item had any text."""
        other = copy.copy(self)
        other.attributes = other.categories = Ragged.of([()] * self.corpus.num_items)
        other.explanations, other._explained = Ragged.of([]), np.array([NO_EVENT])
        return other

    def explanation_rows(self, events: np.ndarray) -> np.ndarray:
        """Which row of `explanations` the user wrote of each interaction, -1 for none: int64 [n]."""
        places = np.searchsorted(self._explained, events)
        return np.where(self._explained[places] == events, places, -1)

    def item(self, items: np.ndarray, *name: Part) -> list[Part]:
        """Items that are asked about, or offered under a name: image, name, id and text.

        Args:
          items: int [n], -1 for none.
        """
        shown_id = [Part(self.names, items)] if self._show_ids else []
        return [Part(self.markers, items, is_image=True), *name, *shown_id, Part(self.attributes, items, is_text=True)]

    def query_words(self, asked: Queries) -> Part:
        """What is searched for, a user's words or else the categories of the right item; nothing where nothing is."""
        if asked.words is not None:
            words = self.vocabulary.encode_query(self.vocabulary.split_query(asked.words))
            return Part(Ragged.of([words]), 0, is_text=True)
        return Part(self.categories, np.where(asked.unconditional, -1, asked.right[:, 0]), is_text=True)

    def written(self, parts: Sequence[Part], most: int = sys.maxsize) -> TokenSpan:
        """The parts of one question, whose texts are cut to `most` tokens each."""
        tokens = [part.of_one(most) for part in parts]
        starts = np.cumsum([0, *map(len, tokens)]).tolist()
        shown = [
            (part.row, start)
            for part, said, start in zip(parts, tokens, starts, strict=False)
            if part.is_image and len(said)
        ]
        return TokenSpan(
            np.concatenate([int32(), *tokens]),
            tuple(item for item, _ in shown),
            shown_at=int32(*(start + self.marker_at for _, start in shown)),
        )
