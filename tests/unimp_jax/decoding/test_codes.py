"""Codes of images: no other token, exactly so many, and what recomputing the whole prefix says, guided or not."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.unimp_jax.decoding.support import jitted, longer, model, next_logits, prompts
from unimp_jax.batch import Batch
from unimp_jax.decoding import CodeSamplingConfig, SamplingConfig, sample_codes
from unimp_jax.decoding.sampling import kept_logits, prompt_without_images
from unimp_jax.sharding import MeshConfig, batch_sharding, make_mesh

CODES = np.array([40, 7, 63, 21, 22, 30, 55], np.int32)
BARE = np.array([3, 17, 8, 60, 11], np.int32)
LENGTH = 4
GREEDY = SamplingConfig()


def drawn(net, batch, config, **options):
    return jitted(
        net, lambda net, batch: sample_codes(net, batch, jnp.asarray(CODES), LENGTH, config, bare_T=BARE, **options)
    )(batch)


def recomputed(net, batch, row, slot, codes, guidance) -> np.ndarray:
    """The guided logits of all codes behind the first 0, 1, … of the given ones, of whole prefixes: float32 [n, K]."""
    said = [CODES[codes[:step]].tolist() for step in range(len(codes))]
    size = net.config.vision.image_size
    asked = stacked([longer(batch, row, slot, words) for words in said])
    alone = stacked([prompt_without_images(jnp.asarray([*BARE, *words]), 1) for words in said])
    alone = dataclasses.replace(alone, images=np.zeros((len(codes), 0, size, size, 3), np.float32))
    asked_nK, bare_nK = (np.asarray(next_logits(net, rows))[:, 0, CODES] for rows in (asked, alone))
    return bare_nK + guidance * (asked_nK - bare_nK)


def stacked(rows: list[Batch]) -> Batch:
    return jax.tree.map(lambda *x: np.concatenate([np.asarray(one) for one in x]), *rows)


def score(logits_nK: np.ndarray, codes: np.ndarray) -> float:
    return float(jax.nn.log_softmax(logits_nK)[np.arange(len(codes)), codes].sum())


def slots(batch) -> list[tuple[int, int]]:
    return np.argwhere(np.asarray(batch.answer_weights) > 0).tolist()


@pytest.mark.parametrize(
    ("geometry", "guidance"), [("idefics", 1.0), ("idefics", 2.5), ("neox, all images", 0.0), ("mpt", 0.5)]
)
def test_with_the_cache_as_recomputed_from_whole_prefixes(geometry, guidance):
    net = model(geometry)
    batch = prompts("packed", net.config)
    found = drawn(net, batch, CodeSamplingConfig(guidance, GREEDY))
    for row, slot in slots(batch):
        codes = found.codes_BAWn[row, slot, 0]
        logits_nK = recomputed(net, batch, row, slot, codes, guidance)
        chosen = logits_nK[np.arange(LENGTH), codes]
        np.testing.assert_allclose(chosen, logits_nK.max(axis=1), atol=1e-4)  # the best, but for ties within rounding
        np.testing.assert_allclose(found.scores_BAW[row, slot, 0], score(logits_nK, codes), atol=1e-4 * LENGTH)
    assert len(np.unique(found.codes_BAWn)) > 1, "the same code again and again would prove little"


def test_what_is_drawn_are_codes_and_scores_say_how_probable():
    net, guidance = model(), 3.0
    batch = prompts("packed", net.config)
    config = CodeSamplingConfig(guidance, SamplingConfig(temperature=1.5, top_k=5))
    found = drawn(net, batch, config, key=jax.random.key(0), samples=4)
    assert found.codes_BAWn.shape == (*batch.answer_weights.shape, 4, LENGTH)
    assert found.codes_BAWn.min() >= 0
    assert found.codes_BAWn.max() < len(CODES)
    assert len({tuple(codes) for codes in found.codes_BAWn[0, 0]}) > 1  # samples of one prompt differ
    row, slot = slots(batch)[1]
    for codes, probable in zip(found.codes_BAWn[row, slot], found.scores_BAW[row, slot], strict=True):
        logits_nK = recomputed(net, batch, row, slot, codes, guidance)
        better = logits_nK > logits_nK[np.arange(LENGTH), codes][:, None]
        assert (better.sum(axis=1) < 5).all()
        np.testing.assert_allclose(probable, score(logits_nK, codes), atol=1e-4 * LENGTH)


def test_a_guidance_of_1_is_none():
    """Just beside 1 both prompts are read; at 1 the bare one is not, and nothing changes."""
    net = model()
    batch = prompts("packed", net.config)
    sampling = SamplingConfig(temperature=1.0)
    plain, nearly = (
        drawn(net, batch, CodeSamplingConfig(guidance, sampling), key=jax.random.key(1), samples=3)
        for guidance in (1.0, 1.0 + 1e-7)
    )
    asked = np.asarray(batch.answer_weights) > 0
    np.testing.assert_array_equal(plain.codes_BAWn[asked], nearly.codes_BAWn[asked])
    np.testing.assert_allclose(plain.scores_BAW[asked], nearly.scores_BAW[asked], atol=1e-4)


def test_a_prompt_draws_the_same_wherever_it_lies():
    """Packed or in a row of its own: its randomness hangs on its number."""
    net = model()
    batch = prompts("packed", net.config)
    numbers = np.full(batch.answer_weights.shape, -1, np.int32)
    for number, (row, slot) in enumerate(slots(batch)):
        numbers[row, slot] = 10 + number
    config = CodeSamplingConfig(2.0, SamplingConfig(temperature=1.0))
    packed = drawn(net, batch, config, key=jax.random.key(2), samples=2, numbers_BA=jnp.asarray(numbers))
    for number, (row, slot) in enumerate(slots(batch)):
        alone = longer(batch, row, slot, [])
        single = drawn(net, alone, config, key=jax.random.key(2), samples=2, numbers_BA=jnp.array([[10 + number]]))
        np.testing.assert_array_equal(single.codes_BAWn[0, 0], packed.codes_BAWn[row, slot])


def test_samples_are_as_frequent_as_they_are_probable():
    """2,000 samples of the first code: a frequency deviates by 3 standard errors, 0.034, once in 400 times."""
    net = model()
    batch = prompts("single", net.config)
    config = CodeSamplingConfig(1.5, SamplingConfig(temperature=2.0, top_k=4))
    found = drawn(net, batch, config, key=jax.random.key(0), samples=2000)
    logits_K = recomputed(net, batch, 0, 0, found.codes_BAWn[0, 0, 0], 1.5)[0]
    expected = jax.nn.softmax(kept_logits(logits_K, config.sampling))
    frequency = np.bincount(found.codes_BAWn[0, 0, :, 0], minlength=len(CODES)) / 2000
    np.testing.assert_allclose(frequency, np.asarray(expected), atol=0.034)


def test_on_a_mesh_it_draws_what_one_device_draws():
    net = model()
    batch = jax.tree.map(lambda x: jnp.concatenate([x] * 4), prompts("packed", net.config))
    config = CodeSamplingConfig(2.0, SamplingConfig(temperature=1.0))
    alone = drawn(net, batch, config, key=jax.random.key(0))
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    with jax.set_mesh(mesh):
        together = drawn(net, jax.device_put(batch, batch_sharding(mesh)), config, key=jax.random.key(0))
    asked = np.asarray(batch.answer_weights) > 0
    np.testing.assert_array_equal(alone.codes_BAWn[asked], together.codes_BAWn[asked])
    np.testing.assert_allclose(alone.scores_BAW[asked], together.scores_BAW[asked], atol=1e-3)


def test_what_cannot_be_drawn_is_refused():
    with pytest.raises(ValueError, match="needs a key"):
        sample_codes(model(), prompts("single", model().config), jnp.asarray(CODES), 2, bare_T=jnp.asarray(BARE))
    with pytest.raises(ValueError, match="guidance -1 must be 0 or more"):
        CodeSamplingConfig(guidance=-1)
