"""What items are made of, as frozen feature vectors: attributes, popularity, ratings, company, and encoders' vectors.

An item's embedding row is a free row plus a projection of its content (`unimp_jax.model.decoder.Embeddings`), so that
what is learnt of one item is known of those like it. Counts and ratings are those of training interactions alone.
"""

from __future__ import annotations

import collections
import dataclasses
from pathlib import Path

import numpy as np

from data_pipelines.attribute_texts import CATEGORY
from data_pipelines.co_occurrence import co_occurrence_vectors
from data_pipelines.corpus import TRAIN, Corpus
from data_pipelines.errors import DataError
from data_pipelines.item_vectors import read_vectors
from data_pipelines.vocabulary import Vocabulary

ATTRIBUTE_NORM = 3.0
"""The length of the attribute part of an item's vector, next to which popularity has a deviation of 1."""
RATING_PRIOR = 6.0
"""An item's mean rating counts as if so many ratings more had been the mean of all."""
WELL_RATED = 10
"""With more training interactions than this, an item's mean rating is also given apart: it can be relied on."""

RATING_FEATURES = 3
RATING_DEVIATION = 2.0
"""Of mean ratings, which say more of a rating to come than any other feature."""
CO_OCCURRENCE_DEVIATION = 0.6
"""Of each vector of co-occurrence; the 64 of them together are then about as long as all else."""


@dataclasses.dataclass(frozen=True)
class ContentConfig:
    """The parts of an item's content; without any, the rows of new tokens are free alone."""

    attributes: tuple[str, ...] = ()
    """Each comma-separated value of these attributes is a feature; `Category` names what search asks for."""
    least_items: int = 3
    """Values of fewer items are left out."""
    popularity: bool = False
    """The logarithm of an item's training interactions."""
    rating: bool = False
    """Its mean rating in training, drawn towards that of all items."""
    co_occurrence: int = 0
    """So many vectors of which items the same users met near one another in training (`co_occurrence_vectors`)."""
    vectors: tuple[Path, ...] = ()
    """Files of vectors by item id, as `unimp features` writes them: of text or image encoders, or your own."""
    components: int = 64
    """Of the vectors of each file, the first so many principal components."""

    def __post_init__(self) -> None:
        if self.least_items < 1 or self.components < 1 or self.co_occurrence < 0:
            raise ValueError(
                f"content: least_items and components must be at least 1, and co_occurrence at least 0, not {self}"
            )

    @property
    def is_empty(self) -> bool:
        return not (self.attributes or self.popularity or self.rating or self.co_occurrence or self.vectors)

    @property
    def interaction_features(self) -> int:
        """How many features, the last ones, are of interactions."""
        return self.popularity + RATING_FEATURES * self.rating + self.co_occurrence


@dataclasses.dataclass(frozen=True, eq=False)
class Content:
    """The content of a catalogue.

    Attributes:
      items: float32 [I, K].
      categories: of each category that is a feature, its column.
    """

    items: np.ndarray
    categories: dict[str, int]

    @property
    def width(self) -> int:
        return self.items.shape[1]


def build_content(corpus: Corpus, config: ContentConfig, known: int | None = None) -> Content:
    """The content of all items; features of interactions (popularity, ratings, co-occurrence) are the last.

    Args:
      known: so many items, from the first on, are what features, scales and components are made of; those behind them
        are new, and their features of interactions are 0, which is the mean. None: all are known.

    Raises:
      DataError: an attribute is not in the source, or a file of vectors cannot be read or does not know an item.
    """
    parts: list[np.ndarray] = [np.zeros((corpus.num_items, 0), np.float32)]
    categories: dict[str, int] = {}
    if config.attributes:
        columns, values = multi_hot(
            [attribute_values(corpus, config, item) for item in range(corpus.num_items)], config, known
        )
        categories = {value: column for (name, value), column in columns.items() if name == CATEGORY}
        parts.append(values)
    for path in config.vectors:
        parts.append(principal_components(read_vectors(path, corpus.item_ids, known), config.components, known))
    if config.popularity:
        parts.append(standardised(np.log1p(training_counts(corpus))[:, None], known))
    if config.rating:
        parts.append(RATING_DEVIATION * mean_ratings(corpus, known))
    if config.co_occurrence:
        vectors = co_occurrence_vectors(corpus, config.co_occurrence, known)
        parts.append(CO_OCCURRENCE_DEVIATION * standardised(vectors, known))
    items = np.concatenate(parts, axis=1).astype(np.float32)
    if known is not None:
        items[known:, items.shape[1] - config.interaction_features :] = 0
    return Content(items, categories)


def token_content(content: Content, vocabulary: Vocabulary) -> np.ndarray:
    """The content of each new token: float32 [new tokens, K].

    A token of items' names has the mean content of the items that it names (one item, or those that share a semantic
    code); a category's token has the feature of that category; other tokens have none.
    """
    rows = np.zeros((len(vocabulary.new_tokens), content.width), np.float64)
    counts = np.zeros(len(rows))
    items = np.repeat(np.arange(len(content.items)), vocabulary.depth)
    tokens = vocabulary.items.ravel() - vocabulary.base_size
    new = tokens >= 0  # a name that the tokenizer has already keeps its base row
    np.add.at(rows, tokens[new], content.items[items[new]])
    np.add.at(counts, tokens[new], 1)
    rows /= np.maximum(counts, 1)[:, None]
    for category, token in vocabulary.categories.items():
        if category in content.categories and token >= vocabulary.base_size:
            rows[token - vocabulary.base_size, content.categories[category]] = ATTRIBUTE_NORM
    return rows.astype(np.float32)


def attribute_values(corpus: Corpus, config: ContentConfig, item: int) -> list[tuple[str, str]]:
    """(attribute, value) of each value that an item has of the configuration's attributes."""
    found = dict(corpus.attributes[item])
    pairs: list[tuple[str, str]] = []
    for name in config.attributes:
        texts = corpus.categories[item] if name == CATEGORY else found.get(name, "").split(",")
        pairs += [(name, text.strip()) for text in texts if text.strip()]
    return list(dict.fromkeys(pairs))


def multi_hot(
    values: list[list[tuple[str, str]]], config: ContentConfig, known: int | None = None
) -> tuple[dict[tuple[str, str], int], np.ndarray]:
    """(the column of each value that enough known items have; float32 [I, columns], each row of length
    `ATTRIBUTE_NORM`).

    Raises:
      DataError: no item has one of the attributes.
    """
    counts = collections.Counter(pair for pairs in values[:known] for pair in pairs)
    missing = [name for name in config.attributes if not any(name == found for found, _ in counts)]
    if missing:
        raise DataError(f"content.attributes: no item of this source has {missing[0]!r}")
    columns = {
        pair: column for column, pair in enumerate(sorted(p for p, n in counts.items() if n >= config.least_items))
    }
    rows = np.zeros((len(values), len(columns)), np.float32)
    for item, pairs in enumerate(values):
        rows[item, [columns[pair] for pair in pairs if pair in columns]] = 1
    return columns, rows * (ATTRIBUTE_NORM / np.sqrt(np.maximum(rows.sum(axis=1, keepdims=True), 1)))


def training_counts(corpus: Corpus) -> np.ndarray:
    """How often each item was met in training: int64 [I]."""
    return np.bincount(corpus.items[corpus.splits == TRAIN], minlength=corpus.num_items)


def mean_ratings(corpus: Corpus, known: int | None = None) -> np.ndarray:
    """Of each item, its mean rating in training drawn towards that of all, whether it has one, and the mean again
    where it can be relied on: float32 [I, 3]."""
    rated = (corpus.splits == TRAIN) & ~np.isnan(corpus.ratings)
    items, ratings = corpus.items[rated], corpus.ratings[rated].astype(np.float64)
    counts = np.bincount(items, minlength=corpus.num_items)
    above = np.bincount(items, ratings - ratings.mean() if len(ratings) else ratings, minlength=corpus.num_items)
    means = above / (counts + RATING_PRIOR)
    means /= means[:known].std() or 1.0
    return np.stack([means, counts > 0, means * (counts > WELL_RATED)], axis=1).astype(np.float32)


def standardised(values: np.ndarray, known: int | None = None) -> np.ndarray:
    """Of mean 0 and deviation 1 by column, over known rows; a column that is the same in all of these becomes 0."""
    deviations = values[:known].std(axis=0)
    scaled = (values - values[:known].mean(axis=0)) / np.where(deviations > 0, deviations, 1)
    return np.where(deviations > 0, scaled, 0)


def principal_components(vectors: np.ndarray, count: int, known: int | None = None) -> np.ndarray:
    """The first components of vectors over the catalogue, the largest of deviation 1 and the others whitened by half.

    Args:
      vectors: [I, F]; with at most `count` features, they are only standardised.
      known: so many rows, from the first on, are the catalogue; None: all.
    """
    if vectors.shape[1] <= count:
        return standardised(vectors, known)
    centred = vectors.astype(np.float64) - vectors[:known].mean(axis=0)
    variances, directions = np.linalg.eigh(centred[:known].T @ centred[:known] / len(centred[:known]))
    variances, directions = np.maximum(variances[::-1][:count], 0), directions[:, ::-1][:, :count]
    return centred @ directions / ((variances * variances[:1]) ** 0.25 + 1e-6)
