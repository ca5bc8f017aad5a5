"""Exact ranks in catalogues whose scores do not fit into memory at once.

One pass over chunks of the vocabulary computes the softmax, a second one the ranks and the best items.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from unimp_jax.model.decoder import EmbeddingTables


class Softmax(NamedTuple):
    """For M hidden states, float32 [M] each: log-sum-exp over all tokens, and the right token's logit."""

    total_M: jax.Array
    right_M: jax.Array


class Best(NamedTuple):
    """Results over the part of the catalogue processed so far.

    Attributes:
      unfiltered_M, filtered_M: float32, number of other items that score higher; ties count half.
      scores_MNk, items_MNk: The best items of each table shard that the user has not seen; -inf and -1 where there are
        none.
      nan_M: bool, whether a score was NaN.
    """

    unfiltered_M: jax.Array
    filtered_M: jax.Array
    scores_MNk: jax.Array
    items_MNk: jax.Array
    nan_M: jax.Array


def rank_by_chunks(
    tables: EmbeddingTables, hidden_MD: jax.Array, tokens_I: jax.Array, targets_M: jax.Array, seen_Mw: jax.Array, *,
    k: int, chunk: int,
) -> tuple[jax.Array, ...]:  # fmt: skip
    """Computes the results of `unimp_jax.evaluation.ranking` with the scores of `chunk` tokens at a time.

    If the table of new tokens is sharded, each device processes its own shard, and the N best lists are merged.

    Args:
      tokens_I: int32, the token of each item, a new token; tokens increase with the item number.
      targets_M: int32, the right items.
      seen_Mw: uint8, bitmaps of the items that users have seen.

    Returns:
      (unfiltered ranks [M], filtered ranks [M], the best items [M, min(k, I)], their log-probabilities, the cross
      entropy of the right items [M]), like the fields of `unimp_jax.evaluation.ranking.Ranked`.
    """
    M, num_items, k = len(hidden_MD), len(tokens_I), min(k, len(tokens_I))
    base_MB, table_NCD = tables.without_new().logits(hidden_MD), tables.new_head_by_shard()
    N, C = table_NCD.shape[:2]
    size = min(-(-chunk // N), C)
    starts, lowest = jnp.arange(0, C, size), jnp.finfo(jnp.float32).min
    items_NC = jnp.full(N * C, -1, jnp.int32).at[tokens_I - tables.vocab_size].set(jnp.arange(num_items)).reshape(N, C)
    right_items_M11 = targets_M[:, None, None]

    def read(start: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Returns (logits [M, N, c] of new tokens, -inf where an earlier chunk contained them; bool [N, c], not in an
        earlier chunk; int32 [N, c], item numbers, -1 for none)."""
        begin = jnp.minimum(start, C - size)  # the last chunk overlaps the previous one
        fresh_Nc = jnp.broadcast_to(begin + jnp.arange(size) >= start, (N, size))
        rows_NcD, items_Nc = (jax.lax.dynamic_slice_in_dim(x, begin, size, axis=1) for x in (table_NCD, items_NC))
        logits_MNc = jnp.einsum("md,ncd->mnc", hidden_MD, rows_NcD, preferred_element_type=jnp.float32)
        return jnp.where(fresh_Nc, logits_MNc, -jnp.inf), fresh_Nc, jnp.where(fresh_Nc, items_Nc, -1)

    def add(softmax: Softmax, start: jax.Array) -> tuple[Softmax, None]:
        logits_MNc, _, items_Nc = read(start)
        right_M = softmax.right_M + jnp.where(items_Nc == right_items_M11, logits_MNc, 0).sum((1, 2))
        return Softmax(jnp.logaddexp(softmax.total_M, jax.nn.logsumexp(logits_MNc, axis=(1, 2))), right_M), None

    softmax, _ = jax.lax.scan(add, Softmax(jax.nn.logsumexp(base_MB, axis=1), jnp.zeros(M)), starts)
    right_M = softmax.right_M - softmax.total_M

    def look(best: Best, start: jax.Array) -> tuple[Best, None]:
        logits_MNc, fresh_Nc, items_Nc = read(start)
        scores_MNc = jnp.where(fresh_Nc, logits_MNc - softmax.total_M[:, None, None], -jnp.inf)
        seen_MNc = (seen_Mw[:, items_Nc >> 3] >> (items_Nc & 7).astype(jnp.uint8)) & 1 == 1
        right_M11 = right_M[:, None, None]
        halves_MNc = (scores_MNc > right_M11) + 0.5 * (scores_MNc == right_M11)
        halves_MNc = jnp.where((items_Nc >= 0) & (items_Nc != right_items_M11), halves_MNc, 0.0)
        open_MNc = jnp.where(seen_MNc | (items_Nc < 0), -jnp.inf, jnp.maximum(scores_MNc, lowest))
        scores_MNj = jnp.concatenate([best.scores_MNk, open_MNc], axis=2)
        items_MNj = jnp.concatenate([best.items_MNk, jnp.broadcast_to(items_Nc, open_MNc.shape)], axis=2)
        return Best(
            best.unfiltered_M + halves_MNc.sum((1, 2)),
            best.filtered_M + jnp.where(seen_MNc, 0.0, halves_MNc).sum((1, 2)),
            *best_of(scores_MNj, items_MNj, k),
            best.nan_M | (jnp.isnan(scores_MNc) & (items_Nc >= 0)).any((1, 2)),
        ), None

    nothing = jnp.full((M, N, k), -jnp.inf), jnp.full((M, N, k), -1, jnp.int32)
    best, _ = jax.lax.scan(look, Best(jnp.zeros(M), jnp.zeros(M), *nothing, jnp.zeros(M, bool)), starts)
    unfiltered_M, filtered_M = (jnp.where(best.nan_M, jnp.nan, 1 + x) for x in (best.unfiltered_M, best.filtered_M))
    scores_Mk, items_Mk = best_of(best.scores_MNk.reshape(M, -1), best.items_MNk.reshape(M, -1), k)
    valid_Mk = (scores_Mk > -jnp.inf) & ~best.nan_M[:, None]
    return (
        unfiltered_M, filtered_M, jnp.where(valid_Mk, items_Mk, -1), jnp.where(valid_Mk, scores_Mk, -jnp.inf), -right_M,
    )  # fmt: skip


def best_of(scores: jax.Array, items: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
    """Returns the k highest scores of the last axis, ties in order of position, and their items."""
    best, places = jax.lax.top_k(scores, k)
    return best, jnp.take_along_axis(items, places, axis=-1)
