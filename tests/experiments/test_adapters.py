"""A run that trains adapters alone, of a decoder that is quantised or not: what its optimizer holds, that it goes on
bit for bit, and what is exported."""

import dataclasses
import shutil

import jax
import numpy as np
import pytest
from flax import nnx

from data_pipelines.tasks.queries import held_out_queries
from experiments.config import TrainingConfig, load_config
from experiments.export import ExportConfig, export_run
from experiments.init import with_init_geometry
from experiments.parameters import Parameters, abstract_parameters, restore_parameters
from experiments.run import open_model, to_be_asked
from experiments.step import abstract_state
from experiments.train import train_run
from tests.experiments.test_export import LLAVA
from tests.experiments.tiny_run import experiment, prepare_source
from unimp_jax.interop.importing import ImportConfig, import_weights
from unimp_jax.model import AdapterConfig
from unimp_jax.sharding import make_mesh

pytestmark = pytest.mark.slow  # runs are trained
MODEL = dataclasses.replace(LLAVA, adapters=AdapterConfig(rank=2, layers=r"decoder/.*"))


def config_of(data, quantization):
    model = dataclasses.replace(MODEL, decoder_quantization=quantization)
    return experiment(data, steps=4, model=model, training=TrainingConfig(trains=("adapters",), validation_users=8))


@pytest.fixture(scope="module", params=["none", "int8"])
def places(tmp_path_factory, request):
    """(prepared data, a run that trains adapters of a model from random weights)"""
    folder = tmp_path_factory.mktemp("adapters")
    data = prepare_source(folder)
    train_run(config_of(data, request.param), folder / "run")
    return data, folder / "run"


def restored(run) -> tuple[Parameters, dict]:
    """As they were trained, and by their names."""
    config = load_config(run / "config.json")
    places = abstract_parameters(config, make_mesh(config.mesh))
    parameters, step = restore_parameters(run, "latest", places, config.checkpoint)
    assert step == 4
    return parameters, {path: np.asarray(x[...]) for path, x in nnx.to_flat_state(parameters.trainable)}


def test_the_optimizer_has_moments_of_adapters_alone(places):
    config = load_config(places[1] / "config.json")
    mesh = make_mesh(config.mesh)
    parameters = abstract_parameters(config, mesh)
    state = abstract_state(config, parameters.trainable, mesh)
    adapters = sum(x.size for x in jax.tree.leaves(parameters.trainable))
    assert 0 < adapters < 0.2 * sum(x.size for x in jax.tree.leaves(parameters.frozen))
    assert {path[-2] for path, _ in nnx.to_flat_state(parameters.trainable)} == {"adapter"}
    assert sum(x.size for x in jax.tree.leaves(state.optimizer) if x.ndim) == 2 * adapters
    entries = {x.dtype for path, x in nnx.to_flat_state(parameters.frozen) if path[-1] == "kernel" and "layers" in path}
    assert entries == {np.dtype("int8" if config.model.decoder_quantization == "int8" else "float32")}


def test_it_goes_on_bit_for_bit(places, tmp_path):
    run = shutil.copytree(places[1], tmp_path / "run")
    shutil.rmtree(run / "checkpoints" / "4")
    train_run(config_of(places[0], load_config(run / "config.json").model.decoder_quantization), run)
    whole, again = restored(places[1])[1], restored(run)[1]
    assert any(np.abs(value).max() > 0 for path, value in whole.items() if path[-1] == "up")
    for path, value in whole.items():
        np.testing.assert_array_equal(again[path], value)


def test_merged_and_exported_it_says_the_same(places, tmp_path):
    export_run(places[1], tmp_path / "out", ExportConfig("llava", "latest"))
    import_weights(ImportConfig(vision_language=str(tmp_path / "out")), tmp_path / "start")
    data, merged, _ = open_model(places[1], "latest")
    config, parameters = load_config(places[1] / "config.json"), restored(places[1])[0]
    unmerged = to_be_asked(parameters.graph, merged.mesh, (parameters.trainable, parameters.frozen))
    queries = held_out_queries(data.corpus, "test", "recommendation")[:4]
    examples = [data.writer.write(query, ask=True) for query in queries]
    found, expected = (
        model.next_token(data.questions(examples), np.arange(data.vocabulary.size), len(examples))
        for model in (merged, unmerged)
    )
    np.testing.assert_allclose(found, expected, atol=1e-5, rtol=0)
    # Adapters may be added to what was exported, which is then trained on.
    training = dataclasses.replace(config.training, trains=("adapters", "projector"))
    following = experiment(places[0], steps=1, init_from=tmp_path / "start", model=config.model, training=training)
    assert with_init_geometry(following).model.adapters == MODEL.adapters
    train_run(following, tmp_path / "following")


def test_adapters_of_another_run_are_not_replaced(places):
    model = load_config(places[1] / "config.json").model
    training = TrainingConfig(trains=("adapters",))
    for other, telling in (
        (dataclasses.replace(model, adapters=AdapterConfig(rank=3)), r"its adapters are .*rank=2"),
        (dataclasses.replace(model, decoder_quantization="fp8"), "its model.decoder_quantization is (none|int8)"),
    ):
        with pytest.raises(ValueError, match=f"{telling}.*export the run and import the export"):
            with_init_geometry(experiment(places[0], init_from=places[1], model=other, training=training))


def test_a_decoder_that_trains_is_not_quantised(places):
    with pytest.raises(ValueError, match=r"int8 needs a frozen decoder: remove decoder"):
        dataclasses.replace(config_of(places[0], "int8"), training=TrainingConfig(trains=("decoder", "adapters")))
