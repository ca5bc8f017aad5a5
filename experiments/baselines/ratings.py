"""Ratings by matrix factorisation with biases (Koren, Bell and Volinsky 2009, "Matrix factorization
techniques for recommender systems"), of which rank 0 leaves a bias for each user and item."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable

import numpy as np

from data_pipelines.corpus import TRAIN, VALIDATION, Corpus
from data_pipelines.errors import DataError


@dataclasses.dataclass(frozen=True)
class FactorisationConfig:
    """Alternating least squares with ridges."""

    rank: int = 8
    """How many factors a user and an item have; 0 leaves the biases alone."""
    factor_ridge: float = 3.0
    """On the squares of all factors; far above it they all become 0 where ratings are few."""
    user_ridge: float = 5.0
    """On the squares of users' biases …"""
    item_ridge: float = 6.0
    """… and of items'."""
    sweeps: int = 30
    """How often all users, then all items, are solved for."""
    seed: int = 0
    """Of the factors that the first sweep starts from."""

    def __post_init__(self) -> None:
        if self.rank < 0 or self.sweeps < 1:
            raise ValueError(f"rank {self.rank}, sweeps {self.sweeps}: at least 0 and at least 1 are right")
        if min(self.factor_ridge, self.user_ridge, self.item_ridge) <= 0:
            raise ValueError("ridges must be above 0, or users of few ratings have no one solution")


BIASES = FactorisationConfig(rank=0)
GRID = (
    BIASES,
    *(
        FactorisationConfig(rank=rank, factor_ridge=ridge)
        for rank, ridge in itertools.product((2, 8, 32), (1.0, 2.0, 3.0, 5.0, 10.0))
    ),
)


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


class BiasedFactorisation:
    """mean + b_u + b_i + p_u . q_i, fitted by alternating exact least squares.

    Minimises, over the training ratings and with their mean,

        sum (rating - mean - b_u - b_i - p_u . q_i)^2
            + user_ridge sum b_u^2 + item_ridge sum b_i^2 + factor_ridge (sum |p_u|^2 + sum |q_i|^2)

    Each half of a sweep solves for bias and factors of all users, or of all items, together. Whoever has no training
    rating has bias and factors 0.

    Attributes:
      mean: of the training ratings.
      users, items: the biases, float64 [U] and [I].
      user_factors, item_factors: p and q, float64 [U, rank] and [I, rank].
    """

    name = "Biased factorisation"

    def __init__(self, corpus: Corpus, config: FactorisationConfig = FactorisationConfig()):
        """Raises DataError where no training interaction has a rating."""
        self.config = config
        users, items, ratings = training_ratings(corpus)
        self.mean = float(ratings.mean())
        self._levels = ratings.min(), ratings.max()
        left = ratings - self.mean
        self.items = np.zeros(corpus.num_items)
        rng = np.random.default_rng(config.seed)
        self.item_factors = rng.normal(size=(corpus.num_items, config.rank)) / max(config.rank, 1) ** 0.5
        of_user, of_item = _Groups(users, corpus.num_users), _Groups(items, corpus.num_items)
        for _ in range(config.sweeps):
            self.users, self.user_factors = of_user.solve(
                left - self.items[items], self.item_factors[items], config.user_ridge, config.factor_ridge
            )
            self.items, self.item_factors = of_item.solve(
                left - self.users[users], self.user_factors[users], config.item_ridge, config.factor_ridge
            )

    def predict(self, users: np.ndarray, items: np.ndarray) -> np.ndarray:
        """Ratings in stars, within the lowest and highest of training: float32 [M]."""
        products = (self.user_factors[users] * self.item_factors[items]).sum(axis=1)
        return np.clip(self.mean + self.users[users] + self.items[items] + products, *self._levels).astype(np.float32)


def choose_factorisation(corpus: Corpus, grid: Iterable[FactorisationConfig] = GRID) -> BiasedFactorisation:
    """The factorisation of the grid with the lowest RMSE on the validation ratings, the first one where they tie.

    Where nobody has a rated validation interaction, the default.
    """
    users, positions = corpus.held_out(VALIDATION)
    ratings = corpus.ratings[corpus.offsets[users] + positions]
    rated = ~np.isnan(ratings)
    if not rated.any():
        return BiasedFactorisation(corpus)
    users, items, ratings = users[rated], corpus.targets(users, positions)[rated], ratings[rated]
    fitted = (BiasedFactorisation(corpus, config) for config in grid)
    return min(fitted, key=lambda model: float(((model.predict(users, items) - ratings) ** 2).mean()))


class _Groups:
    """Ratings grouped by user, or by item, and the ridge regression of each group."""

    def __init__(self, groups: np.ndarray, num_groups: int):
        self._order = np.argsort(groups, kind="stable")
        self._offsets = np.concatenate([[0], np.cumsum(np.bincount(groups, minlength=num_groups))])

    def solve(
        self, targets: np.ndarray, features: np.ndarray, bias_ridge: float, factor_ridge: float
    ) -> tuple[np.ndarray, np.ndarray]:
        """The bias and factors of each group that fit its ratings best.

        Args:
          targets: float64 [ratings], what bias + factors . features should be.
          features: float64 [ratings, rank].

        Returns:
          float64 [groups] and [groups, rank].
        """
        rank = features.shape[1]
        targets = targets[self._order]
        features = np.concatenate([np.ones((len(targets), 1)), features[self._order]], axis=1)
        ridge = np.diag([bias_ridge] + [factor_ridge] * rank)
        found = np.zeros((len(self._offsets) - 1, 1 + rank))
        for group in np.flatnonzero(np.diff(self._offsets)):
            rows = slice(self._offsets[group], self._offsets[group + 1])
            x = features[rows]
            found[group] = np.linalg.solve(x.T @ x + ridge, x.T @ targets[rows])
        return found[:, 0], found[:, 1:]
