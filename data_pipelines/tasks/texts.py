"""The texts of prompts, tokenised once: attributes, categories and explanations."""

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
"""A sentinel that is larger than the index of any interaction."""


class Table(Protocol):
    """Rows of tokens with the interface of `Ragged`; row -1 is empty."""

    def lengths_of(self, rows: np.ndarray) -> np.ndarray: ...

    def __getitem__(self, row: int) -> np.ndarray: ...


class Part(NamedTuple):
    """A part of n questions or answers, as rows of a table, so that its length is known without writing it.

    Attributes:
      rows: int [n], the row for each question, -1 for none; or one index for all of them.
      is_text: whether it is a text, which is cut if there is no room for it.
      is_image: whether rows are indexed by item, and the tokens stand for the items' images.
      at_most: the maximum number of tokens of a row; the rest is left out.
    """

    table: Table
    rows: np.ndarray | int
    is_text: bool = False
    is_image: bool = False
    at_most: int = sys.maxsize

    def lengths(self, count: int) -> np.ndarray:
        """Returns the number of tokens for each of `count` questions: int64 [count]."""
        lengths = self.table.lengths_of(np.broadcast_to(np.asarray(self.rows), count))
        return lengths if self.at_most == sys.maxsize else np.minimum(lengths, self.at_most)

    def of_one(self, most: int) -> np.ndarray:
        """Returns the tokens of a single question, with a text cut to `most`: int32 [t]."""
        tokens = self.table[self.row]
        return tokens[: min(self.at_most, most if self.is_text else sys.maxsize)]

    @property
    def row(self) -> int:
        """The row of a single question."""
        return self.rows if isinstance(self.rows, int) else int(self.rows[0])


class PromptTexts:
    """The tokenised texts of a catalogue and of its users' explanations, from which tasks build their questions.

    Attributes:
      has_image: bool [I], the items that are shown with an image.
      query, select: the phrases before a query and before items to select from, one row each.
      markers: the tokens of each item's image, empty if it is shown without one.
      marker_at: the index of the token among these at which the image is attended to.
      names: the id of each item.
      selections: the token of each place among the items to select from.
      explanations: the texts that users wrote, indexed by `explanation_rows`.
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
        """Tokenises the texts. `attributes` has the text of each item in prompts and can be iterated more than once;
        `show_ids` says whether items that are asked about are named by their ids; `cache` is keyed by what determines
        the corpus and `attributes`."""
        self.corpus, self.vocabulary, self.has_image = corpus, vocabulary, has_image
        self._show_ids = show_ids
        self.query, self.select = (Ragged.of([vocabulary.encode_phrase(phrase).tolist()]) for phrase in (QUERY, SELECT))
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
        """Returns the texts for other users' histories with the same items, without tokenising again."""
        other = copy.copy(self)
        other.corpus = corpus
        return other

    def blank(self) -> Self:
        """Returns a copy in which no item has any text."""
        other = copy.copy(self)
        other.attributes = other.categories = Ragged.of([()] * self.corpus.num_items)
        other.explanations, other._explained = Ragged.of([]), np.array([NO_EVENT])
        return other

    def explanation_rows(self, events: np.ndarray) -> np.ndarray:
        """Returns the row of `explanations` of each interaction, -1 for none: int64 [n]."""
        places = np.searchsorted(self._explained, events)
        return np.where(self._explained[places] == events, places, -1)

    def item(self, items: np.ndarray, *name: Part) -> list[Part]:
        """Returns the parts of items, int [n] (-1 for none), that are asked about, or offered under a name: image,
        name, id and text."""
        shown_id = [Part(self.names, items)] if self._show_ids else []
        return [Part(self.markers, items, is_image=True), *name, *shown_id, Part(self.attributes, items, is_text=True)]

    def query_words(self, asked: Queries) -> Part:
        """Returns the search query: the user's words, else the categories of the right item; empty if unconditional."""
        if asked.words is not None:
            words = self.vocabulary.encode_query(self.vocabulary.split_query(asked.words))
            return Part(Ragged.of([words]), 0, is_text=True)
        return Part(self.categories, np.where(asked.unconditional, -1, asked.right[:, 0]), is_text=True)

    def written(self, parts: Sequence[Part], most: int = sys.maxsize) -> TokenSpan:
        """Writes the parts of a single question, with texts cut to `most` tokens each."""
        tokens = [part.of_one(most) for part in parts]
        starts = np.cumsum([0, *map(len, tokens)]).tolist()
        shown = [
            (part.row, start)
            for part, part_tokens, start in zip(parts, tokens, starts, strict=False)
            if part.is_image and len(part_tokens)
        ]
        return TokenSpan(
            np.concatenate([int32(), *tokens]),
            tuple(item for item, _ in shown),
            shown_at=int32(*(start + self.marker_at for _, start in shown)),
        )
