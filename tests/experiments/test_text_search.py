"""Search by free words: BM25 against its formula, and the table of words from titles."""

import collections
import json
import math
import re

import numpy as np
import pyarrow.parquet as pq
import pytest

from data_pipelines.schema import Interaction, Item, User
from experiments.baselines.bm25 import BM25
from experiments.evals.config import EvaluationConfig, GenerateConfig
from experiments.evaluate import evaluate_run
from experiments.generate import generate
from experiments.run import open_model
from tests.data_pipelines.small import in_memory, small_corpus
from tests.experiments.tiny_run import QUICK, experiment, prepare_source
from tests.experiments.untrained_run import write_run

FEW = {"the", "last", "a"}
"""The words of these corpora that say nothing."""


def plain_scores(corpus, query):
    """BM25 with k1 1.2 and b .75 of each item's distinct texts, word by word."""
    texts = [
        " ".join(dict.fromkeys([title, *(text for _, text in attributes), *categories])).lower()
        for title, attributes, categories in zip(corpus.titles, corpus.attributes, corpus.categories, strict=True)
    ]
    words = [[word for word in re.findall(r"\b\w\w+\b", text) if word not in FEW] for text in texts]
    mean = sum(map(len, words)) / len(words)
    scores = []
    for item in words:
        counts, score = collections.Counter(item), 0.0
        for word in query.lower().split():
            has = sum(word in other for other in words)
            rarity = math.log(1 + (len(words) - has + 0.5) / (has + 0.5))
            score += 2.2 * rarity * counts[word] / (counts[word] + 1.2 * (0.25 + 0.75 * len(item) / mean))
        scores.append(score)
    return np.array(scores)


@pytest.mark.parametrize("query", ["blue", "Blue HOUSE", "œuvre comedy", "house nowhere", "nowhere", ""])
def test_bm25_is_its_formula(query):
    corpus = small_corpus()
    asked = BM25(corpus, lambda user, _: query if user else "drama")
    scores = asked.scores(np.array([0, 1]), np.array([2, 3]))
    # float32 of sums of a few terms of order one.
    np.testing.assert_allclose(scores, [plain_scores(corpus, "drama"), plain_scores(corpus, query)], atol=2e-6)


def test_items_without_texts_match_nothing():
    corpus = in_memory([Item("a", ""), Item("b", "")], [User("u", (Interaction("a"), Interaction("b")))])
    assert not BM25(corpus, lambda *_: "blue").scores(np.array([0]), np.array([1])).any()


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run that was never trained, whose answers hang on the history."""
    folder = tmp_path_factory.mktemp("text")
    return write_run(experiment(prepare_source(folder), **QUICK), folder / "run", scale=1.5)


def test_words_of_a_title_add_to_what_is_likely_next_among_items_of_equal_categories(run):
    def ask(query):
        asked = GenerateConfig(json=True, user="5", task="search", query=query, unfiltered=True, k=30)
        return json.loads(generate(run, asked, None))["items"]

    corpus = open_model(run, "best")[0].corpus
    titles = list(corpus.titles)
    is_comedy = ["Comedy" in has for has in corpus.categories]
    comedies = ask("Comedy")
    for query in ("17", "film 17 or 21", "Comedy, 17", "Comedy, 1995, film"):
        words = ", ".join(word for word in query.split(", ") if word != "Comedy").replace(",", "")
        bm25 = plain_scores(corpus, words)

        def place(item, bm25=bm25, query=query):
            number = titles.index(item["title"])
            return "Comedy" in query and not is_comedy[number], -math.log(item["probability"]) - bm25[number]

        assert [item["title"] for item in ask(query)] == [item["title"] for item in sorted(comedies, key=place)]


def test_held_out_users_are_asked_with_words_of_the_title(run):
    evaluation = evaluate_run(run, EvaluationConfig(tasks=("search",), rivals=()))
    _, table = evaluation.tables
    assert table.task == "text-search"
    assert {"UniMP + memory + BM25", "UniMP + BM25", "Markov + BM25", "BM25"} <= {row.model for row in table.rows}
    answers = pq.read_table(run / "evaluation" / "test-text-search.parquet").to_pydict()
    corpus = open_model(run, "best")[0].corpus
    for user_id, position, query, rank in zip(
        *(answers[name] for name in ("user", "position", "query", "BM25: rank, unfiltered")), strict=True
    ):
        user = corpus.user_ids.index(user_id)
        target = int(corpus.items[corpus.offsets[user] + position])
        assert set(query.split()) <= set(corpus.titles[target].lower().split())
        scores = plain_scores(corpus, query)
        above, equal = (scores > scores[target] + 1e-9).sum(), (abs(scores - scores[target]) < 1e-9).sum()
        assert rank == 0.5 + above + equal / 2
