"""One step, whatever the devices, the packing or the accumulation."""

import dataclasses

import jax
import numpy as np
import optax
import pytest
from flax import nnx

from data_pipelines.images import ImageConfig, ImageStore
from data_pipelines.loader import fill_batch
from data_pipelines.packing import pack
from data_pipelines.tasks.config import TaskConfig
from data_pipelines.tasks.examples import RowShape
from tests.data_pipelines.small import drawn, image, small_corpus, small_vocabulary, small_writer
from tests.experiments.tiny_run import MODEL
from tests.unimp_jax.models import drawn as drawn_model
from unimp_jax.batch import Batch
from unimp_jax.model import ModelConfig, UniMP
from unimp_jax.model.decoder import FrozenTable
from unimp_jax.objective import ObjectiveConfig
from unimp_jax.sharding import MeshConfig, batch_sharding, make_mesh, param_shardings
from unimp_jax.training.guard import GuardConfig, new_guard
from unimp_jax.training.optimizer import OptimizerConfig, learning_rate_schedule
from unimp_jax.training.step import TrainState, make_train_step

CORPUS = small_corpus()
VOCABULARY = small_vocabulary(CORPUS)
ROW_SHAPE = RowShape(tokens=192, images=8, answers=64)
DECODER = dataclasses.replace(
    MODEL.decoder, vocab_size=VOCABULARY.base_size, new_tokens=len(VOCABULARY.new_tokens), dropout=0.0
)
CONFIG = dataclasses.replace(MODEL, decoder=DECODER)
DROPPING = dataclasses.replace(
    CONFIG, decoder=dataclasses.replace(DECODER, content=6, interaction_features=1, free_row_dropout=0.5)
)
"""With content, and tokens that are shown as if they were new."""
ROWS = 8


class Threadless:
    """An executor that works where it is called."""

    map = staticmethod(map)


def batch_of(rows, count: int) -> Batch:
    rows = [*rows, *[[]] * (count - len(rows))]
    images = ImageStore(image, CONFIG.vision.image_size, ImageConfig())
    return Batch(**fill_batch(rows, ROW_SHAPE, images, Threadless))


@pytest.fixture(scope="module")
def examples():
    writer = small_writer(
        CORPUS, VOCABULARY, TaskConfig(full_items=2, id_items=6, history_targets="next_item"), ROW_SHAPE
    )
    return writer.write_all(list(drawn(CORPUS, count=16)))


@pytest.fixture(scope="module")
def packed(examples):
    rows = pack(np.array([example.size for example in examples]), ROW_SHAPE)
    assert len(rows) <= ROWS
    return batch_of([[examples[n] for n in row] for row in rows], ROWS)


def open_gates(model: UniMP) -> UniMP:
    """Gates are 0 at first, and images would then change nothing."""
    for gate in (model.gated.attention_gate, model.gated.mlp_gate):
        gate[...] = gate[...] + 0.7
    return model


def with_content(model: UniMP) -> UniMP:
    if (content := model.embeddings.content) is not None:
        content[...] = content[...] + np.sin(np.arange(content[...].size, dtype=np.float32)).reshape(content.shape)
    return model


def one_step(
    batch: Batch,
    *,
    mesh: MeshConfig = MeshConfig(),
    devices: int = 1,
    accumulate: int = 1,
    trains=CONFIG.parts,
    config: ModelConfig = CONFIG,
):
    """(state after one step, metrics, gradient-shaped update), by a plain optimizer whose update is the gradient."""
    the_mesh = make_mesh(mesh, jax.devices()[:devices])
    graph, state = nnx.split(with_content(open_gates(drawn_model(config))))
    state = jax.tree.map(jax.device_put, state, param_shardings(state, the_mesh))
    trainable, frozen = nnx.split_state(
        state, lambda path, variable: path[0] in trains and not isinstance(variable, FrozenTable), ...
    )
    transformation = optax.sgd(1.0)
    step = make_train_step(
        graph, transformation, objective=ObjectiveConfig(chunk=16), num_tasks=4, accumulate=accumulate, seed=0,
        guard=GuardConfig(),
    )  # fmt: skip
    with jax.set_mesh(the_mesh):
        placed = jax.device_put(batch, batch_sharding(the_mesh))
        state = TrainState(np.int32(0), trainable, transformation.init(trainable), new_guard())
        after, metrics = jax.jit(step)(state, frozen, placed)
    return jax.device_get(after.trainable), jax.device_get(metrics)


def assert_close(one, other, tolerance=1e-5):
    """1e-5: float32 sums of a few thousand terms in another order."""
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance, err_msg=jax.tree_util.keystr(path))


def test_packed_rows_and_one_example_a_row_give_the_same_loss_and_gradients(examples, packed):
    alone = batch_of([[example] for example in examples], len(examples))
    (packed_update, packed_metrics), (alone_update, alone_metrics) = one_step(packed), one_step(alone)
    assert_close(packed_metrics, alone_metrics)
    assert_close(packed_update, alone_update)


@pytest.mark.parametrize(
    "mesh",
    [
        MeshConfig(data=8),
        MeshConfig(fsdp=8),
        MeshConfig(fsdp=4, tensor=2),
        MeshConfig(context=8),
        MeshConfig(slice=2, fsdp=2, context=2),
        MeshConfig(data=2, context=2, tensor=2),
    ],
    ids=str,
)
def test_every_mesh_gives_the_loss_and_update_of_one_device(packed, mesh):
    one, many = one_step(packed), one_step(packed, mesh=mesh, devices=8)
    assert_close(one, many)


def test_accumulation_changes_nothing(packed):
    assert_close(one_step(packed), one_step(packed, accumulate=4))


@pytest.mark.slow
def test_the_same_rows_are_dropped_on_a_mesh_and_in_every_part_of_a_batch(packed):
    one = one_step(packed, config=DROPPING)
    assert_close(one, one_step(packed, config=DROPPING, mesh=MeshConfig(fsdp=4, tensor=2), devices=8, accumulate=2))
    before = drawn_model(DROPPING).embeddings.new[...]
    untouched = (one[0]["embeddings"]["new"][...] == before).all(axis=1)  # what is dropped has no gradient
    assert 0.3 < untouched.mean() < 0.7


def test_only_what_trains_has_gradients(packed):
    trainable, _ = one_step(packed, trains=("gated", "embeddings"))
    assert set(trainable) == {"gated", "embeddings"}


def test_task_metrics_add_up(examples, packed):
    _, metrics = one_step(packed)
    answers = np.bincount([e.task for e in examples for _ in e.answer_positions], minlength=4)
    np.testing.assert_array_equal(metrics.task_answers, answers)
    assert (metrics.task_cross_entropy[answers > 0] > 0).all()


@pytest.mark.parametrize("steps", [1, 2, 10])
def test_the_whole_schedule_may_be_warm_up(steps):
    schedule = learning_rate_schedule(OptimizerConfig(learning_rate=1.0, warmup=1.0), steps)
    rates = [float(schedule(step)) for step in range(steps)]
    assert rates == sorted(rates)
