"""What is said with a cache is what is said when the whole prefix is computed anew at every step."""

import jax.numpy as jnp
import numpy as np
import pytest

from tests.unimp_jax.decoding.support import GEOMETRIES, jitted, longer, model, next_logits, prompts
from unimp_jax.decoding import decode_step, empty_cache, prefill

STEPS, BEAMS = 4, 3


def continued(model, batch, tokens_nBAW, parents_nBAW):
    """Logits of the first token, and behind every forced token; the beam is reordered after each."""
    hidden_BAD, kept = prefill(model, batch)
    cache = empty_cache(model.config, kept, BEAMS, STEPS)
    logits = []
    for step in range(STEPS):
        hidden_BAWD, cache = decode_step(model, kept, cache, tokens_nBAW[step], jnp.int32(step))
        cache = cache.reorder(parents_nBAW[step])
        logits.append(jnp.take_along_axis(model.logits(hidden_BAWD), parents_nBAW[step][..., None], axis=2))
    return model.logits(hidden_BAD), jnp.stack(logits)


KINDS = [("idefics", kind) for kind in ("packed", "padded", "single")] + [
    (name, "packed") for name in list(GEOMETRIES)[1:]
]


@pytest.mark.parametrize(("name", "kind"), KINDS)
def test_equals_the_whole_prefix_at_every_step(name, kind):
    net = model(name)
    batch = prompts(kind, net.config)
    B, A = batch.answer_positions.shape
    rng = np.random.default_rng(1)
    tokens = rng.integers(0, 64, (STEPS, B, A, BEAMS)).astype(np.int32)
    parents = rng.integers(0, BEAMS, (STEPS, B, A, BEAMS)).astype(np.int32)
    first, later = jitted(net, continued)(batch, tokens, parents)
    for row, slot in np.argwhere(np.asarray(batch.answer_weights) > 0):
        alone = np.asarray(next_logits(net, longer(batch, row, slot, [])))[0, 0]
        np.testing.assert_allclose(first[row, slot], alone, atol=1e-4, rtol=1e-4)
        spoken = [[] for _ in range(BEAMS)]
        for step in range(STEPS):
            spoken = [[*words, int(token)] for words, token in zip(spoken, tokens[step, row, slot], strict=True)]
            spoken = [spoken[parent] for parent in parents[step, row, slot]]
            for place in (0, BEAMS - 1):
                alone = np.asarray(next_logits(net, longer(batch, row, slot, spoken[place])))[0, 0]
                np.testing.assert_allclose(later[step, row, slot, place], alone, atol=1e-4, rtol=1e-4)


def test_logits_tell_prompts_and_continuations_apart():
    """Else the comparison above would prove little."""
    net = model()
    batch = prompts("packed", net.config)
    one, other = (np.asarray(next_logits(net, longer(batch, 0, 0, [token])))[0, 0] for token in (5, 6))
    assert np.abs(one - other).max() > 0.1


def test_other_prompts_of_a_row_change_nothing():
    net = model()
    batch = prompts("packed", net.config)
    B, A = batch.answer_positions.shape
    tokens, parents = np.full((STEPS, B, A, BEAMS), 7, np.int32), np.zeros((STEPS, B, A, BEAMS), np.int32)
    run = jitted(net, continued)
    before = run(batch, tokens, parents)
    mine = np.asarray(batch.segment_ids) == 2
    moved = np.where(mine, batch.tokens, (batch.tokens + 1) % 60)
    images = np.where((np.asarray(batch.image_segment_ids) == 2)[..., None, None, None], batch.images, 0)
    tokens[:, :, np.arange(A) != 1] = 9
    after = run(type(batch)(**{**vars(batch), "tokens": moved, "images": images}), tokens, parents)
    for one, other in zip(before, after, strict=True):
        slot = np.moveaxis(one, 2, 0)[1] if one.ndim == 5 else one[:, 1]
        same = np.moveaxis(other, 2, 0)[1] if other.ndim == 5 else other[:, 1]
        np.testing.assert_allclose(slot, same, atol=1e-5)
