"""Exact ranks in the whole catalogue from the scores of all items, without sampling."""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np


@dataclasses.dataclass(frozen=True, eq=False)
class Ranked:
    """The best of a catalogue of I items for each of P prompts.

    Attributes:
      unfiltered, filtered: float32 [P], the right item's rank (1 is best) among all items, and among those that the
        user has not seen. With exact scores of all items, ties count half; after a beam search, it is the position
        among the k items found, infinite if the right item is not found.
      top: int32 [P, k], the best items that the user has not seen, best first; -1 where there are no more; all of them
        where the catalogue has fewer than k.
      scores: float32 [P, k], their log-probabilities.
      cross_entropy: float32 [P], of the right item's tokens over the whole vocabulary, in nats.
    """

    unfiltered: np.ndarray
    filtered: np.ndarray
    top: np.ndarray
    scores: np.ndarray
    cross_entropy: np.ndarray


@jax.jit
def ranks(scores_MI: jax.Array, targets_M: jax.Array, seen_Mw: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns the rank of each query's right item, 1 for the best; items of equal score count half.

    A rank is 1 + (items that score higher) + (other items that score the same) / 2: the expectation if ties are broken
    at random. A query with a NaN among its scores has rank NaN, which `unimp_jax.evaluation.metrics` rejects, so that a
    broken model never looks good.

    Args:
      scores_MI: floating [M, I], larger is better.
      targets_M: int32 [M], the right items.
      seen_Mw: uint8 [M, w], the items that each user has seen (`seen_bitmap`).

    Returns:
      (unfiltered, filtered), float32 [M] each: the rank among all items, and among those not seen. The right item
      itself is never filtered, seen or not.
    """
    target_scores_M1 = jnp.take_along_axis(scores_MI, targets_M[:, None], axis=1)
    half_ranks_MI = (scores_MI > target_scores_M1) + 0.5 * (scores_MI == target_scores_M1)
    half_ranks_MI = jnp.where(jnp.isnan(scores_MI), jnp.nan, half_ranks_MI).astype(jnp.float32)
    is_target_MI = jnp.arange(scores_MI.shape[1]) == targets_M[:, None]
    hidden_MI = seen_mask(seen_Mw, scores_MI.shape[1]) & ~is_target_MI & ~jnp.isnan(scores_MI)
    unfiltered_M = 0.5 + half_ranks_MI.sum(axis=1)  # the right item's tie with itself adds the other half
    filtered_M = 0.5 + jnp.where(hidden_MI, 0.0, half_ranks_MI).sum(axis=1)
    return unfiltered_M, filtered_M


def top_items(scores_MI: jax.Array, seen_Mw: jax.Array, k: int) -> jax.Array:
    """Returns the k (at least 1, or ValueError is raised) unseen items with the highest scores, best first, ties by the
    lower index: int32 [M, min(k, I)]; -1 where fewer are unseen, and in the whole row of a query with a NaN among its
    scores."""
    if k < 1:
        raise ValueError(f"k is {k} and must be at least 1")
    hidden_MI = seen_mask(seen_Mw, scores_MI.shape[1])
    lowest = jnp.finfo(scores_MI.dtype).min
    open_MI = jnp.where(hidden_MI, -jnp.inf, jnp.maximum(scores_MI, lowest))  # an unseen -inf still precedes the seen
    values_Mk, items_Mk = jax.lax.top_k(open_MI, min(k, scores_MI.shape[1]))
    valid_Mk = (values_Mk > -jnp.inf) & ~jnp.isnan(scores_MI).any(axis=1, keepdims=True)
    return jnp.where(valid_Mk, items_Mk, -1).astype(jnp.int32)


def seen_bitmap(seen: Sequence[np.ndarray], num_items: int) -> np.ndarray:
    """Returns the items that M users have seen as bitmaps, uint8 [M, w], with one bit per item, the lowest bit first.

    A bitmap has the same size for every user: a 32nd of the user's scores.

    Args:
      seen: For each of M users, int [any], the items seen, in any order, possibly repeated.
    """
    rows_Mw = np.zeros((len(seen), -(-num_items // 8)), np.uint8)
    for row_w, items in zip(rows_Mw, seen, strict=True):
        if len(items):
            np.bitwise_or.at(row_w, items >> 3, np.left_shift(1, items & 7, dtype=np.uint8, casting="unsafe"))
    return rows_Mw


def seen_mask(seen_w: jax.Array, num_items: int) -> jax.Array:
    """Converts bitmaps, uint8 [..., w], to bool [..., I], True where a user has seen an item."""
    return jnp.unpackbits(seen_w, axis=-1, count=num_items, bitorder="little").astype(bool)
