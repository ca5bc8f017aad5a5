"""Intervals and tests over seeds and users, against SciPy's where one of the two is all there is, and by simulation."""

import itertools

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from unimp_jax.evaluation.metrics import RATING_METRICS, SELECTION_METRICS
from unimp_jax.evaluation.repeats import difference_over_seeds, holm, influence, over_seeds


def draw(rng, seeds: int, users: int, *, seed: float, user: np.ndarray, rest: float) -> np.ndarray:
    """float64 [S, M] around 0."""
    return rng.normal(0, seed, (seeds, 1)) + user + rng.normal(0, rest, (seeds, users))


def test_one_seed_is_students_t_over_users():
    one, other = np.random.default_rng(0).normal(0.2, 1, (2, 50))
    found, told = over_seeds(one[None]), scipy.stats.ttest_1samp(one, 0).confidence_interval()
    assert (found.mean, found.low, found.high) == pytest.approx((one.mean(), told.low, told.high))
    difference, told = difference_over_seeds(one[None], other[None]), scipy.stats.ttest_rel(one, other)
    assert difference.p_value == pytest.approx(told.pvalue)
    assert (difference.low, difference.high) == pytest.approx(tuple(told.confidence_interval()))


def test_users_who_are_all_alike_leave_welchs_test_of_seeds():
    one, other = np.array([0.1, 0.2, 0.15]), np.array([0.3, 0.2, 0.24, 0.31])
    told = scipy.stats.ttest_ind(one, other, equal_var=False)
    found = difference_over_seeds(np.tile(one[:, None], 7), np.tile(other[:, None], 7))
    assert found.p_value == pytest.approx(told.pvalue)
    assert (found.low, found.high) == pytest.approx(tuple(told.confidence_interval()))


def test_a_group_of_one_seed_varies_as_the_other_does():
    """As in Student's test of two samples, which knows the variance from one of them alone."""
    one, many = np.array([0.4]), np.array([0.1, 0.2, 0.15])
    told = scipy.stats.ttest_ind(one, many, equal_var=True)
    found = difference_over_seeds(np.tile(one[:, None], 7), np.tile(many[:, None], 7))
    assert found.p_value == pytest.approx(told.pvalue)
    assert (found.low, found.high) == pytest.approx(tuple(told.confidence_interval()))


@pytest.mark.parametrize("seed", [0.0, 0.05, 0.3])
def test_intervals_hold_the_truth_as_often_as_they_say(seed):
    rng = np.random.default_rng(0)
    trials, held, false = 1000, 0, 0
    for _ in range(trials):
        user = rng.normal(0, 0.3, 40)
        one, other = (draw(rng, 3, 40, seed=seed, user=user, rest=0.3) for _ in range(2))
        found = over_seeds(one)
        held += found.low <= 0 <= found.high
        false += difference_over_seeds(one, other).p_value < 0.05
    assert held / trials >= 0.935
    assert false / trials <= 0.065


def test_pairing_users_finds_what_seeds_do_not_hide():
    rng = np.random.default_rng(1)
    user = rng.normal(0, 1, 300)
    one, other = (draw(rng, 3, 300, seed=0.001, user=user + shift, rest=0.1) for shift in (0.03, 0.0))
    assert difference_over_seeds(one, other).p_value < 0.01
    assert difference_over_seeds(one, rng.permutation(other, axis=1)).p_value > 0.05


def test_degrees_of_freedom_are_at_least_those_between_seeds():
    """Where the residual outweighs what seeds differ by, Satterthwaite's formula alone gives an endless interval."""
    first, second = np.zeros((3, 300)), np.zeros((3, 300))
    seeds = np.repeat([0, 1, 2], [9, 6, 5])  # each of twenty users is answered by one seed of both groups
    first[seeds, np.arange(20)] = second[seeds, np.roll(np.arange(20), 5)] = 1
    first[0, 100] = 1
    found = difference_over_seeds(first, second)
    error = (first.mean(axis=0) - second.mean(axis=0)).std(ddof=1) / 300**0.5
    assert found.mean == pytest.approx(1 / 900)
    assert found.high - found.low == pytest.approx(2 * scipy.stats.t.ppf(0.975, 2) * error)


def test_equal_groups_do_not_differ():
    values = np.random.default_rng(0).normal(size=(1, 9))
    assert difference_over_seeds(values, values).p_value == 1
    noise = np.array([[1, -1, 0.5], [-1, 1.1, 0.3]])  # seeds' means vary less than noise alone would make them
    for same in (values, noise, np.zeros((3, 9)), np.repeat(values, 3, axis=0)):
        found = difference_over_seeds(same, same)
        assert (found.mean, found.low, found.high, found.p_value) == (0, 0, 0, 1)
    with pytest.raises(ValueError, match="with the same users"):
        difference_over_seeds(values, values[:, 1:])


@given(st.lists(st.floats(-10, 10), min_size=2, max_size=20))
def test_influence_on_a_mean_is_the_value(values):
    found = influence({"x": np.array(values)}, lambda means: means["x"])
    np.testing.assert_allclose(found, values, atol=1e-9)


@pytest.mark.parametrize("metric", ["RMSE", "F1"])
def test_influence_has_the_metric_as_mean_and_the_bootstraps_spread(metric):
    rng = np.random.default_rng(0)
    right = rng.integers(1, 3, 400).astype(float)
    columns = {
        "squared": rng.exponential(1, 400),
        "right": right,
        "chosen": rng.integers(1, 3, 400).astype(float),
        "hits": rng.binomial(1, 0.6, 400).astype(float),
    }
    formula = (RATING_METRICS | SELECTION_METRICS)[metric]
    found = influence(columns, formula)
    whole = formula({name: column.mean(keepdims=True) for name, column in columns.items()})[0]
    assert found.mean() == pytest.approx(whole)
    resampled = scipy.stats.bootstrap(
        (np.arange(400),),
        lambda users, axis=-1: formula({name: column[users].mean(axis=axis) for name, column in columns.items()}),
        n_resamples=2000,
        rng=rng,
        method="percentile",
    )
    assert found.std(ddof=1) / 20 == pytest.approx(resampled.standard_error, rel=0.1)


def test_influence_of_one_user_is_refused():
    with pytest.raises(ValueError, match="at least two are needed"):
        influence({"x": np.ones(1)}, lambda means: means["x"])


@given(st.lists(st.floats(0, 1), min_size=1, max_size=5))
def test_holm_is_the_closed_test_of_bonferronis(p_values):
    """A hypothesis falls at a level where every set of hypotheses with it in falls by Bonferroni's test."""
    count = len(p_values)
    for number, adjusted in enumerate(holm(p_values)):
        sets = [
            chosen
            for size in range(1, count + 1)
            for chosen in itertools.combinations(range(count), size)
            if number in chosen
        ]
        worst = max(min(1.0, len(chosen) * min(p_values[one] for one in chosen)) for chosen in sets)
        assert adjusted == pytest.approx(worst)
