"""Intervals and comparisons from metrics for each user; users are what is resampled, by a seed.

`scipy.stats.bootstrap` and `permutation_test` agree up to Monte Carlo error (tests compare them), but draw other
resamples from a seed: every interval and p-value that was published would change. They would also resample each metric
anew, where here all metrics of a table are of the same resampled users.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator

import numpy as np

RESAMPLES = 1000
CHUNK = 1 << 22  # resampled users held at once


@dataclasses.dataclass(frozen=True)
class Interval:
    """A metric and the percentile bootstrap interval around it, NaN where there is one user, who tells of no other."""

    mean: float
    low: float
    high: float

    def bounds(self, between: str) -> str:
        """Such as `0.123, 0.234`, or what is said of a single user's."""
        return "no interval" if math.isnan(self.low) else f"{self.low:.3f}{between}{self.high:.3f}"


@dataclasses.dataclass(frozen=True)
class Difference(Interval):
    """The mean difference of two models on the same users, its interval, and whether it could be chance.

    Attributes:
      p_value: of the two-sided randomisation test that swaps the models for random users.
    """

    p_value: float


def interval(values: np.ndarray, *, seed: int = 0, resamples: int = RESAMPLES, confidence: float = 0.95) -> Interval:
    """The mean of one value a user, float [M], or [seeds, M], averaged over seeds first: users are resampled."""
    return metric({"": values}, lambda means: means[""], seed=seed, resamples=resamples, confidence=confidence)


def metric(
    values: dict[str, np.ndarray],
    formula: Callable[[dict[str, np.ndarray]], np.ndarray],
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
    confidence: float = 0.95,
) -> Interval:
    """A metric computed from means over users, such as RMSE, the root of a mean.

    Args:
      values: for each name, one value a user: float [M], or [seeds, M].
      formula: turns the means, arrays of any one shape by name, into the metric (`metrics.RATING_METRICS`, …).

    Raises:
      ValueError: no users, names with unequal numbers of users, or a value that is NaN.
    """
    columns_CM = np.stack([_per_user(name, column) for name, column in values.items()])
    mean = float(formula(dict(zip(values, columns_CM.mean(axis=1, keepdims=True), strict=True)))[0])
    if columns_CM.shape[1] == 1:
        return Interval(mean, math.nan, math.nan)
    tails = 100 * (1 - confidence) / 2
    means_CR = np.concatenate(list(_resampled_means(columns_CM, seed, resamples)), axis=1)
    resampled_R = formula(dict(zip(values, means_CR, strict=True)))
    low, high = np.percentile(resampled_R, [tails, 100 - tails])
    return Interval(mean, float(low), float(high))


def paired_difference(
    first: np.ndarray,
    second: np.ndarray,
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
    permutations: int = 10_000,
    confidence: float = 0.95,
) -> Difference:
    """The mean of `first` - `second`, both for the same users in the same order.

    Args:
      first, second: float [M], or [seeds, M]: a user's values are averaged over seeds first, so that the interval
        speaks of other users, not of other seeds.

    Raises:
      ValueError: the two are not of the same users, or a value is NaN.
    """
    one, other = _per_user("first", first), _per_user("second", second)
    if len(one) != len(other):
        raise ValueError(f"{len(one)} users against {len(other)}: a paired comparison needs the same users")
    differences_M = one - other
    found = interval(differences_M, seed=seed, resamples=resamples, confidence=confidence)
    rng = np.random.default_rng((seed, 1))
    moved_M = differences_M[differences_M != 0]  # a swap of equals changes nothing
    extreme = 0
    for size in _parts(permutations, len(moved_M)):
        signs = rng.integers(0, 2, (size, len(moved_M)), dtype=np.int8)
        sums = 2 * (signs @ moved_M) - moved_M.sum()
        extreme += int((np.abs(sums) >= abs(moved_M.sum()) * (1 - 1e-9)).sum())
    return Difference(found.mean, found.low, found.high, (1 + extreme) / (1 + permutations))


def _per_user(name: str, values: np.ndarray) -> np.ndarray:
    """float64 [M]."""
    values = np.asarray(values, np.float64)
    if values.ndim not in (1, 2) or not values.size:
        raise ValueError(f"{name or 'values'} are of shape {values.shape}: [users] or [seeds, users] is right")
    if np.isnan(values).any():
        raise ValueError(f"{name or 'values'}: {np.isnan(values).sum()} of {values.size} are NaN")
    return values if values.ndim == 1 else values.mean(axis=0)


def _resampled_means(columns_CM: np.ndarray, seed: int, resamples: int) -> Iterator[np.ndarray]:
    """float64 [C, some of the R resamples]; the same seed draws the same users for every metric."""
    rng = np.random.default_rng((seed, 0))
    num_users = columns_CM.shape[1]
    for size in _parts(resamples, num_users):
        drawn_RM = rng.integers(0, num_users, (size, num_users), dtype=np.int32)
        yield np.stack([column[drawn_RM].mean(axis=1) for column in columns_CM])


def _parts(total: int, width: int) -> Iterator[int]:
    """Sizes that add up to `total`, of which each times `width` fits a chunk."""
    size = max(CHUNK // max(width, 1), 1)
    for start in range(0, total, size):
        yield min(size, total - start)
