"""Metrics of runs repeated with other seeds for the same users: do they generalise to other seeds and other users?

Seeds and users are crossed: each run answers every user. A value is modelled as the sum of a seed effect, a user effect
and a residual. The variance of the mean follows from their mean squares, its degrees of freedom from Satterthwaite's
formula, the interval from Student's t. A bootstrap over three seeds would understate their share by a third and use the
tails of a normal distribution instead of those with two degrees of freedom; a bootstrap over users alone ignores it.
Seeds of two groups of runs are not paired (the same seed initialises other parameters where the model differs), users
are.

With one seed the variation between seeds is unknown: a metric then generalises to other users only. In a difference, a
group with one seed is assumed to vary between seeds like the other group; if both have one, it generalises to other
users only.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
import scipy.stats

from unimp_jax.evaluation.bootstrap import Difference, Interval


def influence(columns: dict[str, np.ndarray], formula: Callable[[dict[str, np.ndarray]], np.ndarray]) -> np.ndarray:
    """Returns one value per user whose mean is `formula` of the means of `columns`, float [M] each.

    A user's value says how the metric changes without the user (the jackknife), so that RMSE or F1 can be compared like
    a mean. For a mean it is the value itself.

    Raises:
      ValueError: There are fewer than two users.
    """
    columns = {name: np.asarray(column, np.float64) for name, column in columns.items()}
    count = len(next(iter(columns.values())))
    if count < 2:
        raise ValueError(f"{count} users; at least two are needed to estimate a variance")
    without = formula({name: (column.sum() - column) / (count - 1) for name, column in columns.items()})
    whole = formula({name: column.mean(keepdims=True) for name, column in columns.items()})
    return whole + (count - 1) * (without.mean() - without)


def over_seeds(values_SM: np.ndarray) -> Interval:
    """Returns the mean over seeds and users, [S, M], with its interval; bounds are NaN if there is one user."""
    if values_SM.shape[1] == 1:
        return Interval(float(values_SM.mean()), math.nan, math.nan)
    mean, error, freedom = _spread([values_SM], [1.0])
    reach = error * float(scipy.stats.t.ppf(0.975, freedom))
    return Interval(mean, mean - reach, mean + reach)


def difference_over_seeds(first_SM: np.ndarray, second_SM: np.ndarray) -> Difference:
    """Returns the mean of `first` minus that of `second`, [S, M] each, of the same users; numbers of seeds may differ.

    The p-value is that of Student's t, two-sided. With one user, bounds are NaN and the p-value is 1.

    Raises:
      ValueError: The two do not have the same number of users.
    """
    if first_SM.shape[1] == second_SM.shape[1] == 1:
        return Difference(float(first_SM.mean() - second_SM.mean()), math.nan, math.nan, 1.0)
    mean, error, freedom = _spread([first_SM, second_SM], [1.0, -1.0])
    reach = error * float(scipy.stats.t.ppf(0.975, freedom))
    chance = 2 * scipy.stats.t.sf(abs(mean) / error, freedom) if error else float(mean == 0)
    return Difference(mean, mean - reach, mean + reach, float(chance))


def holm(p_values: Sequence[float]) -> np.ndarray:
    """Adjusts p-values for multiple tests, controlling the probability of any false rejection (Holm 1979).

    statsmodels computes the same but collects garbage at every call, which takes a second in a process with JAX.
    """
    order, adjusted = np.argsort(p_values), np.empty(len(p_values))
    steps = np.asarray(p_values, np.float64)[order] * np.arange(len(p_values), 0, -1)
    adjusted[order] = np.maximum.accumulate(steps).clip(max=1.0)
    return adjusted


def _spread(groups: Sequence[np.ndarray], signs: Sequence[float]) -> tuple[float, float, float]:
    """Returns (the signed sum of the groups' means, its standard error, degrees of freedom)."""
    groups = [np.asarray(values_SM, np.float64) for values_SM in groups]
    if len({values_SM.shape[-1] for values_SM in groups}) > 1 or any(values_SM.ndim != 2 for values_SM in groups):
        shapes = ", ".join(str(values_SM.shape) for values_SM in groups)
        raise ValueError(f"values have shapes {shapes}; expected [seeds, users], with the same users")
    users_M = sum(sign * values_SM.mean(axis=0) for sign, values_SM in zip(signs, groups, strict=True))
    num_users = len(users_M)
    mean, variance = float(users_M.mean()), float(users_M.var(ddof=1) / num_users)
    squares = variance**2 / (num_users - 1)
    repeated = [values_SM for values_SM in groups if len(values_SM) > 1]
    for number, values_SM in enumerate(repeated):
        between, rest = _between(values_SM)
        share = 1 / len(values_SM) + (len(groups) - len(repeated) if number == 0 else 0)  # a one-seed group borrows it
        variance += max(between - rest, 0.0) * share
        squares += (between * share) ** 2 / (len(values_SM) - 1)
    if not variance:
        return mean, 0.0, np.inf  # equal everywhere: known exactly
    # Between seeds, what the residual causes is subtracted, so that the formula may give less than any part has.
    least = min([num_users - 1, *(len(values_SM) - 1 for values_SM in repeated)])
    return mean, variance**0.5, max(variance**2 / squares, least)


def _between(values_SM: np.ndarray) -> tuple[float, float]:
    """Returns (variance of the seeds' means, the part of it that the residual alone would cause)."""
    (seeds, num_users), means_S = values_SM.shape, values_SM.mean(axis=1)
    rest_SM = values_SM - means_S[:, None] - values_SM.mean(axis=0) + means_S.mean()
    return float(means_S.var(ddof=1)), float((rest_SM**2).sum() / ((seeds - 1) * (num_users - 1) * num_users))
