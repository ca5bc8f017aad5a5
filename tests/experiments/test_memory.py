"""A memory beside the model: the mixture of both, chosen on validation, kept with the run and answered from."""

from __future__ import annotations

import dataclasses
import functools
import json

import numpy as np
import pyarrow.parquet as pq
import pytest

from data_pipelines.corpus import TRAIN, VALIDATION
from data_pipelines.errors import DataError
from data_pipelines.tasks import Query
from data_pipelines.tasks.selection import PRIOR
from experiments.baselines.calibration import Calibration, calibrate
from experiments.baselines.item_knn import ItemKNN, choose_item_knn
from experiments.baselines.markov import Markov, MarkovConfig, choose_markov
from experiments.baselines.ratings import BiasedFactorisation, FactorisationConfig
from experiments.evals import EVALS
from experiments.evals.config import EvaluationConfig, GenerateConfig
from experiments.evals.queries import evaluation_queries
from experiments.evals.rating import expected_ratings, rated
from experiments.evals.recommender import POOLS, SHARES, NextItem, among_items, choose_memories, pooled
from experiments.evals.selection import best_sets
from experiments.evaluate import evaluate_run
from experiments.generate import generate
from experiments.memory import FILE, Counts, ItemMemory, Memory, RatingMemory, read_memory, save_memory
from experiments.run import open_model as open_anew
from tests.experiments.tiny_run import QUICK, experiment, prepare_source
from tests.experiments.untrained_run import write_run
from unimp_jax.evaluation.metrics import ranking_metrics

MODEL = "UniMP + memory"
open_model = functools.cache(open_anew)  # tests only read what is opened


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    """A run that was never trained, and the tables of its evaluation."""
    folder = tmp_path_factory.mktemp("memory")
    run = write_run(experiment(prepare_source(folder), **QUICK), folder / "run", scale=1.5)
    tasks = "recommendation", "search", "selection", "rating"
    tables = evaluate_run(run, EvaluationConfig(tasks=tasks, rivals=())).tables
    return run, {table.task: table for table in tables}


def probabilities(run, task, users, positions):
    """Of all items by the memory that a run has for a task, in plain numpy: float64 [M, I]."""
    data, predictor, _ = open_model(run, "best")
    memory = read_memory(run).items[task]
    log_p = NextItem(data, predictor).scores(users, positions).astype(np.float64)
    own = np.exp(log_p) / np.exp(log_p).sum(axis=1, keepdims=True)
    pool = [(1 - sum(one.share for one in memory.counts), own)]
    for one in memory.counts:
        ranker = Markov(data.corpus, one.markov) if one.markov else ItemKNN(data.corpus, one.item_knn)
        powers = np.asarray(ranker.scores(users, positions), np.float64) ** one.calibration.temperature
        even = one.calibration.even / powers.shape[1]
        calibrated = (1 - one.calibration.even) * powers / powers.sum(axis=1, keepdims=True) + even
        pool.append((one.share, calibrated))
    if memory.pool == "linear":
        return data, sum(share * p_MI for share, p_MI in pool)
    product = np.prod([p_MI**share for share, p_MI in pool], axis=0)
    return data, product / product.sum(axis=1, keepdims=True)


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
    _, p_MI = probabilities(run, "recommendation", users, positions)
    targets = data.corpus.targets(users, positions)
    higher = p_MI > np.take_along_axis(p_MI, targets[:, None], axis=1) * (1 + 1e-5)
    np.testing.assert_allclose(answers[f"{MODEL}: rank, unfiltered"], 1 + higher.sum(axis=1), atol=1)


def test_selection_is_by_bayes_from_the_mixture(evaluated):
    run, _ = evaluated
    answers = pq.read_table(run / "evaluation" / "test-selection.parquet").to_pydict()
    data, _, _ = open_model(run, "best")
    numbers = {item: number for number, item in enumerate(data.corpus.item_ids)}
    users = np.array([data.corpus.user_ids.index(user) for user in answers["user"]])
    _, p_MI = probabilities(run, "selection", users, np.array(answers["position"]))
    candidates = np.array([[numbers[item] for item in row] for row in answers["candidates"]])
    log_p = np.log(np.take_along_axis(p_MI, candidates, axis=1))
    both = np.mean([len(right) == 2 for right in answers["right"]])
    assert 0 < both < 1
    sets = best_sets(log_p, data.corpus.num_items, {1: 1 - both, 2: both})
    chosen = [{row[place] for place in places} for row, places in zip(answers["candidates"], sets, strict=True)]
    assert np.mean([a == set(b) for a, b in zip(chosen, answers[f"{MODEL}: chosen items"], strict=True)]) > 0.95


def test_an_open_question_is_answered_from_the_memory(evaluated):
    run, _ = evaluated
    data, _, _ = open_model(run, "best")
    user = data.corpus.user_ids.index("5")
    met = int(data.corpus.offsets[user + 1] - data.corpus.offsets[user])
    _, p_MI = probabilities(run, "recommendation", np.array([user]), np.array([met]))
    p_MI[0, data.corpus.history(user, met)] = 0
    answer = json.loads(generate(run, GenerateConfig(user="5", k=4, json=True), None))["items"]
    np.testing.assert_allclose([item["probability"] for item in answer], np.sort(p_MI[0])[::-1][:4], rtol=1e-4)
    assert [item["item"] for item in answer] == [data.corpus.item_ids[item] for item in np.argsort(-p_MI[0])[:4]]


def test_a_history_in_json_is_answered_from_the_same_counts(evaluated):
    """It is shown, not trained on: the memory does not count it, whoever it belongs to."""
    run, _ = evaluated
    data, _, _ = open_model(run, "best")
    user = data.corpus.user_ids.index("5")
    events = range(*data.corpus.offsets[user : user + 2])
    history = [
        {"item": data.corpus.item_ids[data.corpus.items[e]], "rating": float(data.corpus.ratings[e])} for e in events
    ]
    told = json.dumps({"history": history})
    for fields in (
        {"k": 9},
        {"task": "search", "query": "Drama", "k": 9},
        {"task": "rating", "item": "3", "new_tokens": 4},
    ):
        by_name = json.loads(generate(run, GenerateConfig(user="5", json=True, **fields), None))
        by_history = json.loads(generate(run, GenerateConfig(json=True, **fields), lambda: told))
        for one, other in zip(by_name.get("items", [by_name]), by_history.get("items", [by_history]), strict=True):
            assert one["item"] == other["item"]
            for name in {"probability", "expected"} & one.keys():
                assert one[name] == pytest.approx(other[name], rel=1e-5)


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
    factorisation = BiasedFactorisation(data.corpus, read_memory(run).ratings.factorisation)
    counted = factorisation.predict(users, items, [query.position for query in queries])
    errors = {share: np.mean((share * counted + (1 - share) * ours - actual) ** 2) for share in SHARES}
    assert share == min(errors, key=errors.get)
    question = GenerateConfig(task="rating", user="5", item="3", json=True, new_tokens=4)
    told = json.loads(generate(run, question, None))["expected"]
    user = data.corpus.user_ids.index("5")
    met = int(data.corpus.offsets[user + 1] - data.corpus.offsets[user])
    item = data.corpus.item_ids.index("3")
    open_question = [Query("rating", user, met, (item,))]
    own = expected_ratings(data, predictor, open_question)[0]
    theirs = factorisation.predict([user], [item], [met])[0]
    assert told == pytest.approx((1 - share) * own + share * theirs, rel=1e-4)


def test_what_is_kept_for_each_task_is_the_best_on_validation(evaluated):
    run, _ = evaluated
    data, predictor, _ = open_model(run, "best")
    corpus, memory = data.corpus, read_memory(run).items
    users, positions = corpus.held_out(VALIDATION)
    targets_M1 = corpus.targets(users, positions)[:, None]
    fitting_MI = np.array(
        [[set(words) == set(corpus.categories[t]) for words in corpus.categories] for [t] in targets_M1]
    )

    def ndcg(scores_MI):
        scores = np.array(scores_MI)
        for row, (user, position) in enumerate(zip(users, positions, strict=True)):
            others = np.setdiff1d(corpus.history(user, position), targets_M1[row])
            scores[row, others] = -np.inf
        right = np.take_along_axis(scores, targets_M1, axis=1)
        ranks = 0.5 + (scores > right).sum(axis=1) + 0.5 * (scores == right).sum(axis=1)
        return float(ranking_metrics(ranks.astype(np.float32), (50,))["NDCG@50"].mean())

    questions = {(q.user, q.position): q for q in evaluation_queries(data, "validation", "selection").queries}
    asked = [questions[moment] for moment in zip(users.tolist(), positions.tolist(), strict=True)]

    def selection_f1(scores_MI):
        log_p = np.array([row[list(query.candidates)] for row, query in zip(scores_MI, asked, strict=True)])
        chosen = best_sets(log_p, corpus.num_items, PRIOR)
        found = [query.right[0] in {query.candidates[p] for p in c} for query, c in zip(asked, chosen, strict=True)]
        return 2 * sum(found) / (len(asked) + sum(map(len, chosen)))

    qualities = {
        "recommendation": ndcg,
        "search": lambda scores_MI: ndcg(np.where(fitting_MI, scores_MI, -np.inf)),
        "selection": selection_f1,
    }
    ours = among_items(NextItem(data, predictor).scores(users, positions))
    others = choose_markov(corpus), choose_item_knn(corpus)
    counted = [calibrate(ranker, corpus).log_probabilities(ranker.scores(users, positions)) for ranker in others]
    divisions = [(share * part, share * (1 - part)) for share in SHARES for part in (0, 0.3, 0.5, 0.7, 1)]
    pools = {
        (pool, *shares): pooled(ours, [pair for pair in zip(shares, counted, strict=True) if pair[0]], pool)
        for pool in POOLS
        for shares in divisions
    }
    for task, quality in qualities.items():
        chosen = memory[task]
        shares = [sum(one.share for one in chosen.counts if bool(one.item_knn) == knn) for knn in (False, True)]
        found = {key: quality(scores_MI) for key, scores_MI in pools.items()}
        [kept] = {value for key, value in found.items() if key[0] == chosen.pool and np.allclose(key[1:], shares)}
        assert kept == pytest.approx(max(found.values()), abs=1e-6)
    splits = np.where(corpus.splits == VALIDATION, TRAIN, corpus.splits)
    nobody = data.of(dataclasses.replace(corpus, splits=splits))
    assert choose_memories(nobody, NextItem(data, predictor), others, [EVALS["search"]]) == {}


def test_a_memory_that_helps_no_validation_user_has_no_share(evaluated, monkeypatch):
    run, _ = evaluated
    data, predictor, _ = open_model(run, "best")
    known, positions = data.corpus.held_out(VALIDATION)
    knows = np.full((len(known), data.corpus.num_items), -20, np.float32)
    knows[np.arange(len(known)), data.corpus.targets(known, positions)] = 0
    monkeypatch.setattr(NextItem, "scores", lambda self, users, positions: knows[np.searchsorted(known, users)])
    tasks = [EVALS[task] for task in ("recommendation", "search", "selection")]
    chosen = choose_memories(data, NextItem(data, predictor), [ItemKNN(data.corpus)], tasks)
    assert {task: one.memory for task, one in chosen.items()} == {one.task: ItemMemory() for one in tasks}
    np.testing.assert_allclose(chosen["search"].scores(known, positions), knows, atol=1e-6)


def test_without_tasks_or_counts_there_is_nothing_to_pool(evaluated):
    """As where ratings alone are asked about: no baseline ranks then."""
    data, predictor, _ = open_model(evaluated[0], "best")
    assert choose_memories(data, NextItem(data, predictor), [], []) == {}
    chosen = choose_memories(data, NextItem(data, predictor), [], [EVALS["search"]])
    assert {task: one.memory for task, one in chosen.items()} == {"search": ItemMemory()}


def test_what_was_chosen_for_other_tasks_stays(tmp_path):
    one = ItemMemory((Counts(0.3, Calibration(), markov=MarkovConfig()),))
    save_memory(tmp_path, Memory({"search": one, "selection": one}, RatingMemory(0.5, FactorisationConfig())), EVALS)
    other = dataclasses.replace(one, pool="logarithmic")
    save_memory(tmp_path, Memory({"search": other}), ["search", "recommendation"])
    saved = read_memory(tmp_path)
    assert saved == Memory({"search": other, "selection": one}, RatingMemory(0.5, FactorisationConfig()))
    save_memory(tmp_path, Memory(), ["search", "rating"])
    assert read_memory(tmp_path) == Memory({"selection": one})


def test_pools_of_distributions_are_distributions():
    rng = np.random.default_rng(0)
    model, *counts = (np.log(rng.dirichlet(np.full(7, 0.3), 5)) for _ in range(3))
    for share in SHARES:
        shares = 1 - share, 0.7 * share, 0.3 * share
        mixed = [
            np.exp(pooled(among_items(model - 0.3), [*zip(shares[1:], counts, strict=True)], pool)) for pool in POOLS
        ]
        linear, product = 0, 1
        for one, log_p in zip(shares, (model, *counts), strict=True):
            linear, product = linear + one * np.exp(log_p), product * np.exp(one * log_p)
        np.testing.assert_allclose(mixed[0], linear, rtol=1e-5)
        np.testing.assert_allclose(mixed[1], product / product.sum(axis=1, keepdims=True), rtol=1e-5)
    np.testing.assert_allclose(pooled(among_items(model - 0.3), [], "linear"), model, rtol=1e-5)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[1]",
        '{"items": {"search": {"counts": [{"share": 2, "calibration": {}, "markov": {}}]}}}',
        '{"items": {"search": {"counts": [{"share": 0.5, "calibration": {}}]}}}',
        '{"items": {"search": {"counts": [], "pool": "deep"}}}',
        '{"items": {"share": 0.5, "calibration": {}, "markov": {}}}',
        '{"ratings": {"share": 0.5}}',
        '{"people": null}',
    ],
)
def test_a_damaged_file_is_named(text, tmp_path):
    assert read_memory(tmp_path) == Memory()
    (tmp_path / FILE).write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=f"{FILE}.*delete it"):
        read_memory(tmp_path)
    memory = Memory({"search": ItemMemory()})
    save_memory(tmp_path, memory, ["search"])  # at the end of an evaluation, which must not be lost
    assert read_memory(tmp_path) == memory
