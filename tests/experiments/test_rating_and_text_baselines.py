"""Factorisation against its objective and a planted answer, texts on corpora small enough to see through."""

import dataclasses
import tracemalloc

import numpy as np
import pytest
from rouge_score.rouge_scorer import RougeScorer
from scipy.sparse import csr_array

from data_pipelines.corpus import TEST, TRAIN, VALIDATION, Corpus, build_corpus, split_by_users
from data_pipelines.errors import DataError
from data_pipelines.schema import Interaction, Item, User
from experiments.baselines.explanations import ConsensusExplanation, NearestExplanation, training_texts
from experiments.baselines.ratings import (
    BIASES,
    BiasedFactorisation,
    FactorisationConfig,
    choose_factorisation,
    ridge_regressions,
    training_ratings,
)
from tests.data_pipelines.small import small_corpus


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    return small_corpus(num_items=20, num_users=40)


def planted(rank: int, num_users: int = 60, num_items: int = 30) -> Corpus:
    """Ratings that are a sum of biases and a product of `rank` factors, each user's of 20 random items."""
    rng = np.random.default_rng(0)
    biases = 3 + rng.normal(size=(num_users, 1)) + rng.normal(size=num_items)
    ratings = biases + rng.normal(size=(num_users, rank)) @ rng.normal(size=(rank, num_items))
    users = []
    for user, row in enumerate(ratings):
        met = rng.permutation(num_items)[:20]
        users.append(User(f"u{user}", tuple(Interaction(f"i{item}", rating=float(row[item])) for item in met)))
    return build_corpus([Item(f"i{item}", f"Item {item}") for item in range(num_items)], users)


def held_out_error(model: BiasedFactorisation, corpus: Corpus, split: int) -> float:
    """Root mean squared error, in stars."""
    users, positions = corpus.held_out(split)
    right = corpus.ratings[corpus.offsets[users] + positions]
    return float(np.sqrt(np.nanmean((model.predict(users, corpus.targets(users, positions)) - right) ** 2)))


def test_users_with_one_rating_are_not_all_solved_for_at_once() -> None:
    """A system of equations per user takes more memory than the ratings where these are few."""
    users, rank = 200_000, 16
    rated = csr_array((np.ones(users), (np.arange(users), np.arange(users) % 50)), (users, 50))
    tracemalloc.start()
    ridge_regressions(rated, rated, np.zeros(50), np.ones((50, rank)), 1.0, 1.0)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 0.5 * 8 * users * (rank + 1) ** 2


def test_factorisation_is_alternating_least_squares_written_out(corpus: Corpus) -> None:
    """Each half of a sweep as one dense ridge regression by user or item, from the same start."""
    config = FactorisationConfig(rank=3, factor_ridge=0.7, user_ridge=2.0, item_ridge=0.5, sweeps=3, seed=4)
    found = BiasedFactorisation(corpus, config)
    users, items, ratings = training_ratings(corpus)
    user_side, item_side = np.zeros((corpus.num_users, 4)), np.zeros((corpus.num_items, 4))
    item_side[:, 1:] = np.random.default_rng(4).normal(size=(corpus.num_items, 3)) / 3**0.5
    for _ in range(3):
        for here, there, own, others, ridge in (
            (user_side, item_side, users, items, 2.0),
            (item_side, user_side, items, users, 0.5),
        ):
            for row in range(len(here)):
                rated = own == row
                design = there[others[rated]].copy()
                left = ratings[rated] - ratings.mean() - design[:, 0]
                design[:, 0] = 1
                ridges = np.sqrt(np.diag([ridge, 0.7, 0.7, 0.7]))
                stacked = np.concatenate([design, ridges]), np.concatenate([left, np.zeros(4)])
                here[row] = np.linalg.lstsq(*stacked)[0]
    np.testing.assert_allclose(np.column_stack([found.users, found.user_factors]), user_side, atol=1e-9)
    np.testing.assert_allclose(np.column_stack([found.items, found.item_factors]), item_side, atol=1e-9)
    right = ratings.mean() + found.users[users] + found.items[items]
    right += np.einsum("nk,nk->n", found.user_factors[users], found.item_factors[items])
    predicted = found.predict(users, items)
    assert predicted.dtype == np.float32
    np.testing.assert_allclose(predicted, np.clip(right, ratings.min(), ratings.max()), atol=1e-5)


@pytest.mark.parametrize("by_users", [False, True])
def test_a_prediction_reads_all_ratings_before_the_question(corpus: Corpus, by_users: bool) -> None:
    """Also those that are not trained on, as a prompt does, by one dense ridge regression for each question."""
    corpus = split_by_users(corpus, 0) if by_users else corpus
    found = BiasedFactorisation(corpus, FactorisationConfig(rank=3, factor_ridge=0.7, user_ridge=2.0))
    users, positions = corpus.held_out(TEST)
    items, right = corpus.targets(users, positions), []
    for user, position, item in zip(users, positions, items, strict=True):
        ratings = corpus.ratings[corpus.offsets[user] :][:position]
        met = corpus.history(user, position)[~np.isnan(ratings)]
        design = np.column_stack([np.ones(len(met)), found.item_factors[met]])
        left = ratings[~np.isnan(ratings)] - found.mean - found.items[met]
        own = np.linalg.solve(design.T @ design + np.diag([2.0, 0.7, 0.7, 0.7]), design.T @ left)
        right.append(found.mean + found.items[item] + own[0] + found.item_factors[item] @ own[1:])
    low, high = np.nanmin(corpus.ratings[corpus.splits == TRAIN]), np.nanmax(corpus.ratings[corpus.splits == TRAIN])
    predicted = found.predict(users, items, positions)
    np.testing.assert_allclose(predicted, np.clip(right, low, high), atol=1e-5)
    assert np.abs(predicted - found.predict(users, items)).max() > 0.01


def test_a_planted_factorisation_is_recovered_and_its_rank_chosen() -> None:
    """Of ratings without noise, so the ridges are the only error; the biased mean errs by more than a star."""
    corpus = planted(rank=2)
    grid = [FactorisationConfig(rank, 1e-2, 1e-2, 1e-2, sweeps=100) for rank in (0, 2, 8)]
    found = choose_factorisation(corpus, grid)
    assert found.config.rank == 2
    assert held_out_error(found, corpus, TEST) < 0.01
    assert held_out_error(BiasedFactorisation(corpus, BIASES), corpus, TEST) > 1


def test_the_default_stands_where_there_is_nothing_to_choose_by(corpus: Corpus) -> None:
    unrated = dataclasses.replace(corpus, ratings=np.where(corpus.splits == VALIDATION, np.nan, corpus.ratings))
    assert choose_factorisation(unrated, [FactorisationConfig(rank=1)]).config == FactorisationConfig()


def test_factorisation_refuses_what_has_no_answer(corpus: Corpus) -> None:
    with pytest.raises(ValueError, match=r"rank .* must be at least 0 and sweeps .* at least 1"):
        FactorisationConfig(rank=-1)
    with pytest.raises(ValueError, match="ridges must be above 0"):
        FactorisationConfig(factor_ridge=0)
    with pytest.raises(DataError, match="no training interaction has a rating"):
        BiasedFactorisation(dataclasses.replace(corpus, ratings=np.full_like(corpus.ratings, np.nan)))


REVIEWS = [
    ("ann", [("film", "slow romance"), ("book", "tender romance"), ("disc", "tender notes"), ("lamp", "bright")]),
    ("bob", [("film", "loud explosions"), ("lamp", "loud explosions of light"), ("film", "x"), ("film", "x")]),
    ("cat", [("disc", "explosions loud as drums"), ("disc", "a romance of tender strings"), ("pen", ""), ("pen", "")]),
    ("dan", [("lamp", ""), ("book", ""), ("film", "only held out"), ("pen", "only held out")]),
]


@pytest.fixture
def reviews() -> Corpus:
    """Each user's first two are training, the others held out."""
    users = [User(name, tuple(Interaction(item, text=text) for item, text in written)) for name, written in REVIEWS]
    return build_corpus([Item(name, name.title()) for name in ("film", "book", "disc", "lamp", "pen")], users)


def test_training_texts_are_those_of_training_interactions_in_order(reviews: Corpus) -> None:
    events, texts = training_texts(reviews)
    assert events.tolist() == [0, 1, 4, 5, 8, 9]
    assert texts == [text for _, written in REVIEWS for _, text in written[:2] if text]
    with pytest.raises(DataError, match="no training interaction has a text"):
        training_texts(dataclasses.replace(reviews, texts={2: "held out"}))


def test_nearest_text_is_about_the_item_in_the_words_of_the_user(reviews: Corpus) -> None:
    ann, bob, cat, dan = range(4)
    film, book, disc, lamp, pen = range(5)
    model = NearestExplanation(reviews)
    asked = {
        (ann, disc): "a romance of tender strings",
        (bob, disc): "explosions loud as drums",
        (ann, lamp): "loud explosions of light",  # the only one about it
        (cat, book): "tender romance",
        (dan, film): "loud explosions",  # wrote nothing: what is nearest to everyone
    }
    users, items = np.array(list(asked)).T
    assert model.explain(users, items) == list(asked.values())
    own = {text for _, text in REVIEWS[bob][1][:2]}
    assert set(model.explain(np.array([bob]), np.array([pen]))) <= own  # nobody wrote about it
    assert model.explain(np.array([dan]), np.array([pen])) == [model.constant]


def test_consensus_text_has_most_in_common_with_what_the_item_and_the_user_are_known_for(reviews: Corpus) -> None:
    ann, bob, cat, dan = range(4)
    film, book, disc, lamp, pen = range(5)
    model = ConsensusExplanation(reviews)

    def plain(texts: list[str]) -> str:
        """The text of highest mean ROUGE-1 with the others."""
        scorer = RougeScorer(["rouge1"], use_stemmer=True)
        worth = [sum(scorer.score(a, b)["rouge1"].fmeasure for b in texts if b is not a) for a in texts]
        return texts[int(np.argmax(worth))]

    written = {name: [text for _, text in one[:2] if text] for name, one in REVIEWS}
    about = {
        disc: written["cat"],
        lamp: written["bob"][1:],
        book: written["ann"][1:],
        film: ["slow romance", "loud explosions"],
    }
    for user, item in [(ann, disc), (bob, disc), (cat, lamp), (cat, book), (ann, film)]:
        texts = list(dict.fromkeys(about[item] + written[REVIEWS[user][0]]))
        assert model.explain(np.array([user]), np.array([item])) == [plain(texts)]
        own = "a loud romance of explosions"
        assert model.explain(np.array([user]), np.array([item]), [own]) == [plain([*texts, own])]
    assert model.explain(np.array([dan]), np.array([pen])) == [plain(training_texts(reviews)[1])]
    assert len(ConsensusExplanation(reviews, most=1).explain(np.array([ann]), np.array([film]))) == 1


def test_constant_text_is_the_medoid(reviews: Corpus) -> None:
    """Against the cosines of all pairs, of TF-IDF written out: tf * (1 + log((1 + T) / (1 + df)))."""
    texts = training_texts(reviews)[1]
    words = sorted({word for text in texts for word in text.split()})
    counts = np.array([[text.split().count(word) for word in words] for text in texts], np.float64)
    vectors = counts * (1 + np.log((1 + len(texts)) / (1 + (counts > 0).sum(axis=0))))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    assert NearestExplanation(reviews).constant == texts[(vectors @ vectors.T).mean(axis=1).argmax()]


def test_nothing_is_learned_from_held_out_ratings_and_texts(corpus: Corpus, reviews: Corpus) -> None:
    """Other held-out answers, the same predictions for every pair."""

    def changed(corpus: Corpus) -> Corpus:
        held_out = corpus.splits != TRAIN
        items = np.where(held_out, (corpus.items + 1) % corpus.num_items, corpus.items).astype(np.int32)
        ratings = np.where(held_out, 0.5, corpus.ratings).astype(np.float32)
        texts = {event: "loud tender" if held_out[event] else text for event, text in corpus.texts.items()}
        texts |= {int(event): "tender loud" for event in np.flatnonzero(held_out)}
        return dataclasses.replace(corpus, items=items, ratings=ratings, texts=texts)

    users, items = (x.ravel() for x in np.indices((corpus.num_users, corpus.num_items)))
    one, two = BiasedFactorisation(corpus), BiasedFactorisation(changed(corpus))
    np.testing.assert_array_equal(one.predict(users, items), two.predict(users, items))
    users, items = (x.ravel() for x in np.indices((reviews.num_users, reviews.num_items)))
    one, two = NearestExplanation(reviews), NearestExplanation(changed(reviews))
    assert one.explain(users, items) == two.explain(users, items)
    assert one.constant == two.constant
