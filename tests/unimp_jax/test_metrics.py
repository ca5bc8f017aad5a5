"""Ranks and metrics against brute force, SciPy, and formulas written out again."""

import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from unimp_jax.evaluation import bootstrap
from unimp_jax.evaluation.metrics import (
    RATING_METRICS,
    SELECTION_METRICS,
    ranking_metrics,
    rating_errors,
    selection_counts,
)
from unimp_jax.evaluation.ranking import ranks, seen_bitmap, seen_mask, top_items

NUM_ITEMS = 7


@st.composite
def questions(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores of few distinct values, so that ties abound, infinities among them."""
    values = st.sampled_from([-np.inf, -1.0, 0.0, 0.5, 2.0, np.inf])
    scores = [draw(st.lists(values, min_size=NUM_ITEMS, max_size=NUM_ITEMS)) for _ in range(3)]
    seen = [draw(st.lists(st.integers(-1, NUM_ITEMS - 1), min_size=5, max_size=5)) for _ in range(3)]
    targets = [draw(st.integers(0, NUM_ITEMS - 1)) for _ in range(3)]
    return np.array(scores, np.float32), np.array(targets, np.int32), np.array(seen, np.int32)


def bitmap(seen: np.ndarray, num_items: int = NUM_ITEMS) -> np.ndarray:
    """Of rows of items, padded with -1."""
    return seen_bitmap([row[row >= 0] for row in np.asarray(seen, np.int32)], num_items)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.lists(st.lists(st.integers(0, 39), max_size=60), min_size=1, max_size=4))
def test_a_bitmap_marks_the_items_that_were_met_however_often(num_items: int, met: list[list[int]]) -> None:
    rows = [np.array([item for item in row if item < num_items], np.int32) for row in met]
    found = seen_bitmap(rows, num_items)
    assert (found.dtype, found.shape) == (np.uint8, (len(rows), -(-num_items // 8)))
    expected = [[item in row for item in range(num_items)] for row in rows]
    assert np.asarray(seen_mask(found, num_items)).tolist() == expected


@settings(max_examples=60, deadline=None)
@given(questions())
def test_ranks_are_the_average_ranks_of_scipy(question: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    scores, targets, seen = question
    kept, filtered = (np.asarray(x) for x in ranks(scores, targets, bitmap(seen)))
    for row, target in enumerate(targets):
        assert kept[row] == scipy.stats.rankdata(-scores[row], method="average")[target]
        open_items = [item for item in range(NUM_ITEMS) if item == target or item not in seen[row]]
        assert filtered[row] == scipy.stats.rankdata(-scores[row][open_items])[open_items.index(target)]


@settings(max_examples=60, deadline=None)
@given(questions(), st.integers(1, NUM_ITEMS))
def test_top_items_are_the_best_unseen_ones_lower_index_first(
    question: tuple[np.ndarray, np.ndarray, np.ndarray], k: int
) -> None:
    scores, _, seen = question
    scores = np.nan_to_num(scores, neginf=-9)
    for row, found in enumerate(np.asarray(top_items(scores, bitmap(seen), k))):
        unseen = [item for item in range(NUM_ITEMS) if item not in seen[row]]
        right = sorted(unseen, key=lambda item: (-scores[row, item], item))[:k]
        assert found.tolist() == right + [-1] * (k - len(right))


def test_unseen_items_that_score_minus_infinity_still_come_before_seen_ones() -> None:
    scores, seen = np.full((1, 4), -np.inf, np.float32), bitmap(np.array([[0, 2]]), 4)
    assert np.asarray(top_items(scores, seen, 4)).tolist() == [[1, 3, -1, -1]]
    assert np.asarray(ranks(scores, np.array([1]), seen)[1]).tolist() == [1.5]


@pytest.mark.parametrize("broken", [0, 1, 2])
def test_nan_never_looks_good(broken: int) -> None:
    """Whether the NaN is the right item's score, a seen item's or another's."""
    scores = np.array([[0.0, 1.0, 2.0]] * 2, np.float32)
    scores[0, broken] = np.nan
    kept, filtered = (np.asarray(x) for x in ranks(scores, np.array([0, 0]), bitmap([[1, -1]] * 2, 3)))
    assert np.isnan([kept[0], filtered[0]]).all()
    assert (kept[1], filtered[1]) == (3, 2)
    with pytest.raises(ValueError, match="1 of 2 ranks are NaN"):
        ranking_metrics(kept)
    assert np.asarray(top_items(scores, bitmap([[1, -1]] * 2, 3), 2)).tolist() == [[-1, -1], [2, 0]]


def test_of_a_catalogue_smaller_than_the_list_all_items_are_listed() -> None:
    scores = np.array([[0.0, 2.0, 1.0]], np.float32)
    assert np.asarray(top_items(scores, bitmap([[-1]], 3), 10)).tolist() == [[1, 2, 0]]
    assert np.asarray(top_items(scores, bitmap([[2]], 3), 10)).tolist() == [[1, 0, -1]]
    with pytest.raises(ValueError, match="k is 0 and must be at least 1"):
        top_items(scores, bitmap([[-1]], 3), 0)


def test_ranking_metrics_by_hand() -> None:
    found = ranking_metrics(np.array([1, 2.5, 3, 3.5, 10, 10.5, 4000]))
    assert found["HR@3"].tolist() == [1, 1, 1, 0, 0, 0, 0]
    assert found["HR@10"].tolist() == [1, 1, 1, 1, 1, 0, 0]
    assert found["MRR@5"].tolist() == [1, 0.4, 1 / 3, 1 / 3.5, 0, 0, 0]
    np.testing.assert_allclose(found["NDCG@10"][[0, 2, 4]], [1, 0.5, math.log(2) / math.log(11)], rtol=1e-12)
    assert set(found) == {f"{name}@{k}" for name in ("HR", "NDCG", "MRR") for k in (3, 5, 10)}
    with pytest.raises(ValueError, match="below 1"):
        ranking_metrics(np.array([0.5]))


def test_ndcg_is_that_of_discounted_gains_over_the_whole_list() -> None:
    """The general formula, with the gains of a list of ten and its ideal order."""
    for rank in range(1, 13):
        gains = np.zeros(12)
        gains[rank - 1] = 1
        discounts = 1 / np.log2(np.arange(2, 14))
        for k in (3, 5, 10):
            right = (gains * discounts)[:k].sum() / (np.sort(gains)[::-1] * discounts)[:k].sum()
            assert ranking_metrics(np.array([rank]))[f"NDCG@{k}"][0] == pytest.approx(right, abs=1e-15)


def test_rating_metrics() -> None:
    errors = rating_errors(np.array([4.0, 3.0, 5.0]), np.array([5.0, 3.0, 1.0]))
    assert bootstrap.metric(errors, RATING_METRICS["RMSE"]).mean == pytest.approx(math.sqrt((1 + 0 + 16) / 3))
    assert bootstrap.metric(errors, RATING_METRICS["MAE"]).mean == pytest.approx(5 / 3)
    with pytest.raises(ValueError, match="not finite"):
        rating_errors(np.array([np.nan]), np.array([3.0]))
    with pytest.raises(ValueError, match=r"predicted ratings have shape \(1,\), actual ratings \(2,\)"):
        rating_errors(np.array([1.0]), np.array([3.0, 2.0]))


def test_selection_metrics_are_micro() -> None:
    """Over all (user, candidate) decisions: 3 true positives, 1 false positive, 2 false negatives."""
    counts = selection_counts([[7], [1, 2], [5], []], [[7, 8], [2, 1], [4], []])
    found = {name: bootstrap.metric(counts, formula).mean for name, formula in SELECTION_METRICS.items()}
    assert found == pytest.approx({"recall": 3 / 5, "precision": 3 / 4, "F1": 6 / 9})
    nothing = selection_counts([[], []], [[1], [2]])
    assert bootstrap.metric(nothing, SELECTION_METRICS["precision"]).mean == 0


def test_interval_is_that_of_scipy() -> None:
    """Two percentile bootstraps of different draws: their ends differ by Monte Carlo error, a tenth of the width."""
    values = np.random.default_rng(0).exponential(size=400)
    ours = bootstrap.interval(values, resamples=4000)
    theirs = scipy.stats.bootstrap((values,), np.mean, n_resamples=4000, method="percentile", random_state=1)
    low, high = theirs.confidence_interval
    assert ours.mean == pytest.approx(values.mean())
    assert abs(ours.low - low) < 0.1 * (high - low) > abs(ours.high - high)


def test_interval_covers_the_truth_as_often_as_it_says() -> None:
    """Of 200 samples about 190 intervals cover; 180 to 199 is three standard deviations around it."""
    samples = np.random.default_rng(3).normal(size=(200, 100))
    found = [bootstrap.interval(values, seed=number, resamples=400) for number, values in enumerate(samples)]
    assert 180 <= sum(one.low <= 0 <= one.high for one in found) <= 199


def test_rmse_interval_is_the_root_of_the_mean_square_interval() -> None:
    """Percentiles keep their place under a monotone formula, but for interpolation; a seed draws the same users."""
    errors = rating_errors(np.random.default_rng(0).normal(size=5000), np.zeros(5000))
    root, square = bootstrap.metric(errors, RATING_METRICS["RMSE"]), bootstrap.interval(errors["squared"])
    np.testing.assert_allclose([root.low**2, root.high**2], [square.low, square.high], rtol=1e-4)


def test_chunks_do_not_change_an_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(0).normal(size=50)
    whole = bootstrap.interval(values)
    monkeypatch.setattr(bootstrap, "CHUNK", 50 * 7)
    assert bootstrap.interval(values) == whole


@pytest.mark.parametrize(
    ("values", "words"), [(np.array([]), r"shape \(0,\)"), (np.array([1.0, np.nan]), "1 of 2 are NaN")]
)
def test_bad_values_are_refused(values: np.ndarray, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        bootstrap.interval(values)
