"""Baselines against loops and formulas written out; what is learned is checked where the right answer is known."""

import dataclasses
import itertools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from data_pipelines.corpus import TEST, TRAIN, VALIDATION, Corpus, build_corpus
from data_pipelines.errors import DataError
from data_pipelines.schema import Interaction, Item, User
from experiments.baselines.full_softmax import full_softmax
from experiments.baselines.markov import Markov, MarkovConfig, choose_markov
from experiments.baselines.query_match import QueryMatch, WordMatches
from experiments.baselines.ranker import Popularity, evaluate_ranker, padded_histories
from experiments.baselines.ratings import BIASES, BiasedFactorisation, FactorisationConfig, GlobalMean
from experiments.baselines.sasrec import SASRecConfig, SASRecRanker
from experiments.baselines.sasrec_model import SASRecModelConfig
from experiments.baselines.sasrec_training import (
    learning_rate,
    spent_part,
    train_sasrec,
    training_batches,
    training_rows,
)
from tests.data_pipelines.small import small_corpus


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    return small_corpus(num_items=20, num_users=40)


def without_held_out(corpus: Corpus) -> Corpus:
    """The same but for what must not be learned from: the held-out items and ratings are others."""
    held_out = corpus.splits != TRAIN
    items = np.where(held_out, (corpus.items + 1) % corpus.num_items, corpus.items).astype(np.int32)
    return dataclasses.replace(corpus, items=items, ratings=np.where(held_out, 0.5, corpus.ratings))


def circle(num_items: int = 12, num_users: int = 30) -> Corpus:
    """Everyone goes round the catalogue, each from an item of their own."""
    users = []
    for number in range(num_users):
        walk = [(number + step) % num_items for step in range(6 + number % 4)]
        users.append(User(f"u{number}", tuple(Interaction(f"i{item}") for item in walk)))
    return build_corpus([Item(f"i{number}", f"Item {number}") for number in range(num_items)], users)


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
def test_evaluation_ranks_every_user_in_the_whole_catalogue(corpus: Corpus, batch: int) -> None:
    found = evaluate_ranker(Known(corpus.num_items), corpus, "test", batch=batch)
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
        keys = [(len(set(query) & set(corpus.categories[item])), base_row[item]) for item in range(corpus.num_items)]
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
    assert GlobalMean(corpus).predict(users[:2], users[:2]) == pytest.approx(ratings.mean())


def test_sources_without_ratings_are_refused() -> None:
    with pytest.raises(DataError, match="no training interaction has a rating"):
        BiasedFactorisation(circle(), BIASES)


def test_rows_hold_every_training_transition_once_and_no_padding_but_the_last(corpus: Corpus) -> None:
    rows = training_rows(corpus, 8, np.random.default_rng(0))
    used = rows["targets"] >= 0
    assert used.ravel()[: used.sum()].all()
    assert used.size - used.sum() < 8
    found = sorted(zip(rows["items"][used].tolist(), rows["targets"][used].tolist(), strict=True))
    right = []
    for user in range(corpus.num_users):
        events = range(corpus.offsets[user], corpus.offsets[user + 1])
        train = [int(corpus.items[event]) for event in events if corpus.splits[event] == TRAIN]
        right += itertools.pairwise(train)
    assert found == sorted(right)
    for items, targets, segments, positions in zip(*rows.values(), strict=True):
        for place in range(1, len(items)):
            if targets[place] < 0:
                continue
            if segments[place] == segments[place - 1]:
                assert positions[place] == positions[place - 1] + 1
                assert items[place] == targets[place - 1]
            else:
                assert positions[place] == 0
        assert positions[0] == 0


def test_batches_are_of_one_shape_and_repeatable(corpus: Corpus) -> None:
    one, other = training_batches(corpus, 8, 16, seed=3), training_batches(corpus, 8, 16, seed=3)
    for _ in range(6):
        batch = next(one)
        assert {x.shape for x in batch.values()} == {(16, 8)}
        assert all((x == y).all() for x, y in zip(batch.values(), next(other).values(), strict=True))


def test_full_softmax_is_the_plain_cross_entropy_with_its_gradients() -> None:
    """Against optax over whole logits, in float32: 1e-5."""
    keys = jax.random.split(jax.random.key(0), 3)
    hidden, items = jax.random.normal(keys[0], (1024, 8)), 3 * jax.random.normal(keys[1], (30, 8))
    targets = jax.random.randint(keys[2], (1024,), -1, 30)

    def plain(hidden: jax.Array, items: jax.Array) -> jax.Array:
        losses = optax.softmax_cross_entropy_with_integer_labels(hidden @ items.T, jnp.maximum(targets, 0))
        return jnp.where(targets >= 0, losses, 0).sum() / (targets >= 0).sum()

    loss, gradients = jax.value_and_grad(lambda *x: 2 * full_softmax(*x, targets), argnums=(0, 1))(hidden, items)
    right, right_gradients = jax.value_and_grad(lambda *x: 2 * plain(*x), argnums=(0, 1))(hidden, items)
    np.testing.assert_allclose(loss, right, rtol=1e-5)
    for one, other in zip(gradients, right_gradients, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="700 positions are no multiple of 512"):
        full_softmax(hidden[:700], items, targets[:700])


SMALL = SASRecModelConfig(max_length=8, width=16, layers=1, dropout=0.1)


def test_sasrec_sees_neither_the_future_nor_other_segments(corpus: Corpus) -> None:
    ranker = SASRecRanker(corpus, SASRecConfig(model=SMALL))
    model = nnx.jit(nnx.merge(ranker.graph, ranker.parameters))
    items = np.arange(8, dtype=np.int32)[None]
    segments = np.array([[0, 0, 0, 1, 1, 1, 1, 1]], np.int32)
    positions = np.array([[0, 1, 2, 0, 1, 2, 3, 4]], np.int32)
    before = np.asarray(model(items, segments, positions))
    for changed, unmoved in ((6, [0, 1, 2, 3, 4, 5]), (1, [0, 3, 4, 5, 6, 7])):
        others = items.copy()
        others[0, changed] = 15
        after = np.asarray(model(others, segments, positions))
        np.testing.assert_array_equal(after[0, unmoved], before[0, unmoved])
        moved = [place for place in range(8) if place not in unmoved]
        assert (np.abs(after - before)[0, moved].max(axis=1) > 1e-4).all()


def test_sasrec_scores_do_not_depend_on_padding(corpus: Corpus) -> None:
    """A short history scores as the row of just its items, 1e-6 for the order of sums."""
    ranker = SASRecRanker(corpus, SASRecConfig(model=dataclasses.replace(SMALL, embedding_std=0.3)))
    users, positions = corpus.held_out(VALIDATION)
    found = ranker.scores(users, positions)
    model = nnx.merge(ranker.graph, ranker.parameters)
    for row, user, position in list(zip(found, users, positions, strict=True))[:2]:
        history = corpus.history(user, position)[None, -8:]
        steps = np.arange(history.shape[1])[None]
        hidden = model(history, np.zeros_like(history), steps)[0, -1]
        np.testing.assert_allclose(row, model.items[...] @ hidden, atol=1e-5)


def test_sasrec_learns_the_circle_by_steps_and_by_seconds(tmp_path: Path) -> None:
    corpus = circle()
    config = SASRecConfig(model=SMALL, steps=150, seconds=60.0, batch_size=8, learning_rate=0.02, validations=15)
    ranker = train_sasrec(corpus, config)
    assert (evaluate_ranker(ranker, corpus, "test")["unfiltered"] == 1).mean() > 0.9
    assert [record["step"] for record in ranker.curve] == [*range(10, 151, 10)]
    ranks = evaluate_ranker(ranker, corpus, "validation")["filtered"]
    ndcg = np.where(ranks <= 10, 1 / np.log2(1 + ranks), 0).mean()
    assert ndcg == pytest.approx(max(record["ndcg10"] for record in ranker.curve))
    ranker.save(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", "curve.jsonl", "parameters.npz"}
    short = train_sasrec(corpus, dataclasses.replace(config, steps=None, seconds=0.5))
    assert short.curve[-1]["learning_rate"] < 0.1 * config.learning_rate
    assert 0.5 <= short.curve[-1]["seconds"] < 30


def test_the_rate_follows_the_tighter_budget() -> None:
    config = SASRecConfig(steps=100, seconds=10.0, learning_rate=1.0, warmup=0.1)
    assert spent_part(config, 50, 1.0) == 0.5
    assert spent_part(config, 10, 8.0) == 0.8
    assert spent_part(config, 10, 80.0) == 1
    assert learning_rate(config, 0.1) == 1
    assert learning_rate(config, 0.05) == pytest.approx(0.5)
    assert learning_rate(config, 0.55) == pytest.approx(0.5)
    assert learning_rate(config, 1.0) == pytest.approx(0)


def test_nothing_is_learned_from_held_out_interactions(corpus: Corpus) -> None:
    """Other held-out answers, the same fits (asked about validation, whose history holds none of them)."""
    other = without_held_out(corpus)
    users, positions = corpus.held_out(VALIDATION)
    config = SASRecConfig(model=SMALL, steps=3, batch_size=4, validations=1)
    pairs = [
        (Popularity(corpus), Popularity(other)),
        (Markov(corpus), Markov(other)),
        (train_sasrec(corpus, config), train_sasrec(other, config)),
    ]
    for one, two in pairs:
        np.testing.assert_array_equal(one.scores(users, positions), two.scores(users, positions))
    one, two = BiasedFactorisation(corpus, BIASES), BiasedFactorisation(other, BIASES)
    assert (one.users == two.users).all()
    assert GlobalMean(corpus).mean == GlobalMean(other).mean


def test_wrong_configurations_are_refused() -> None:
    with pytest.raises(ValueError, match="one must end the training"):
        SASRecConfig(steps=None, seconds=None)
    with pytest.raises(ValueError, match="not divisible by heads"):
        SASRecModelConfig(width=10, heads=4)
    with pytest.raises(ValueError, match="needs at least the last item"):
        MarkovConfig(last=0)
