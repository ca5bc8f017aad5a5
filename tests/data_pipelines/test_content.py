"""The content of items: its parts, its tokens, and that nothing held out is read."""

from __future__ import annotations

import dataclasses
import tracemalloc

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines.co_occurrence import DAMPING, DECAY, WINDOW, co_occurrence_vectors
from data_pipelines.code_files import write_rows
from data_pipelines.content import (
    ATTRIBUTE_NORM,
    ContentConfig,
    build_content,
    mean_ratings,
    principal_components,
    standardised,
    token_content,
    training_counts,
)
from data_pipelines.corpus import TEST, TRAIN, build_corpus, with_items
from data_pipelines.errors import DataError
from data_pipelines.item_vectors import read_vectors
from data_pipelines.schema import Interaction, Item, User
from data_pipelines.vocabulary import VocabularyConfig, build_vocabulary
from tests.data_pipelines.small import small_corpus

EVERYTHING = ContentConfig(attributes=("Category",), least_items=1, popularity=True, rating=True, co_occurrence=2)


def test_parts_are_the_attributes_popularity_and_ratings() -> None:
    corpus = small_corpus()
    content = build_content(corpus, EVERYTHING)
    columns = len(content.categories)
    assert set(content.categories) == {name for names in corpus.categories for name in names}
    for item, names in enumerate(corpus.categories):
        expected = np.zeros(columns)
        expected[[content.categories[name] for name in set(names)]] = ATTRIBUTE_NORM / max(len(set(names)), 1) ** 0.5
        np.testing.assert_allclose(content.items[item, :columns], expected, rtol=1e-6)
    popularity = content.items[:, columns]
    assert (np.argsort(popularity, kind="stable") == np.argsort(training_counts(corpus), kind="stable")).all()
    np.testing.assert_allclose([popularity.mean(), popularity.std()], [0, 1], atol=1e-6)
    np.testing.assert_array_equal(content.items[:, columns + 1 : -2], 2 * mean_ratings(corpus))
    np.testing.assert_allclose(content.items[:, -2:], 0.6 * standardised(co_occurrence_vectors(corpus, 2)), rtol=1e-6)


def test_without_parts_there_is_no_content() -> None:
    assert ContentConfig().is_empty
    assert build_content(small_corpus(), ContentConfig()).width == 0


def test_an_attribute_that_no_item_has_is_named() -> None:
    with pytest.raises(DataError, match="'Colour'"):
        build_content(small_corpus(), ContentConfig(attributes=("Colour",)))


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_held_out_interactions_are_never_read(seed: int) -> None:
    corpus, rng = small_corpus(), np.random.default_rng(seed)
    held_out = corpus.splits != TRAIN
    items, ratings = corpus.items.copy(), corpus.ratings.copy()
    items[held_out] = rng.integers(corpus.num_items, size=held_out.sum())
    ratings[held_out] = rng.integers(1, 6, size=held_out.sum())
    changed = dataclasses.replace(corpus, items=items, ratings=ratings)
    np.testing.assert_array_equal(build_content(changed, EVERYTHING).items, build_content(corpus, EVERYTHING).items)


def test_a_category_shares_its_feature_with_the_items_that_it_describes() -> None:
    corpus = small_corpus()
    vocabulary = build_vocabulary(corpus, VocabularyConfig(trained_size=300, category_items=1))
    content = build_content(corpus, EVERYTHING)
    rows = token_content(content, vocabulary)
    np.testing.assert_array_equal(rows[vocabulary.items[:, 0] - vocabulary.base_size], content.items)
    for name, token in vocabulary.categories.items():
        assert rows[token - vocabulary.base_size, content.categories[name]] == ATTRIBUTE_NORM
        assert np.count_nonzero(rows[token - vocabulary.base_size]) == 1
    assert not rows[vocabulary.answer - vocabulary.base_size].any()


def test_components_are_those_of_a_singular_value_decomposition() -> None:
    vectors = np.random.default_rng(0).normal(size=(50, 8)) * np.arange(1, 9)
    centred = vectors - vectors.mean(axis=0)
    left, sizes, _ = np.linalg.svd(centred, full_matrices=False)
    expected = left[:, :3] * sizes[:3] / np.sqrt(sizes[:3] * sizes[0] / len(vectors))
    found = principal_components(vectors, 3)
    np.testing.assert_allclose(np.abs(found), np.abs(expected), rtol=1e-4, atol=1e-5)


def test_many_items_have_exact_means_and_constants_are_no_feature() -> None:
    vectors = np.random.default_rng(0).random((100_000, 3), np.float32) * np.float32([0.01, 1, 0]) + np.float32(10.1)
    found = standardised(vectors)
    np.testing.assert_allclose(found.mean(axis=0), 0, atol=1e-9)
    np.testing.assert_allclose(found.std(axis=0), [1, 1, 0], atol=1e-9)
    np.testing.assert_allclose(principal_components(vectors, 2).mean(axis=0), 0, atol=1e-9)


def test_vectors_are_read_by_id_and_unknown_items_have_the_mean(tmp_path) -> None:
    vectors = np.arange(6, dtype=np.float32).reshape(3, 2)
    write_rows(tmp_path / "v.parquet", ["a", "b", "c"], "vector", vectors)
    np.savez(tmp_path / "v.npz", item_ids=np.array(["a", "b", "c"]), vectors=vectors)
    for name in ("v.parquet", "v.npz"):
        read = read_vectors(tmp_path / name, ["c", "new", "a"])
        np.testing.assert_array_equal(read, [[4, 5], [2, 3], [0, 1]])


@pytest.mark.parametrize("kind", [pa.list_(pa.float64()), pa.list_(pa.float16()), pa.large_list(pa.int8())])
def test_own_vectors_may_have_numbers_for_ids(tmp_path, kind) -> None:
    pq.write_table(pa.table({"item_id": [7, 8], "vector": pa.array([[1, 2], [3, 4]], kind)}), tmp_path / "v.parquet")
    np.testing.assert_array_equal(read_vectors(tmp_path / "v.parquet", ["8", "7"]), [[3, 4], [1, 2]])


@pytest.mark.parametrize("rows", [[[1.0], [2.0, 3.0, 4.0]], [[1.0], None], [[1.0], [None]], [[], []], []])
def test_vectors_of_several_lengths_are_refused(tmp_path, rows) -> None:
    table = pa.table({"item_id": ["a", "b"][: len(rows)], "vector": pa.array(rows, pa.list_(pa.float32()))})
    pq.write_table(table, tmp_path / "v.parquet")
    with pytest.raises(DataError, match=r"v\.parquet: not a file of vectors"):
        read_vectors(tmp_path / "v.parquet", ["a", "b"])


def test_reading_vectors_makes_no_object_of_each_number(tmp_path) -> None:
    write_rows(tmp_path / "v.parquet", [f"{n}" for n in range(1000)], "vector", np.ones((1000, 100), np.float32))
    tracemalloc.start()
    read_vectors(tmp_path / "v.parquet", ["5"])
    assert tracemalloc.get_traced_memory()[1] < 1.5e6  # the numbers take 0.4 MB; as objects in lists, 3.2 MB
    tracemalloc.stop()


@pytest.mark.parametrize("damage", ["missing", "text", "cut", "other items", "not finite", "twice", "pickled"])
def test_files_that_are_no_vectors_are_refused_by_name(tmp_path, damage: str) -> None:
    path = tmp_path / ("v.npz" if damage == "pickled" else "v.parquet")
    vectors = np.ones((2, 2), np.float32)
    if damage == "not finite":
        vectors[0, 0] = np.inf
    if damage not in ("missing", "pickled"):
        write_rows(path, ["a", "a" if damage == "twice" else "b"], "vector", vectors)
    if damage == "text":
        path.write_text("item_id,vector\na,1\n")
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-30])
    if damage == "pickled":
        np.savez(path, item_ids=np.array(["a", None], object), vectors=vectors)
    with pytest.raises(DataError, match=path.name):
        read_vectors(path, ["z"] if damage == "other items" else ["a", "b"])


def test_co_occurrence_vectors_are_the_eigenvectors_of_plainly_counted_pairs() -> None:
    corpus = small_corpus()
    near = np.zeros((corpus.num_items, corpus.num_items))
    for user in range(corpus.num_users):
        events = slice(*corpus.offsets[user : user + 2])
        items = corpus.items[events][corpus.splits[events] == TRAIN].tolist()
        for later, item in enumerate(items):
            for steps in range(1, min(WINDOW, later) + 1):
                near[item, items[later - steps]] += DECAY ** (steps - 1)
                near[items[later - steps], item] += DECAY ** (steps - 1)
    np.fill_diagonal(near, 0)
    scale = (near.sum(axis=1) + DAMPING) ** -0.5
    values, vectors = np.linalg.eigh(scale[:, None] * near * scale)
    order = np.argsort(-np.abs(values))[:2]
    found = co_occurrence_vectors(corpus, 2)
    for column, expected in zip(found.T, vectors[:, order].T, strict=True):
        expected = expected * np.sign(expected[np.abs(expected).argmax()])
        np.testing.assert_allclose(column, expected, atol=1e-5)


def test_co_occurrence_vectors_are_always_the_same_also_where_many_would_do() -> None:
    users = [User(f"u{n}", tuple(Interaction(f"i{2 * n + step % 2}") for step in range(6))) for n in range(6)]
    corpus = build_corpus(
        [Item(f"i{n}", "") for n in range(12)], users
    )  # six pairs alike: of eigenvalues, six are equal
    found = [co_occurrence_vectors(corpus, 4) for _ in range(4)]
    assert found[0].any()
    for again in found[1:]:
        np.testing.assert_array_equal(again, found[0])


def test_items_that_nobody_met_together_have_no_co_occurrence_vectors() -> None:
    corpus = small_corpus()
    nobody = dataclasses.replace(corpus, splits=np.full_like(corpus.splits, TEST))
    assert not co_occurrence_vectors(nobody, 2).any()


def test_new_items_do_not_change_the_co_occurrence_vectors_of_known_ones() -> None:
    corpus = small_corpus()
    more = with_items(corpus, [Item("new", "New")])
    found = co_occurrence_vectors(more, 3, known=corpus.num_items)
    np.testing.assert_array_equal(found[:-1], co_occurrence_vectors(corpus, 3))
    assert not found[-1].any()
