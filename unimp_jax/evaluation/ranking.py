"""Exact ranks in the whole catalogue, from scores of every item; no sampling anywhere.

Beside the letters of `unimp_jax.batch`: M queries, I items of the catalogue, S places for items that a user has seen.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp


@jax.jit
def ranks(scores_MI: jax.Array, targets_M: jax.Array, seen_MS: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The rank of each query's right item, 1 for the best; an item of equal score counts half.

    A rank is 1 + (items that score higher) + (other items that score the same) / 2: what is expected on average when
    ties are broken at random. A query with a NaN among its scores has the rank NaN, which
    `unimp_jax.evaluation.metrics` refuses, so that a broken model never looks good.

    Args:
      scores_MI: floating [M, I], larger is better.
      targets_M: int32 [M], the right items.
      seen_MS: int32 [M, S], the items each user has met, in any order, padded with -1.

    Returns:
      (kept, filtered), float32 [M] each: the rank among all items, and among those not seen. The right item itself
      is never filtered, seen or not.
    """
    target_scores_M1 = jnp.take_along_axis(scores_MI, targets_M[:, None], axis=1)
    half_ranks_MI = (scores_MI > target_scores_M1) + 0.5 * (scores_MI == target_scores_M1)
    half_ranks_MI = jnp.where(jnp.isnan(scores_MI), jnp.nan, half_ranks_MI).astype(jnp.float32)
    is_target_MI = jnp.arange(scores_MI.shape[1]) == targets_M[:, None]
    hidden_MI = seen_mask(seen_MS, scores_MI.shape[1]) & ~is_target_MI & ~jnp.isnan(scores_MI)
    kept_M = 0.5 + half_ranks_MI.sum(axis=1)  # the right item ties with itself: one half of its own 1
    filtered_M = 0.5 + jnp.where(hidden_MI, 0.0, half_ranks_MI).sum(axis=1)
    return kept_M, filtered_M


def top_items(scores_MI: jax.Array, seen_MS: jax.Array, k: int) -> jax.Array:
    """The k unseen items of highest score, best first, the lower index first among equals: int32 [M, k].

    Where fewer than k items are unseen, and in the whole row of a query with a NaN among its scores, stands -1.

    Raises:
      ValueError: the catalogue has fewer than k items.
    """
    if not 1 <= k <= scores_MI.shape[1]:
        raise ValueError(f"k is {k}: the top items of a catalogue of {scores_MI.shape[1]} can be 1 to all of them")
    hidden_MI = seen_mask(seen_MS, scores_MI.shape[1])
    lowest = jnp.finfo(scores_MI.dtype).min
    open_MI = jnp.where(hidden_MI, -jnp.inf, jnp.maximum(scores_MI, lowest))  # an unseen -inf still precedes the seen
    values_Mk, items_Mk = jax.lax.top_k(open_MI, k)
    valid_Mk = (values_Mk > -jnp.inf) & ~jnp.isnan(scores_MI).any(axis=1, keepdims=True)
    return jnp.where(valid_Mk, items_Mk, -1).astype(jnp.int32)


def seen_mask(seen_MS: jax.Array, num_items: int) -> jax.Array:
    """bool [M, I], True where a user has met an item; -1 in `seen_MS` marks nothing."""
    columns_MS = jnp.where(seen_MS < 0, num_items, seen_MS)
    rows_M1 = jnp.arange(seen_MS.shape[0])[:, None]
    return jnp.zeros((seen_MS.shape[0], num_items), bool).at[rows_M1, columns_MS].set(True, mode="drop")
