"""Functions that answer one batch of prompts: pure, jittable functions of a model with results [B, A, …].

`unimp_jax.evaluation.predictor` maps them over batches.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from unimp_jax import decoding
from unimp_jax.batch import Batch
from unimp_jax.decoding import BeamConfig, CodeSamplingConfig, Trie, beam_search, path_scores, prefill, search_items
from unimp_jax.evaluation.chunked_ranking import rank_by_chunks
from unimp_jax.evaluation.ranking import ranks, seen_mask, top_items
from unimp_jax.model import UniMP

Results = tuple[jax.Array, ...]

CHUNK = 2**18
"""The number of items whose scores, for a batch of prompts, fit into any device's memory."""


class Prompts(NamedTuple):
    """One batch of prompts.

    Attributes:
      batch: Prompts that end at its answer positions.
      latents_BNLC: Latents of its images; None: the batch contains the images.
      numbers_BA: int32, numbers of the prompts, -1 for an empty slot.
    """

    batch: Batch
    latents_BNLC: jax.Array | None
    numbers_BA: jax.Array


def next_token(model: UniMP, prompts: Prompts, tokens_n: jax.Array) -> Results:
    """Returns log-probabilities of `tokens_n` as the next token, over the whole vocabulary: float32 [B, A, n]."""
    hidden_BAD, _ = prefill(model, prompts.batch, prompts.latents_BNLC)
    return (jax.nn.log_softmax(model.logits(hidden_BAD))[..., tokens_n],)


def among(model: UniMP, prompts: Prompts, tokens_n: jax.Array) -> Results:
    """Returns log-probabilities of `tokens_n` as the next token, if it is one of them: float32 [B, A, n]."""
    hidden_BAD, _ = prefill(model, prompts.batch, prompts.latents_BNLC)
    return (jax.nn.log_softmax(model.logits_of(hidden_BAD, tokens_n)),)


def score(model: UniMP, prompts: Prompts, answers_BAWn: jax.Array) -> Results:
    """Returns log-probabilities of whole answers: float32 [B, A, W]."""
    return (path_scores(model, *prefill(model, prompts.batch, prompts.latents_BNLC), answers_BAWn),)


def rank(
    model: UniMP, prompts: Prompts, tokens_I: jax.Array, targets_BA: jax.Array, seen_BAw: jax.Array, *, k: int,
    lowest_token: int, chunk: int = CHUNK,
) -> Results:  # fmt: skip
    """Returns the fields of `unimp_jax.evaluation.ranking.Ranked`, by exact scores of all items, for ids of one token.

    Args:
      lowest_token: The lowest of the tokens; of an imported vocabulary it may be a base token.
      chunk: Number of tokens that are scored at a time in larger catalogues, if all of them are new tokens.
    """
    targets_M, seen_Mw = targets_BA.reshape(-1), seen_BAw.reshape(-1, seen_BAw.shape[-1])
    if len(tokens_I) > chunk and lowest_token >= model.config.decoder.vocab_size:
        hidden_BAD, _ = prefill(model, prompts.batch, prompts.latents_BNLC)
        hidden_MD = hidden_BAD.reshape(-1, hidden_BAD.shape[-1])
        tables = model.embeddings.tables()
        results = rank_by_chunks(tables, hidden_MD, tokens_I, targets_M, seen_Mw, k=k, chunk=chunk)
        return jax.tree.map(lambda x_M: x_M.reshape(*targets_BA.shape, *x_M.shape[1:]), results)
    (scores_BAI,) = next_token(model, prompts, tokens_I)
    scores_MI = scores_BAI.reshape(-1, tokens_I.shape[0])
    unfiltered_M, filtered_M = ranks(scores_MI, targets_M, seen_Mw)
    entropy_M = -jnp.take_along_axis(scores_MI, targets_M[:, None], axis=1)[:, 0]
    top_Mk = top_items(scores_MI, seen_Mw, k)
    best_Mk = jnp.take_along_axis(scores_MI, jnp.maximum(top_Mk, 0), axis=1)
    results = unfiltered_M, filtered_M, top_Mk, jnp.where(top_Mk >= 0, best_Mk, -jnp.inf), entropy_M
    return jax.tree.map(lambda x_M: x_M.reshape(*targets_BA.shape, *x_M.shape[1:]), results)


def search(
    model: UniMP, prompts: Prompts, trie: Trie, tokens_In: jax.Array, targets_BA: jax.Array, seen_BAw: jax.Array, *,
    k: int, beams: int,
) -> Results:  # fmt: skip
    """Returns the fields of `unimp_jax.evaluation.ranking.Ranked` for items found by beam search over their ids."""
    num_items = tokens_In.shape[0]
    seen_BAI = seen_mask(seen_BAw, num_items)
    is_target_BAI = jnp.arange(num_items) == targets_BA[..., None]
    read = prefill(model, prompts.batch, prompts.latents_BNLC)
    others_BAI = seen_BAI & ~is_target_BAI  # the right item is never filtered
    unfiltered = search_items(model, *read, trie, None, k=k, beams=beams)
    found = search_items(model, *read, trie, others_BAI, k=k + 1, beams=beams)  # one extra
    entropy_BA = -path_scores(model, *read, tokens_In[targets_BA][:, :, None])[..., 0]

    def place(items_BAk: jax.Array) -> jax.Array:
        hits_BAk = items_BAk[..., :k] == targets_BA[..., None]
        return jnp.where(hits_BAk.any(-1), hits_BAk.argmax(-1) + 1, jnp.inf).astype(jnp.float32)

    seen_BA = (seen_BAI & is_target_BAI).any(-1)  # then the right item has a rank but is not among the best
    shown_BAk = (found.items_BAk >= 0) & ~(seen_BA[..., None] & (found.items_BAk == targets_BA[..., None]))
    order_BAk = jnp.argsort(~shown_BAk, axis=-1, stable=True)[..., :k]

    def best(x_BAk: jax.Array, blank: float) -> jax.Array:
        return jnp.take_along_axis(jnp.where(shown_BAk, x_BAk, blank), order_BAk, axis=-1)

    top_BAk, scores_BAk = best(found.items_BAk, -1), best(found.scores_BAk, -jnp.inf)
    return place(unfiltered.items_BAk), place(found.items_BAk), top_BAk, scores_BAk, entropy_BA


def best_items(model: UniMP, prompts: Prompts, trie: Trie, excluded_BAw: jax.Array, *, k: int, beams: int) -> Results:
    """Returns the best items that are not excluded: (int32 [B, A, k], -1 where there are no more; float32 scores)."""
    read = prefill(model, prompts.batch, prompts.latents_BNLC)
    excluded_BAI = seen_mask(excluded_BAw, trie.items.shape[0])
    found = search_items(model, *read, trie, excluded_BAI, k=k, beams=beams)
    return found.items_BAk, found.scores_BAk


def generate(model: UniMP, prompts: Prompts, *, config: BeamConfig, eos: int, pad: int) -> Results:
    """Returns the best answer of beam search: (int32 [B, A, n] tokens, float32 [B, A] scores)."""
    answers = beam_search(model, prompts.batch, config, eos=eos, pad=pad, latents_BNLC=prompts.latents_BNLC)
    return answers.tokens_BAWn[:, :, 0], answers.scores_BAW[:, :, 0]


def sample_codes(
    model: UniMP, prompts: Prompts, tokens_K: jax.Array, bare_T: jax.Array, key: jax.Array, *, length: int,
    config: CodeSamplingConfig, samples: int,
) -> Results:  # fmt: skip
    """Returns images as codes: (int32 [B, A, samples, length], their log-probabilities, float32 [B, A, samples])."""
    sampled = decoding.sample_codes(
        model, prompts.batch, tokens_K, length, config, bare_T=bare_T, key=jax.random.wrap_key_data(key),
        numbers_BA=prompts.numbers_BA, samples=samples, latents_BNLC=prompts.latents_BNLC,
    )  # fmt: skip
    return sampled.codes_BAWn, sampled.scores_BAW
