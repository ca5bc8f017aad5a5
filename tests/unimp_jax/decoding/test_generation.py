"""Greedy decoding and beam search, token for token against transformers' `generate` on an exported model."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.unimp_jax.decoding.support import (
    EOS,
    PACKED,
    PAD,
    jitted,
    longer,
    model,
    next_logits,
    prompts,
)
from tests.unimp_jax.models import drawn
from unimp_jax.decoding import BeamConfig, CodeSamplingConfig, SamplingConfig, beam_search
from unimp_jax.decoding.beam import top_candidates
from unimp_jax.decoding.sampling import kept_logits
from unimp_jax.sharding import MeshConfig, batch_sharding, make_mesh

NEW = 64


def greedy(new: int) -> BeamConfig:
    """One beam, which ends where its best token is the end."""
    return BeamConfig(beams=1, new_tokens=new, length_penalty=0.0, early_stopping=True)


def theirs(folder, batch, new: int, **options) -> np.ndarray:
    """What `generate` of the exported model says to the prompts of packed rows, each padded on the left."""
    torch = pytest.importorskip("torch")
    from transformers import IdeficsForVisionText2Text

    from tests.unimp_jax.interop.test_idefics import export

    net = IdeficsForVisionText2Text.from_pretrained(export(folder / "model", model())).eval()
    asked = np.argwhere(np.asarray(batch.answer_weights) > 0)
    length, images = max(map(max, PACKED)), batch.images.shape[1]
    tokens, attended = (np.zeros((len(asked), length), np.int64) for _ in range(2))
    mask = np.zeros((len(asked), length, images), np.int64)
    for number, (row, slot) in enumerate(asked):
        alone = longer(batch, row, slot, [])
        used = np.asarray(alone.segment_ids[0]) > 0
        where = slice(length - used.sum(), length)
        tokens[number, where] = np.asarray(alone.tokens[0])[used]
        attended[number, where] = 1
        mask[number, where] = np.asarray(alone.image_index[0])[used][:, None] == np.arange(images)
    pixels = np.moveaxis(np.asarray(batch.images), -1, 2)[asked[:, 0]]
    written = net.generate(
        input_ids=torch.tensor(tokens), attention_mask=torch.tensor(attended), pixel_values=torch.tensor(pixels),
        image_attention_mask=torch.tensor(mask), do_sample=False, max_new_tokens=new, pad_token_id=PAD, **options,
    )[:, length:].numpy()  # fmt: skip
    return np.pad(written, ((0, 0), (0, new - written.shape[1])), constant_values=PAD)


def ours(batch, function) -> np.ndarray:
    """All answers to each prompt, best first: [prompts x W, n]."""
    answers = jitted(model(), function)(batch)
    tokens = answers.tokens_BAWn[np.asarray(batch.answer_weights) > 0]
    return tokens.reshape(-1, tokens.shape[-1])


def test_greedy_equals_generate(tmp_path):
    batch = prompts("packed", model().config)
    expected = theirs(tmp_path, batch, NEW, min_new_tokens=NEW, eos_token_id=None)
    found = ours(batch, lambda net, batch: beam_search(net, batch, greedy(NEW), eos=None))
    assert len(np.unique(found)) > 5, "an answer of one token again and again would prove little"
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    "config",
    [
        BeamConfig(beams=3, new_tokens=24),
        BeamConfig(beams=5, new_tokens=24, length_penalty=0.0, early_stopping="never"),
        BeamConfig(beams=4, new_tokens=24, length_penalty=2.0, early_stopping=True),
        BeamConfig(beams=4, new_tokens=12, length_penalty=-1.0),
        BeamConfig(beams=3, new_tokens=16, length_penalty=1.5, early_stopping="never"),
    ],
)
def test_beam_search_equals_generate(tmp_path, config):
    batch = prompts("packed", model().config)
    free = ours(batch, lambda net, batch: beam_search(net, batch, greedy(24), eos=None))
    eos = int(np.bincount(free[:, 2:].ravel()).argmax())  # a token that answers come to sooner or later
    expected = theirs(
        tmp_path, batch, config.new_tokens, eos_token_id=eos, num_beams=config.beams,
        length_penalty=config.length_penalty, early_stopping=config.early_stopping,
        num_return_sequences=config.beams,
    )  # fmt: skip
    found = ours(batch, lambda net, batch: beam_search(net, batch, config, eos=eos, pad=PAD))
    assert (found == eos).any(), "no answer ends: the test would prove little"
    np.testing.assert_array_equal(found, expected)


def test_scores_are_log_probabilities_of_what_was_said():
    net = model()
    batch = prompts("packed", net.config)
    config = BeamConfig(beams=3, new_tokens=3, length_penalty=0.0)
    best = jitted(net, lambda net, batch: beam_search(net, batch, greedy(3), eos=None))(batch)
    beams = jitted(net, lambda net, batch: beam_search(net, batch, config, eos=None))(batch)
    for answers in (best, beams):
        words = answers.tokens_BAWn[0, 1, 0].tolist()
        total = 0.0
        for number, word in enumerate(words):
            logits = np.asarray(next_logits(net, longer(batch, 0, 1, words[:number])))[0, 0]
            total += float(jax.nn.log_softmax(logits)[word])
        np.testing.assert_allclose(answers.scores_BAW[0, 1, 0], total, atol=1e-4)
    assert (beams.scores_BAW[..., 0] >= best.scores_BAW[..., 0] - 1e-4)[np.asarray(batch.answer_weights) > 0].all()
    assert (np.diff(beams.scores_BAW, axis=-1) <= 0).all()


def test_padding_follows_the_end():
    batch = prompts("packed", model().config)
    free = ours(batch, lambda net, batch: beam_search(net, batch, greedy(6), eos=None))
    end = int(free[0, 1])
    ended = ours(batch, lambda net, batch: beam_search(net, batch, greedy(6), eos=end, pad=PAD))
    first = int(np.argmax(free[0] == end))
    assert ended[0].tolist() == [*free[0, : first + 1].tolist(), *[PAD] * (5 - first)]


@pytest.mark.parametrize("sampling", [SamplingConfig(0.7, 5), SamplingConfig(1.3, 0, 0.8), SamplingConfig(0.9, 9, 0.5)])
def test_what_is_drawn_from_is_what_transformers_draws_from(sampling):
    torch = pytest.importorskip("torch")
    from transformers.generation.logits_process import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    logits = np.random.default_rng(0).normal(scale=3, size=(7, 50)).astype(np.float32)
    expected = TemperatureLogitsWarper(sampling.temperature)(None, torch.tensor(logits))
    if sampling.top_k:
        expected = TopKLogitsWarper(sampling.top_k)(None, expected)
    expected = TopPLogitsWarper(sampling.top_p)(None, expected) if sampling.top_p < 1 else expected
    np.testing.assert_allclose(kept_logits(jnp.asarray(logits), sampling), expected.numpy(), rtol=1e-6)


@pytest.mark.parametrize("nan", [np.float32(np.nan), -np.float32(np.nan)])
def test_scores_that_are_nan_come_first_whatever_their_sign(nan):
    scores = jnp.array([[[[-jnp.inf, 1.0, nan], [nan, -jnp.inf, 0.0]]]])
    best, beams, numbers = jax.jit(top_candidates, static_argnums=1)(scores, 4)
    np.testing.assert_array_equal(best, [[[np.nan, np.nan, 1, 0]]])
    assert (beams.tolist(), numbers.tolist()) == ([[[0, 1, 0, 1]]], [[[2, 0, 1, 2]]])


def test_settings_out_of_range_are_refused():
    with pytest.raises(ValueError, match="top_p in"):
        SamplingConfig(1.0, top_p=0.0)
    with pytest.raises(ValueError, match="temperature 1e-38 must be 0 or at least"):
        SamplingConfig(1e-38)
    with pytest.raises(ValueError, match="guidance inf"):
        CodeSamplingConfig(guidance=float("inf"))


def test_on_a_mesh_it_says_what_one_device_says():
    net = model()
    batch = jax.tree.map(lambda x: jnp.concatenate([x] * 4), prompts("packed", net.config))
    config = BeamConfig(beams=3, new_tokens=6)

    def both(net, batch):
        return beam_search(net, batch, greedy(6), eos=EOS), beam_search(net, batch, config, eos=EOS)

    alone = jitted(net, both)(batch)
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    with jax.set_mesh(mesh):
        together = jitted(net, both)(jax.device_put(batch, batch_sharding(mesh)))
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_array_equal(one.tokens_BAWn, other.tokens_BAWn)
        np.testing.assert_allclose(one.scores_BAW, other.scores_BAW, atol=1e-4)


def test_bfloat16_runs():
    net = drawn(dataclasses.replace(model().config, compute_dtype="bfloat16"))
    batch = prompts("packed", net.config)
    answers = jitted(net, lambda net, batch: beam_search(net, batch, BeamConfig(2, 5), eos=EOS))(batch)
    assert np.isfinite(answers.scores_BAW[np.asarray(batch.answer_weights) > 0]).all()
