"""What is asked of one batch of prompts: pure functions of a model, jittable, with results [B, A, …].

Each takes the model, the batch, the latents of its images (None: the batch holds the images), the numbers of its
prompts, and then what it needs beside; `unimp_jax.evaluation.predictor` maps them over batches.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from unimp_jax.batch import Batch
from unimp_jax.decoding import (
    BeamConfig,
    CodeSamplingConfig,
    Trie,
    beam_search,
    close_all,
    path_scores,
    read,
    sample_image_codes,
    search_items,
)
from unimp_jax.evaluation.ranking import ranks, seen_mask, top_items
from unimp_jax.model import UniMP


def next_token(
    model: UniMP, batch: Batch, latents_BNLC: jax.Array | None, prompts_BA: jax.Array, tokens_n: jax.Array
) -> tuple[jax.Array, ...]:
    """Log-probabilities of `tokens_n` as the next one, over the whole vocabulary: float32 [B, A, n]."""
    logits_BAV = model.logits(read(model, batch, latents_BNLC)[0])
    return (jax.nn.log_softmax(logits_BAV)[..., tokens_n],)


def rank(
    model: UniMP,
    batch: Batch,
    latents_BNLC: jax.Array | None,
    prompts_BA: jax.Array,
    tokens_I: jax.Array,
    targets_BA: jax.Array,
    seen_BAw: jax.Array,
    *,
    k: int,
) -> tuple[jax.Array, ...]:
    """The fields of `unimp_jax.evaluation.ranking.Ranked`, by exact scores of all items of one token."""
    (scores_BAI,) = next_token(model, batch, latents_BNLC, prompts_BA, tokens_I)
    scores_MI, targets_M = scores_BAI.reshape(-1, tokens_I.shape[0]), targets_BA.reshape(-1)
    seen_Mw = seen_BAw.reshape(-1, seen_BAw.shape[-1])
    unfiltered_M, filtered_M = ranks(scores_MI, targets_M, seen_Mw)
    entropy_M = -jnp.take_along_axis(scores_MI, targets_M[:, None], axis=1)[:, 0]
    top_Mk = top_items(scores_MI, seen_Mw, k)
    best_Mk = jnp.take_along_axis(scores_MI, jnp.maximum(top_Mk, 0), axis=1)
    results = unfiltered_M, filtered_M, top_Mk, jnp.where(top_Mk >= 0, best_Mk, -jnp.inf), entropy_M
    return jax.tree.map(lambda x_M: x_M.reshape(*targets_BA.shape, *x_M.shape[1:]), results)


def search(
    model: UniMP,
    batch: Batch,
    latents_BNLC: jax.Array | None,
    prompts_BA: jax.Array,
    trie: Trie,
    tokens_In: jax.Array,
    targets_BA: jax.Array,
    seen_BAw: jax.Array,
    *,
    k: int,
    beams: int,
) -> tuple[jax.Array, ...]:
    """The fields of `unimp_jax.evaluation.ranking.Ranked`, of the items that beams find by their ids' tokens."""
    num_items = tokens_In.shape[0]
    seen_BAI = seen_mask(seen_BAw, num_items)
    is_target_BAI = jnp.arange(num_items) == targets_BA[..., None]
    hidden_BAD, prompts = read(model, batch, latents_BNLC)
    others = close_all(trie, seen_BAI & ~is_target_BAI)  # the right item is never filtered
    unfiltered = search_items(model, hidden_BAD, prompts, trie, None, k=k, beams=beams)
    found = search_items(model, hidden_BAD, prompts, trie, others, k=k + 1, beams=beams)  # one to spare
    entropy_BA = -path_scores(model, hidden_BAD, prompts, tokens_In[targets_BA][:, :, None])[..., 0]

    def place(items_BAk: jax.Array) -> jax.Array:
        hits_BAk = items_BAk[..., :k] == targets_BA[..., None]
        return jnp.where(hits_BAk.any(-1), hits_BAk.argmax(-1) + 1, jnp.inf).astype(jnp.float32)

    seen_BA = (seen_BAI & is_target_BAI).any(-1)  # then the right item has a rank, and is not among the best
    shown_BAk = (found.items_BAk >= 0) & ~(seen_BA[..., None] & (found.items_BAk == targets_BA[..., None]))
    order_BAk = jnp.argsort(~shown_BAk, axis=-1, stable=True)[..., :k]

    def best(x_BAk: jax.Array, blank: float) -> jax.Array:
        return jnp.take_along_axis(jnp.where(shown_BAk, x_BAk, blank), order_BAk, axis=-1)

    top_BAk, scores_BAk = best(found.items_BAk, -1), best(found.scores_BAk, -jnp.inf)
    return place(unfiltered.items_BAk), place(found.items_BAk), top_BAk, scores_BAk, entropy_BA


def best_items(
    model: UniMP,
    batch: Batch,
    latents_BNLC: jax.Array | None,
    prompts_BA: jax.Array,
    trie: Trie,
    excluded_BAw: jax.Array,
    *,
    k: int,
    beams: int,
) -> tuple[jax.Array, ...]:
    """The best items that are not excluded: (int32 [B, A, k], -1 where there are no more; float32 scores)."""
    hidden_BAD, prompts = read(model, batch, latents_BNLC)
    closed = close_all(trie, seen_mask(excluded_BAw, trie.items.shape[0]))
    found = search_items(model, hidden_BAD, prompts, trie, closed, k=k, beams=beams)
    return found.items_BAk, found.scores_BAk


def generate(
    model: UniMP,
    batch: Batch,
    latents_BNLC: jax.Array | None,
    prompts_BA: jax.Array,
    *,
    config: BeamConfig,
    eos: int,
    pad: int,
) -> tuple[jax.Array, ...]:
    """The best answer of beam search: (int32 [B, A, n] tokens, float32 [B, A] scores)."""
    answers = beam_search(model, batch, config, eos=eos, pad=pad, latents_BNLC=latents_BNLC)
    return answers.tokens_BAWn[:, :, 0], answers.scores_BAW[:, :, 0]


def sample_codes(
    model: UniMP,
    batch: Batch,
    latents_BNLC: jax.Array | None,
    prompts_BA: jax.Array,
    tokens_K: jax.Array,
    bare_T: jax.Array,
    key: jax.Array,
    *,
    length: int,
    config: CodeSamplingConfig,
    samples: int,
) -> tuple[jax.Array, ...]:
    """Images as codes: (int32 [B, A, samples, length], their log-probabilities, float32 [B, A, samples])."""
    drawn = sample_image_codes(
        model, batch, tokens_K, length, config, bare_T=bare_T, key=jax.random.wrap_key_data(key),
        numbers_BA=prompts_BA, samples=samples, latents_BNLC=latents_BNLC,
    )  # fmt: skip
    return drawn.codes_BAWn, drawn.scores_BAW
