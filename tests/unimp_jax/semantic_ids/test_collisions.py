"""Distinct ids: properties on small code spaces, moves worked out by hand, and time."""

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unimp_jax.semantic_ids.collisions import Distances, residual_distances, resolve


def never(items_N: np.ndarray, prefixes_Nl: np.ndarray) -> np.ndarray:
    raise AssertionError("no item had to move")


def by_line(points: list[float], codebooks: list[list[float]]) -> Distances:
    """Distances of points on a line."""
    return residual_distances(np.array(points)[:, None], np.array(codebooks)[..., None])


def test_equal_codes_are_numbered_in_the_order_of_items() -> None:
    codes = np.array([[1, 2], [0, 0], [1, 2], [2, 1], [1, 2], [0, 0]])
    ids = resolve(codes, last=3, size=3, distances=never)
    assert ids.dtype == np.int32
    np.testing.assert_array_equal(ids[:, :-1], codes)
    np.testing.assert_array_equal(ids[:, -1], [0, 0, 1, 0, 2, 1])


def test_the_farthest_moves_to_the_nearest_codeword_with_room() -> None:
    points = [0.0, 0.4, 0.1, 1.0, 1.1, 2.5]
    codes = np.array([[0], [0], [0], [1], [1], [2]])
    ids = resolve(codes, last=2, size=4, distances=by_line(points, [[0.0, 1.0, 2.5, 9.0]]))
    np.testing.assert_array_equal(ids, [[0, 0], [2, 0], [0, 1], [1, 0], [1, 1], [2, 1]])


LINE = [[0.0, 30.0, 20.0], [0.0, 1.0, 50.0]]


def test_earlier_codes_stay_where_there_is_room_below_them() -> None:
    codes = np.array([[0, 0], [0, 0], [0, 1], [0, 1], [0, 1]])
    ids = resolve(codes, last=2, size=3, distances=by_line([0.0, 0.0, 1.0, 1.0, 0.9], LINE))
    np.testing.assert_array_equal(ids[4], [0, 2, 0])
    np.testing.assert_array_equal(ids[:4, :-1], codes[:4])


def test_where_all_below_is_full_an_earlier_code_changes() -> None:
    # No room below 0, nor below 2, the next nearest to 0.9; below 1, -29.1 is left, to which the first is nearest.
    codes = np.array([[first, second] for first in (0, 2) for second in range(3) for _ in range(2)] + [[0, 1]])
    points = [LINE[0][first] + LINE[1][second] for first, second in codes[:-1]]
    ids = resolve(codes, last=2, size=3, distances=by_line([*points, 0.9], LINE))
    np.testing.assert_array_equal(ids[-1], [1, 0, 0])
    np.testing.assert_array_equal(ids[:-1, :-1], codes[:-1])


def test_distances_are_those_of_a_plain_loop() -> None:
    rng = np.random.default_rng(0)
    points_ID, codebooks_LKD = rng.normal(size=(5, 3)), rng.normal(size=(2, 4, 3))
    found_NK = residual_distances(points_ID, codebooks_LKD)(np.array([3, 1]), np.array([[2], [0]]))
    for row, (item, code) in enumerate([(3, 2), (1, 0)]):
        for k in range(4):
            left_D = points_ID[item] - codebooks_LKD[0, code] - codebooks_LKD[1, k]
            assert found_NK[row, k] == pytest.approx((left_D**2).sum())


@st.composite
def spaces(draw: st.DrawFn) -> tuple[np.ndarray, int, int, Distances]:
    """A small code space and items in it, up to as many as it holds, often crowded."""
    levels, size, last = draw(st.integers(1, 3)), draw(st.integers(1, 3)), draw(st.integers(1, 3))
    items = draw(st.integers(0, size**levels * last))
    rng = np.random.default_rng(draw(st.integers(0, 1000)))
    codes = (rng.random((items, levels)) ** draw(st.integers(1, 6)) * size).astype(np.int32)
    return codes, last, size, residual_distances(rng.normal(size=(items, 2)), rng.normal(size=(levels, size, 2)))


@settings(max_examples=300, deadline=None)
@given(spaces())
def test_ids_are_distinct_and_no_more_move_than_must(space: tuple[np.ndarray, int, int, Distances]) -> None:
    codes, last, size, distances = space
    ids = resolve(codes, last, size=size, distances=distances)
    assert ids.shape == (len(codes), codes.shape[1] + 1)
    assert len({tuple(row) for row in ids.tolist()}) == len(ids)
    assert (ids >= 0).all()
    assert (ids[:, :-1] < size).all()
    assert (ids[:, -1] < last).all()
    kept_I = (ids[:, :-1] == codes).all(axis=1)
    for prefix in np.unique(codes, axis=0):
        group_I = (codes == prefix).all(axis=1)
        assert kept_I[group_I].sum() == min(group_I.sum(), last)
        numbers = ids[(ids[:, :-1] == prefix).all(axis=1), -1]
        assert numbers.tolist() == list(range(len(numbers)))
    np.testing.assert_array_equal(ids, resolve(codes, last, size=size, distances=distances))


def test_too_many_items() -> None:
    with pytest.raises(
        ValueError, match="9 items need more than the 8 ids of 2 levels of 2 codes and a last one of 2; raise last to 3"
    ):
        resolve(np.zeros((9, 2)), last=2, size=2, distances=never)


@pytest.mark.parametrize(("codes", "last"), [(np.zeros(3), 2), (np.zeros((3, 0)), 2), (np.zeros((3, 1)), 0)])
def test_bad_shapes(codes: np.ndarray, last: int) -> None:
    with pytest.raises(ValueError, match=r"expected \[items, levels\] and at least 1"):
        resolve(codes, last, size=2, distances=never)


def test_codes_out_of_range() -> None:
    with pytest.raises(ValueError, match="must be between 0 and 1"):
        resolve(np.array([[2]]), size=2, distances=never)
    with pytest.raises(ValueError, match="cannot be distinguished"):
        resolve(np.zeros((1, 7)), size=512, distances=never)


def test_100_000_items_take_seconds() -> None:
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 256, (100_000, 3), np.int32)
    codes[:2000] = codes[:20].repeat(100, axis=0)
    points_ID, codebooks_LKD = rng.normal(size=(100_000, 16)), rng.normal(size=(3, 256, 16))
    start = time.perf_counter()
    ids = resolve(codes, size=256, distances=residual_distances(points_ID, codebooks_LKD))
    assert time.perf_counter() - start < 5
    assert len(np.unique(ids, axis=0)) == len(ids)
    _, groups = np.unique(codes, axis=0, return_counts=True)
    assert (ids[:, :-1] != codes).any(axis=1).sum() == np.maximum(groups - 32, 0).sum() >= 20 * 68
