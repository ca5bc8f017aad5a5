"""Cold and sparse items are measured beside what only looks at content; end to end, and against the plainest form."""

import dataclasses

import numpy as np
import pytest

from data_pipelines.content import ContentConfig, training_counts
from data_pipelines.corpus import TEST
from data_pipelines.item_codes import ItemCodes, save_codes
from experiments.baselines.item_knn import ContentKNN, choose_content_knn
from experiments.config import load_config
from experiments.data import ExperimentData, load_records
from experiments.evals.config import EvaluationConfig
from experiments.evaluate import evaluate_run
from experiments.train import open_run
from tests.data_pipelines.small import small_corpus
from tests.experiments.tiny_run import QUICK, experiment, prepare_source
from tests.experiments.untrained_run import write_run
from unimp_jax.model import DecoderConfig

SHARE = 0.3
DROPPING = DecoderConfig(width=32, layers=2, heads=4, free_row_dropout=0.3)


@pytest.mark.parametrize("decay", [1.0, 0.5, 0.0])
def test_content_knn_is_the_cosine_to_the_mean_of_the_history(decay):
    corpus = small_corpus()
    features = np.random.default_rng(0).normal(size=(corpus.num_items, 6)).astype(np.float32)
    features[5] = 0
    users, positions = corpus.held_out(TEST)
    scores = ContentKNN(corpus, features, decay).scores(users, positions)
    for user, position, row in zip(users, positions, scores, strict=True):
        history = corpus.history(user, position)[::-1]
        mean = sum(decay**back * features[item] for back, item in enumerate(history))
        for item in range(corpus.num_items):
            lengths = np.linalg.norm(mean) * np.linalg.norm(features[item])
            expected = mean @ features[item] / lengths if lengths else 0.0
            np.testing.assert_allclose(row[item], expected, atol=1e-5)
    assert choose_content_knn(corpus, features, [decay]).decay == decay


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run that was never trained, with cold items and content."""
    folder = tmp_path_factory.mktemp("cold")
    content = ContentConfig(("Category",), 1, popularity=True)
    config = experiment(prepare_source(folder), content=content, **QUICK)
    decoder = dataclasses.replace(config.model.decoder, free_row_dropout=0.3)
    config = dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, decoder=decoder),
        data=dataclasses.replace(config.data, cold_items=SHARE),
    )
    return write_run(config, folder / "run", scale=1.5)


def test_cold_and_sparse_items_have_tables_of_their_own(run):
    config = load_config(run / "config.json")
    data, extended = ExperimentData.load(config, run / "vocabulary"), load_records(config.data, "test").corpus
    assert (data.corpus.num_items, extended.num_items) == (21, 30)
    evaluation = evaluate_run(run, EvaluationConfig(tasks=("recommendation",), rivals=()))
    tables = {table.task: table for table in evaluation.tables}
    assert list(tables) == ["recommendation", "cold-items", "sparse-items"][: len(tables)]
    cold = tables["cold-items"]
    targets = extended.targets(*extended.held_out(TEST))
    assert cold.users == (targets >= 21).sum() > 0
    assert [row.model for row in cold.rows] == ["UniMP", "Popularity", "content-kNN"]
    assert list(cold.rows[0].metrics) == ["HR@10", "NDCG@10", "HR@10 (among them)", "NDCG@10 (among them)"]
    for row in cold.rows:  # nine items are cold, so that the right one is always among the ten best of these
        assert row.metrics["HR@10 (among them)"].mean == 1
    met, places = training_counts(extended), []
    for user, position in zip(*extended.held_out(TEST), strict=True):
        target, unseen = extended.targets(user, position), np.ones(30, bool)
        unseen[extended.history(user, position)] = False
        if target >= 21:  # nobody has met it: below all that somebody has met, level with the others
            places.append(1 + (met[unseen] > 0).sum() + ((met[unseen] == 0).sum() - 1) / 2)
    assert cold.rows[1].metrics["HR@10"].mean == pytest.approx((np.array(places) <= 10).mean())
    counts = training_counts(data.corpus)
    warm = data.corpus.targets(*data.corpus.held_out(TEST))
    sparse = ((counts[warm] >= 1) & (counts[warm] <= 3)).sum()
    assert tables["sparse-items"].users == sparse if sparse else "sparse-items" not in tables


def test_every_table_says_that_a_sample_was_asked(run):
    evaluation = evaluate_run(run, EvaluationConfig(tasks=("recommendation",), rivals=(), users=6))
    assert "cold-items" in [table.task for table in evaluation.tables]
    for table in evaluation.tables:
        assert "An evenly spaced sample of 6 of " in table.note, table.task


def test_cold_items_need_content_and_tokens_of_their_own(run, tmp_path):
    config = load_config(run / "config.json")
    decoder = dataclasses.replace(config.model.decoder, free_row_dropout=0.0)
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, decoder=decoder))
    for content in (ContentConfig(), ContentConfig(popularity=True)):
        with pytest.raises(ValueError, match=r"represented by content.attributes or content.vectors"):
            open_run(dataclasses.replace(config, content=content), tmp_path / "run")
    items = load_records(config.data).corpus.item_ids
    codes = np.stack(np.divmod(np.arange(len(items)), 7), axis=1).astype(np.int32)
    save_codes(tmp_path / "codes.parquet", ItemCodes(tuple(items), codes, (3, 7)))
    vocabulary = dataclasses.replace(config.vocabulary, item_codes=tmp_path / "codes.parquet")
    with pytest.raises(ValueError, match=r"do not set vocabulary.item_codes"):
        open_run(dataclasses.replace(config, vocabulary=vocabulary), tmp_path / "run")
    assert not (tmp_path / "run" / "config.json").exists()
    with pytest.raises(ValueError, match=r"cold_items 1 must be a share"):
        dataclasses.replace(config.data, cold_items=1)
    with pytest.raises(ValueError, match=r"free_row_dropout drops the free rows of tokens with content"):
        dataclasses.replace(experiment(tmp_path), model=dataclasses.replace(config.model, decoder=DROPPING))
