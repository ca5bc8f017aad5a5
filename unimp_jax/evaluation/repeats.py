"""Metrics of runs repeated with other seeds, of the same users: do they hold for other seeds and other users?

Seeds and users are crossed: each run answers every user. A value is taken as the sum of a seed's effect, a user's and a
rest; the variance of the mean follows from the mean squares of these, its degrees of freedom from Satterthwaite's
formula, the interval from Student's t. A bootstrap over three seeds would understate their share by a third and take a
normal's tails for those of two degrees of freedom; one over users alone leaves it out. Seeds of two groups of runs are
not paired (the same seed starts other parameters where the model differs), users are.

With one seed nothing can be known of others: a metric then speaks of other users alone. In a difference, a group of one
seed is taken to vary between seeds as the other group does; where both have one, it speaks of other users alone, too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import scipy.stats

from unimp_jax.evaluation.bootstrap import Difference, Interval


def influence(columns: dict[str, np.ndarray], formula: Callable[[dict[str, np.ndarray]], np.ndarray]) -> np.ndarray:
    """One value a user whose mean is the metric that `formula` makes of the means of `columns`, float [M] each.

    A user's value tells how the metric moves when the user is left out (the jackknife), so that RMSE or F1 is compared
    as a mean is. Of a mean they are the values themselves.

    Raises:
      ValueError: there are fewer than two users.
    """
    columns = {name: np.asarray(column, np.float64) for name, column in columns.items()}
    count = len(next(iter(columns.values())))
    if count < 2:
        raise ValueError(f"{count} users: two or more are needed to tell how much they differ")
    without = formula({name: (column.sum() - column) / (count - 1) for name, column in columns.items()})
    whole = formula({name: column.mean(keepdims=True) for name, column in columns.items()})
    return whole + (count - 1) * (without.mean() - without)


def over_seeds(values_SM: np.ndarray) -> Interval:
    """The mean of each seed's value of each user, [S, M], for other seeds and users; NaN bounds of one user alone."""
    if values_SM.shape[1] == 1:
        return Interval(float(values_SM.mean()), math.nan, math.nan)
    mean, error, freedom = _spread([values_SM], [1.0])
    reach = error * float(scipy.stats.t.ppf(0.975, freedom))
    return Interval(mean, mean - reach, mean + reach)


def difference_over_seeds(first_SM: np.ndarray, second_SM: np.ndarray) -> Difference:
    """The mean of `first` minus that of `second`, [S, M] each; seeds may differ in number, users are the same.

    The p-value is that of Student's t, two-sided.

    Raises:
      ValueError: the two are not of the same users.
    """
    mean, error, freedom = _spread([first_SM, second_SM], [1.0, -1.0])
    reach = error * float(scipy.stats.t.ppf(0.975, freedom))
    chance = 2 * scipy.stats.t.sf(abs(mean) / error, freedom) if error else float(mean == 0)
    return Difference(mean, mean - reach, mean + reach, float(chance))


def holm(p_values: Sequence[float]) -> np.ndarray:
    """P-values such that those below a level are wrong, any of them, no more often than that (Holm 1979).

    statsmodels gives the same, and collects garbage at every call, which takes a second in a process with JAX.
    """
    order, adjusted = np.argsort(p_values), np.empty(len(p_values))
    steps = np.asarray(p_values, np.float64)[order] * np.arange(len(p_values), 0, -1)
    adjusted[order] = np.maximum.accumulate(steps).clip(max=1.0)
    return adjusted


def _spread(groups: Sequence[np.ndarray], signs: Sequence[float]) -> tuple[float, float, float]:
    """(the signed sum of the groups' means, its standard error, degrees of freedom)."""
    groups = [np.asarray(values_SM, np.float64) for values_SM in groups]
    if len({values_SM.shape[-1] for values_SM in groups}) > 1 or any(values_SM.ndim != 2 for values_SM in groups):
        shapes = ", ".join(str(values_SM.shape) for values_SM in groups)
        raise ValueError(f"values are of shapes {shapes}: [seeds, users] is right, of the same users")
    users_M = sum(sign * values_SM.mean(axis=0) for sign, values_SM in zip(signs, groups, strict=True))
    num_users = len(users_M)
    mean, variance = float(users_M.mean()), float(users_M.var(ddof=1) / num_users)
    squares = variance**2 / (num_users - 1)
    repeated = [values_SM for values_SM in groups if len(values_SM) > 1]
    for number, values_SM in enumerate(repeated):
        between, rest = _between(values_SM)
        share = 1 / len(values_SM) + (len(groups) - len(repeated) if number == 0 else 0)  # those of one seed borrow it
        variance += max(between - rest, 0.0) * share
        squares += (between * share) ** 2 / (len(values_SM) - 1)
    return mean, variance**0.5, variance**2 / squares if variance else np.inf  # equal everywhere: known exactly


def _between(values_SM: np.ndarray) -> tuple[float, float]:
    """(variance of the seeds' means, the part of it that seeds would have if they were all alike: the rest's)."""
    (seeds, num_users), means_S = values_SM.shape, values_SM.mean(axis=1)
    rest_SM = values_SM - means_S[:, None] - values_SM.mean(axis=0) + means_S.mean()
    return float(means_S.var(ddof=1)), float((rest_SM**2).sum() / ((seeds - 1) * (num_users - 1) * num_users))
