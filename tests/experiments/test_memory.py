"""A memory beside the model: the mixture of both, chosen on validation, kept with the run and answered from."""

from __future__ import annotations

import json

import numpy as np
import pyarrow.parquet as pq
import pytest

from data_pipelines.corpus import VALIDATION, split_by_users
from data_pipelines.errors import DataError
from data_pipelines.tasks import Query
from data_pipelines.tasks.selection import PRIOR
from experiments.baselines.item_knn import ItemKNN
from experiments.baselines.markov import Markov
from experiments.baselines.ratings import BiasedFactorisation
from experiments.evals.config import EvaluationConfig, GenerateConfig
from experiments.evals.queries import evaluation_queries
from experiments.evals.rating import expected_ratings, rated
from experiments.evals.recommender import SHARES, NextItem, WithMemory, choose_memory, interpolated
from experiments.evals.selection import most_probable_sets
from experiments.evaluate import evaluate_run
from experiments.generate import generate
from experiments.memory import FILE, Memory, read_memory
from experiments.run import open_model
from tests.experiments.tiny_run import experiment, prepare_source
from tests.experiments.untrained_run import write_run
from unimp_jax.evaluation.metrics import ranking_metrics

MODEL = "UniMP + memory"


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    """A run that was never trained, and the tables of its evaluation."""
    folder = tmp_path_factory.mktemp("memory")
    run = write_run(experiment(prepare_source(folder)), folder / "run", scale=1.5)
    tasks = "recommendation", "search", "selection", "rating"
    tables = evaluate_run(run, EvaluationConfig(tasks=tasks, rivals=())).tables
    return run, {table.task: table for table in tables}


def probabilities(run, users, positions):
    """Of all items by the memory of a run, in plain numpy: float64 [M, I]."""
    data, predictor, _ = open_model(run, "best")
    memory = read_memory(run).items
    log_p = NextItem(data, predictor).scores(users, positions).astype(np.float64)
    ranker = Markov(data.corpus, memory.markov) if memory.markov else ItemKNN(data.corpus, memory.item_knn)
    powers = np.asarray(ranker.scores(users, positions), np.float64) ** memory.calibration.temperature
    counted = powers / powers.sum(axis=1, keepdims=True)
    even = memory.calibration.even
    counted = (1 - even) * counted + even / counted.shape[1]
    own = np.exp(log_p) / np.exp(log_p).sum(axis=1, keepdims=True)
    return data, (1 - memory.share) * own + memory.share * counted


def test_our_rows_come_first_those_with_the_most_beside_the_model_before(evaluated):
    tables = {task: [row.model for row in table.rows] for task, table in evaluated[1].items()}
    assert tables["recommendation"][:2] == [MODEL, "UniMP"]
    assert tables["search"][:3] == [f"{MODEL} + query", "UniMP + query", "UniMP"]
    assert tables["selection"][0] == MODEL
    assert tables["rating"][:2] == [f"{MODEL}, expected rating", "UniMP, expected rating"]
    assert "UniMP" in tables["selection"]


def test_held_out_items_are_ranked_by_the_mixture(evaluated):
    run, _ = evaluated
    answers = pq.read_table(run / "evaluation" / "test-recommendation.parquet").to_pydict()
    data, _, _ = open_model(run, "best")
    users = np.array([data.corpus.user_ids.index(user) for user in answers["user"]])
    positions = np.array(answers["position"])
    _, p_MI = probabilities(run, users, positions)
    targets = data.corpus.targets(users, positions)
    higher = p_MI > np.take_along_axis(p_MI, targets[:, None], axis=1) * (1 + 1e-5)
    np.testing.assert_allclose(answers[f"{MODEL}: rank, unfiltered"], 1 + higher.sum(axis=1), atol=1)


def test_selection_is_by_bayes_from_the_mixture(evaluated):
    run, _ = evaluated
    answers = pq.read_table(run / "evaluation" / "test-selection.parquet").to_pydict()
    data, _, _ = open_model(run, "best")
    numbers = {item: number for number, item in enumerate(data.corpus.item_ids)}
    users = np.array([data.corpus.user_ids.index(user) for user in answers["user"]])
    _, p_MI = probabilities(run, users, np.array(answers["position"]))
    candidates = np.array([[numbers[item] for item in row] for row in answers["candidates"]])
    log_p = np.log(np.take_along_axis(p_MI, candidates, axis=1))
    sets = most_probable_sets(log_p, data.corpus.num_items, PRIOR)
    chosen = [{row[place] for place in places} for row, places in zip(answers["candidates"], sets, strict=True)]
    assert np.mean([a == set(b) for a, b in zip(chosen, answers[f"{MODEL}: chosen items"], strict=True)]) > 0.95


def test_an_open_question_is_answered_from_the_memory(evaluated):
    run, _ = evaluated
    data, _, _ = open_model(run, "best")
    user = data.corpus.user_ids.index("5")
    met = int(data.corpus.offsets[user + 1] - data.corpus.offsets[user])
    _, p_MI = probabilities(run, np.array([user]), np.array([met]))
    p_MI[0, data.corpus.history(user, met)] = 0
    answer = json.loads(generate(run, GenerateConfig(user="5", k=4, json=True), None))["items"]
    np.testing.assert_allclose([item["probability"] for item in answer], np.sort(p_MI[0])[::-1][:4], rtol=1e-4)
    assert [item["item"] for item in answer] == [data.corpus.item_ids[item] for item in np.argsort(-p_MI[0])[:4]]


def test_ratings_are_a_mean_of_the_model_and_of_the_factorisation_weighed_on_validation(evaluated):
    run, _ = evaluated
    answers = pq.read_table(run / "evaluation" / "test-rating.parquet").to_pydict()
    share = read_memory(run).ratings.share
    ours, counted, mixed = (
        np.array(answers[f"{model}: rating"])
        for model in ("UniMP, expected rating", "biased factorisation", f"{MODEL}, expected rating")
    )
    np.testing.assert_allclose(mixed, (1 - share) * ours + share * counted, rtol=1e-6)
    data, predictor, _ = open_model(run, "best")
    queries = evaluation_queries(data, "validation", "rating").queries
    users, items, actual = rated(data.corpus, queries)
    assert [*items] == [query.right[0] for query in queries]
    assert np.isfinite(actual).all()
    ours = expected_ratings(data, predictor, queries)
    counted = BiasedFactorisation(data.corpus, read_memory(run).ratings.factorisation).predict(users, items)
    errors = {share: np.mean((share * counted + (1 - share) * ours - actual) ** 2) for share in SHARES}
    assert share == min(errors, key=errors.get)
    question = GenerateConfig(task="rating", user="5", item="3", json=True, new_tokens=4)
    told = json.loads(generate(run, question, None))["expected"]
    user = data.corpus.user_ids.index("5")
    met = int(data.corpus.offsets[user + 1] - data.corpus.offsets[user])
    item = data.corpus.item_ids.index("3")
    open_question = [Query("rating", user, met, (item,))]
    own = expected_ratings(data, predictor, open_question)[0]
    theirs = BiasedFactorisation(data.corpus, read_memory(run).ratings.factorisation).predict([user], [item])[0]
    assert told == pytest.approx((1 - share) * own + share * theirs, rel=1e-4)


def test_what_is_kept_is_the_best_on_validation(evaluated):
    run, _ = evaluated
    data, predictor, _ = open_model(run, "best")
    corpus, memory = data.corpus, read_memory(run).items
    users, positions = corpus.held_out(VALIDATION)
    targets = corpus.targets(users, positions)

    def ndcg(scores_MI):
        scores = np.array(scores_MI)
        for row, (user, position) in enumerate(zip(users, positions, strict=True)):
            others = np.setdiff1d(corpus.history(user, position), targets[row])
            scores[row, others] = -np.inf
        right = np.take_along_axis(scores, targets[:, None], axis=1)
        ranks = 0.5 + (scores > right).sum(axis=1) + 0.5 * (scores == right).sum(axis=1)
        return float(ranking_metrics(ranks.astype(np.float32))["NDCG@10"].mean())

    ours = NextItem(data, predictor).scores(users, positions)
    ranker = Markov(corpus, memory.markov) if memory.markov else ItemKNN(corpus, memory.item_knn)
    counted = memory.calibration.log_probabilities(ranker.scores(users, positions))
    scores = {share: ndcg(interpolated(ours, counted, share)) for share in SHARES}
    assert scores[memory.share] == pytest.approx(max(scores.values()), abs=1e-6)
    others = [Markov(corpus), ItemKNN(corpus)]
    best = choose_memory(data, predictor, others)
    assert isinstance(best, WithMemory)
    assert choose_memory(data.of(split_by_users(corpus, seed=0)), predictor, []) is None


def test_a_mixture_of_distributions_is_one():
    rng = np.random.default_rng(0)
    model, memory = (np.log(rng.dirichlet(np.full(7, 0.3), 5)) for _ in range(2))
    for share in SHARES:
        mixed = np.exp(interpolated(model - 0.3, memory, share))
        np.testing.assert_allclose(mixed, (1 - share) * np.exp(model) + share * np.exp(memory), rtol=1e-5)
        np.testing.assert_allclose(mixed.sum(axis=1), 1, rtol=1e-5)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[1]",
        '{"items": {"share": 2, "calibration": {}, "markov": {}}}',
        '{"items": {"share": 0.5, "calibration": {}}}',
        '{"ratings": {"share": 0.5}}',
        '{"people": null}',
    ],
)
def test_a_damaged_file_is_named(text, tmp_path):
    assert read_memory(tmp_path) == Memory()
    (tmp_path / FILE).write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=FILE):
        read_memory(tmp_path)
