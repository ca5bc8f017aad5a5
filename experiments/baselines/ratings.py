"""Predicts ratings by matrix factorisation with biases (Koren, Bell and Volinsky 2009, "Matrix factorization techniques
for recommender systems"); with rank 0, by a bias for each user and item."""

import concurrent.futures
import dataclasses
import os
from collections.abc import Iterable

import numpy as np
from scipy.sparse import csr_array

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


PRODUCTS = 1 << 22
"""Number of products of features that are summed at a time, 8 bytes each."""
BIASES = FactorisationConfig(rank=0)
GRID = (BIASES, *(FactorisationConfig(factor_ridge=ridge) for ridge in (1.0, 2.0, 3.0, 5.0, 10.0)))
RANKS = (2, 32)
"""Tried with the best penalty on factors of the grid."""


def training_ratings(corpus: Corpus) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns (users, items, ratings) of the rated training interactions; DataError if there are none."""
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
        self.corpus, self.config = corpus, config
        users, items, ratings = training_ratings(corpus)
        self.mean = float(ratings.mean())
        self._levels = ratings.min(), ratings.max()
        left = ratings - self.mean
        self.items = np.zeros(corpus.num_items)
        rng = np.random.default_rng(config.seed)
        self.item_factors = rng.normal(size=(corpus.num_items, config.rank)) / max(config.rank, 1) ** 0.5
        shape, places = (corpus.num_users, corpus.num_items), (users, items)
        rated_UI, left_UI = (csr_array((values, places), shape) for values in (np.ones(len(left)), left))
        rated_IU, left_IU = rated_UI.T.tocsr(), left_UI.T.tocsr()
        for _ in range(config.sweeps):
            self.users, self.user_factors = ridge_regressions(
                rated_UI, left_UI, self.items, self.item_factors, config.user_ridge, config.factor_ridge
            )
            self.items, self.item_factors = ridge_regressions(
                rated_IU, left_IU, self.users, self.user_factors, config.item_ridge, config.factor_ridge
            )

    def predict(self, users: np.ndarray, items: np.ndarray, positions: np.ndarray | None = None) -> np.ndarray:
        """Returns ratings in stars, clipped to the range of the training ratings: float32 [M].

        Args:
          positions: int [M]; if given, the users' biases and factors are solved for again, from all ratings before
            these positions in their histories, as a prompt shows them. None: from the training ratings only.
        """
        biases, factors = self.users[users], self.user_factors[users]
        if positions is not None:
            biases, factors = self._of_histories(users, np.asarray(positions))
        products = (factors * self.item_factors[items]).sum(axis=1)
        return np.clip(self.mean + biases + self.items[items] + products, *self._levels).astype(np.float32)

    def _of_histories(self, users: np.ndarray, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns the biases and factors of users by their ratings before positions: float64 [M] and [M, rank]."""
        questions = np.repeat(np.arange(len(users)), positions)
        begins = self.corpus.offsets[users] - (np.cumsum(positions) - positions)
        events = np.arange(len(questions)) + begins[questions]
        ratings = np.asarray(self.corpus.ratings[events], np.float64)
        rated = ~np.isnan(ratings)
        places = questions[rated], np.asarray(self.corpus.items[events[rated]])
        left, shape = ratings[rated] - self.mean, (len(users), self.corpus.num_items)
        rated_MI, left_MI = (csr_array((values, places), shape) for values in (np.ones(len(left)), left))
        return ridge_regressions(
            rated_MI, left_MI, self.items, self.item_factors, self.config.user_ridge, self.config.factor_ridge
        )


def choose_factorisation(
    corpus: Corpus, grid: Iterable[FactorisationConfig] = GRID, ranks: Iterable[int] = RANKS
) -> BiasedFactorisation:
    """Returns the factorisation with the lowest RMSE on the validation ratings, the first of equals: one of the grid,
    or its best one with factors, but of another rank.

    Without validation ratings, it returns the default.
    """
    users, positions = corpus.held_out(VALIDATION)
    ratings = corpus.ratings[corpus.offsets[users] + positions]
    rated = ~np.isnan(ratings)
    if not rated.any():
        return BiasedFactorisation(corpus)
    asked, ratings = (users[rated], corpus.targets(users, positions)[rated], positions[rated]), ratings[rated]

    def error(model: BiasedFactorisation) -> float:
        return float(((model.predict(*asked) - ratings) ** 2).mean())

    with concurrent.futures.ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:  # NumPy releases the GIL
        fitted = list(pool.map(lambda config: BiasedFactorisation(corpus, config), grid))
        with_factors = [model for model in fitted if model.config.rank]
        if with_factors:
            config = min(with_factors, key=error).config
            others = [dataclasses.replace(config, rank=rank) for rank in ranks if rank != config.rank]
            fitted += pool.map(lambda config: BiasedFactorisation(corpus, config), others)
    return min(fitted, key=error)


def ridge_regressions(
    rated_GO: csr_array, ratings_GO: csr_array, biases_O: np.ndarray, factors_OR: np.ndarray, bias_ridge: float,
    factor_ridge: float,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Returns the bias and the factors of each group (user or item) that fit its ratings of others (items or users)
    best: float64 [G] and [G, rank].

    Args:
      rated_GO, ratings_GO: 1 for each rating, and its value, float64.
      biases_O, factors_OR: those of the others, float64.
    """
    x_OK = np.column_stack([np.ones(len(factors_OR)), factors_OR])
    features = x_OK.shape[1]
    ridge_KK = np.diag([bias_ridge] + [factor_ridge] * (features - 1))
    size = max(1, PRODUCTS // features**2)
    right_GK = ratings_GO @ x_OK - rated_GO @ (biases_O[:, None] * x_OK)
    for start in range(0, len(right_GK), size):
        part = slice(start, start + size)
        # Sums over each group's ratings of x x^T, a row of the matrices at a time.
        gram_GKK = np.stack([rated_GO[part] @ (x_OK * x_OK[:, k, None]) for k in range(features)], axis=1)
        right_GK[part] = np.linalg.solve(gram_GKK + ridge_KK, right_GK[part, :, None])[:, :, 0]
    return right_GK[:, 0], right_GK[:, 1:]
