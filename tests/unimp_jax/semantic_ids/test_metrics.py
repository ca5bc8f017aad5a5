"""Metrics against those worked out by hand, and all of it together."""

import dataclasses

import numpy as np
import pytest

from unimp_jax.semantic_ids import RQVAEConfig, SemanticIdConfig, describe, semantic_ids
from unimp_jax.semantic_ids.metrics import unexplained

CODES = np.array([[0, 1], [0, 1], [0, 1], [1, 2], [1, 3], [1, 0], [1, 0], [1, 1]])


def test_metrics_are_those_worked_out_by_hand() -> None:
    ids = np.concatenate([CODES, np.zeros((8, 1), int)], axis=1)
    ids[2] = [0, 0, 0]
    metrics = describe(CODES, ids, size=4, errors=[0.5, 0.25])
    assert metrics.items == 8
    assert metrics.used == (0.5, 1.0)
    # Shares 3/8 and 5/8; 2/8, 4/8, 1/8 and 1/8, of which the entropy is 1.75 bits.
    assert metrics.perplexity == pytest.approx((np.exp(-(3 * np.log(3 / 8) + 5 * np.log(5 / 8)) / 8), 2**1.75))
    assert metrics.colliding == 5 / 8
    assert metrics.largest == 3
    assert metrics.moved == 1
    assert metrics.errors == (0.5, 0.25)
    assert str(metrics) == (
        "level    used  perplexity   error\n"
        "    0   50.0%         1.9  0.5000\n"
        "    1  100.0%         3.4  0.2500\n"
        "8 items: 62.50% share their codes with others, at most 3 items have the same codes; 1 were reassigned"
    )
    assert "error" not in str(dataclasses.replace(metrics, errors=None))


def test_unexplained() -> None:
    assert unexplained(np.array([[1.0], [3.0]]), np.array([0.5, 0.0])) == 0.25
    assert unexplained(np.ones((2, 1)), np.zeros(2)) == 0


def test_shapes_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match=r"expected \[items, levels\], \[items, levels \+ 1\] and one error per level"):
        describe(CODES, CODES, size=4)
    with pytest.raises(ValueError, match=r"expected \[items, levels\], \[items, levels \+ 1\] and one error per level"):
        describe(CODES, np.zeros((8, 3)), size=4, errors=[0.1])


@pytest.mark.parametrize("method", ["residual_kmeans", "rq_vae"])
def test_both_methods_give_distinct_ids(method: str) -> None:
    x_IF = np.random.default_rng(0).normal(size=(100, 6))
    x_IF[:30] = x_IF[0]
    vae = RQVAEConfig(hidden=(16,), latent=4, steps=30, batch_size=32)
    config = SemanticIdConfig(method, 2, 8, 12, rq_vae=vae, seed=3)  # type: ignore[arg-type]
    found = semantic_ids(x_IF, config)
    assert found.ids.shape == (100, 3)
    assert found.ids.dtype == np.int32
    assert len(np.unique(found.ids, axis=0)) == 100
    assert found.ids.max(axis=0).tolist() <= [7, 7, 11]
    assert found.metrics.largest >= 30
    assert found.metrics.moved >= 18
    assert found.metrics.errors == found.quantised.errors
    assert (found.quantised.losses is None) == (method == "residual_kmeans")
    np.testing.assert_array_equal(found.ids, semantic_ids(x_IF, config).ids)


def test_an_unknown_method() -> None:
    with pytest.raises(ValueError, match="neither"):
        SemanticIdConfig("kmeans")  # type: ignore[arg-type]


def test_a_layout_without_codes() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        SemanticIdConfig(codes=0)
