"""Packing loses nothing, overfills nothing, and keeps images with their markers."""

import dataclasses
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines.packing import best_length, fill_row, pack
from data_pipelines.tasks.examples import Example, RowShape

ROW_SHAPE = RowShape(tokens=64, images=6, answers=20)
sizes = st.lists(st.tuples(st.integers(1, 64), st.integers(0, 6), st.integers(0, 20)), min_size=1, max_size=60)


@given(sizes)
def test_every_example_lies_in_one_row_and_no_budget_is_exceeded(sizes):
    table = np.array(sizes)
    rows = pack(table, ROW_SHAPE)
    assert sorted(number for row in rows for number in row) == list(range(len(sizes)))
    for row in rows:
        assert (table[row].sum(0) <= dataclasses.astuple(ROW_SHAPE)).all()


@given(sizes)
def test_no_row_could_have_taken_in_what_a_later_row_was_opened_for(sizes):
    table = np.array(sizes)
    rows = pack(table, ROW_SHAPE)
    for earlier in range(len(rows)):
        for later in rows[earlier + 1 :]:
            first = table[later[0]]
            before = [n for n in rows[earlier] if (-table[n, 0], n) < (-first[0], later[0])]
            assert (table[before].sum(0) + first > dataclasses.astuple(ROW_SHAPE)).any()


def plainly_packed(sizes: np.ndarray, row_shape: RowShape) -> list[list[int]]:
    """Best-fit decreasing by a look at every row."""
    rows: list[list[int]] = []
    free: list[np.ndarray] = []
    for example in np.argsort(-sizes[:, 0], kind="stable").tolist():
        fitting = [row for row, room in enumerate(free) if (room >= sizes[example]).all()]
        if not fitting:
            rows.append([])
            free.append(np.array(dataclasses.astuple(row_shape)))
        row = min(fitting, key=lambda row: (free[row][0], row)) if fitting else len(rows) - 1
        rows[row].append(example)
        free[row] -= sizes[example]
    return rows


narrow = st.lists(st.tuples(st.integers(1, 12), st.integers(0, 3), st.integers(0, 3)), max_size=120)
short_of_answers = st.lists(st.tuples(st.integers(1, 40), st.integers(0, 1), st.integers(0, 20)), max_size=150)


@settings(deadline=None)
@given(sizes | narrow | short_of_answers)
def test_rows_are_those_that_a_look_at_every_row_finds(sizes):
    table = np.array(sizes).reshape(-1, 3)
    assert pack(table, ROW_SHAPE) == plainly_packed(table, ROW_SHAPE)


def test_a_hundred_thousand_prompts_are_packed_in_seconds():
    rng, count = np.random.default_rng(0), 100_000
    table = np.stack([rng.integers(20, 500, count), rng.integers(0, 6, count), np.ones(count, int)], axis=1)
    start = time.process_time()
    rows = pack(table, RowShape(512, 16, 16))
    assert time.process_time() - start < 15  # a million in under a minute on a core of its own
    assert sum(map(len, rows)) == count
    assert table[:, 0].sum() / (len(rows) * 512) > 0.9


@pytest.mark.parametrize("of_two", [0.5, 0.98])
def test_rows_without_room_for_images_cost_nothing(of_two):
    rng, count = np.random.default_rng(0), 20_000
    images = np.where(rng.random(count) < of_two, 2, 0)
    table = np.stack([rng.integers(50, 200, count), images, np.ones(count, int)], axis=1)
    start = time.process_time()
    pack(table, RowShape(1024, 3, 256))
    assert time.process_time() - start < 2  # a look at each row that has room for the tokens takes half a minute


def test_what_fits_no_row_is_refused():
    with pytest.raises(ValueError, match=r"example 1 .* does not fit"):
        pack(np.array([[3, 0, 0], [65, 0, 0]]), ROW_SHAPE)


@given(sizes)
def test_the_best_length_wastes_no_more_than_any_other(sizes):
    table = np.array(sizes)

    def tokens(length: int) -> int:
        return length * len(pack(table, dataclasses.replace(ROW_SHAPE, tokens=length)))

    best = best_length(table, ROW_SHAPE)
    others = [length for length in (16, 32, 48, 64) if length >= table[:, 0].max()]
    assert best in others
    assert tokens(best) == min(map(tokens, others))
    assert all(tokens(length) > tokens(best) for length in others if length < best)


MARKER = 7


@st.composite
def examples(draw):
    tokens = np.array(draw(st.lists(st.sampled_from([1, 2, MARKER]), min_size=1, max_size=12)), np.int32)
    answers = draw(st.integers(0, len(tokens)))
    return Example(
        tokens=tokens,
        images=np.arange((tokens == MARKER).sum(), dtype=np.int32) + draw(st.integers(0, 50)),
        image_positions=np.flatnonzero(tokens == MARKER),
        answer_positions=np.sort(np.array(draw(st.permutations(range(len(tokens)))), np.int32)[:answers]),
        answer_targets=np.arange(answers, dtype=np.int32) + 100,
        answer_weights=np.full(answers, 2, np.float32),
        task=draw(st.integers(0, 3)),
    )


@settings(deadline=None)
@given(st.lists(examples(), max_size=5))
def test_a_row_gives_back_its_examples(row):
    arrays = fill_row(row, RowShape(tokens=64, images=64, answers=64))
    for segment, example in enumerate(row, start=1):
        here = np.flatnonzero(arrays["segment_ids"] == segment)
        np.testing.assert_array_equal(arrays["tokens"][here], example.tokens)
        np.testing.assert_array_equal(arrays["positions"][here], np.arange(len(here)))
        images = arrays["image_items"][arrays["image_segment_ids"] == segment]
        np.testing.assert_array_equal(images, example.images)
        seen = -1
        for place, token in zip(here, example.tokens, strict=True):
            seen += int(token == MARKER)
            slot = arrays["image_index"][place]
            assert slot == -1 if seen < 0 else arrays["image_items"][slot] == example.images[seen]
        answered = (arrays["answer_weights"] > 0) & np.isin(arrays["answer_positions"], here)
        np.testing.assert_array_equal(arrays["answer_positions"][answered] - here[0], example.answer_positions)
        np.testing.assert_array_equal(arrays["answer_targets"][answered], example.answer_targets)
        assert (arrays["answer_tasks"][answered] == example.task).all()
    used = sum(len(example.tokens) for example in row)
    assert (arrays["segment_ids"] > 0).sum() == used
    assert (arrays["image_index"][used:] == -1).all()


def test_images_that_drift_from_their_markers_are_refused():
    example = Example(
        tokens=np.array([1, MARKER], np.int32),
        images=np.array([3, 4], np.int32),
        image_positions=np.array([1], np.int32),
        answer_positions=np.empty(0, np.int32),
        answer_targets=np.empty(0, np.int32),
        answer_weights=np.empty(0, np.float32),
        task=0,
    )
    with pytest.raises(ValueError, match="1 image markers and 2 images"):
        fill_row([example], ROW_SHAPE)
