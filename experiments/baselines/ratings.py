"""Ratings without a model of taste: the mean, and the mean with a bias for each user and item."""

from __future__ import annotations

import dataclasses

import numpy as np

from data_pipelines.corpus import TRAIN, Corpus
from data_pipelines.errors import DataError


@dataclasses.dataclass(frozen=True)
class BiasedMeanConfig:
    """Least squares with a ridge on each bias."""

    user_ridge: float = 5.0
    """As many imagined ratings of bias 0 for each user …"""
    item_ridge: float = 6.0
    """… and for each item."""
    tolerance: float = 1e-6
    """Ends when no bias moves by more stars in a sweep."""
    sweeps: int = 1000


class GlobalMean:
    """The mean of all training ratings for everyone."""

    name = "Global mean"

    def __init__(self, corpus: Corpus):
        self.mean = float(training_ratings(corpus)[2].mean())

    def predict(self, users: np.ndarray, items: np.ndarray) -> np.ndarray:
        """Ratings in stars, float32 [M]."""
        return np.full(len(users), self.mean, np.float32)


class BiasedMean:
    """mean + bias of the user + bias of the item, fitted by alternating exact least squares.

    Minimises sum (rating - mean - b_u - b_i)^2 + user_ridge sum b_u^2 + item_ridge sum b_i^2, mean being that of all
    training ratings. Whoever has no training rating has bias 0.
    """

    name = "Biased mean"

    def __init__(self, corpus: Corpus, config: BiasedMeanConfig = BiasedMeanConfig()):
        users, items, ratings = training_ratings(corpus)
        self.mean = float(ratings.mean())
        left = ratings - self.mean
        self.users, self.items = np.zeros(corpus.num_users), np.zeros(corpus.num_items)
        for _ in range(config.sweeps):
            old = self.users, self.items
            self.users = _ridge_means(users, left - self.items[items], len(self.users), config.user_ridge)
            self.items = _ridge_means(items, left - self.users[users], len(self.items), config.item_ridge)
            if max(np.abs(old[0] - self.users).max(), np.abs(old[1] - self.items).max()) <= config.tolerance:
                break
        self._levels = ratings.min(), ratings.max()

    def predict(self, users: np.ndarray, items: np.ndarray) -> np.ndarray:
        """Ratings in stars, within the lowest and highest of training: float32 [M]."""
        return np.clip(self.mean + self.users[users] + self.items[items], *self._levels).astype(np.float32)


def training_ratings(corpus: Corpus) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(users, items, ratings) of the rated training interactions.

    Raises:
      DataError: there are none.
    """
    events = np.flatnonzero((corpus.splits == TRAIN) & ~np.isnan(corpus.ratings))
    if not len(events):
        raise DataError("no training interaction has a rating: ratings cannot be predicted from this source")
    users = np.searchsorted(corpus.offsets, events, side="right") - 1
    return users, corpus.items[events], corpus.ratings[events].astype(np.float64)


def _ridge_means(groups: np.ndarray, values: np.ndarray, num_groups: int, ridge: float) -> np.ndarray:
    """Each group's sum of values over (its size + ridge), 0 for an empty one."""
    sums = np.bincount(groups, values, num_groups)
    sizes = np.bincount(groups, minlength=num_groups) + ridge
    return np.divide(sums, sizes, out=np.zeros(num_groups), where=sizes > 0)
