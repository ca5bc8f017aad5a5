"""Evaluation needs no memory that grows with users times items, or with users times the longest history."""

import tracemalloc

import numpy as np
import pytest
import scipy.stats

from data_pipelines.content import training_counts
from data_pipelines.corpus import TEST, TRAIN, Corpus
from data_pipelines.loader import QuestionBatch
from experiments.baselines import ranker as rankers
from experiments.baselines.query_match import QueryMatch, WordMatches
from experiments.baselines.ranker import Popularity, evaluate_ranker
from unimp_jax.evaluation.predictor import seen_of, targets_of
from unimp_jax.evaluation.ranking import seen_mask

ITEMS, USERS, LONGEST = 20_000, 4000, 20_000


def corpus_of(histories: list[np.ndarray], num_items: int) -> Corpus:
    """Of everybody's, the last item is the test question."""
    offsets = np.cumsum([0, *map(len, histories)])
    items = np.concatenate(histories).astype(np.int32)
    splits = np.full(len(items), TRAIN, np.int8)
    splits[offsets[1:] - 1] = TEST
    return Corpus(
        item_ids=[str(item) for item in range(num_items)],
        titles=[""] * num_items,
        attributes=[()] * num_items,
        categories=[(f"c{item % 7}", f"d{item % 11}") for item in range(num_items)],
        user_ids=[str(user) for user in range(len(histories))],
        offsets=offsets,
        items=items,
        times=np.zeros(len(items), np.int64),
        ratings=np.full(len(items), np.nan, np.float32),
        splits=splits,
        texts={},
    )


@pytest.fixture(scope="module")
def one_long_history() -> Corpus:
    rng = np.random.default_rng(0)
    short = [rng.choice(ITEMS, 5, replace=False) for _ in range(USERS)]
    return corpus_of([*short, rng.permutation(ITEMS)[:LONGEST]], ITEMS)


def test_one_long_history_costs_what_a_batch_of_scores_costs(one_long_history):
    """Padded to the longest, histories took 305 MiB; the scores of two batches of 512 users take 78."""
    corpus = one_long_history
    ranker = Popularity(corpus)
    tracemalloc.start()
    found = evaluate_ranker(ranker, corpus, "test")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 110 * 2**20
    counts = training_counts(corpus)
    for user in (0, 1, USERS - 1, USERS):
        target, history = found["targets"][user], corpus.history(user, found["positions"][user])
        unseen = np.setdiff1d(np.arange(ITEMS), np.setdiff1d(history, [target]))
        assert found["unfiltered"][user] == scipy.stats.rankdata(-counts)[target]
        assert found["filtered"][user] == scipy.stats.rankdata(-counts[unseen])[unseen == target][0]


def test_a_large_catalogue_is_scored_for_fewer_users_at_a_time(one_long_history, monkeypatch):
    corpus = corpus_of([np.array([1, 2, 3]), np.array([4, 5, 0]), np.array([6, 7, 8])] * 4, 10)
    whole = evaluate_ranker(Popularity(corpus), corpus, "test")
    asked = []

    class Watched(Popularity):
        def scores(self, users: np.ndarray, positions: np.ndarray) -> np.ndarray:
            asked.append(len(users))
            return super().scores(users, positions)

    monkeypatch.setattr(rankers, "SCORES", 55)
    parts = evaluate_ranker(Watched(corpus), corpus, "test")
    assert asked == [5, 5, 5]
    for name, values in whole.items():
        np.testing.assert_array_equal(parts[name], values)


def test_what_the_users_of_a_batch_have_met_is_reported_in_a_bit_an_item(one_long_history):
    corpus = one_long_history
    prompts = np.full((8, 4), -1, np.int32)
    prompts[0, :2], prompts[5, 0] = (USERS, 7), 12
    targets = np.arange(USERS + 1, dtype=np.int32)
    batch = QuestionBatch({}, prompts)
    right = targets_of(batch, targets)
    seen = seen_of(batch, lambda user: corpus.history(user, 4 if user < USERS else LONGEST - 1), ITEMS)
    assert seen.nbytes == 8 * 4 * ITEMS // 8
    assert right.tolist()[0] == [USERS, 7, 0, 0]
    assert right[5, 0] == 12
    mask = np.asarray(seen_mask(seen, ITEMS))
    for row, slot, user, length in ((0, 0, USERS, LONGEST - 1), (0, 1, 7, 4), (5, 0, 12, 4)):
        assert np.flatnonzero(mask[row, slot]).tolist() == sorted(corpus.history(user, length).tolist())
    assert mask.sum() == LONGEST - 1 + 2 * 4, "empty slots have met nothing"


def test_words_of_a_million_items_are_not_a_table_of_a_million_by_all_words():
    """Dense, 30,000 items and as many words would take 3.6 GB."""
    count = 30_000
    categories = [(f"Word {item}", "all") for item in range(count)]
    tracemalloc.start()
    matches = WordMatches(categories, lambda user, _: (f"wORD {user}", "ALL", "unknown"))
    found = matches(np.array([3, 7]), np.array([1, 1]))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 60 * 2**20
    assert (found.shape, found.max(axis=1).tolist()) == ((2, count), [6, 6])  # both words and no other, of at most two
    assert found.argmax(axis=1).tolist() == [3, 7]
    assert found.min() == 2  # one word, and one other


class Constant:
    """A base that knows no difference, but for one item that it has no number for."""

    name = "Constant"

    def scores(self, users: np.ndarray, positions: np.ndarray) -> np.ndarray:
        return np.array([[0, 0, -np.inf, np.nan]] * len(users), np.float32)


def test_a_query_is_matched_whatever_the_base_scores():
    ranker = QueryMatch(Constant(), lambda users, positions: np.array([[0, 1, 1, 1]]))
    (row,) = ranker.scores(np.array([0]), np.array([1]))
    assert row.dtype == np.float32
    assert np.isnan(row[3])
    assert np.argsort(-row[:3]).tolist() == [1, 2, 0]
