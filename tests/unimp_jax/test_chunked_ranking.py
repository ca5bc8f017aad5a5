"""Ranks by chunks of the vocabulary against those of all scores at once."""

import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unimp_jax.evaluation import answering
from unimp_jax.evaluation.chunked_ranking import rank_by_chunks
from unimp_jax.evaluation.predictor import Predictor
from unimp_jax.evaluation.ranking import ranks, seen_bitmap, top_items
from unimp_jax.model.decoder import EmbeddingTables
from unimp_jax.model.layers import parameter

BASE, NEW, ITEMS, WIDTH, PROMPTS, K = 9, 70, 53, 4, 12, 7
TOKENS = BASE + 3 + np.sort(np.random.default_rng(0).choice(NEW - 3, ITEMS, replace=False)).astype(np.int32)


def rows(rng, count):
    """Whole numbers, so that sums are exact and many scores are equal."""
    return parameter(jnp.asarray(rng.integers(-2, 3, (count, WIDTH)), jnp.float32), ("vocab", "embed"))


@pytest.mark.parametrize("chunk", [4, 16, 40, 100])
@pytest.mark.parametrize("seed", range(3))
def test_chunks_rank_as_the_whole_does(chunk, seed):
    rng = np.random.default_rng(seed)
    tables = EmbeddingTables(BASE, "float32", rows(rng, BASE), rows(rng, NEW), None, None)
    hidden = rows(rng, PROMPTS)[...].at[3].set(jnp.nan)
    targets = rng.integers(0, ITEMS, PROMPTS).astype(np.int32)
    seen = [rng.choice(ITEMS, rng.integers(0, 20), replace=False) for _ in range(PROMPTS)]
    seen[1], seen[2] = np.arange(ITEMS), np.array([targets[2]])  # everything, and the right item
    bitmaps = seen_bitmap(seen, ITEMS)

    @jax.jit
    def whole(hidden):
        # The softmax's sum is taken off as it is in chunks: what is equal before is equal then.
        logits = tables.logits(hidden)
        scores = (logits - jax.nn.logsumexp(logits, axis=1, keepdims=True))[:, TOKENS]
        return (*ranks(scores, targets, bitmaps), top_items(scores, bitmaps, K), scores)

    unfiltered, filtered, top, scores = whole(hidden)
    by_chunks = jax.jit(functools.partial(rank_by_chunks, tables, k=K, chunk=chunk))
    found = by_chunks(hidden, jnp.asarray(TOKENS), targets, bitmaps)
    np.testing.assert_array_equal(found[0], unfiltered)
    np.testing.assert_array_equal(found[1], filtered)
    np.testing.assert_array_equal(found[2], top)
    best = np.where(top >= 0, np.take_along_axis(np.asarray(scores), np.maximum(top, 0), axis=1), -np.inf)
    np.testing.assert_allclose(found[3], best, atol=1e-5)
    np.testing.assert_allclose(found[4], -np.asarray(scores)[np.arange(PROMPTS), targets], atol=1e-5)
    assert np.isnan(found[0][3])
    assert (np.asarray(found[2])[[1, 3]] == -1).all()


@pytest.mark.parametrize(("shift", "ranks_by_chunks"), [(0, True), (-4, False)])
def test_items_among_base_tokens_are_ranked_as_a_whole(shift, ranks_by_chunks, monkeypatch):
    """Chunks are read from the table of new tokens alone; an imported vocabulary may hold items among its base ones."""
    chosen = []
    config = SimpleNamespace(decoder=SimpleNamespace(vocab_size=BASE))
    model = SimpleNamespace(config=config, embeddings=SimpleNamespace(tables=lambda: None))
    hidden, scores = jnp.zeros((2, 1, WIDTH)), jnp.zeros((2, 1, ITEMS))
    monkeypatch.setattr(answering, "prefill", lambda *_: (hidden, None))
    monkeypatch.setattr(answering, "next_token", lambda *_: chosen.append(False) or (scores,))
    monkeypatch.setattr(answering, "rank_by_chunks", lambda *_, **__: chosen.append(True) or (jnp.zeros(2),))
    tokens, seen = BASE + shift + np.arange(ITEMS), np.zeros((2, 1, -(-ITEMS // 8)), np.uint8)
    prompts = SimpleNamespace(batch=None, latents_BNLC=None)
    answering.rank(model, prompts, tokens, np.zeros((2, 1), int), seen, k=3, lowest_token=tokens.min(), chunk=10)
    assert chosen == [ranks_by_chunks]


def test_the_lowest_token_of_the_catalogue_is_told(monkeypatch):
    given = {}
    predictor = Predictor(None, None, None, ())
    monkeypatch.setattr(predictor, "_map", lambda *_, **named: given.update(named) or (np.zeros(0),) * 5)
    predictor.rank([], item_tokens=TOKENS, targets=np.zeros(0, int), seen=lambda _: [], k=3)
    assert given["lowest_token"] == TOKENS[0] > BASE
