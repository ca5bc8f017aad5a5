"""Baselines against loops and formulas written out; what is learned is checked where the right answer is known."""

import dataclasses

import numpy as np
import pytest

from data_pipelines.corpus import TEST, TRAIN, VALIDATION, Corpus
from data_pipelines.errors import DataError
from experiments.baselines import ranker
from experiments.baselines.markov import Markov, MarkovConfig, choose_markov
from experiments.baselines.query_match import QueryMatch, WordMatches
from experiments.baselines.ranker import Popularity, evaluate_ranker, padded_histories
from experiments.baselines.ratings import BIASES, BiasedFactorisation, FactorisationConfig
from experiments.baselines.sasrec import SASRecConfig
from experiments.baselines.sasrec_model import SASRecModelConfig
from experiments.baselines.sasrec_training import train_sasrec
from tests.data_pipelines.small import circle, small_corpus


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    return small_corpus(num_items=20, num_users=40)


def without_held_out(corpus: Corpus) -> Corpus:
    """The same but for what must not be learned from: the held-out items and ratings are others."""
    held_out = corpus.splits != TRAIN
    items = np.where(held_out, (corpus.items + 1) % corpus.num_items, corpus.items).astype(np.int32)
    return dataclasses.replace(corpus, items=items, ratings=np.where(held_out, 0.5, corpus.ratings))


def test_padded_histories_are_the_corpus_histories(corpus: Corpus) -> None:
    users, positions = corpus.held_out(TEST)
    for longest in (None, 1, 4, 30):
        for row, user, position in zip(
            padded_histories(corpus, users, positions, longest), users, positions, strict=True
        ):
            history = corpus.history(user, position).tolist()
            right = history if longest is None else history[-longest:]
            assert row.tolist() == right + [-1] * (len(row) - len(right))


class Known:
    """Scores that depend on user and position alone, so that a brute force can make them again."""

    name = "Known"

    def __init__(self, num_items: int):
        self.num_items = num_items

    def scores(self, users: np.ndarray, positions: np.ndarray) -> np.ndarray:
        grid = users[:, None] * 7 + positions[:, None] * 3 + np.arange(self.num_items) * 5
        return (grid % 11).astype(np.float32)


@pytest.mark.parametrize("batch", [1, 7, 512])
def test_evaluation_ranks_every_user_in_the_whole_catalogue(
    corpus: Corpus, batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ranker, "BATCH", batch)
    found = evaluate_ranker(Known(corpus.num_items), corpus, "test")
    assert found["users"].tolist() == corpus.held_out(TEST)[0].tolist()
    for number, (user, position) in enumerate(zip(found["users"], found["positions"], strict=True)):
        target = corpus.items[corpus.offsets[user] + position]
        scores = [(user * 7 + position * 3 + item * 5) % 11 for item in range(corpus.num_items)]
        seen = set(corpus.history(user, position).tolist()) - {target}
        for name, open_items in (
            ("unfiltered", range(20)),
            ("filtered", [item for item in range(20) if item not in seen]),
        ):
            others = [scores[item] for item in open_items if item != target]
            right = 1 + sum(x > scores[target] for x in others) + sum(x == scores[target] for x in others) / 2
            assert found[name][number] == right


def test_popularity_counts_training_only(corpus: Corpus) -> None:
    right = [int(((corpus.items == item) & (corpus.splits == TRAIN)).sum()) for item in range(corpus.num_items)]
    assert Popularity(corpus).scores(np.array([0, 3]), np.array([1, 1])).tolist() == [right, right]


@pytest.mark.parametrize("config", [MarkovConfig(3, 0, 0.7, 0.5), MarkovConfig(2, 1, 0.5, 1), MarkovConfig(3, 0.5)])
def test_markov_is_the_formula_of_its_page(corpus: Corpus, config: MarkovConfig) -> None:
    num_items, last = corpus.num_items, config.last
    counts = np.zeros((last + 1, num_items, num_items))
    for user in range(corpus.num_users):
        events = range(corpus.offsets[user], corpus.offsets[user + 1])
        train = [corpus.items[event] for event in events if corpus.splits[event] == TRAIN]
        for lag in range(1, last + 1):
            for before, after in zip(train[:-lag], train[lag:], strict=True):
                counts[lag, before, after] += 1
    users, positions = corpus.held_out(TEST)
    found = Markov(corpus, config).scores(users, positions)
    for row, user, position in zip(found, users, positions, strict=True):
        right = np.zeros(num_items)
        for back, item in enumerate(corpus.history(user, position)[::-1][:last], start=1):
            line = sum(config.spread ** abs(lag - back) * counts[lag, item] for lag in range(1, last + 1))
            right += config.decay ** (back - 1) * line / max(line.sum(), 1) ** config.normalise
        np.testing.assert_allclose(row, right, atol=2e-3 * right[right > 0].min(initial=1))  # the floor of popularity


def test_markov_chooses_on_validation_and_finds_the_circle() -> None:
    chain = choose_markov(circle(), [MarkovConfig(last=1), MarkovConfig(last=3)])
    assert (evaluate_ranker(chain, circle(), "test")["unfiltered"] == 1).all()


def test_query_match_orders_by_matched_words_then_by_fewest_others_then_by_the_base(corpus: Corpus) -> None:
    users, positions = corpus.held_out(TEST)
    words = [corpus.categories[target] for target in corpus.targets(users, positions)]
    asked = dict(zip(zip(users.tolist(), positions.tolist(), strict=True), words, strict=True))
    matches = WordMatches(corpus.categories, lambda user, position: asked[user, position])
    found, base = QueryMatch(Popularity(corpus), matches), Popularity(corpus)
    scores, base_scores = found.scores(users, positions), base.scores(users, positions)
    for row, base_row, query in zip(scores, base_scores, words, strict=True):
        keys = []
        for item in range(corpus.num_items):
            of_item, asked_words = set(corpus.categories[item]), set(query)
            matched = len(asked_words & of_item)
            keys.append((matched, -len(of_item - asked_words) if matched else 0, base_row[item]))
        for one in range(corpus.num_items):
            for other in range(corpus.num_items):
                assert (row[one] > row[other]) == (keys[one] > keys[other])
    assert found.name == "Popularity + query"
    with pytest.raises(ValueError, match=r"must be \[queries, items\]"):
        QueryMatch(base, lambda users, positions: np.zeros(3)).scores(users, positions)


def test_a_factorisation_of_rank_0_solves_the_ridge_regression(corpus: Corpus) -> None:
    config = FactorisationConfig(rank=0, user_ridge=2.0, item_ridge=0.5, sweeps=200)
    found = BiasedFactorisation(corpus, config)
    events = np.flatnonzero((corpus.splits == TRAIN) & ~np.isnan(corpus.ratings))
    users = np.searchsorted(corpus.offsets, events, side="right") - 1
    design = np.zeros((len(events), corpus.num_users + corpus.num_items))
    design[np.arange(len(events)), users] = 1
    design[np.arange(len(events)), corpus.num_users + corpus.items[events]] = 1
    ridge = np.diag([2.0] * corpus.num_users + [0.5] * corpus.num_items)
    ratings = corpus.ratings[events].astype(np.float64)
    right = np.linalg.solve(design.T @ design + ridge, design.T @ (ratings - ratings.mean()))
    np.testing.assert_allclose(np.concatenate([found.users, found.items]), right, atol=1e-9)
    predicted = found.predict(users, corpus.items[events])
    np.testing.assert_allclose(predicted, np.clip(ratings.mean() + design @ right, 0.5, 5), atol=1e-6)
    assert found.mean == pytest.approx(ratings.mean())


def test_sources_without_ratings_are_refused() -> None:
    with pytest.raises(DataError, match="no training interaction has a rating"):
        BiasedFactorisation(circle(), BIASES)


def test_nothing_is_learned_from_held_out_interactions(corpus: Corpus) -> None:
    """Other held-out answers, the same fits (asked about validation, whose history holds none of them)."""
    other = without_held_out(corpus)
    users, positions = corpus.held_out(VALIDATION)
    model = SASRecModelConfig(max_length=8, width=16, layers=1)
    config = SASRecConfig(model=model, steps=3, batch_size=4, validations=1)
    pairs = [
        (Popularity(corpus), Popularity(other)),
        (Markov(corpus), Markov(other)),
        (train_sasrec(corpus, config), train_sasrec(other, config)),
    ]
    for one, two in pairs:
        np.testing.assert_array_equal(one.scores(users, positions), two.scores(users, positions))
    one, two = BiasedFactorisation(corpus, BIASES), BiasedFactorisation(other, BIASES)
    assert (one.users == two.users).all()
    assert one.mean == two.mean


def test_wrong_configurations_are_refused() -> None:
    with pytest.raises(ValueError, match="one of them must limit the training"):
        SASRecConfig(steps=None, seconds=None)
    with pytest.raises(ValueError, match="not divisible by heads"):
        SASRecModelConfig(width=10, heads=4)
    with pytest.raises(ValueError, match="last is 0 and must be at least 1"):
        MarkovConfig(last=0)
