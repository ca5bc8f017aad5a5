"""Low-rank adapters: what they add, merged or not; and that nothing else trains."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.unimp_jax.test_model import DECODERS, answer_logits, random_batch, random_model, small_config
from unimp_jax.model import AdapterConfig, UniMP, part_of
from unimp_jax.model.adapters import adapted, merge_adapters

QUERIES_AND_VALUES = r"decoder/layers/attention/(query|value)"
CASES = [
    ("qwen3", "interleaved", r"decoder/.*"),
    ("qwen3", "interleaved", r"projector/first|vision/blocks/.*|" + QUERIES_AND_VALUES),
    ("rotary", "last_image", r"gated/.*|decoder/layers/attention/out"),
]


def with_adapters(form="interleaved", layers=QUERIES_AND_VALUES, rank=2, kind="qwen3", **changes):
    config = small_config(form, **DECODERS[kind])
    projector = dataclasses.replace(config.projector, kind="mlp")
    return dataclasses.replace(config, projector=projector, adapters=AdapterConfig(rank, 6.0, layers, **changes))


def traced(config) -> UniMP:
    return nnx.eval_shape(lambda: UniMP(config, rngs=nnx.Rngs(0)))


@pytest.mark.parametrize(("kind", "form", "layers"), CASES)
def test_merged_equals_unmerged(kind, form, layers):
    config = with_adapters(form, layers, kind=kind)
    model, batch = random_model(config), random_batch(np.random.default_rng(0), config)
    before = answer_logits(model, batch)
    layers_of = {id(layer): layer for layer in adapted(model)}
    kernels = {key: np.asarray(layer.kernel[...]) for key, layer in layers_of.items()}
    merge_adapters(model)
    assert not list(adapted(model))
    assert all(np.abs(layer.kernel[...] - kernels[key]).max() > 0.1 for key, layer in layers_of.items())
    np.testing.assert_allclose(answer_logits(model, batch), before, rtol=1e-5, atol=1e-5)
    plain = traced(config.materialised)
    assert nnx.to_flat_state(nnx.state(model)).paths == nnx.to_flat_state(nnx.state(plain)).paths


def test_new_ones_change_nothing_and_what_is_drawn_beside_them_is_the_same():
    config = with_adapters()
    model, plain = (UniMP(one, rngs=nnx.Rngs(3)) for one in (config, config.materialised))
    drawn = dict(nnx.to_flat_state(nnx.state(model)))
    for path, variable in nnx.to_flat_state(nnx.state(plain)):
        np.testing.assert_array_equal(drawn[path][...], variable[...])
    batch = random_batch(np.random.default_rng(0), config)
    np.testing.assert_array_equal(answer_logits(model, batch), answer_logits(plain, batch))


def test_gradients_are_those_of_adapters_alone_and_equal_finite_differences():
    config = with_adapters()
    batch = random_batch(np.random.default_rng(1), config)
    graph, adapters, frozen = nnx.split(random_model(config), lambda path, _: part_of(path) == "adapters", ...)
    sizes = {path[-1]: variable.shape for path, variable in nnx.to_flat_state(adapters)}
    groups, layers, width, rank = sizes["down"]
    assert (groups * layers, width, rank) == (config.decoder.layers, config.decoder.width, 2)

    @jax.jit
    def loss(adapters):
        return jnp.square(nnx.merge(graph, adapters, frozen)(batch)).mean()

    gradients = jax.jit(jax.grad(loss))(adapters)
    rng = np.random.default_rng(2)
    along = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), x.dtype), adapters)
    moved = [loss(jax.tree.map(lambda x, d, s=s: x + s * d, adapters, along)) for s in (1e-3, -1e-3)]
    slope = sum(jax.tree.leaves(jax.tree.map(lambda g, d: (g * d).sum(), gradients, along)))
    assert float(slope) == pytest.approx(float(moved[0] - moved[1]) / 2e-3, rel=2e-2)
    assert all(np.abs(gradient).max() > 0 for gradient in jax.tree.leaves(gradients))


def test_dropout_is_of_what_adapters_read():
    """On average over keys a layer gives what it gives without; each adapter drops others; without a key none does."""
    config = with_adapters(dropout=0.25)
    model = random_model(config)
    query, key = (nnx.clone(model.decoder.layers.attention.query), nnx.clone(model.decoder.layers.attention.key))
    first = jax.tree.map(lambda x: x[0, 0], nnx.state(query.adapter))
    adapter = nnx.merge(nnx.graphdef(query.adapter), first)
    x = jax.random.normal(jax.random.key(0), (64, config.decoder.width))
    plain = adapter(x)
    draws = jax.jit(jax.vmap(lambda key: adapter(x, key)))(jax.random.split(jax.random.key(1), 4000))
    spread = np.asarray(draws.std(0))
    # A mean of 4,000 draws lies within five of its standard deviations.
    assert (np.abs(draws.mean(0) - plain) < 5 * spread / np.sqrt(4000)).mean() > 0.999
    assert spread.min() > 0
    assert query.adapter.number != getattr(key.adapter, "number", -1)
    batch = random_batch(np.random.default_rng(0), config)
    logits_of = nnx.jit(lambda model, batch, key: model.logits(model.answer_hidden(batch, dropout_key=key)))
    logits = [np.asarray(logits_of(model, batch, key)) for key in (None, jax.random.key(0))]
    np.testing.assert_array_equal(logits[0], answer_logits(model, batch))
    assert np.abs(logits[0] - logits[1]).max() > 1e-3


def test_with_a_key_for_each_row_its_noise_depends_on_no_other_row():
    config = with_adapters(dropout=0.25)
    config = dataclasses.replace(config, decoder=dataclasses.replace(config.decoder, dropout=0.5))
    model, batch = random_model(config), random_batch(np.random.default_rng(0), config)
    keys = jax.random.split(jax.random.key(0), len(batch.tokens))
    run = nnx.jit(lambda model, batch, keys: model.hidden(batch, dropout_key=keys))
    whole = np.asarray(run(model, batch, keys))
    last = run(model, jax.tree.map(lambda x: x[-1:], batch), keys[-1:])
    np.testing.assert_allclose(last, whole[-1:], rtol=1e-5, atol=1e-5)  # two programs
    others = np.asarray(run(model, batch, keys[::-1]))
    assert np.abs(others - whole).max(axis=(1, 2)).min() > 0.1


@pytest.mark.parametrize(
    ("make", "telling"),
    [
        (lambda: AdapterConfig(rank=-1), "rank -1 must be 0 or more"),
        (lambda: AdapterConfig(layers="("), "is not a valid regular expression"),
        (lambda: AdapterConfig(dropout=1.0), "dropout 1.0 must be at least 0 and less than 1"),
        (
            lambda: traced(with_adapters(layers=".*projector.*", dropout=0.1)),
            "only supported for layers of the decoder",
        ),
        (lambda: traced(with_adapters(layers="decoder")), "matches none of the linear layers"),
        (lambda: traced(with_adapters("last_image", "resampler/.*")), "adapters of the resampler are not supported"),
    ],
)
def test_what_cannot_be_adapted_is_refused(make, telling):
    with pytest.raises(ValueError, match=telling):
        make()
