"""Content in the rows of tokens: equal to plain tables that hold it, gradients included, and never trained itself."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from experiments.parameters import take_apart
from tests.experiments.tiny_run import experiment
from tests.unimp_jax.test_model import random_batch, random_model, small_config
from unimp_jax.model.decoder import FrozenTable

CONTENT = 5


@pytest.mark.parametrize("tied", [True, False])
def test_rows_are_free_rows_plus_projected_content(tied: bool) -> None:
    config = small_config(content=CONTENT, tie_embeddings=tied)
    model, plain_config = random_model(config), small_config(tie_embeddings=tied)
    made_of, tables = model.embeddings, model.embeddings.tables()
    content_VK = np.asarray(made_of.content[...])
    np.testing.assert_allclose(tables.new[...], made_of.new[...] + content_VK @ made_of.projection[...], rtol=1e-6)
    assert (tables.new_head is None) == tied
    if not tied:
        expected = made_of.new_head[...] + content_VK @ made_of.head_projection[...]
        np.testing.assert_allclose(tables.new_head[...], expected, rtol=1e-6)
    batch = random_batch(np.random.default_rng(0), config)
    plain = model.materialised()
    assert plain.config == plain_config
    assert not [path for path, value in nnx.to_flat_state(nnx.state(plain)) if isinstance(value, FrozenTable)]
    np.testing.assert_allclose(plain(batch), model(batch), rtol=1e-5, atol=1e-5)
    assert plain.materialised() is plain


@pytest.mark.parametrize("tied", [True, False])
def test_gradients_are_those_of_the_plain_tables_projected(tied: bool) -> None:
    config = small_config(content=CONTENT, tie_embeddings=tied)
    model = random_model(config)
    batch = random_batch(np.random.default_rng(0), config)

    def loss(state: nnx.State, graph: nnx.GraphDef) -> jax.Array:
        return jnp.square(nnx.merge(graph, state)(batch)).mean()

    graph, state = nnx.split(model)
    ours = dict(nnx.to_flat_state(jax.grad(loss)(state, graph)))
    graph, state = nnx.split(model.materialised())
    plain = dict(nnx.to_flat_state(jax.grad(loss)(state, graph)))
    content_KV = np.asarray(model.embeddings.content[...]).T
    for free, projection in (("new", "projection"), ("new_head", "head_projection"))[: 1 if tied else 2]:
        of_table = np.asarray(plain["embeddings", free][...])
        scale = np.abs(of_table).max()
        np.testing.assert_allclose(ours["embeddings", free][...], of_table, atol=1e-5 * scale)
        of_projection = content_KV @ of_table
        np.testing.assert_allclose(
            ours["embeddings", projection][...], of_projection, atol=1e-5 * np.abs(of_projection).max()
        )


def test_content_never_trains() -> None:
    config = experiment("data")
    decoder = dataclasses.replace(config.model.decoder, new_tokens=8, content=CONTENT)
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, decoder=decoder))
    parameters = take_apart(config, random_model(config.model))
    trained, kept = (
        {"/".join(map(str, path)) for path, _ in nnx.to_flat_state(state)}
        for state in (parameters.trainable, parameters.frozen)
    )
    assert "embeddings/projection" in trained
    assert "embeddings/content" in kept
