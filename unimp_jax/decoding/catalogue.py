"""Beam search along the trie of a catalogue: every answer is an item, and no item is found twice."""

import flax.struct
import jax
import jax.numpy as jnp

from unimp_jax.decoding.beam import log_probabilities, take, top_candidates
from unimp_jax.decoding.cache import PromptCache, decode_step, empty_cache
from unimp_jax.decoding.trie import PAST, Trie, branches, excluded_before
from unimp_jax.model import UniMP


@flax.struct.dataclass
class Found:
    """The best items for each prompt, best first.

    Attributes:
      items_BAk: int32, -1 where there are no more items.
      scores_BAk: float32, the log-probability of all tokens of the id under the whole vocabulary; -inf for item -1.
    """

    items_BAk: jax.Array
    scores_BAk: jax.Array


def search_items(
    model: UniMP, hidden_BAD: jax.Array, prompts: PromptCache, trie: Trie, excluded_BAI: jax.Array | None = None, *,
    k: int = 10, beams: int = 10,
) -> Found:  # fmt: skip
    """Runs beam search constrained to the trie.

    A beam never enters a branch in which all items are excluded, so min(k, remaining items) items are found if `beams`
    is at least `k`. Ids of one token are ranked exactly, by the prefill alone; the ranking of longer ids is approximate
    unless `beams` is as large as the catalogue.

    Args:
      hidden_BAD, prompts: From `unimp_jax.decoding.cache.prefill`.
      excluded_BAI: bool, items that must not be found.
    """
    excluded_BAp = None if excluded_BAI is None else excluded_before(trie, excluded_BAI)
    hidden_BAWD = hidden_BAD[:, :, None]
    nodes_BAW = jnp.zeros(hidden_BAWD.shape[:3], jnp.int32)
    scores_BAW = jnp.zeros(hidden_BAWD.shape[:3], jnp.float32)
    cache = empty_cache(model.config, prompts, beams, trie.depth - 1)
    for level in range(trie.depth):
        ways = branches(trie, level, nodes_BAW, excluded_BAp)
        log_p_BAWC = log_probabilities(model.logits(hidden_BAWD), jnp.maximum(ways.tokens_BAWC, 0))
        log_p_BAWC = jnp.where(ways.tokens_BAWC == PAST, 0.0, log_p_BAWC)
        scores_BAWC = jnp.where(ways.open_BAWC, scores_BAW[..., None] + log_p_BAWC, -jnp.inf)
        last = level == trie.depth - 1
        scores_BAW, parents_BAW, numbers_BAW = top_candidates(scores_BAWC, k if last else beams)

        def chosen(x_BAWC: jax.Array) -> jax.Array:
            of_parents = take(jnp.broadcast_to(x_BAWC, scores_BAWC.shape), parents_BAW)  # noqa: B023
            return jnp.take_along_axis(of_parents, numbers_BAW[..., None], axis=-1)[..., 0]  # noqa: B023

        nodes_BAW = chosen(ways.nodes_BAWC)
        if not last:
            tokens_BAW = jnp.maximum(chosen(ways.tokens_BAWC), 0)
            hidden_BAWD, cache = decode_step(model, prompts, cache.reorder(parents_BAW), tokens_BAW, level)
    items_BAk = jnp.where(scores_BAW > -jnp.inf, trie.items[nodes_BAW], -1)  # excludes NaN, too
    return Found(items_BAk, scores_BAW)


def path_scores(model: UniMP, hidden_BAD: jax.Array, prompts: PromptCache, ids_BAWn: jax.Array) -> jax.Array:
    """Returns the log-probabilities of given answers, float32 [B, A, W].

    Args:
      hidden_BAD, prompts: From `unimp_jax.decoding.cache.prefill`.
      ids_BAWn: int32, W answers to each prompt, of n tokens; shorter ones are padded with `PAST`.
    """
    n = ids_BAWn.shape[-1]
    cache = empty_cache(model.config, prompts, ids_BAWn.shape[2], n - 1)
    hidden_BAWD = hidden_BAD[:, :, None]
    scores_BAW = jnp.zeros(ids_BAWn.shape[:3], jnp.float32)
    for step in range(n):
        tokens_BAW = jnp.maximum(ids_BAWn[..., step], 0)
        logits_BAWV = model.logits(hidden_BAWD)
        log_p = log_probabilities(
            jnp.broadcast_to(logits_BAWV, (*tokens_BAW.shape, logits_BAWV.shape[-1])), tokens_BAW[..., None]
        )
        scores_BAW += jnp.where(ids_BAWn[..., step] == PAST, 0.0, log_p[..., 0])
        if step < n - 1:
            hidden_BAWD, cache = decode_step(model, prompts, cache, tokens_BAW, step)
    return scores_BAW
