"""Runs that train from what a frozen tower made of images, and runs that are profiled."""

import dataclasses
from collections import Counter
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from flax import nnx

from data_pipelines.errors import DataError
from data_pipelines.features import FeatureStore, check_disk_space, write_features
from experiments.config import TrainingConfig
from experiments.data import sized_model
from experiments.features import encoded
from experiments.parameters import init_parameters
from experiments.train import train_run
from tests.data_pipelines.small import small_corpus, small_vocabulary
from tests.experiments.tiny_run import MODEL, experiment, prepare_source
from unimp_jax.sharding import MeshConfig, make_mesh
from unimp_jax.training.log import read_log


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return prepare_source(tmp_path_factory.mktemp("prepared"))


def run_config(data, cached, steps=6, model=MODEL, **changes):
    trains = tuple(part for part in model.parts if part != "vision")
    training = TrainingConfig(trains=trains, cache_features=cached, validation_users=16)
    return experiment(data, steps=steps, model=model, training=training, **changes)


def losses(folder):
    return [line["loss"] for line in read_log(folder / "metrics.jsonl") if line["kind"] == "train"]


@pytest.mark.parametrize("fusion", ["cross_attention", "interleaved"])
def test_features_train_what_images_train(fusion, data, tmp_path):
    model = dataclasses.replace(MODEL, fusion=fusion)
    train_run(run_config(data, cached=False, model=model), tmp_path / "images")
    train_run(run_config(data, cached=True, mesh=MeshConfig(data=2, fsdp=4), model=model), tmp_path / "features")
    assert len(losses(tmp_path / "features")) > 1
    assert losses(tmp_path / "features") == pytest.approx(losses(tmp_path / "images"), rel=1e-5)


class Drawn:
    """Images by number, each looked at as often as it is counted."""

    shape = (16, 16, 3)

    def __init__(self):
        self.looked = Counter()

    def __getitem__(self, item: int) -> np.ndarray:
        self.looked[item] += 1
        return np.full(self.shape, item, np.uint8)


@pytest.mark.parametrize("mesh", [MeshConfig(data=8), MeshConfig(data=2, context=2, tensor=2)], ids=str)
def test_as_many_images_are_held_at_a_time_however_many_devices_there_are(mesh):
    """And each is decoded once, also where several devices look at it."""
    config = sized_model(run_config("data", cached=True, mesh=mesh), small_vocabulary(small_corpus()))
    places, drawn, items = make_mesh(mesh), Drawn(), np.arange(3, 103)
    with jax.set_mesh(places):
        parameters = init_parameters(config, places)
        parts = list(encoded(SimpleNamespace(images=drawn), parameters, places, items))
    assert [len(part) for part in parts] == [64, 36]
    assert {drawn.looked[item] for item in range(3, 67)} == {1}
    seen = np.concatenate(parts).astype(np.float32)
    model = nnx.merge(parameters.graph, parameters.trainable, parameters.frozen)
    one = model.see(np.stack([drawn[item] for item in (3, 66, 102)]))
    np.testing.assert_allclose(seen[[0, 63, 99]], np.asarray(one, np.float32), atol=1e-5)


def test_features_are_made_once_and_damage_is_named(data, tmp_path):
    run = tmp_path / "run"
    config = run_config(data, cached=True)
    train_run(config, run)
    file = run / "features" / "features.bin"
    made = file.stat().st_mtime_ns
    train_run(config, run)
    assert file.stat().st_mtime_ns == made
    assert not list(run.glob("*.partial"))
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(DataError, match="damaged features"):
        FeatureStore(run / "features")


def test_features_that_the_disk_has_no_room_for_are_refused(tmp_path):
    check_disk_space(tmp_path / "features", 1000, (257, 1024), "bfloat16")
    with pytest.raises(DataError, match=r"need .* bytes, .* are free"):
        check_disk_space(tmp_path / "features", 10**12, (257, 1024), "bfloat16")


def test_a_tower_that_trains_has_no_features_to_keep(data):
    with pytest.raises(ValueError, match=r"needs a frozen vision tower, but training.trains contains vision"):
        dataclasses.replace(experiment(data), training=TrainingConfig(trains=("vision",), cache_features=True))


def test_profiled_steps_leave_a_profile(data, tmp_path):
    config = experiment(data, steps=4)
    loop = dataclasses.replace(config.loop, profile_steps=(2, 3))
    train_run(dataclasses.replace(config, loop=loop), tmp_path / "run")
    assert list((tmp_path / "run" / "profile").rglob("*.xplane.pb"))
    with pytest.raises(ValueError, match="profile_steps"):
        dataclasses.replace(config.loop, profile_steps=(3, 2))


def test_a_catalogue_without_images_has_no_features(tmp_path):
    write_features(tmp_path / "features", np.empty(0, np.int64), (3, 4), "float32", lambda _: iter(()))
    with pytest.raises(KeyError):
        FeatureStore(tmp_path / "features")[0]
