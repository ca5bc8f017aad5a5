"""Predicts ratings by matrix factorisation with biases (Koren, Bell and Volinsky 2009, "Matrix factorization techniques
for recommender systems"); with rank 0, by a bias for each user and item."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import itertools
import os
from collections.abc import Iterable

import numpy as np

from data_pipelines.corpus import TRAIN, VALIDATION, Corpus
from data_pipelines.errors import DataError


@dataclasses.dataclass(frozen=True)
class FactorisationConfig:
    """Matrix factorisation by alternating least squares with ridge penalties."""

    rank: int = 8
    """Number of factors of a user and an item; 0 uses the biases only."""
    factor_ridge: float = 3.0
    """Penalty on the squares of all factors; much larger values make them all 0 if ratings are few."""
    user_ridge: float = 5.0
    """Penalty on the squares of the users' biases."""
    item_ridge: float = 6.0
    """Penalty on the squares of the items' biases."""
    sweeps: int = 30
    """Number of times that all users, then all items, are solved for."""
    seed: int = 0
    """Seed of the initial factors."""

    def __post_init__(self) -> None:
        if self.rank < 0 or self.sweeps < 1:
            raise ValueError(f"rank {self.rank} must be at least 0 and sweeps {self.sweeps} at least 1")
        if min(self.factor_ridge, self.user_ridge, self.item_ridge) <= 0:
            raise ValueError("ridges must be above 0, because otherwise users with few ratings have no unique solution")


RATINGS = 1 << 20
"""Number of ratings, with padding, that are solved for at a time: their features take 8 bytes per factor."""
LEAST = 64
"""Number of ratings that a user or an item counts as, at least: its system of equations takes 8 bytes per factor
squared."""
BIASES = FactorisationConfig(rank=0)
GRID = (
    BIASES,
    *(
        FactorisationConfig(rank=rank, factor_ridge=ridge)
        for rank, ridge in itertools.product((2, 8, 32), (1.0, 2.0, 3.0, 5.0, 10.0))
    ),
)


def training_ratings(corpus: Corpus) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns (users, items, ratings) of the rated training interactions.

    Raises:
      DataError: there are none.
    """
    events = np.flatnonzero((corpus.splits == TRAIN) & ~np.isnan(corpus.ratings))
    if not len(events):
        raise DataError("no training interaction has a rating, so ratings cannot be predicted for this source")
    users = np.searchsorted(corpus.offsets, events, side="right") - 1
    return users, corpus.items[events], corpus.ratings[events].astype(np.float64)


class BiasedFactorisation:
    """Predicts mean + b_u + b_i + p_u . q_i, fitted by alternating exact least squares.

    Minimises, over the training ratings and with their mean,

        sum (rating - mean - b_u - b_i - p_u . q_i)^2
            + user_ridge sum b_u^2 + item_ridge sum b_i^2 + factor_ridge (sum |p_u|^2 + sum |q_i|^2)

    Each half of a sweep solves for the biases and factors of all users, or of all items, jointly. Users and items
    without training ratings have bias and factors 0.

    Attributes:
      mean: the mean of the training ratings.
      users, items: the biases, float64 [U] and [I].
      user_factors, item_factors: p and q, float64 [U, rank] and [I, rank].
    """

    name = "Biased factorisation"

    def __init__(self, corpus: Corpus, config: FactorisationConfig = FactorisationConfig()):
        """Raises DataError if no training interaction has a rating."""
        self.config = config
        users, items, ratings = training_ratings(corpus)
        self.mean = float(ratings.mean())
        self._levels = ratings.min(), ratings.max()
        left = ratings - self.mean
        self.items = np.zeros(corpus.num_items)
        rng = np.random.default_rng(config.seed)
        self.item_factors = rng.normal(size=(corpus.num_items, config.rank)) / max(config.rank, 1) ** 0.5
        of_user = _Groups(users, items, left, corpus.num_users, corpus.num_items)
        of_item = _Groups(items, users, left, corpus.num_items, corpus.num_users)
        for _ in range(config.sweeps):
            self.users, self.user_factors = of_user.solve(
                self.items, self.item_factors, config.user_ridge, config.factor_ridge
            )
            self.items, self.item_factors = of_item.solve(
                self.users, self.user_factors, config.item_ridge, config.factor_ridge
            )

    def predict(self, users: np.ndarray, items: np.ndarray) -> np.ndarray:
        """Returns ratings in stars, clipped to the range of the training ratings: float32 [M]."""
        products = (self.user_factors[users] * self.item_factors[items]).sum(axis=1)
        return np.clip(self.mean + self.users[users] + self.items[items] + products, *self._levels).astype(np.float32)


def choose_factorisation(corpus: Corpus, grid: Iterable[FactorisationConfig] = GRID) -> BiasedFactorisation:
    """Returns the factorisation of the grid with the lowest RMSE on the validation ratings, the first of equals.

    Without validation ratings, it returns the default.
    """
    users, positions = corpus.held_out(VALIDATION)
    ratings = corpus.ratings[corpus.offsets[users] + positions]
    rated = ~np.isnan(ratings)
    if not rated.any():
        return BiasedFactorisation(corpus)
    users, items, ratings = users[rated], corpus.targets(users, positions)[rated], ratings[rated]
    with concurrent.futures.ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:  # NumPy releases the GIL
        fitted = list(pool.map(lambda config: BiasedFactorisation(corpus, config), grid))
    return min(fitted, key=lambda model: float(((model.predict(users, items) - ratings) ** 2).mean()))


class _Groups:
    """Ratings grouped by user (or by item), and the ridge regression of each group on the items (or users) rated.

    Groups of similar size are solved together, padded to the next power of two with an item without bias and factors.
    """

    def __init__(self, groups: np.ndarray, others: np.ndarray, ratings: np.ndarray, num_groups: int, num_others: int):
        """Groups the ratings.

        Args:
          groups, others, ratings: the user and the item (or the item and the user) of each rating, and its value.
        """
        self._num_groups = num_groups
        order = np.argsort(groups, kind="stable")
        sizes = np.bincount(groups, minlength=num_groups)
        starts = np.cumsum(sizes) - sizes
        others, ratings = np.append(others[order], num_others), np.append(ratings[order], 0.0)
        logs = np.ceil(np.log2(np.maximum(sizes, 1))).astype(int)
        self._batches = []
        for log in np.unique(logs[sizes > 0]):
            alike, steps_L = np.flatnonzero((logs == log) & (sizes > 0)), np.arange(1 << log)
            for batch_G in np.array_split(alike, -(-len(alike) * max(1 << log, LEAST) // RATINGS)):
                rows_GL = np.where(steps_L < sizes[batch_G, None], starts[batch_G, None] + steps_L, len(order))
                self._batches.append((batch_G, others[rows_GL], ratings[rows_GL]))

    def solve(
        self, biases: np.ndarray, factors: np.ndarray, bias_ridge: float, factor_ridge: float
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns the bias and the factors of each group that fit its ratings best.

        Args:
          biases: float64 [others].
          factors: float64 [others, rank].

        Returns:
          float64 [groups] and [groups, rank].
        """
        rank = factors.shape[1]
        ridge_KK = np.diag([bias_ridge] + [factor_ridge] * rank)
        biases = np.append(biases, 0.0)
        features = np.pad(np.column_stack([np.ones(len(factors)), factors]), ((0, 1), (0, 0)))
        found = np.zeros((self._num_groups, 1 + rank))
        for batch_G, others_GL, ratings_GL in self._batches:
            x_GLK = features[others_GL]
            x_GKL = x_GLK.swapaxes(1, 2)
            left_GL1 = (ratings_GL - biases[others_GL])[:, :, None]
            found[batch_G] = np.linalg.solve(x_GKL @ x_GLK + ridge_KK, x_GKL @ left_GL1)[:, :, 0]
        return found[:, 0], found[:, 1:]
