"""A run that starts with another run's model: its parameters and its vocabulary, and what then trains of them."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
from flax import nnx

from data_pipelines.errors import DataError
from experiments.config import load_config
from experiments.data import sized_model
from experiments.init import initial_parameters, with_init_geometry
from experiments.run import restore
from experiments.train import open_run, train_run
from tests.experiments.tiny_run import experiment, prepare_source
from unimp_jax.sharding import make_mesh
from unimp_jax.training.log import read_log

pytestmark = pytest.mark.slow  # runs are trained
FROZEN = ("resampler", "gated", "embeddings")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return prepare_source(tmp_path_factory.mktemp("prepared"))


@pytest.fixture(scope="module")
def first(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("first") / "run"
    train_run(experiment(data, steps=4), folder)
    return folder


def following(data, first, **changes):
    """Another task, less that trains, and a vocabulary and geometry that the first run's take the place of."""
    config = experiment(data, steps=4, init_from=first, **changes)
    training = dataclasses.replace(config.training, trains=FROZEN)
    queries = dataclasses.replace(config.queries, mix={"recommendation": 0, "search": 1, "rating": 0, "selection": 0})
    vocabulary = dataclasses.replace(config.vocabulary, trained_size=400)
    return dataclasses.replace(config, training=training, queries=queries, vocabulary=vocabulary)


def leaves(*states) -> dict:
    flat = {path: variable for state in states for path, variable in nnx.to_flat_state(state)}
    return {path: np.asarray(variable[...]) for path, variable in flat.items()}


def test_all_parameters_are_the_first_runs(data, first, tmp_path):
    _, config = open_run(following(data, first), tmp_path / "run")
    mesh = make_mesh(config.mesh)
    parameters = initial_parameters(config, mesh)
    assert {path[0] for path in leaves(parameters.trainable)} == set(FROZEN)
    last, step = restore(first, load_config(first / "config.json"), "latest")
    assert step == 4
    before, after = leaves(*last.parameters), leaves(parameters.trainable, parameters.frozen)
    assert before.keys() == after.keys()
    for path, value in after.items():
        np.testing.assert_array_equal(value, before[path])


def test_the_geometry_and_the_vocabulary_are_the_first_runs(data, first, tmp_path):
    opened, config = open_run(following(data, first), tmp_path / "run")
    before = load_config(first / "config.json")
    assert config.model == before.model
    assert config.vocabulary == before.vocabulary
    saved = [json.loads((run / "vocabulary" / "new_tokens.json").read_text()) for run in (first, tmp_path / "run")]
    assert saved[0] == saved[1]
    assert sized_model(with_init_geometry(following(data, first)), opened.vocabulary).model == before.model


def test_it_trains_on_and_goes_on_without_the_first_run(data, first, tmp_path):
    start = tmp_path / "first"
    shutil.copytree(first, start)
    train_run(following(data, start), tmp_path / "run")
    lines = [line for line in read_log(tmp_path / "run" / "metrics.jsonl") if line["kind"] == "train"]
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    last, _ = restore(tmp_path / "run", load_config(tmp_path / "run" / "config.json"), "latest")
    beginning, _ = restore(first, load_config(first / "config.json"), "latest")
    before, after = leaves(*beginning.parameters), leaves(*last.parameters)
    moved = {path[0] for path in after if not np.array_equal(before[path], after[path])}
    assert moved <= set(FROZEN)
    assert "embeddings" in moved
    shutil.rmtree(start)
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "4")
    train_run(following(data, start), tmp_path / "run")
    again, _ = restore(tmp_path / "run", load_config(tmp_path / "run" / "config.json"), "latest")
    jax.tree.map(np.testing.assert_array_equal, leaves(*again.parameters), after)


def test_a_first_run_of_other_items_is_refused(first, tmp_path):
    from data_pipelines.prepare import prepare
    from tests.experiments.tiny_run import write_source

    prepare("movielens_small", tmp_path / "data", write_source(tmp_path / "source", items=25))
    with pytest.raises(DataError, match="another catalogue"):
        open_run(following(tmp_path / "data", first), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_first_run_that_saved_nothing_is_refused(data, first, tmp_path):
    start = tmp_path / "first"
    shutil.copytree(first, start, ignore=shutil.ignore_patterns("checkpoints"))
    with pytest.raises(DataError, match="no complete checkpoint"):
        train_run(following(data, start), tmp_path / "run")
