"""Metrics of generated images: against SciPy's matrix root, the jackknife, brute force, and known answers."""

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import scipy.linalg
import scipy.stats

from unimp_jax.evaluation.bootstrap import interval, metric
from unimp_jax.evaluation.frechet import frechet_values
from unimp_jax.evaluation.images import (
    apart,
    apart_from_others,
    clip_score,
    closer,
    distance_metrics,
    image_distances,
    image_metrics,
    image_scores,
    sign_test,
)
from unimp_jax.evaluation.neighbours import precision_and_recall


def drawn(*shape: int, seed: int = 0, shift: float = 0.0) -> np.ndarray:
    """Correlated features of unequal variances."""
    rng = np.random.default_rng(seed)
    mixing = np.random.default_rng(99).normal(size=(shape[-1], shape[-1]))
    return (rng.normal(size=shape) @ mixing * np.linspace(0.2, 2, shape[-1]) + shift).astype(np.float32)


def frechet_distance(first: np.ndarray, second: np.ndarray) -> float:
    return float(frechet_values(first, second).mean())


def by_matrix_root(first: np.ndarray, second: np.ndarray) -> float:
    """As the FID is commonly computed."""
    gap = first.mean(0, dtype=np.float64) - second.mean(0, dtype=np.float64)
    one, other = np.cov(first.astype(np.float64), rowvar=False), np.cov(second.astype(np.float64), rowvar=False)
    return float(gap @ gap + np.trace(one + other - 2 * scipy.linalg.sqrtm(one @ other).real))


@pytest.mark.parametrize(("count", "width"), [(300, 8), (40, 24)])
def test_frechet_distance_is_that_of_scipys_matrix_root(count, width):
    one, other = drawn(count, width), drawn(count, width, seed=1, shift=0.3)
    assert frechet_distance(one, other) == pytest.approx(by_matrix_root(one, other), rel=1e-8)


def test_frechet_distance_of_fewer_images_than_features():
    """Covariances without full rank: in the space that both sets span, nothing is lost, and the root is SciPy's."""
    one, other = drawn(12, 64), drawn(12, 64, seed=1)
    basis, _ = np.linalg.qr(np.concatenate([one - one.mean(0), other - other.mean(0), [one.mean(0) - other.mean(0)]]).T)
    inside = one @ basis, other @ basis
    # The root of a singular matrix is exact to about the root of rounding errors.
    assert frechet_distance(one, other) == pytest.approx(by_matrix_root(*inside), rel=1e-5)


def test_frechet_distance_of_known_normal_distributions():
    rng = np.random.default_rng(0)
    one, other = rng.normal(0, 1, (200_000, 2)), rng.normal([3, 0], [1, 3], (200_000, 2))
    assert frechet_distance(one, other) == pytest.approx(3**2 + (3 - 1) ** 2, rel=0.01)


@hypothesis.given(st.integers(0, 10_000), st.integers(2, 30), st.integers(1, 40), st.floats(0.1, 10))
@hypothesis.settings(max_examples=40, deadline=None)
def test_frechet_distance_is_a_squared_distance(seed, count, width, scale):
    rng = np.random.default_rng(seed)
    one, other = rng.normal(size=(count, width)), rng.normal(size=(count, width)) + 1
    turn = np.linalg.qr(rng.normal(size=(width, width)))[0]
    found = frechet_distance(one, other)
    assert found >= 0
    assert found == pytest.approx(frechet_distance(other, one), rel=1e-9)
    assert frechet_distance(scale * one @ turn + 2, scale * other @ turn + 2) == pytest.approx(
        scale**2 * found, rel=1e-7
    )
    assert frechet_distance(one, one[::-1]) == pytest.approx(0, abs=1e-9 * width)


def test_frechet_values_tell_how_the_distance_moves():
    """A value is the derivative: leaving a pair out moves the distance as the values say, but for a share of 1 / n."""
    count = 16_000
    one, other = drawn(count, 6), drawn(count, 6, seed=1, shift=0.5)
    values, whole = frechet_values(one, other)[:20], frechet_distance(one, other)
    without = [frechet_distance(np.delete(one, n, 0), np.delete(other, n, 0)) for n in range(20)]
    jackknife = whole + (count - 1) * (whole - np.array(without))
    assert jackknife == pytest.approx(values, abs=0.02 * values.std())


def test_no_interval_of_a_distance_reaches_below_none():
    rng = np.random.default_rng(0)
    generated, wanted = rng.standard_t(2, size=(60, 2, 3)), rng.standard_t(2, size=(60, 3))  # a few are far away
    distances = image_distances(generated, wanted)
    found = {name: metric(distances, formula) for name, formula in distance_metrics(distances).items()}
    straight = interval(distances["Fréchet distance"])
    one = found["Fréchet distance"]
    assert straight.low < 0 < one.low < one.mean < one.high
    assert one.mean == pytest.approx(straight.mean)
    assert np.log(one.high / one.mean) == pytest.approx(straight.high / straight.mean - 1)
    assert found["distance to wanted"] == interval(distances["distance to wanted"])


def test_intervals_of_frechet_distances_hold_the_distance_of_more_images():
    whole = frechet_distance(drawn(200_000, 4), drawn(200_000, 4, seed=1, shift=0.5))
    held = 0
    for seed in range(2, 42):
        one, other = drawn(500, 4, seed=seed), drawn(500, 4, seed=seed + 100, shift=0.5)
        found = interval(frechet_values(one, other), seed=seed)
        held += found.low <= whole <= found.high
    assert held >= 34, "95 % of 40 is 38; with fewer than 34 of them, p < .05 that it is"


def test_frechet_distance_refuses_what_has_none():
    with pytest.raises(ValueError, match="at least two images"):
        frechet_values(np.zeros((1, 3)), np.zeros((1, 3)))
    with pytest.raises(ValueError, match="3 and 4 dimensions"):
        frechet_values(np.eye(3), np.zeros((3, 4)))
    with pytest.raises(ValueError, match="a feature is not finite"):
        frechet_values(np.full((3, 3), np.nan), np.eye(3))
    with pytest.raises(ValueError, match="the images must be paired"):
        frechet_values(np.eye(3), np.eye(3)[:2])


def brute_force(points: np.ndarray, centres: np.ndarray, k: int) -> list[float]:
    radii = [sorted(np.linalg.norm(centres - centre, axis=1))[k] for centre in centres]
    return [
        float(any(np.linalg.norm(p - c) <= radius for c, radius in zip(centres, radii, strict=True))) for p in points
    ]


@pytest.mark.parametrize("k", [1, 3])
def test_precision_and_recall_by_brute_force(monkeypatch, k):
    monkeypatch.setattr("unimp_jax.evaluation.neighbours.BLOCK", 16)
    generated, real = drawn(50, 3).astype(np.float64), drawn(41, 3, seed=1, shift=1).astype(np.float64)
    precision, recall = precision_and_recall(generated, real, k)
    assert precision.tolist() == brute_force(generated, real, k)
    assert recall.tolist() == brute_force(real, generated, k)
    assert 0 < precision.mean() < 1
    assert 0 < recall.mean() < 1


def test_precision_and_recall_of_known_sets():
    real = drawn(100, 4)
    assert [part.mean() for part in precision_and_recall(real, real)] == [1, 1]
    assert [part.mean() for part in precision_and_recall(real + 1000, real)] == [0, 0]
    one_mode = np.repeat(real[:1], 100, axis=0)  # the same real image again and again
    precision, recall = precision_and_recall(one_mode, real)
    assert (precision.mean(), recall.mean()) == (1, 0.01)
    with pytest.raises(ValueError, match="at least 4 images"):
        precision_and_recall(real[:3], real)


def test_closer_by_hand():
    wanted, random = np.array([[0.0], [0.0]]), np.array([[[1.0], [2.0]], [[1.0], [4.0]]])
    generated = np.array([[[0.2], [0.5]], [[3.0], [2.0]]])
    # The first's 0.5 is as far from 0 as from 1; the second's 3 is closer to both, and 2 as far from 0 as from 4.
    assert closer(generated, wanted, random).tolist() == [3.5 / 4, 0.5 / 4]


def test_diversity_by_hand():
    generated = np.array([[[0.0], [1.0]], [[4.0], [6.0]], [[9.0], [9.0]]])
    assert apart(generated).tolist() == [1, 2, 0]
    total, shared = apart_from_others(generated, ["drama", "drama", "comedy"])
    assert total.tolist() == [4.5, 4.5, 0]
    assert shared.tolist() == [1, 1, 0]
    with pytest.raises(ValueError, match="at least two images per user"):
        apart(generated[:, :1])


def test_clip_score_by_hand():
    images = np.array([[[2.0, 0.0], [0.0, 3.0]], [[-1.0, 0.0], [-1.0, 0.0]]])
    assert clip_score(images, np.array([[1.0, 0.0], [1.0, 0.0]])) == pytest.approx([50, 0])


def test_sign_test_is_scipys_of_those_not_at_chance():
    above, below, p_value = sign_test(np.array([0.9] * 14 + [0.1] * 4 + [0.5] * 3))
    assert (above, below) == (14, 4)
    assert p_value == pytest.approx(scipy.stats.binomtest(14, 18).pvalue)
    assert sign_test(np.full(5, 0.5)) == (0, 0, 1)


def test_scores_and_distances_have_a_value_for_everyone():
    generated, wanted = drawn(30, 3, 5), drawn(30, 5, seed=1)
    others = drawn(30, 4, 5, seed=2), drawn(30, 4, 5, seed=3)
    queries = [f"query {n % 7}" for n in range(29)] + ["nobody else's"]
    scores = image_scores(generated, wanted, *others, queries)
    assert {values.shape for values in scores.values()} == {(30,)}
    metrics = {name: metric(scores, formula) for name, formula in image_metrics(scores).items()}
    assert list(metrics) == ["closer", "closer, same query", "precision", "recall", "diversity", "own diversity"]
    assert scores["closer, same query"] == pytest.approx(closer(generated, wanted, others[1]))
    total = apart_from_others(generated, queries)[0]
    assert metrics["diversity"].mean == pytest.approx(total[:29].mean())
    assert "own diversity" not in image_scores(generated[:, :1], wanted, *others, queries)
    alone = image_scores(generated, wanted, *others, list(map(str, range(30))))
    assert "diversity" not in image_metrics(alone)
    distances = image_distances(generated, wanted)
    assert distances["Fréchet distance"].mean() == pytest.approx(by_matrix_root(generated[:, 0], wanted), rel=1e-6)
    assert distances["distance to wanted"][7] == pytest.approx(np.linalg.norm(generated[7] - wanted[7], axis=1).mean())
