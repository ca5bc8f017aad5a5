"""Runs that train from what a frozen tower made of pictures, and runs that are profiled."""

import dataclasses

import pytest

from data_pipelines.errors import DataError
from data_pipelines.features import FeatureStore, check_room
from experiments.config import TrainingConfig
from experiments.train import train_run
from tests.experiments.tiny_run import experiment, prepare_source
from unimp_jax.sharding import MeshConfig
from unimp_jax.training.log import read_log

TRAINS = ("resampler", "gated", "decoder", "embeddings")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return prepare_source(tmp_path_factory.mktemp("prepared"))


def run_config(data, cached, steps=6, **changes):
    training = TrainingConfig(trains=TRAINS, cache_features=cached, validation_users=16)
    return dataclasses.replace(experiment(data, steps=steps), training=training, **changes)


def losses(folder):
    return [line["loss"] for line in read_log(folder / "metrics.jsonl") if line["kind"] == "train"]


def test_features_train_what_pictures_train(data, tmp_path):
    train_run(run_config(data, cached=False), tmp_path / "pictures")
    train_run(run_config(data, cached=True, mesh=MeshConfig(data=2, fsdp=4)), tmp_path / "features")
    assert len(losses(tmp_path / "features")) > 1
    assert losses(tmp_path / "features") == pytest.approx(losses(tmp_path / "pictures"), rel=1e-5)


def test_features_are_made_once_and_damage_is_named(data, tmp_path):
    run = tmp_path / "run"
    config = run_config(data, cached=True)
    train_run(config, run)
    file = run / "features" / "features.bin"
    made = file.stat().st_mtime_ns
    train_run(config, run)
    assert file.stat().st_mtime_ns == made
    assert not (run / "features.partial").exists()
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(DataError, match="damaged features"):
        FeatureStore(run / "features")


def test_features_that_the_disk_has_no_room_for_are_refused(tmp_path):
    check_room(tmp_path / "features", 1000, (257, 1024), "bfloat16")
    with pytest.raises(DataError, match=r"need .* bytes, .* are free"):
        check_room(tmp_path / "features", 10**12, (257, 1024), "bfloat16")


def test_a_tower_that_trains_has_no_features_to_keep(data):
    with pytest.raises(ValueError, match="vision is among what trains"):
        dataclasses.replace(experiment(data), training=TrainingConfig(trains=("vision",), cache_features=True))


def test_profiled_steps_leave_a_profile(data, tmp_path):
    config = experiment(data, steps=4)
    loop = dataclasses.replace(config.loop, profile_steps=(2, 3))
    train_run(dataclasses.replace(config, loop=loop), tmp_path / "run")
    assert list((tmp_path / "run" / "profile").rglob("*.xplane.pb"))
    with pytest.raises(ValueError, match="profile_steps"):
        dataclasses.replace(config.loop, profile_steps=(3, 2))
