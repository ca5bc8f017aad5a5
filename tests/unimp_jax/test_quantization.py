"""Matrices in eight bits: how near they are, what a model makes of them, and that they do not train."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from tests.unimp_jax.test_adapters import with_adapters
from tests.unimp_jax.test_model import answer_logits, random_batch, random_model
from unimp_jax.model import part_of
from unimp_jax.model.quantization import DTYPES, Quantized, dequantize, dequantize_layers, quantize, quantize_layers

KERNELS = npst.arrays(np.float32, (2, 3, 4, 5), elements=st.floats(-1e3, 1e3, width=32, allow_subnormal=False))
# Half a step of integers; of floats of three bits behind the point, half of the last bit of the largest.
NEAREST = {"int8": 0.5 / 127.5, "fp8": 1 / 16}


@pytest.mark.parametrize("name", DTYPES)
@settings(deadline=None)
@given(kernel=KERNELS)
def test_entries_are_as_near_as_eight_bits_allow(name, kernel):
    entries, scales = quantize(jnp.asarray(kernel), (1,), DTYPES[name])
    assert entries.dtype == DTYPES[name]
    assert scales.shape == (2, 4, 5)
    largest = np.abs(kernel).max(1, keepdims=True)
    error = np.abs(np.asarray(dequantize(entries, scales, (1,))) - kernel)
    assert (error <= largest * NEAREST[name] * (1 + 1e-5) + 1e-30).all()


@pytest.mark.parametrize("name", DTYPES)
def test_they_are_those_of_qwix(name):
    qwix = pytest.importorskip("qwix")
    kernel = jax.random.normal(jax.random.key(0), (6, 7))
    theirs = qwix.quantize(kernel, DTYPES[name], channelwise_axes=[1], calibration_method="absmax")
    entries, scales = quantize(kernel, (0,), DTYPES[name])
    np.testing.assert_allclose(dequantize(entries, scales, (0,)), qwix.dequantize(theirs), rtol=1e-6)
    np.testing.assert_allclose(scales, theirs.scale[0], rtol=1e-6)


def quantized_model(name):
    """(the model, the configuration that it now has)"""
    config = with_adapters(layers=r"decoder/.*")
    model = random_model(config)
    quantize_layers(model.decoder, name)
    model.config = dataclasses.replace(config, decoder_quantization=name)
    return model, model.config


@pytest.mark.parametrize("name", DTYPES)
def test_a_model_computes_with_what_it_keeps(name):
    """The product with scaled entries equals the one with matrices that are made of them."""
    model, config = quantized_model(name)
    batch = random_batch(np.random.default_rng(0), config)
    of_entries = answer_logits(model, batch)
    kept = nnx.to_flat_state(nnx.state(model, Quantized))
    assert {path[0] for path in kept.paths} == {"decoder"}
    assert {str(value.dtype) for value in kept.leaves} == {str(jnp.dtype(DTYPES[name])), "float32"}
    dequantize_layers(model.decoder)
    assert not jax.tree.leaves(nnx.state(model, Quantized))
    # Both round in float32, in another order.
    np.testing.assert_allclose(answer_logits(model, batch), of_entries, rtol=1e-4, atol=1e-4)


def test_gradients_are_of_adapters_and_pass_through():
    model, config = quantized_model("int8")
    batch = random_batch(np.random.default_rng(1), config)

    def gradient(model):
        graph, adapters, frozen = nnx.split(model, lambda path, _: part_of(path) == "adapters", ...)
        return jax.jit(jax.grad(lambda x: jnp.square(nnx.merge(graph, x, frozen)(batch)).mean()))(adapters)

    of_entries = gradient(model)
    dequantize_layers(model.decoder)
    for found, expected in zip(jax.tree.leaves(of_entries), jax.tree.leaves(gradient(model)), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())
