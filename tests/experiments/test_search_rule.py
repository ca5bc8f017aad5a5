"""Search by Bayes' rule: what has the query's words first, in the order of our recommendations."""

from __future__ import annotations

import functools
import json

import numpy as np
import pyarrow.parquet as pq
import pytest

from data_pipelines.tasks import Query
from experiments import generate as generating
from experiments.evals.config import EvaluationConfig, GenerateConfig
from experiments.evals.search import BY_RULE
from experiments.evaluate import evaluate_run
from experiments.generate import generate
from experiments.run import open_model, open_to_ask
from tests.experiments.tiny_run import QUICK, experiment, prepare_source
from tests.experiments.untrained_run import write_run

USER = "5"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run that was never trained, whose answers hang on the history."""
    folder = tmp_path_factory.mktemp("search")
    return write_run(experiment(prepare_source(folder), **QUICK), folder / "run", scale=1.5)


@pytest.fixture(scope="module")
def opening():
    """The run's model is opened once."""

    @functools.cache
    def opened(folder, *arguments, **options):
        data, open_model = open_to_ask(folder, *arguments, **options)
        return data, functools.cache(open_model)

    return opened


@pytest.fixture(autouse=True)
def _opened_once(monkeypatch, opening):
    monkeypatch.setattr(generating, "open_to_ask", opening)


def ask(run, **fields):
    """The items of an answer."""
    return json.loads(generate(run, GenerateConfig(json=True, user=USER, **fields), None))["items"]


@pytest.mark.parametrize("query", ["comedy, Drama", "HORROR", "Action, of which nothing is known"])
def test_an_open_search_has_the_best_matches_first_and_among_equals_the_best_recommendations(run, query):
    asked = {word.strip().casefold() for word in query.split(",")}
    categories = dict(zip(*categories_of(run), strict=True))

    def mismatch(item):
        has = {word.casefold() for word in categories[item["item"]]}
        return -len(asked & has), len(has - asked) if asked & has else 0

    recommended = ask(run, k=30)
    expected = sorted(recommended, key=mismatch)  # which leaves equals in their order
    found = ask(run, k=30, task="search", query=query)
    assert [item["item"] for item in found] == [item["item"] for item in expected]
    np.testing.assert_allclose(
        [item["probability"] for item in found], [item["probability"] for item in expected], rtol=1e-4
    )
    assert [item["rank"] for item in found] == [*range(1, len(found) + 1)]
    assert ask(run, k=3, task="search", query=query) == found[:3]
    assert len(ask(run, k=30, task="search", query=query, unfiltered=True)) == 30


def test_a_search_for_words_that_no_item_has_is_answered_as_asked(run):
    first, second = (
        ask(run, k=30, task="search", query=words) for words in ("Something with an end", "Year nobody knows")
    )
    recommended = {item["item"]: item["probability"] for item in ask(run, k=30)}
    for found in (first, second):
        assert {item["item"] for item in found} == set(recommended)
        assert any(abs(item["probability"] / recommended[item["item"]] - 1) > 1e-3 for item in found)
    assert [item["probability"] for item in first] != [item["probability"] for item in second]


def test_held_out_searches_are_ranked_by_the_rule_and_as_asked(run):
    evaluation = evaluate_run(run, EvaluationConfig(tasks=("search",), rivals=()))
    table = evaluation.tables[0]
    assert [row.model for row in table.rows][1:3] == [BY_RULE, "UniMP"]
    answers = pq.read_table(run / "evaluation" / "test-search.parquet").to_pydict()
    data, model, _ = open_model(run, "best")
    corpus = data.corpus
    items = data.vocabulary.items[:, 0]
    for user_id, position, unfiltered, filtered in zip(
        *(answers[name] for name in ("user", "position", f"{BY_RULE}: rank, unfiltered", f"{BY_RULE}: rank, filtered")),
        strict=True,
    ):
        user = corpus.user_ids.index(user_id)
        target = int(corpus.items[corpus.offsets[user] + position])
        log_p = recommended(data, model, user, position, items)
        asked = set(corpus.categories[target])
        mismatch = [
            (-len(asked & set(has)), len(set(has) - asked) if asked & set(has) else 0) for has in corpus.categories
        ]
        order = sorted(range(len(items)), key=lambda item: (mismatch[item], -log_p[item]))
        seen = set(corpus.history(user, position).tolist()) - {target}
        assert unfiltered == 1 + order.index(target)
        assert filtered == 1 + [item for item in order if item not in seen].index(target)


def recommended(data, model, user, position, items):
    """The log-probabilities of the next item, of one prompt that is written alone: float32 [I]."""
    prompt = data.writer.write(Query("recommendation", user, position, ()), ask=True)
    return model.next_token(data.questions([prompt]), items, 1)[0]


def categories_of(run):
    corpus = open_model(run, "best")[0].corpus
    return corpus.item_ids, corpus.categories
