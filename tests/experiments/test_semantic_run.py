"""From a run whose items have a token each, over semantic ids of its items, to a run that names items by them."""

import dataclasses
import json
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest

from data_pipelines.errors import DataError
from data_pipelines.item_codes import ItemCodes, load_codes, save_codes
from experiments.data import load_records
from experiments.evals.config import EvaluationConfig
from experiments.evaluate import evaluate_run, show
from experiments.item_ids import ItemIdsConfig, make_item_ids
from experiments.train import open_run, train_run
from tests.experiments.tiny_run import experiment, prepare_source
from unimp_jax.semantic_ids import RQVAEConfig, SemanticIdConfig
from unimp_jax.training.log import read_log

pytestmark = pytest.mark.slow  # two runs trained, one after the other

FEW = SemanticIdConfig(levels=2, codes=8, last=8)
LEARNED = dataclasses.replace(FEW, method="rq_vae", rq_vae=RQVAEConfig(hidden=(16,), latent=8, steps=20, batch_size=32))
STEPS = 4


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return prepare_source(tmp_path_factory.mktemp("prepared"))


@pytest.fixture(scope="module")
def item_ids(data) -> list[str]:
    return load_records(experiment(data).data).corpus.item_ids


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "run"
    config = experiment(data)
    loop = dataclasses.replace(config.loop, validate_every=config.loop.steps, save_every=config.loop.steps)
    train_run(dataclasses.replace(config, loop=loop), folder)
    return folder


def semantic(data, codes):
    """As `experiment`, with items named by a file of codes."""
    config = experiment(data, steps=STEPS)
    return dataclasses.replace(config, vocabulary=dataclasses.replace(config.vocabulary, item_codes=codes))


def distinct(codes: ItemCodes) -> bool:
    return len(set(map(tuple, codes.codes.tolist()))) == len(codes.item_ids)


@pytest.fixture(scope="module")
def codes(run, tmp_path_factory):
    """(the file, what was said of it)."""
    path = tmp_path_factory.mktemp("codes") / "ids.parquet"
    return path, make_item_ids(run, path, ItemIdsConfig(ids=FEW))


def test_every_item_is_named_and_the_metrics_are_reported(codes, item_ids):
    path, told = codes
    made = load_codes(path, item_ids)
    assert made.sizes == (8, 8, 8)
    assert distinct(made)
    assert "level    used  perplexity" in told
    assert f"{len(item_ids)} items: " in told
    assert f"--vocabulary.item-codes {path}" in told
    facts = json.loads(pq.read_schema(path).metadata[b"unimp.facts"])
    assert (facts["source"], facts["method"], facts["images"], facts["text"]) == (
        "movielens_small", "residual_kmeans", True, True,
    )  # fmt: skip
    assert facts["metrics"]["items"] == len(item_ids)


def test_the_same_run_gives_the_same_ids(run, codes, item_ids, tmp_path):
    path, _ = codes
    make_item_ids(run, tmp_path / "again.parquet", ItemIdsConfig(ids=FEW))
    np.testing.assert_array_equal(
        load_codes(tmp_path / "again.parquet", item_ids).codes, load_codes(path, item_ids).codes
    )


def test_images_and_words_both_say_something(run, codes, item_ids, tmp_path):
    of_both = load_codes(codes[0], item_ids).codes
    alone = []
    for kind in ("images", "text"):
        config = ItemIdsConfig(images=kind == "images", text=kind == "text", ids=FEW)
        make_item_ids(run, tmp_path / kind, config)
        alone.append(load_codes(tmp_path / kind, item_ids).codes)
    assert (alone[0] != alone[1]).any()
    assert all((one != of_both).any() for one in alone)


def test_an_autoencoder_names_all_items_too(run, item_ids, tmp_path):
    told = make_item_ids(run, tmp_path / "ids.parquet", ItemIdsConfig(ids=LEARNED))
    assert distinct(load_codes(tmp_path / "ids.parquet", item_ids))
    assert "8 + 8 + 8 codes" in told


def test_mistakes_are_reported_and_nothing_is_written(run, tmp_path):
    with pytest.raises(ValueError, match="neither is requested or available"):
        make_item_ids(run, tmp_path / "ids", ItemIdsConfig(images=False, text=False))
    with pytest.raises(DataError, match="is a folder; name a file"):
        make_item_ids(run, tmp_path, ItemIdsConfig(ids=FEW))
    with pytest.raises(DataError, match="the folder of a run"):
        make_item_ids(tmp_path / "nowhere", tmp_path / "ids", ItemIdsConfig(ids=FEW))
    with pytest.raises(ValueError, match="more than the 8 ids"):
        make_item_ids(run, tmp_path / "ids", ItemIdsConfig(ids=dataclasses.replace(FEW, levels=1, codes=2, last=4)))
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def semantic_run(data, codes, tmp_path_factory):
    folder = tmp_path_factory.mktemp("semantic")
    shutil.copy(codes[0], folder / "ids.parquet")
    train_run(semantic(data, folder / "ids.parquet"), folder / "run")
    return folder / "run"


def test_items_that_are_searched_for_are_evaluated_beside_baselines(semantic_run):
    evaluation = evaluate_run(semantic_run, EvaluationConfig(rivals=(), beams=10))
    assert [table.task for table in evaluation.tables] == ["recommendation", "search", "rating", "selection"]
    for table in evaluation.tables:
        assert len(table.rows) > 1
        for row in table.rows:
            for metric in row.metrics.values():
                assert np.isfinite([metric.low, metric.mean, metric.high]).all()
                assert metric.low <= metric.mean <= metric.high
    assert evaluation.tables[0].rows[0].metrics["HR@10"].mean > 0  # ten of thirty items, most of them met before
    for sample in evaluation.samples:
        assert len(sample.top) == len(set(sample.top))
        assert not set(sample.top) & set(sample.history)
    assert "recommendation" in show(evaluation)


def test_validation_metrics_are_logged(semantic_run):
    validated = [line for line in read_log(semantic_run / "metrics.jsonl") if line["kind"] == "validation"]
    assert validated
    assert all(np.isfinite(line["cross_entropy"]) and 0 <= line["NDCG@10"] <= 1 for line in validated)


def test_a_run_that_goes_on_keeps_its_names_whatever_became_of_the_file(data, codes, semantic_run, item_ids, tmp_path):
    run, path = tmp_path / "run", semantic_run.parent / "ids.parquet"
    shutil.copytree(semantic_run, run)
    shutil.rmtree(run / "checkpoints" / str(STEPS))  # as if it had been interrupted
    made = load_codes(codes[0], item_ids)
    save_codes(path, dataclasses.replace(made, codes=made.codes[::-1]))
    train_run(semantic(data, path), run)
    assert (run / "checkpoints" / str(STEPS)).is_dir()
    path.unlink()
    opened, _ = open_run(semantic(data, path), run)
    assert opened.vocabulary.depth == 3
    np.testing.assert_array_equal(opened.vocabulary.item_codes.codes, made.codes)
    losses = [
        [line["loss"] for line in read_log(folder / "metrics.jsonl") if line["kind"] == "train"]
        for folder in (semantic_run, run)
    ]
    assert len(losses[0]) == STEPS
    assert losses[0] == losses[1]


def test_ids_can_be_made_of_a_run_that_has_them(semantic_run, item_ids, tmp_path):
    make_item_ids(semantic_run, tmp_path / "ids.parquet", ItemIdsConfig(ids=FEW))
    assert distinct(load_codes(tmp_path / "ids.parquet", item_ids))


def test_a_run_without_a_file_of_codes_is_refused_before_it_begins(data, tmp_path):
    with pytest.raises(DataError, match=r"ids\.parquet does not exist"):
        train_run(semantic(data, tmp_path / "ids.parquet"), tmp_path / "run")
    assert not (tmp_path / "run").exists()
