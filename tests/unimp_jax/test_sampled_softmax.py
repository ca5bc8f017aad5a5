"""Sampled softmax against the softmax over all tokens, and losses over tables that are split over devices."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from flax import nnx

from tests.unimp_jax.models import drawn
from tests.unimp_jax.test_model import random_batch, small_config
from unimp_jax.model.decoder import EmbeddingTables
from unimp_jax.model.layers import parameter
from unimp_jax.objective import ObjectiveConfig, chunked_loss
from unimp_jax.sampled_softmax import Sample, draw_numbers, draw_sample, sampled_head
from unimp_jax.sharding import MeshConfig, batch_sharding, make_mesh, param_shardings
from unimp_jax.training.step import whole_head

BASE, NEW, WIDTH = 5, 40, 6


def table(seed, rows):
    return parameter(jax.random.normal(jax.random.key(seed), (rows, WIDTH)), ("vocab", "embed"))


def tables_of(values):
    base, new = (parameter(value, ("vocab", "embed")) for value in values)
    return EmbeddingTables(BASE, "float32", base, new, None, None)


VALUES = table(0, BASE)[...], table(1, NEW)[...]
HIDDEN = jax.random.normal(jax.random.key(2), (2, 3, WIDTH))
TARGETS = jnp.array([[0, 4, 5], [20, 44, 7]])
WEIGHTS = jnp.array([[1.0, 2.0, 1.0], [1.0, 0.0, 1.0]])


def whole_loss(values, hidden):
    return chunked_loss(*whole_head(tables_of(values)), hidden, TARGETS, WEIGHTS, 0.0, 2)


def sampled_loss(values, hidden, sample):
    head, parameters, both = sampled_head(tables_of(values), hidden, TARGETS, sample)
    return chunked_loss(head, parameters, both, TARGETS, WEIGHTS, 0.0, 2, sample)


def test_a_sample_of_all_is_the_whole_softmax():
    sample = Sample(BASE + jnp.arange(NEW), jnp.zeros(NEW))
    whole = jax.jit(jax.value_and_grad(whole_loss, argnums=(0, 1), has_aux=True))(VALUES, HIDDEN)
    sampled = jax.jit(jax.value_and_grad(sampled_loss, argnums=(0, 1), has_aux=True))(VALUES, HIDDEN, sample)
    for one, other in zip(jax.tree.leaves(whole), jax.tree.leaves(sampled), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("sampler", ["uniform", "log_uniform"])
def test_gradients_are_those_of_the_whole_in_expectation(sampler):
    """The sum's expectation is exact, its logarithm's nearly so: what is left shrinks as one over the sample's size."""
    config = ObjectiveConfig(gamma=0.0, sampled_tokens=3000, sampler=sampler)

    @jax.jit
    @jax.vmap
    def of_draw(key):
        return jax.grad(lambda *x: sampled_loss(*x)[0], argnums=(0, 1))(
            VALUES, HIDDEN, draw_sample(key, config, tables_of(VALUES))
        )

    whole = jax.jit(jax.grad(lambda *x: whole_loss(*x)[0], argnums=(0, 1)))(VALUES, HIDDEN)
    draws = of_draw(jax.random.split(jax.random.key(3), 400))
    for exact, found in zip(jax.tree.leaves(whole), jax.tree.leaves(draws), strict=True):
        # Five standard errors of the mean, and the bias, which is below a hundredth of the largest entry.
        error = 5 * found.std(0) / np.sqrt(len(found)) + 0.01 * np.abs(exact).max()
        assert (np.abs(found.mean(0) - exact) < error).all()
        assert (found.std(0) > 0).any()


@pytest.mark.parametrize("sampler", ["uniform", "log_uniform"])
def test_numbers_are_drawn_as_often_as_is_said(sampler):
    numbers, p = draw_numbers(jax.random.key(4), 100_000, 30, sampler)
    counts = np.bincount(numbers, minlength=30)
    p_of = np.full(30, np.nan)
    p_of[np.asarray(numbers)] = p
    assert p_of.sum() == pytest.approx(1, abs=1e-5)
    assert scipy.stats.chisquare(counts, p_of / p_of.sum() * counts.sum()).pvalue > 1e-4
    assert (sampler == "log_uniform") == (counts[0] > 3 * counts[20])


def test_every_one_of_millions_may_be_drawn():
    """One uniform float32 a draw reaches a fifth of ten millions, so that .88 of these draws were distinct."""
    numbers, _ = draw_numbers(jax.random.key(0), 2**21, 10_000_000, "log_uniform")
    rare = np.asarray(numbers[numbers >= 5_000_000])
    assert len(rare) == pytest.approx(2**21 * np.log(2) / np.log(10_000_001), rel=0.02)  # its standard error is .0033
    assert len(np.unique(rare)) > 0.97 * len(rare)  # .99 are expected of as many draws from five millions


def test_a_model_without_new_tokens_has_none_to_draw():
    tables = EmbeddingTables(BASE, "float32", table(0, BASE), None, None, None)
    with pytest.raises(ValueError, match="samples from the new tokens, but this model has none"):
        draw_sample(jax.random.key(0), ObjectiveConfig(sampled_tokens=3), tables)
    with pytest.raises(ValueError, match="sampled_tokens -1 must be 0 or more"):
        ObjectiveConfig(sampled_tokens=-1)


def split_loss(mesh_config, devices, sampled):
    """(loss and gradients of a model, the program's text)"""
    config = small_config("last_image", groups=1)
    config = dataclasses.replace(config, decoder=dataclasses.replace(config.decoder, vocab_size=44, new_tokens=1304))
    mesh = make_mesh(mesh_config, devices)
    with jax.set_mesh(mesh):
        graph, state = nnx.split(drawn(config, seed=3))
        state = jax.device_put(state, param_shardings(state, mesh))
        batch = jax.device_put(random_batch(np.random.default_rng(0), config, rows=8), batch_sharding(mesh))

        def loss(state, batch):
            model = nnx.merge(graph, state)
            tables, hidden = model.embeddings.tables(), model.answer_hidden(batch)
            arguments = batch.answer_targets, batch.answer_weights, 2.0, 64
            if not sampled:
                return chunked_loss(*whole_head(tables), hidden, *arguments)[0]
            sample = draw_sample(jax.random.key(0), ObjectiveConfig(sampled_tokens=24), tables)
            head, parameters, both = sampled_head(tables, hidden, batch.answer_targets, sample)
            return chunked_loss(head, parameters, both, *arguments, sample)[0]

        compiled = jax.jit(jax.value_and_grad(loss)).lower(state, batch).compile()
        return compiled(state, batch), compiled.as_text()


@pytest.mark.parametrize("sampled", [False, True])
def test_columns_of_logits_stay_where_they_are(sampled):
    """Over tables that are split, the loss is that of one device, and no device has logits of all new tokens."""
    (alone, expected), whole = split_loss(MeshConfig(), jax.devices()[:1], sampled)
    (loss, gradients), split = split_loss(MeshConfig(data=2, tensor=4), jax.devices(), sampled)
    np.testing.assert_allclose(loss, alone, rtol=1e-5)
    for found, one in zip(jax.tree.leaves(gradients), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(found, one, rtol=1e-4, atol=1e-6 * np.abs(one).max())
    assert "[1304,32]" in whole
    assert "[1304,32]" not in split  # neither the table nor its gradient
    logits_of_all = (",1304]", ",1348]")  # of new tokens, and with base ones
    assert sampled or any(shape in whole for shape in logits_of_all)
    assert not any(shape in split for shape in logits_of_all)
