"""Checkpoints: the right ones stay, whole, whenever a process ends."""

import gc
import os
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

from unimp_jax.training.checkpoint import DELETED, CheckpointConfig, CheckpointError, Checkpoints, abstract
from unimp_jax.training.frozen import save_frozen
from unimp_jax.training.guard import new_guard
from unimp_jax.training.step import TrainState

STATE = {"weights": jnp.arange(4.0)}


def save(folder, metrics: dict[int, float | None]) -> None:
    """One process that saves these steps, each with what was measured."""
    with Checkpoints(folder, CheckpointConfig()) as checkpoints:
        for step, metric in metrics.items():
            checkpoints.save(step, STATE, {}, None if metric is None else {"NDCG@10": metric})


def steps(folder) -> list[str]:
    return sorted(os.listdir(folder))


def test_the_best_one_is_known_and_kept_by_later_processes(tmp_path):
    save(tmp_path, {1: 0.5, 2: None, 3: 0.2})
    save(tmp_path, {4: None, 5: 0.1})
    save(tmp_path, {6: None})
    assert steps(tmp_path) == ["1", "5", "6"]
    with Checkpoints(tmp_path, CheckpointConfig(), reads_only=True) as checkpoints:
        assert (checkpoints.best(), checkpoints.latest()) == (1, 6)


@pytest.mark.parametrize(
    ("metrics", "best"), [({1: 0.5, 2: 0.5, 3: 0.1, 4: 0.1}, 2), ({1: None, 2: None}, 2), ({}, None)]
)
def test_of_equals_the_latest_is_the_best(tmp_path, metrics, best):
    save(tmp_path, metrics)
    with Checkpoints(tmp_path, CheckpointConfig()) as checkpoints:
        assert checkpoints.best() == best


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[]"])
def test_a_checkpoint_whose_metrics_cannot_be_read_is_one_that_was_not_measured(tmp_path, content):
    """As a machine that lost its power leaves them."""
    save(tmp_path, {1: 0.5, 2: 0.7})
    (tmp_path / "2" / "metrics" / "metrics").write_bytes(content)
    for reads_only in (True, False):
        with Checkpoints(tmp_path, CheckpointConfig(), reads_only=reads_only) as checkpoints:
            assert (checkpoints.best(), checkpoints.latest()) == (1, 2)
    save(tmp_path, {3: None, 4: 0.1})
    assert steps(tmp_path) == ["1", "3", "4"]


def test_only_the_training_loop_asks_whether_to_end(tmp_path, monkeypatch):
    """Orbax's thread that completes a checkpoint would ask about a step before the one that the loop has reached, and
    a process that is told to end just then would name that step as its own."""
    asked = []
    monkeypatch.setattr(ocp.utils, "reached_preemption", lambda step: asked.append(step))
    with Checkpoints(tmp_path / "checkpoints", CheckpointConfig()) as checkpoints:
        checkpoints.save(1, {"x": jnp.ones(2)}, {})
    assert checkpoints.latest() == 1
    assert not asked


def test_none_is_ever_there_in_part(tmp_path, monkeypatch):
    """What gives way is moved first, and a process that is killed while it deletes leaves that to the next."""
    monkeypatch.setattr(shutil, "rmtree", lambda *arguments, **options: None)
    save(tmp_path, {1: None, 2: None, 3: None})
    assert steps(tmp_path) == ["2", "3", DELETED]
    assert steps(tmp_path / DELETED) == ["1"]
    monkeypatch.undo()
    save(tmp_path, {})
    assert steps(tmp_path) == ["2", "3"]


def test_a_damaged_one_is_set_aside_beside_those_that_were_kept(tmp_path):
    folder, aside = tmp_path / "checkpoints", tmp_path / "damaged"
    (aside / "2.2").mkdir(parents=True)
    (aside / "2.2" / "kept").touch()  # 2.1 was deleted by hand
    for expected in (["2.1", "2.2"], ["2.1", "2.2", "2.3"]):
        save(folder, {1: None, 2: None} if not folder.exists() else {2: None})
        shutil.rmtree(folder / "2" / "state")
        with Checkpoints(folder, CheckpointConfig()) as checkpoints:
            checkpoints.restore_latest(abstract(STATE))
        assert steps(aside) == expected


def test_who_only_reads_leaves_alone_what_another_process_writes(tmp_path):
    save(tmp_path, {1: None})
    for name in ("2.orbax-checkpoint-tmp", DELETED):
        (tmp_path / name).mkdir()
    with Checkpoints(tmp_path, CheckpointConfig(), reads_only=True) as checkpoints:
        checkpoints.restore(1, abstract(STATE))
    assert steps(tmp_path) == ["1", "2.orbax-checkpoint-tmp", DELETED]


def test_frozen_parameters_half_written_by_a_killed_process_are_written_anew(tmp_path):
    half = tmp_path / "frozen.orbax-checkpoint-tmp"
    half.mkdir()
    (half / "some").write_text("thing")
    save_frozen(tmp_path / "frozen", STATE)
    assert steps(tmp_path) == ["frozen"]
    again = save_frozen(tmp_path / "frozen", jax.tree.map(jnp.zeros_like, STATE))
    assert again["weights"].tolist() == STATE["weights"].tolist()


def train_state() -> TrainState:
    """Two parameters and their moments."""
    parameters = {"gated": {"kernel": jnp.arange(6.0).reshape(2, 3)}, "embeddings": {"table": jnp.ones(4)}}
    return TrainState(jnp.int32(5), parameters, optax.adam(1e-3).init(parameters), new_guard())


def live_bytes() -> int:
    gc.collect()
    return sum(array.nbytes for array in jax.live_arrays())


def test_parameters_are_read_without_their_moments(tmp_path):
    state = train_state()
    with Checkpoints(tmp_path, CheckpointConfig()) as checkpoints:
        checkpoints.save(5, state, {})
    shapes = abstract(state.trainable)
    with Checkpoints(tmp_path, CheckpointConfig(), reads_only=True) as checkpoints:
        before = live_bytes()
        read = checkpoints.restore_parameters(5, shapes)
        assert live_bytes() - before == 4 * (6 + 4)
        jax.tree.map(np.testing.assert_array_equal, read, state.trainable)
        assert list(checkpoints.restore_parameters(5, {"gated": shapes["gated"]})) == ["gated"]
        with pytest.raises(CheckpointError, match="it has no parameter decoder/kernel"):
            checkpoints.restore_parameters(5, {"decoder": shapes["gated"]})
        with pytest.raises(CheckpointError, match="cannot be read into this model"):
            checkpoints.restore_parameters(5, {"gated": shapes["embeddings"]})
