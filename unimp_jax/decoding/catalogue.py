"""The best items of a catalogue, said token by token along its trie: every answer an item, and none twice."""

from __future__ import annotations

import flax.struct
import jax
import jax.numpy as jnp

from unimp_jax.batch import Batch
from unimp_jax.decoding.beam import take, top_candidates
from unimp_jax.decoding.cache import Prompts, nothing_said, read, say
from unimp_jax.decoding.sampling import log_probabilities
from unimp_jax.decoding.trie import PAST, Closed, Trie, branches, close
from unimp_jax.model import UniMP


@flax.struct.dataclass
class Found:
    """The best items of each prompt, best first.

    Attributes:
      items_BAk: int32, -1 where there are no more.
      scores_BAk: float32, the log-probability of all tokens of the id under the whole vocabulary, -inf beside -1.
    """

    items_BAk: jax.Array
    scores_BAk: jax.Array


def find_items(
    model: UniMP, batch: Batch, trie: Trie, excluded_BAS: jax.Array | None = None, *, k: int = 10, beams: int = 10,
    latents_BNLC: jax.Array | None = None,
) -> Found:  # fmt: skip
    """Beam search constrained to the trie; jittable but for `batch`, `trie` and `excluded_BAS`.

    A beam never enters a branch below which everything is excluded, so min(k, items that are left) items are found
    wherever `beams` is at least `k`. Ids of one token are ranked exactly, by the one pass over the prompts; deeper ones
    as far as `beams` reaches, exactly where it is as wide as the catalogue.

    Args:
      batch, latents_BNLC: as of `unimp_jax.decoding.cache.read`.
      excluded_BAS: int32, items not to be found, padded with -1.

    Raises:
      ValueError: `k` or `beams` is below 1, or `k` above `beams` where the trie has more than one level.
    """
    if k < 1 or beams < 1 or (k > beams and trie.depth > 1):
        raise ValueError(f"k {k} and beams {beams} must be at least 1, and k at most beams, to be sure of k items")
    hidden_BAD, prompts = read(model, batch, latents_BNLC)
    closed = None if excluded_BAS is None else close(trie, excluded_BAS)
    return search_items(model, hidden_BAD, prompts, trie, closed, k=k, beams=beams)


def search_items(
    model: UniMP, hidden_BAD: jax.Array, prompts: Prompts, trie: Trie, closed: Closed | None, *, k: int, beams: int,
) -> Found:  # fmt: skip
    """`find_items` for prompts that have been read; `closed` are the items not to be found (`close`, `close_all`)."""
    hidden_BAWD = hidden_BAD[:, :, None]
    nodes_BAW = jnp.zeros(hidden_BAWD.shape[:3], jnp.int32)
    scores_BAW = jnp.zeros(hidden_BAWD.shape[:3], jnp.float32)
    said = nothing_said(model.config, prompts, beams, trie.depth - 1)
    for level in range(trie.depth):
        ways = branches(trie, level, nodes_BAW, closed)
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
            hidden_BAWD, said = say(model, prompts, said.follow(parents_BAW), tokens_BAW, level)
    items_BAk = jnp.where(scores_BAW > -jnp.inf, trie.items[nodes_BAW], -1)  # NaN too is no score
    return Found(items_BAk, scores_BAW)


def path_scores(model: UniMP, hidden_BAD: jax.Array, prompts: Prompts, ids_BAWn: jax.Array) -> jax.Array:
    """The log-probability of given answers to prompts that have been read: float32 [B, A, W].

    Args:
      ids_BAWn: int32, W answers to each, of n tokens, `PAST` behind the end of shorter ones.
    """
    n = ids_BAWn.shape[-1]
    said = nothing_said(model.config, prompts, ids_BAWn.shape[2], n - 1)
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
            hidden_BAWD, said = say(model, prompts, said, tokens_BAW, step)
    return scores_BAW
