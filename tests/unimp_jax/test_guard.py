"""Steps that would do harm change nothing, and are counted."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from tests.unimp_jax.test_training import CONFIG, examples, open_gates, packed  # noqa: F401
from unimp_jax.batch import Batch
from unimp_jax.objective import ObjectiveConfig
from unimp_jax.sharding import MeshConfig, init_model, make_mesh
from unimp_jax.training.checkpoint import CheckpointConfig, Checkpoints, abstract
from unimp_jax.training.guard import GuardConfig, judge, new_guard
from unimp_jax.training.step import TrainState, make_train_step


def judged(config: GuardConfig, norms, losses=None) -> list[bool]:
    guard, verdicts = new_guard(), []
    for number, norm in enumerate(norms):
        good, guard = judge(config, guard, np.float32(losses[number] if losses else 1.0), np.float32(norm))
        verdicts.append(bool(good))
    assert int(guard.good) == sum(verdicts)
    assert int(guard.skipped) == len(verdicts) - sum(verdicts)
    return verdicts


def test_what_is_no_number_is_skipped():
    assert judged(GuardConfig(), [1, np.nan, np.inf, 1], [1, 1, 1, np.nan]) == [True, False, False, False]


def test_a_spike_is_skipped_once_the_usual_is_known():
    config = GuardConfig(spike=3.0, memory=0.5, after=3)
    assert judged(config, [1, 50, 1, 1, 1, 60, 2]) == [True, True, True, True, True, False, True]
    assert judged(dataclasses.replace(config, spike=0.0), [1, 1, 1, 1, 1e6]) == [True] * 5


def test_a_guard_that_would_skip_the_first_step_and_so_all_is_refused():
    with pytest.raises(ValueError, match=r"after 0 \(unless spike is 0\) and patience 20 at least 1"):
        GuardConfig(after=0)
    assert judged(GuardConfig(after=1), [1, 1, 1]) == [True] * 3
    assert judged(GuardConfig(spike=0.0, after=0), [1, 1, 1]) == [True] * 3


def test_the_running_mean_is_of_good_steps_alone():
    config, guard = GuardConfig(spike=2.0, memory=0.9, after=2), new_guard()
    for norm in (4.0, 4.0, np.nan, 100.0, 5.0):
        _, guard = judge(config, guard, np.float32(1), np.float32(norm))
    assert float(guard.usual_norm) == pytest.approx(0.9 * 4 + 0.1 * 5)
    assert (int(guard.good), int(guard.skipped), int(guard.consecutive_skips)) == (3, 2, 0)


def test_a_guard_of_an_earlier_version_is_restored(tmp_path):
    saved = {"usual_norm": jnp.float32(2), "good": jnp.int32(7), "left_out": jnp.int32(3), "in_a_row": jnp.int32(1)}
    with Checkpoints(tmp_path, CheckpointConfig()) as checkpoints:
        checkpoints.save(1, {"guard": saved}, {})
        checkpoints.wait()
        restored, _ = checkpoints.restore(1, abstract({"guard": new_guard()}))
    guard = restored["guard"]
    assert (float(guard.usual_norm), int(guard.good), int(guard.skipped)) == (2, 7, 3)
    assert int(guard.consecutive_skips) == 1


def broken(batch: Batch) -> Batch:
    weights = batch.answer_weights.copy()
    weights[np.argmax(weights.any(axis=1))] *= np.nan
    return dataclasses.replace(batch, answer_weights=weights)


def test_a_step_without_a_gradient_changes_neither_parameters_nor_optimizer(packed):  # noqa: F811
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    graph, trainable, frozen = nnx.split(
        open_gates(init_model(CONFIG, mesh, seed=0)), lambda path, _: path[0] in CONFIG.parts, ...
    )
    transformation = optax.adam(1e-2)
    step = jax.jit(
        make_train_step(
            graph, transformation, objective=ObjectiveConfig(), num_tasks=4, accumulate=1, seed=0, guard=GuardConfig()
        )
    )
    first = TrainState(np.int32(0), trainable, transformation.init(trainable), new_guard())
    bad, metrics = step(first, frozen, broken(packed))
    assert metrics.skipped
    assert metrics.consecutive_skips == 1
    assert not np.isfinite(metrics.gradient_norm)
    assert not metrics.task_answers.any()
    assert bad.step == 1
    jax.tree.map(np.testing.assert_array_equal, (bad.trainable, bad.optimizer), (first.trainable, first.optimizer))
    after, metrics = step(bad, frozen, packed)
    assert not metrics.skipped
    assert after.guard.skipped == 1
    straight, _ = step(dataclasses.replace(first, step=np.int32(1)), frozen, packed)
    jax.tree.map(np.testing.assert_array_equal, after.trainable, straight.trainable)
