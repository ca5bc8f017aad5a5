"""Content of items as frozen feature vectors: attributes, popularity, ratings, co-occurrence and encoder vectors.

The embedding of an item is a free row plus a projection of its content (`unimp_jax.model.decoder.Embeddings`), so what
is learnt about one item transfers to similar items. Counts and ratings use training interactions only.
"""

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
"""The norm of the attribute part of an item's vector; for comparison, popularity has standard deviation 1."""
RATING_PRIOR = 6.0
"""The weight of the overall mean in an item's mean rating, as a number of additional ratings."""
WELL_RATED = 10
"""An item with more training ratings than this has its mean rating in a separate feature too, as it is reliable."""

RATING_FEATURES = 3
RATING_DEVIATION = 2.0
"""The standard deviation of the mean ratings, which predict a rating better than any other feature."""
CO_OCCURRENCE_DEVIATION = 0.6
"""The standard deviation of each co-occurrence feature; 64 of them together have about the norm of all the others."""


@dataclasses.dataclass(frozen=True)
class ContentConfig:
    """The features of an item's content; with none of them, the embeddings of new tokens are free rows only."""

    attributes: tuple[str, ...] = ()
    """Attributes whose comma-separated values become features; `Category` stands for the categories used by search."""
    least_items: int = 3
    """Values that occur in fewer items are left out."""
    popularity: bool = False
    """Whether to include the logarithm of an item's number of training interactions."""
    rating: bool = False
    """Whether to include an item's mean training rating, shrunk towards the mean of all items."""
    co_occurrence: int = 0
    """Number of features from items that the same users interacted with near one another (`co_occurrence_vectors`)."""
    vectors: tuple[Path, ...] = ()
    """Files of vectors by item id, as `unimp features` writes them: from text or image encoders, or your own."""
    components: int = 64
    """Number of leading principal components to keep of the vectors of each file."""

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
        """The number of features derived from interactions, which are the last columns."""
        return self.popularity + RATING_FEATURES * self.rating + self.co_occurrence


@dataclasses.dataclass(frozen=True, eq=False)
class Content:
    """The content of a catalogue.

    Attributes:
      items: float32 [I, K].
      categories: the column of each category that is a feature.
    """

    items: np.ndarray
    categories: dict[str, int]

    @property
    def width(self) -> int:
        return self.items.shape[1]


def build_content(corpus: Corpus, config: ContentConfig, known: int | None = None) -> Content:
    """Returns the content of all items; features of interactions (popularity, ratings, co-occurrence) come last.

    Args:
      known: the number of leading items from which features, scales and components are derived; later items are new,
        and their interaction features are 0, which is the mean. None means that all items are known.

    Raises:
      DataError: an attribute is not in the source, or a file of vectors cannot be read or has none of the items.
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
    """Returns the content of each new token: float32 [new tokens, K].

    A token that names items has the mean content of the items it names (one item, or those that share a semantic code);
    the token of a category has the feature of that category; other tokens have no content.
    """
    rows = np.zeros((len(vocabulary.new_tokens), content.width), np.float64)
    counts = np.zeros(len(rows))
    items = np.repeat(np.arange(len(content.items)), vocabulary.depth)
    tokens = vocabulary.items.ravel() - vocabulary.base_size
    new = tokens >= 0  # a name that the tokenizer already has keeps its base row
    np.add.at(rows, tokens[new], content.items[items[new]])
    np.add.at(counts, tokens[new], 1)
    rows /= np.maximum(counts, 1)[:, None]
    for category, token in vocabulary.categories.items():
        if category in content.categories and token >= vocabulary.base_size:
            rows[token - vocabulary.base_size, content.categories[category]] = ATTRIBUTE_NORM
    return rows.astype(np.float32)


def attribute_values(corpus: Corpus, config: ContentConfig, item: int) -> list[tuple[str, str]]:
    """Returns the (attribute, value) pairs of an item, for the attributes of the configuration."""
    found = dict(corpus.attributes[item])
    pairs: list[tuple[str, str]] = []
    for name in config.attributes:
        texts = corpus.categories[item] if name == CATEGORY else found.get(name, "").split(",")
        pairs += [(name, text.strip()) for text in texts if text.strip()]
    return list(dict.fromkeys(pairs))


def multi_hot(
    values: list[list[tuple[str, str]]], config: ContentConfig, known: int | None = None
) -> tuple[dict[tuple[str, str], int], np.ndarray]:
    """Returns the column of each value that enough known items have, and the features, float32 [I, columns], whose rows
    have norm `ATTRIBUTE_NORM` unless they are all zeros; raises DataError if no known item has one of the
    attributes."""
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
    """Returns the number of training interactions of each item: int64 [I]."""
    return np.bincount(corpus.items[corpus.splits == TRAIN], minlength=corpus.num_items)


def mean_ratings(corpus: Corpus, known: int | None = None) -> np.ndarray:
    """Returns three rating features of each item, float32 [I, 3]: its mean training rating, shrunk towards the mean of
    all ratings; whether it has a rating; and the mean again if it is reliable (more than `WELL_RATED` ratings), else
    0."""
    rated = (corpus.splits == TRAIN) & ~np.isnan(corpus.ratings)
    items, ratings = corpus.items[rated], corpus.ratings[rated].astype(np.float64)
    counts = np.bincount(items, minlength=corpus.num_items)
    above = np.bincount(items, ratings - ratings.mean() if len(ratings) else ratings, minlength=corpus.num_items)
    means = above / (counts + RATING_PRIOR)
    means /= means[:known].std() or 1.0
    return np.stack([means, counts > 0, means * (counts > WELL_RATED)], axis=1).astype(np.float32)


def standardised(values: np.ndarray, known: int | None = None) -> np.ndarray:
    """Scales each column to mean 0 and standard deviation 1 over the known rows; constant columns become 0."""
    centred = values - values[:known].mean(axis=0, dtype=np.float64)  # float32 loses the last of many items
    return centred / np.where(np.ptp(centred[:known], axis=0) > 0, centred[:known].std(axis=0), np.inf)


def principal_components(vectors: np.ndarray, count: int, known: int | None = None) -> np.ndarray:
    """Returns the first principal components of vectors, [I, F], half-whitened so that the largest has standard
    deviation 1; if F is at most `count`, the features are only standardised. `known` leading rows determine them; None
    means all."""
    if vectors.shape[1] <= count:
        return standardised(vectors, known)
    centred = vectors - vectors[:known].mean(axis=0, dtype=np.float64)
    variances, directions = np.linalg.eigh(centred[:known].T @ centred[:known] / len(centred[:known]))
    variances, directions = np.maximum(variances[::-1][:count], 0), directions[:, ::-1][:, :count]
    return centred @ directions / ((variances * variances[:1]) ** 0.25 + 1e-6)
