"""Content in the rows of tokens: equal to plain tables that hold it, gradients included, and never trained itself."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from experiments.parameters import take_apart
from experiments.run import materialised
from tests.experiments.tiny_run import experiment
from tests.unimp_jax.test_model import random_batch, random_model, small_config
from unimp_jax.model import UniMP, part_of
from unimp_jax.model.decoder import FrozenTable
from unimp_jax.sharding import MeshConfig, make_mesh

CONTENT = 5


def in_use(model: UniMP) -> UniMP:
    """The model as it is asked and exported: with the content of tokens in their rows."""
    run = dataclasses.replace(experiment(Path()), model=model.config)
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    parameters = materialised(run, take_apart(run, model), mesh)
    return nnx.merge(parameters.graph, parameters.trainable, parameters.frozen)


@functools.partial(jax.jit, static_argnums=0)
def gradients_and_logits(graph, tables, others, batch):
    """Of the parameters of embeddings, and of the answers: one program for all that is compared."""

    def loss(tables):
        logits = nnx.merge(graph, tables, others)(batch)
        return jnp.square(logits).mean(), logits

    return jax.grad(loss, has_aux=True)(tables)


def computed(model: UniMP, batch) -> tuple[dict, np.ndarray]:
    """(gradients by path, logits)"""
    parts = nnx.split(model, lambda path, _: part_of(path) == "embeddings", ...)
    gradients, logits = gradients_and_logits(*parts, batch)
    return dict(nnx.to_flat_state(gradients)), np.asarray(logits)


@pytest.mark.parametrize("tied", [True, False])
def test_rows_are_free_rows_plus_projected_content(tied: bool) -> None:
    config = small_config(groups=1, content=CONTENT, tie_embeddings=tied)
    model, plain_config = random_model(config), small_config(groups=1, tie_embeddings=tied)
    made_of, tables = model.embeddings, model.embeddings.tables()
    content_VK = np.asarray(made_of.content[...])
    np.testing.assert_allclose(tables.new[...], made_of.new[...] + content_VK @ made_of.projection[...], rtol=1e-6)
    assert (tables.new_head is None) == tied
    if not tied:
        expected = made_of.new_head[...] + content_VK @ made_of.head_projection[...]
        np.testing.assert_allclose(tables.new_head[...], expected, rtol=1e-6)
    batch = random_batch(np.random.default_rng(0), config)
    plain = in_use(model)
    assert plain.config == plain_config
    assert not [path for path, value in nnx.to_flat_state(nnx.state(plain)) if isinstance(value, FrozenTable)]
    _, found = computed(plain, batch)
    np.testing.assert_allclose(found, computed(model, batch)[1], rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(computed(in_use(plain), batch)[1], found)


@pytest.mark.parametrize("tied", [True, False])
def test_gradients_are_those_of_the_plain_tables_projected(tied: bool) -> None:
    config = small_config(groups=1, content=CONTENT, tie_embeddings=tied)
    model = random_model(config)
    batch = random_batch(np.random.default_rng(0), config)
    (ours, _), (plain, _) = computed(model, batch), computed(in_use(model), batch)
    content_KV = np.asarray(model.embeddings.content[...]).T
    for free, projection in (("new", "projection"), ("new_head", "head_projection"))[: 1 if tied else 2]:
        of_table = np.asarray(plain["embeddings", free][...])
        scale = np.abs(of_table).max()
        np.testing.assert_allclose(ours["embeddings", free][...], of_table, atol=1e-5 * scale)
        of_projection = content_KV @ of_table
        np.testing.assert_allclose(
            ours["embeddings", projection][...], of_projection, atol=1e-5 * np.abs(of_projection).max()
        )


def dropping_model(tied: bool, rate: float, tokens: int) -> UniMP:
    """A model whose last two features of content are of interactions, and some of whose tokens have no content."""
    decoder = {"content": CONTENT, "interaction_features": 2, "free_row_dropout": rate, "new_tokens": tokens}
    model = random_model(small_config(groups=1, tie_embeddings=tied, **decoder))
    content_VK = np.random.default_rng(0).normal(size=(tokens, CONTENT)).astype(np.float32)
    content_VK[::3] = 0
    model.embeddings.content[...] = jnp.asarray(content_VK)
    return model


@pytest.mark.parametrize("tied", [True, False])
def test_a_dropped_token_is_shown_as_if_it_were_new(tied: bool) -> None:
    """Row by row, in the plainest form: content alone, without features of interactions; or all, nothing scaled."""
    embeddings = dropping_model(tied, 0.4, 48).embeddings
    tables_of = nnx.jit(type(embeddings).tables)
    tables, every = tables_of(embeddings, jax.random.key(3)), tables_of(embeddings)
    pairs = [(tables.new, embeddings.new, embeddings.projection)]
    if not tied:
        pairs.append((tables.new_head, embeddings.new_head, embeddings.head_projection))
    content_VK = np.asarray(embeddings.content[...])
    dropped = []
    for token, content_K in enumerate(content_VK):
        is_dropped = not np.allclose(tables.new[...][token], every.new[...][token], atol=1e-6)
        dropped.append(is_dropped)
        for table, free, projection in pairs:
            projection_KD = np.asarray(projection[...])
            whole = np.asarray(free[...])[token] + content_K @ projection_KD
            alone = content_K[:-2] @ projection_KD[:-2]
            np.testing.assert_allclose(table[...][token], alone if is_dropped else whole, rtol=1e-5, atol=1e-6)
    assert not any(dropped[::3])  # what has no content keeps its free row
    assert 0 < sum(dropped) < 32


def test_tokens_are_dropped_by_the_key_at_the_rate_that_is_asked_for() -> None:
    embeddings = dropping_model(True, 0.3, 30_000).embeddings
    kept, *dropped = [
        np.asarray(embeddings.tables(key).new[...][:, 0]) for key in (None, *map(jax.random.key, (0, 0, 1)))
    ]
    shares = [(rows != kept).mean() for rows in dropped]
    np.testing.assert_allclose(shares, 0.3 * 2 / 3, atol=0.01)
    np.testing.assert_array_equal(dropped[0], dropped[1])
    assert (dropped[0] != dropped[2]).any()


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
