"""Checkpoints in an object store: whole or not at all, whatever request fails."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data_pipelines.object_store import make_path
from data_pipelines.store_path import MARKS
from experiments.saved import has_saved
from unimp_jax.training.checkpoint import CheckpointConfig, CheckpointError, Checkpoints, abstract
from unimp_jax.training.frozen import load_frozen, save_frozen
from unimp_jax.training.log import RunLog, read_log
from unimp_jax.training.object_store import COMMIT, build_kvstore_tspec, is_saved


@pytest.fixture
def folder(server, request):
    server.fault = lambda *_: None
    yield make_path(f"s3://bucket/{re.sub(r'[^a-z_]', '-', request.node.name)}/checkpoints")
    server.fault = lambda *_: None


def state_of(step: int) -> dict[str, jax.Array]:
    return {"step": jnp.int32(step), "weights": jnp.arange(4.0) * step}


def save(folder, metrics: dict[int, float | None]) -> None:
    """One process that saves these steps, each with what was measured."""
    with Checkpoints(folder, CheckpointConfig()) as checkpoints:
        for step, metric in metrics.items():
            checkpoints.save(step, state_of(step), {"at": step}, None if metric is None else {"NDCG@10": metric})


def seen(folder, *, reads_only: bool = True) -> tuple[int | None, int | None]:
    """(the latest, the best)"""
    with Checkpoints(folder, CheckpointConfig(), reads_only=reads_only) as checkpoints:
        return checkpoints.latest(), checkpoints.best()


def restored(folder) -> tuple[list[float], dict[str, int]]:
    with Checkpoints(folder, CheckpointConfig()) as checkpoints:
        state, notes = checkpoints.restore_latest(abstract(state_of(0)))
    return np.asarray(state["weights"]).tolist(), notes


def test_the_mark_of_orbax_is_known():
    assert COMMIT in MARKS


def test_the_right_ones_stay_and_come_back(folder):
    save(folder, {1: 0.5, 2: None, 3: 0.2})
    save(folder, {4: None, 5: 0.1})
    assert sorted(step.name for step in folder.glob("*")) == ["1", "4", "5"]
    assert seen(folder) == (5, 1)
    assert restored(folder) == ([0.0, 5.0, 10.0, 15.0], {"at": 5})


@pytest.mark.parametrize("name", ["manifest.ocdbt", "_METADATA", "notes/metadata", "metrics/metrics", "2/" + COMMIT])
def test_one_of_which_an_object_cannot_be_written_is_none(server, folder, name):
    save(folder, {1: 0.5})
    server.fault = lambda method, path: 403 if method in ("PUT", "POST") and path.endswith(name) else None
    with pytest.raises(CheckpointError, match=r"could not be written .* the last complete checkpoint is of step 1"):
        save(folder, {2: 0.7})
    server.fault = lambda *_: None
    assert (folder / "2").exists()
    assert seen(folder) == (1, 1)
    assert restored(folder) == ([0.0, 1.0, 2.0, 3.0], {"at": 1})
    save(folder, {2: 0.7})
    assert seen(folder) == (2, 2)


def test_one_that_is_half_deleted_is_none(server, folder):
    save(folder, {1: 0.9, 2: None})
    deletions = iter([None] * 2)
    server.fault = lambda method, path: next(deletions, 403) if method == "POST" else None
    with pytest.raises(OSError):
        (folder / "1").rmtree()
    server.fault = lambda *_: None
    assert (folder / "1" / "state" / "_METADATA").exists()
    assert seen(folder) == (2, 2)


def test_a_damaged_one_is_set_aside(folder, capsys):
    save(folder, {1: None, 2: None})
    for file in (folder / "2" / "state" / "d").glob("*"):
        file.unlink()
    assert restored(folder) == ([0.0, 1.0, 2.0, 3.0], {"at": 1})
    assert "continuing from step 1 instead" in capsys.readouterr().err
    assert [path.name for path in (folder.parent / "damaged").glob("*")] == ["2.1"]
    assert seen(folder) == (1, 1)


def test_scripts_see_what_is_saved(folder):
    save(folder, {7: None})
    assert [has_saved(folder.parent, step) for step in ("7", "8")] == [True, False]
    (folder / "7" / COMMIT).unlink()
    assert not has_saved(folder.parent, "7")


def test_the_log_is_sent_when_it_is_flushed_and_continued_from_there(folder):
    run = folder.parent
    for step in (0, 2):
        with RunLog(run, step=step, steps=4) as log:
            for number in (1, 2):
                log.write(step + number, "train", {"loss": 1.0 / number})
            log.flush()
            assert [line["step"] for line in read_log(run / "metrics.jsonl")] == list(range(1, step + 3))
            log.write(step + 3, "train", {"loss": 0.0})  # after the checkpoint
    assert [line["step"] for line in read_log(run / "metrics.jsonl")] == [1, 2, 3, 4, 5]
    assert len(list((run / "tensorboard").glob("*"))) >= 1


def test_a_log_that_cannot_be_sent_is_sent_later(server, folder, capsys):
    run = folder.parent
    with RunLog(run, step=0, steps=2) as log:
        log.write(1, "train", {"loss": 1.0})
        server.fault = lambda method, path: 403 if method == "PUT" else None
        log.flush()
        assert "WARNING: the log was not sent" in capsys.readouterr().err
        server.fault = lambda *_: None
        log.flush()
        assert [line["step"] for line in read_log(run / "metrics.jsonl")] == [1]


def test_what_does_not_train_is_written_whole_or_again(server, folder):
    place, parameters = folder.parent / "frozen", {"kernel": jnp.arange(8.0)}
    server.fault = lambda method, path: 403 if method == "PUT" and path.endswith(f"frozen/{COMMIT}") else None
    with pytest.raises(Exception, match=r"Forbidden|Access|403"):
        save_frozen(place, parameters)
    server.fault = lambda *_: None
    assert place.exists()
    assert not is_saved(place)
    save_frozen(place, {"kernel": jnp.arange(8.0) + 1})
    shapes = abstract(parameters)
    np.testing.assert_array_equal(load_frozen(place, shapes)["kernel"], np.arange(8.0) + 1)
    np.testing.assert_array_equal(save_frozen(place, parameters)["kernel"], np.arange(8.0) + 1)


def test_only_s3_is_asked_for_otherwise(server):
    options = {"use_ocdbt": True}
    spec = build_kvstore_tspec("s3://bucket/run/state", "a", **options)
    at = {"driver": "s3", "bucket": "bucket", "path": "run/state", "endpoint": server.url, "aws_region": "us-east-1"}
    assert spec["base"] == at | {"aws_credentials": {"type": "environment"}}
    assert build_kvstore_tspec("gs://bucket/run", **options)["base"]["driver"].startswith("gcs")
    assert build_kvstore_tspec("/run", **options)["base"]["driver"] == "file"
