"""Bootstrap confidence intervals of metrics with one value per user; users are resampled, with a fixed seed.

`scipy.stats.bootstrap` agrees up to Monte Carlo error (tests compare them), but draws other resamples from a seed, so
every published interval would change. It would also resample each metric separately, whereas here all metrics of a
table use the same resampled users.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator

import numpy as np

RESAMPLES = 1000
CHUNK = 1 << 22  # number of resampled users held at once


@dataclasses.dataclass(frozen=True)
class Interval:
    """A metric and its 95 % percentile bootstrap interval, whose bounds are NaN if there is only one user."""

    mean: float
    low: float
    high: float

    def bounds(self, between: str) -> str:
        """Formats the bounds, such as `0.123, 0.234`, or says that there is no interval."""
        return "no interval" if math.isnan(self.low) else f"{self.low:.3f}{between}{self.high:.3f}"


@dataclasses.dataclass(frozen=True)
class Difference(Interval):
    """The mean difference of two models on the same users, its interval, and the p-value of a test.

    Attributes:
      p_value: Two-sided p-value.
    """

    p_value: float


def interval(values: np.ndarray, *, seed: int = 0, resamples: int = RESAMPLES) -> Interval:
    """Returns the mean of one value per user, float [M], with its interval."""
    return metric({"": values}, lambda means: means[""], seed=seed, resamples=resamples)


def metric(
    values: dict[str, np.ndarray],
    formula: Callable[[dict[str, np.ndarray]], np.ndarray],
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> Interval:
    """Returns a metric computed from means over users, such as RMSE, the root of a mean.

    Args:
      values: For each name, one value per user, float [M].
      formula: Computes the metric from the means, arrays of any one shape by name (`metrics.RATING_METRICS`, …).

    Raises:
      ValueError: There are no users, names differ in their number of users, or a value is NaN.
    """
    columns_CM = np.stack([_checked(name, column) for name, column in values.items()])
    mean = float(formula(dict(zip(values, columns_CM.mean(axis=1, keepdims=True), strict=True)))[0])
    if columns_CM.shape[1] == 1:
        return Interval(mean, math.nan, math.nan)
    means_CR = np.concatenate(list(_resampled_means(columns_CM, seed, resamples)), axis=1)
    resampled_R = formula(dict(zip(values, means_CR, strict=True)))
    low, high = np.percentile(resampled_R, [2.5, 97.5])
    return Interval(mean, float(low), float(high))


def _checked(name: str, values: np.ndarray) -> np.ndarray:
    """Validates the values of one name and returns them as float64 [M]."""
    values = np.asarray(values, np.float64)
    if values.ndim != 1 or not values.size:
        raise ValueError(f"{name or 'values'} have shape {values.shape}; expected [users]")
    if np.isnan(values).any():
        raise ValueError(f"{name or 'values'}: {np.isnan(values).sum()} of {values.size} are NaN")
    return values


def _resampled_means(columns_CM: np.ndarray, seed: int, resamples: int) -> Iterator[np.ndarray]:
    """Yields means as float64 [C, some of the R resamples]; the same seed draws the same users for every metric."""
    rng = np.random.default_rng((seed, 0))
    num_users = columns_CM.shape[1]
    size = max(CHUNK // num_users, 1)
    for start in range(0, resamples, size):
        drawn_RM = rng.integers(0, num_users, (min(size, resamples - start), num_users), dtype=np.int32)
        yield np.stack([column[drawn_RM].mean(axis=1) for column in columns_CM])
