"""Greedy decoding against a plain loop, and token for token against transformers' `generate` on an exported model."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.unimp_jax.interop.support import all_logits, batch_of, randomised
from unimp_jax.decoding import greedy
from unimp_jax.model import ModelConfig, UniMP

LENGTHS, NEW = (9, 6), 64


def prompts(config: ModelConfig, room: int):
    """Two prompts of different lengths with two pictures each; `room` slots behind the longer one."""
    rng = np.random.default_rng(0)
    length = max(LENGTHS) + room
    tokens = rng.integers(3, config.decoder.vocab_size, (2, length), dtype=np.int32)
    used = np.arange(length) < np.array(LENGTHS)[:, None]
    index = np.minimum(np.arange(length) // 3 - 1, 1) * np.ones((2, 1), np.int32)
    size = config.vision.image_size
    pictures = rng.normal(size=(2, 2, 3, size, size)).astype(np.float32)
    there = np.ones((2, 2), np.int32)
    batch = batch_of(
        tokens * used, used.astype(np.int32), np.arange(length) * used, np.where(used, index, -1).astype(np.int32),
        np.moveaxis(pictures, 2, -1), there,
    )  # fmt: skip
    return jax.tree.map(jnp.asarray, batch), pictures


def decode(model: UniMP, batch, count: int, **options) -> np.ndarray:
    graph, state = nnx.split(model)
    jitted = jax.jit(lambda state, batch: greedy(nnx.merge(graph, state), batch, count, **options))
    return np.asarray(jitted(state, batch))


@functools.cache
def model() -> UniMP:
    from tests.unimp_jax.interop.test_idefics import geometry

    config = geometry(every=2, new_tokens=3, qk_norm=True, gate="channel", kv_heads=2)
    graph, state = nnx.split(randomised(UniMP(config, rngs=nnx.Rngs(0)), deviation=0.5))
    return nnx.merge(graph, jax.tree.map(lambda x: 3 * x, state))  # so that what is said depends on what was said


def test_equals_a_loop_over_growing_prompts():
    batch, _ = prompts(model().config, 5)
    found = decode(model(), batch, 5)
    for row, length in enumerate(LENGTHS):
        tokens = np.asarray(batch.tokens[row : row + 1, :length])
        last = int(batch.image_index[row, length - 1])
        index = np.asarray(batch.image_index[row : row + 1, :length])
        for number in range(5):
            ones = np.ones_like(tokens)
            places = np.arange(tokens.shape[1])[None]
            images = np.asarray(batch.images[row : row + 1])
            longer = batch_of(tokens, ones, places, index, images, np.ones((1, 2), np.int32))
            token = int(np.asarray(all_logits(model(), longer))[0, -1].argmax())
            assert token == found[row, number]
            tokens, index = np.append(tokens, [[token]], 1).astype(np.int32), np.append(index, [[last]], 1)


def test_padding_follows_the_end():
    batch, _ = prompts(model().config, 5)
    free = decode(model(), batch, 5)
    ended = decode(model(), batch, 5, eos=int(free[0, 1]), pad=1)
    first = int(np.argmax(free[0] == free[0, 1]))
    assert ended[0].tolist() == [*free[0, : first + 1].tolist(), *[1] * (4 - first)]


def test_equals_generate_of_transformers(tmp_path):
    torch = pytest.importorskip("torch")
    from transformers import IdeficsForVisionText2Text

    from tests.unimp_jax.interop.test_idefics import export

    batch, pictures = prompts(model().config, NEW)
    theirs = IdeficsForVisionText2Text.from_pretrained(export(tmp_path / "model", model())).eval()
    longest = max(LENGTHS)
    tokens, attended, mask = np.zeros((2, longest)), np.zeros((2, longest)), np.zeros((2, longest, 2))
    for row, length in enumerate(LENGTHS):
        tokens[row, longest - length :] = batch.tokens[row, :length]
        attended[row, longest - length :] = 1
        mask[row, longest - length :] = np.asarray(batch.image_index[row, :length])[:, None] == np.arange(2)
    written = theirs.generate(
        input_ids=torch.tensor(tokens).long(), attention_mask=torch.tensor(attended).long(),
        pixel_values=torch.tensor(pictures), image_attention_mask=torch.tensor(mask).long(), do_sample=False,
        max_new_tokens=NEW, min_new_tokens=NEW, eos_token_id=None, pad_token_id=0,
    )[:, longest:]  # fmt: skip
    found = decode(model(), batch, NEW)
    assert len(np.unique(found)) > 5, "an answer of one token again and again would prove little"
    np.testing.assert_array_equal(found, written.numpy())
