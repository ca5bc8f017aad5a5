"""Codes and codewords against their plain formulas."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import entropy

from unimp_jax.image_tokens.quantiser import (
    SMOOTHING,
    QuantiserConfig,
    averaged,
    nearest_codes,
    new_codebook_state,
    perplexity,
    quantise,
    revived,
)

K, Z, N = 6, 3, 40


@pytest.fixture
def drawn():
    """(latents [N, Z], codebook [K, Z])."""
    random = np.random.default_rng(0)
    return random.normal(size=(N, Z)).astype(np.float32), random.normal(size=(K, Z)).astype(np.float32)


def brute_force(latents, codebook):
    return np.square(latents[..., None, :] - codebook).sum(axis=-1).argmin(axis=-1)


def test_codes_are_nearest_neighbours(drawn):
    latents, codebook = drawn
    grid = latents.reshape(2, 4, 5, Z)
    assert np.array_equal(nearest_codes(grid, codebook), brute_force(grid, codebook))


def test_gradients_pass_straight_to_latents_and_codewords_are_drawn_to_them(drawn):
    latents, codebook = drawn
    codes, beta = brute_force(latents, codebook), 0.25

    def loss(latents, codebook):
        quantised = quantise(latents, codebook, QuantiserConfig(beta=beta), 0)
        return jnp.sum(quantised.codewords * 3) + quantised.loss

    of_latents, of_codebook = jax.jit(jax.grad(loss, (0, 1)))(latents, codebook)
    apart = latents - codebook[codes]
    np.testing.assert_allclose(of_latents, 3 + 2 * beta * apart / latents.size, rtol=1e-5)
    drawn_to = np.stack([-2 * apart[codes == k].sum(axis=0) / latents.size for k in range(K)])
    np.testing.assert_allclose(of_codebook, drawn_to, atol=1e-6)
    found = jax.jit(lambda *x: quantise(*x, QuantiserConfig(), 0).codewords)(latents, codebook)
    assert np.allclose(found, codebook[codes], atol=1e-6)


def test_before_there_are_codes_latents_pass_as_they_are(drawn):
    latents, codebook = drawn
    at = jax.jit(lambda step: quantise(latents, codebook, QuantiserConfig(after=2), step))
    early, late = at(1), at(2)
    assert np.array_equal(early.codewords, latents)
    assert early.loss == 0 < late.loss
    assert np.allclose(late.codewords, codebook[late.codes], atol=1e-6)


def test_averaged_codewords_pass_no_gradient(drawn):
    latents, codebook = drawn
    config = QuantiserConfig(average=0.99)
    assert not jax.jit(jax.grad(lambda codebook: quantise(latents, codebook, config, 0).loss))(codebook).any()


def test_moving_averages_are_their_formula(drawn):
    latents, codebook = drawn
    decay, state, words = 0.9, new_codebook_state(jnp.asarray(codebook)), jnp.asarray(codebook)
    counts, sums = np.ones(K), codebook.astype(np.float64)
    nearest, average = jax.jit(nearest_codes), jax.jit(functools.partial(averaged, decay=decay))
    for round in range(5):
        batch = latents + round
        codes = np.asarray(nearest(batch, words))
        words, state = average(words, state, codes, batch)
        for k in range(K):
            counts[k] = decay * counts[k] + (1 - decay) * (codes == k).sum()
            sums[k] = decay * sums[k] + (1 - decay) * batch[codes == k].sum(axis=0)
        smooth = (counts + SMOOTHING) / (counts.sum() + K * SMOOTHING) * counts.sum()
        np.testing.assert_allclose(words, sums / smooth[:, None], rtol=1e-4)
    np.testing.assert_allclose(state.counts, counts, rtol=1e-5)


def test_dead_codewords_become_latents_of_the_batch(drawn):
    latents, codebook = drawn
    dead = np.array([True, False, True, False, False, False])
    words, state = revived(
        jnp.asarray(codebook), new_codebook_state(jnp.asarray(codebook)), dead, latents, jax.random.key(0)
    )
    assert np.array_equal(words[~dead], codebook[~dead])
    for word, total in zip(words[dead], state.sums[dead], strict=True):
        assert (latents == word).all(axis=1).any()
        assert np.array_equal(word, total)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 50), min_size=2, max_size=9).filter(any))
def test_perplexity_is_the_exponential_of_the_entropy(counts):
    assert jax.jit(perplexity)(np.array(counts, np.float32)) == pytest.approx(np.exp(entropy(counts)), rel=1e-4)


@pytest.mark.parametrize("wrong", [{"after": -1}, {"beta": -1}, {"average": 1.0}, {"revive_every": 0}])
def test_a_wrong_configuration_is_refused(wrong):
    with pytest.raises(ValueError, match="quantiser"):
        QuantiserConfig(**wrong)
