"""What everybody answered, in a file: from it, the metrics of the tables can be computed anew."""

import dataclasses

import numpy as np
import pyarrow.parquet as pq
import pytest

from data_pipelines.corpus import build_corpus
from data_pipelines.schema import Interaction, Item, User
from experiments.evals.rating import explain
from experiments.evaluate import save_answers, tabulate
from tests.experiments import test_searching
from unimp_jax.decoding import BeamConfig

WORDS = ("good strings", "a loud amplifier", "it broke at once", "very good value", "the sound is warm")


def reviewed_corpus(users: int = 8, items: int = 9):
    """Everybody writes about everything they met."""
    rng = np.random.default_rng(0)
    made = []
    for number in range(users):
        met = rng.permutation(items)[:6]
        events = [
            Interaction(f"i{item}", time=int(time), rating=float(rng.integers(1, 6)), text=WORDS[int(item + time) % 5])
            for time, item in enumerate(met)
        ]
        made.append(User(f"u{number}", tuple(events)))
    return build_corpus([Item(f"i{n}", f"Thing {n}") for n in range(items)], made)


@pytest.fixture(scope="module")
def outcomes():
    """Rating and explanation, answered by a model of random weights: its ratings cannot always be read."""
    from data_pipelines.tasks.prompt import prompt_texts
    from data_pipelines.vocabulary import VocabularyConfig, build_vocabulary
    from experiments.data import ExperimentData, PreparedSource
    from experiments.evals.queries import evaluation_queries
    from experiments.evals.rating import rate_held_out

    corpus = reviewed_corpus()
    vocabulary = build_vocabulary(corpus, VocabularyConfig(trained_size=400, round_to=8), prompt_texts())
    data, model = test_searching.asked(1, images=False)
    records = PreparedSource(corpus, np.zeros(corpus.num_items, bool), lambda item: b"")
    size = data.config.model.decoder
    tasks = dataclasses.replace(data.config.tasks, questions_show_ids=True)
    config = dataclasses.replace(data.config, tasks=tasks)
    assert vocabulary.size <= size.vocab_size + size.new_tokens, "the model has a row for every token"
    data = ExperimentData(config, records, vocabulary)
    return rate_held_out(data, model, evaluation_queries(data, "test", "rating"), BeamConfig(beams=2, new_tokens=6))


def test_ratings_that_cannot_be_read_are_counted_and_not_guessed(outcomes, tmp_path):
    outcome = outcomes["rating"]
    save_answers(outcome, tmp_path / "rating.parquet")
    answers = pq.read_table(tmp_path / "rating.parquet").to_pydict()
    written = np.array(answers["UniMP, written rating: rating"], float)
    unread = int(np.isnan(written).sum())
    assert f"{unread} of 8 written answers do not begin with a rating" in outcome.note
    squared = [x for x in answers.get("UniMP, written rating: squared", []) if x is not None]
    assert len(squared) == (8 - unread if unread < 8 else 0)
    table = tabulate("rating", outcome, 0)
    expected = np.array(answers["UniMP, expected rating: rating"]) - np.array(answers["rating"])
    assert table.rows[0].metrics["RMSE"].mean == pytest.approx(np.sqrt(np.mean(expected**2)))
    assert not table.larger_is_better
    assert {row.model for row in table.rows} >= {"mean rating", "user and item bias", "biased factorisation"}


def test_explanations_stand_beside_their_baselines(outcomes, tmp_path):
    outcome = outcomes["explanation"]
    table = tabulate("explanation", outcome, 0)
    assert [row.model for row in table.rows] == [
        "UniMP + memory", "UniMP", "Consensus text", "Nearest text", "Constant text"
    ]  # fmt: skip
    assert {"BLEU", "ROUGE-1", "ROUGE-2", "ROUGE-L"} <= set(table.rows[0].metrics)
    assert "sacrebleu" in outcome.note
    save_answers(outcome, tmp_path / "explanation.parquet")
    answers = pq.read_table(tmp_path / "explanation.parquet").to_pydict()
    assert len(answers["review"]) == table.users == 8
    assert all(text in WORDS for text in answers["review"])
    for row in table.rows:
        assert row.metrics["ROUGE-L"].mean == pytest.approx(np.mean(answers[f"{row.model}: ROUGE-L"]))


def test_a_text_that_is_the_users_own_scores_best():
    corpus = reviewed_corpus()
    users, positions = corpus.held_out(2)
    events = corpus.offsets[users] + positions
    texts = [corpus.texts[int(event)] for event in events]
    found = explain(corpus, users, corpus.items[events], np.ones(len(users), bool), texts, texts)
    metrics = {row.model: row.metrics for row in tabulate("explanation", found["explanation"], 0).rows}
    assert metrics["UniMP"]["ROUGE-L"].mean == pytest.approx(1)
    assert all(metrics["UniMP"]["ROUGE-L"].mean > metrics[name]["ROUGE-L"].mean for name in metrics if name != "UniMP")
