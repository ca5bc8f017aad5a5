"""What trains is kept in float32, with its moments, whatever else is bfloat16."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from experiments.config import TrainingConfig
from experiments.data import sized_model
from experiments.parameters import abstract_parameters
from experiments.step import abstract_state, optimizer_of
from tests.data_pipelines.small import small_corpus, small_vocabulary
from tests.experiments.tiny_run import MODEL, experiment
from unimp_jax.sharding import make_mesh
from unimp_jax.training.optimizer import OptimizerConfig


@pytest.mark.parametrize("kept", ["float32", "bfloat16"])
def test_weights_and_moments_are_float32_and_the_rest_is_as_it_is_computed(kept):
    model = dataclasses.replace(MODEL, compute_dtype="bfloat16", param_dtype=kept)
    config = experiment("data", model=model, training=TrainingConfig(trains=("gated", "embeddings")))
    config = sized_model(config, small_vocabulary(small_corpus()))
    mesh = make_mesh(config.mesh)
    parameters = abstract_parameters(config, mesh)
    state = abstract_state(config, parameters.trainable, mesh)
    assert {x.dtype for x in jax.tree.leaves(state.trainable)} == {jnp.dtype("float32")}
    moments = [x.dtype for x in jax.tree.leaves(state.optimizer) if x.ndim]
    assert len(moments) == 2 * len(jax.tree.leaves(state.trainable))
    assert set(moments) == {jnp.dtype("float32")}
    assert {x.dtype for x in jax.tree.leaves(parameters.frozen)} == {jnp.dtype("bfloat16")}


def test_small_updates_of_a_bfloat16_run_add_up():
    """A weight of 1 that is to move by 1e-4 a step, which is a fortieth of what bfloat16 tells from 1."""
    model = dataclasses.replace(MODEL, compute_dtype="bfloat16", param_dtype="bfloat16")
    optimizer = OptimizerConfig(learning_rate=1e-4, warmup=0.0, final=1.0, weight_decay=0.0)
    config = sized_model(experiment("data", model=model, optimizer=optimizer), small_vocabulary(small_corpus()))
    places = abstract_parameters(config, make_mesh(config.mesh)).trainable
    (dtype,) = {x.dtype for x in jax.tree.leaves(places)}
    weights, transformation = {"gated": {"kernel": jnp.ones((2, 2), dtype)}}, optimizer_of(config)
    state = transformation.init(weights)
    for _ in range(11):
        updates, state = transformation.update(jax.tree.map(jnp.ones_like, weights), state, weights)
        weights = jax.tree.map(lambda weight, update: weight + update, weights, updates)
    # the first step warms up, at a rate of 0
    assert weights["gated"]["kernel"].tolist() == [[pytest.approx(1 - 10e-4, abs=1e-6)] * 2] * 2
