"""The split by users: of those held out nothing is learnt, by the model's training or by any baseline."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines.co_occurrence import transition_counts
from data_pipelines.corpus import SHOWN, TEST, TRAIN, VALIDATION, Corpus, build_corpus, split_by_users
from data_pipelines.errors import DataError
from data_pipelines.schema import Interaction, Item, User
from data_pipelines.tasks.queries import QueryConfig, TrainingQueries, held_out_queries
from experiments.baselines.explanations import training_texts
from experiments.baselines.ranker import Popularity, evaluate_ranker
from experiments.baselines.ratings import training_ratings
from experiments.baselines.sasrec_training import training_rows
from experiments.config import DataConfig
from experiments.data import load_records
from tests.data_pipelines.small import small_corpus, small_vocabulary
from tests.experiments.tiny_run import prepare_source


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    return split_by_users(small_corpus(num_users=60), seed=3)


def purposes(corpus: Corpus) -> list[tuple[int, ...]]:
    return [tuple(part.tolist()) for part in np.split(corpus.splits, corpus.offsets[1:-1])]


def changed(corpus: Corpus) -> Corpus:
    """The same but for everything that users held out met, gave and wrote."""
    theirs = corpus.splits != TRAIN
    return dataclasses.replace(
        corpus,
        items=np.where(theirs, (corpus.items + 1) % corpus.num_items, corpus.items).astype(np.int32),
        ratings=np.where(theirs, 0.5, corpus.ratings),
        texts=dict(corpus.texts) | {int(event): "other words" for event in np.flatnonzero(theirs)},
    )


@settings(deadline=None)
@given(st.lists(st.integers(1, 5), min_size=10, max_size=60), st.integers(0, 3))
def test_a_tenth_is_asked_at_the_end_and_a_tenth_validated(lengths: list[int], seed: int) -> None:
    users = [User(f"u{n}", tuple(Interaction("i", split="train") for _ in range(k))) for n, k in enumerate(lengths)]
    whole = build_corpus([Item("i", "Item")], users)
    able = sum(length >= 2 for length in lengths)
    if able < 10:
        with pytest.raises(DataError, match="a split by users needs at least ten"):
            split_by_users(whole, seed)
        return
    corpus = split_by_users(whole, seed)
    asked = {split: [p for p in purposes(corpus) if split in p] for split in (VALIDATION, TEST)}
    assert [len(asked[split]) for split in asked] == [able // 10, able // 10]
    for split, rows in asked.items():
        assert all(p == (SHOWN,) * (len(p) - 1) + (split,) and len(p) >= 2 for p in rows)
        assert len(corpus.held_out(split)[0]) == len(rows)
    assert all(set(p) == {TRAIN} for p in purposes(corpus) if not {VALIDATION, TEST} & {*p})
    assert split_by_users(whole, seed).splits.tolist() == corpus.splits.tolist()


def test_another_seed_holds_out_others(corpus: Corpus) -> None:
    other = split_by_users(corpus, seed=4)
    assert (other.splits == TEST).sum() == (corpus.splits == TEST).sum()
    assert other.splits.tolist() != corpus.splits.tolist()


def test_training_asks_only_users_to_train_on(corpus: Corpus) -> None:
    queries = TrainingQueries(corpus, QueryConfig(), seed=0)
    asked = set(queries.draw(0, 3 * len(queries.users))[0].users.tolist())
    able = {user for user, splits in enumerate(purposes(corpus)) if set(splits) == {TRAIN} and len(splits) >= 2}
    assert asked == able


def test_questions_are_about_the_last_item_and_show_all_before_it(corpus: Corpus) -> None:
    for split, code in (("validation", VALIDATION), ("test", TEST)):
        queries = held_out_queries(corpus, split, "recommendation")  # type: ignore[arg-type]
        assert [query.user for query in queries] == [u for u, splits in enumerate(purposes(corpus)) if code in splits]
        for query in queries:
            theirs = np.split(corpus.items, corpus.offsets[1:-1])[query.user].tolist()
            assert query.right == (theirs[-1],)
            assert corpus.history(query.user, query.position).tolist() == theirs[:-1]


def test_selection_still_has_two_right_items_for_some(corpus: Corpus) -> None:
    queries = held_out_queries(corpus, "test", "selection")
    theirs = np.split(corpus.items, corpus.offsets[1:-1])
    two = [query for query in queries if len(query.right) == 2]
    assert two
    for query in two:
        assert query.right == tuple(theirs[query.user][-2:].tolist())
        assert corpus.history(query.user, query.position).tolist() == theirs[query.user][:-2].tolist()


def test_no_baseline_learns_from_users_held_out(corpus: Corpus) -> None:
    other = changed(corpus)
    assert not np.array_equal(other.items, corpus.items)
    one = np.zeros(1, np.int32)
    np.testing.assert_array_equal(Popularity(other).scores(one, one), Popularity(corpus).scores(one, one))
    for lag in (1, 2):
        assert (transition_counts(other, lag) != transition_counts(corpus, lag)).nnz == 0
    rows = [training_rows(each, 16, np.random.default_rng(0)) for each in (corpus, other)]
    for name, values in rows[0].items():
        np.testing.assert_array_equal(values, rows[1][name])
    for values, others in zip(training_ratings(corpus), training_ratings(other), strict=True):
        np.testing.assert_array_equal(values, others)
    assert training_texts(other)[1] == training_texts(corpus)[1]
    tokenizers = [small_vocabulary(each).tokenizer for each in (corpus, other)]
    assert tokenizers[0].get_vocab() == tokenizers[1].get_vocab()
    assert other.rating_levels == corpus.rating_levels


def test_baselines_are_measured_on_users_held_out(corpus: Corpus) -> None:
    found = evaluate_ranker(Popularity(corpus), corpus, "test")
    assert found["users"].tolist() == [user for user, splits in enumerate(purposes(corpus)) if TEST in splits]
    assert np.isfinite(found["filtered"]).all()


def test_it_is_an_option_of_the_experiment(tmp_path: Path) -> None:
    data = prepare_source(tmp_path)
    by_time = load_records(DataConfig("movielens_small", data)).corpus
    by_users = load_records(DataConfig("movielens_small", data, split="users", split_seed=5)).corpus
    assert by_users.splits.tolist() == split_by_users(by_time, 5).splits.tolist()
    assert SHOWN not in by_time.splits
