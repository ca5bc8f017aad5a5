"""Residual k-means against SciPy, planted clusters and brute force."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.cluster.vq

from unimp_jax.semantic_ids.residual_kmeans import lloyd, residual_kmeans, seed_centres

SMALL = {"levels": 3, "codes": 8, "iterations": 20}


def features(items: int = 200, width: int = 5, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(items, width)).astype(np.float32)


@pytest.mark.parametrize("chunk", [64, 1000])
def test_lloyd_is_scipys(chunk: int) -> None:
    x_IF = features()
    expected_KF, expected_I = scipy.cluster.vq.kmeans2(
        x_IF.astype(np.float64), x_IF[:9].copy(), iter=60, minit="matrix"
    )
    centres_KF, codes_I = lloyd(jnp.asarray(x_IF), jnp.asarray(x_IF[:9]), iterations=60, chunk=chunk)
    np.testing.assert_allclose(centres_KF, expected_KF, atol=1e-4)
    np.testing.assert_array_equal(codes_I, expected_I)


def test_a_centre_without_points_moves_to_the_farthest_point() -> None:
    x_IF = jnp.array([[0.0], [1.0], [2.0], [50.0]])
    centres_KF, codes_I = lloyd(x_IF, jnp.array([[1.0], [1000.0]]), iterations=10)
    np.testing.assert_allclose(centres_KF, [[1.0], [50.0]])
    np.testing.assert_array_equal(codes_I, [0, 0, 0, 1])


def test_seeds_are_distinct_points_drawn_far_from_each_other() -> None:
    x_IF = features(40)
    seeds_KF = np.asarray(seed_centres(jnp.asarray(x_IF), jax.random.key(0), codes=40))
    np.testing.assert_array_equal(np.unique(seeds_KF, axis=0), np.unique(x_IF, axis=0))
    clusters_IF = np.repeat(1000 * np.eye(6, dtype=np.float32), 20, axis=0) + features(120, 6)
    for seed in range(5):
        found_KF = np.asarray(seed_centres(jnp.asarray(clusters_IF), jax.random.key(seed), codes=6))
        assert sorted(found_KF.argmax(axis=1)) == list(range(6))


def test_each_level_leaves_less_and_errors_are_those_of_the_codewords() -> None:
    found = residual_kmeans(features(), **SMALL)
    assert 1 > found.errors[0] > found.errors[1] > found.errors[2] > 0
    assert found.codes.dtype == np.int32
    assert found.codes.shape == (200, 3)
    residual_IF = found.points.astype(np.float64)
    variation = np.square(residual_IF - residual_IF.mean(axis=0)).sum()
    for level in range(3):
        squares_IK = np.square(residual_IF[:, None] - found.codebooks[level]).sum(axis=2)
        np.testing.assert_array_equal(found.codes[:, level], squares_IK.argmin(axis=1))
        residual_IF = residual_IF - found.codebooks[level][found.codes[:, level]]
        assert found.errors[level] == pytest.approx(np.square(residual_IF).sum() / variation, rel=1e-4)


def test_planted_clusters_are_found_at_both_levels() -> None:
    rng = np.random.default_rng(1)
    coarse_I, fine_I = rng.integers(0, 6, 600), rng.integers(0, 6, 600)
    planted_IF = 100 * np.eye(12)[coarse_I] + 3 * np.eye(12)[6 + fine_I]
    found = residual_kmeans(planted_IF + 0.001 * rng.normal(size=(600, 12)), levels=2, codes=6)
    assert len(set(zip(coarse_I.tolist(), found.codes[:, 0].tolist(), strict=True))) == 6
    assert len(set(zip(fine_I.tolist(), found.codes[:, 1].tolist(), strict=True))) == 6


def test_fewer_distinct_items_than_codes() -> None:
    x_IF = np.repeat(features(5), 3, axis=0)
    found = residual_kmeans(x_IF, **SMALL | {"codes": 32})
    assert len(np.unique(found.codes, axis=0)) == 5
    np.testing.assert_array_equal(found.codes[::3], found.codes[2::3])
    assert found.errors[0] < 1e-9
    alone = residual_kmeans(np.ones((1, 4)), **SMALL)
    assert alone.codes.shape == (1, 3)
    assert alone.errors == (0, 0, 0)


def test_seeds_decide() -> None:
    first, again = residual_kmeans(features(), **SMALL), residual_kmeans(features(), **SMALL)
    np.testing.assert_array_equal(first.codes, again.codes)
    np.testing.assert_array_equal(first.codebooks, again.codebooks)
    assert (residual_kmeans(features(), **SMALL, seed=1).codes != first.codes).any()


@pytest.mark.parametrize("wrong", [np.zeros(3), np.zeros((0, 3)), np.array([[np.nan]])])
def test_bad_features(wrong: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"expected \[items, features\], not empty"):
        residual_kmeans(wrong, **SMALL)
