"""What may change between a run's start and its continuation, and that it changes nothing else."""

import dataclasses
import shutil

import jax
import pytest

from data_pipelines.errors import DataError
from experiments import step as experiment_step
from experiments.config import (
    CHANGEABLE,
    WITHOUT_EFFECT,
    differences,
    flat,
    load_config,
    note_changes,
    save_config,
    settings,
    to_json,
)
from experiments.train import open_run, train_run
from tests.experiments.tiny_run import experiment, prepare_source
from unimp_jax.sharding import make_mesh
from unimp_jax.training.guard import GuardConfig
from unimp_jax.training.log import read_log
from unimp_jax.training.loop import LoopConfig

STEPS = 4


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return prepare_source(tmp_path_factory.mktemp("prepared"))


@pytest.fixture(scope="module", autouse=True)
def one_device():
    """Fewer devices take less time to compile for, and so do programs that are little optimised."""
    jax.config.update("jax_disable_most_optimizations", True)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(experiment_step, "make_mesh", lambda config, _: make_mesh(config, jax.devices()[:1]))
        yield
    jax.config.update("jax_disable_most_optimizations", False)


def changed(config, **groups):
    """With other fields in some of its groups."""
    return dataclasses.replace(
        config, **{group: dataclasses.replace(getattr(config, group), **fields) for group, fields in groups.items()}
    )


def config_of(data):
    config = experiment(data, steps=STEPS)
    decoder = dataclasses.replace(config.model.decoder, dropout=0.0)  # its noise is drawn by part of a batch
    loop = LoopConfig(steps=STEPS, log_every=2, validate_every=4, save_every=2)
    return changed(dataclasses.replace(config, loop=loop), model={"decoder": decoder}, training={"validation_users": 8})


def test_fields_are_named_whole():
    names = flat(to_json(experiment("data")))
    for field in (*WITHOUT_EFFECT, *(field for field in CHANGEABLE if field != "guard")):
        assert any(name == field or name.startswith(f"{field}.") for name in names), field
    ours = experiment("data")
    assert differences(ours, changed(ours, model={"attention": "xla"}, mesh={"data": 2})) == []
    assert differences(ours, changed(ours, loader={"batch_size": 16})) == ["loader.batch_size: 8, now 16"]
    assert "training.guard.spike" in settings(ours)  # runs that differ in it are distinguished in tables


def test_a_run_may_be_made_longer_and_not_shorter():
    ours = experiment("data", steps=12)
    assert differences(ours, experiment("data", steps=20)) == []
    (told,) = differences(ours, experiment("data", steps=8))
    assert told == "loop.steps: 12, now 8 (loop.steps can only be raised)"


@pytest.mark.parametrize(
    "change",
    [
        {"model": {"remat": "full"}},
        {"training": {"accumulate": 2}},
        {"training": {"guard": GuardConfig(spike=7.0)}},
        {"objective": {"chunk": 16}},
        {"loop": {"log_every": 1}},
        {"loop": {"validate_every": 2}},
        {"loop": {"save_every": 4}},
        {"loop": {"steps": 9}},
    ],
    ids=str,
)
def test_each_of_them_is_taken_and_noted_whole(data, tmp_path, capsys, change):
    run, ours = tmp_path / "run", config_of(data)
    _, before = open_run(ours, run)
    _, now = open_run(changed(ours, **change), run)
    assert load_config(run / "config.json") == before  # until this process is known to be alone in the folder
    note_changes(before, now, run / "config.json")
    assert to_json(load_config(run / "config.json")) == to_json(now) != to_json(before)
    ((group, fields),) = change.items()
    assert f"{group}.{next(iter(fields))}" in capsys.readouterr().out


def test_a_longer_schedule_is_stated(tmp_path, capsys):
    note_changes(experiment("data", steps=4), experiment("data", steps=9), tmp_path / "config.json")
    assert "loop.steps: 4, now 9\nthe learning rate now falls from 0.01 to 0 at step 9\n" in capsys.readouterr().out


def test_a_start_that_is_gone_takes_no_choice_with_it(data, tmp_path):
    ours = dataclasses.replace(config_of(data), init_from=None)
    _, before = open_run(ours, tmp_path / "run")
    gone = tmp_path / "gone"
    save_config(dataclasses.replace(before, init_from=gone), tmp_path / "run" / "config.json")
    _, now = open_run(changed(dataclasses.replace(ours, init_from=gone), model={"remat": "full"}), tmp_path / "run")
    assert now.model == dataclasses.replace(before.model, remat="full")
    with pytest.raises(DataError, match="seed: 0, now 1"):
        open_run(dataclasses.replace(ours, init_from=gone, seed=1), tmp_path / "run")


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "run"
    train_run(config_of(data), folder)
    return folder


def losses(run, kind="train"):
    return {line["step"]: line.get("loss") for line in read_log(run / "metrics.jsonl") if line["kind"] == kind}


def from_the_middle(whole, folder, config):
    run = shutil.copytree(whole, folder)
    shutil.rmtree(run / "checkpoints" / str(STEPS))
    train_run(config, run)
    return run


@pytest.mark.slow
def test_what_is_no_arithmetic_changes_no_bit(data, whole, tmp_path):
    """Steps 3 and 4 are one line of the log, or one each; their mean is the same."""
    config = changed(
        config_of(data),
        loop={"log_every": 1, "validate_every": 1, "save_every": 1, "steps": 5},
        training={"guard": GuardConfig(spike=500.0, patience=7)},
        optimizer={"final": 0.0},
    )
    run = from_the_middle(whole, tmp_path / "run", config)
    assert list(losses(run)) == [2, 3, 4, 5]
    assert list(losses(run, "validation")) == [2, 3, 4, 5]
    assert losses(run)[2] == losses(whole)[2]
    assert sorted(int(step.name) for step in (run / "checkpoints").iterdir() if step.name.isdigit())[-1] == 5
    again = from_the_middle(whole, tmp_path / "again", changed(config, loop={"steps": STEPS}))
    assert losses(again)[3] == losses(run)[3]  # which is taken before the longer schedule's first step
    assert (losses(again)[3] + losses(again)[4]) / 2 == pytest.approx(losses(whole)[4], rel=1e-6)


@pytest.mark.slow
def test_what_is_only_another_order_of_sums_changes_rounding(data, whole, tmp_path):
    """1e-4: as where a checkpoint is restored on another mesh; Adam divides by gradients' sizes, near 0, too."""
    config = changed(config_of(data), model={"remat": "full"}, training={"accumulate": 2}, objective={"chunk": 16})
    run = from_the_middle(whole, tmp_path / "run", config)
    assert losses(run) == pytest.approx(losses(whole), rel=1e-4)
