"""Attention, the one function, and the masks that it is given."""

from __future__ import annotations

import jax
import jax.numpy as jnp

MASKED = -1e30
"""A score that no softmax notices, yet finite, so that a row without a single key has no NaN in its gradient."""


def attend(
    q_BTHh: jax.Array, k_BSKh: jax.Array, v_BSKh: jax.Array, mask_BTS: jax.Array | None, bias: jax.Array | None = None
) -> jax.Array:
    """Softmax attention, scores and softmax in float32.

    Args:
      q_BTHh: queries, not yet scaled; H is a multiple of K, and query heads that share a key head lie together.
      k_BSKh, v_BSKh: keys and values; S may be 0.
      mask_BTS: bool, which keys a query sees; a query that sees none gives exactly 0. None: every query sees all.
      bias: float32, added to the scores, of a shape that broadcasts with [B, H, T, S].

    Returns:
      [B, T, H, h], in the dtype of v.
    """
    B, T, H, h = q_BTHh.shape
    S, K = k_BSKh.shape[1:3]
    if S == 0:
        return jnp.zeros_like(q_BTHh)
    q_BTKgh = (q_BTHh * h**-0.5).reshape(B, T, K, H // K, h)
    scores = jnp.einsum("btkgh,bskh->bkgts", q_BTKgh, k_BSKh, preferred_element_type=jnp.float32)
    if bias is not None:
        scores = scores + jnp.broadcast_to(bias, (B, H, T, S)).reshape(scores.shape)
    if mask_BTS is not None:
        scores = jnp.where(mask_BTS[:, None, None], scores, MASKED)
    weights = jax.nn.softmax(scores, axis=-1).astype(v_BSKh.dtype)
    out_BTHh = jnp.einsum("bkgts,bskh->btkgh", weights, v_BSKh).reshape(B, T, H, h)
    if mask_BTS is not None:
        out_BTHh = jnp.where(mask_BTS.any(-1)[..., None, None], out_BTHh, 0)
    return out_BTHh


def causal_mask(segment_ids_BT: jax.Array) -> jax.Array:
    """bool [B, T, T]: a token sees itself and those before it in its own segment; padding sees nothing."""
    T = segment_ids_BT.shape[1]
    same_BTT = segment_ids_BT[:, :, None] == segment_ids_BT[:, None, :]
    return same_BTT & (segment_ids_BT > 0)[:, :, None] & jnp.tri(T, dtype=bool)


def last_image_mask(image_index_BT: jax.Array, num_images: int) -> jax.Array:
    """bool [B, T, N]: a token sees the image that most recently precedes it."""
    return image_index_BT[:, :, None] == jnp.arange(num_images)


def earlier_images_mask(
    image_index_BT: jax.Array, segment_ids_BT: jax.Array, image_segment_ids_BN: jax.Array
) -> jax.Array:
    """bool [B, T, N]: a token sees all images of its segment up to the one that most recently precedes it."""
    same_BTN = segment_ids_BT[:, :, None] == image_segment_ids_BN[:, None, :]
    earlier_BTN = jnp.arange(image_segment_ids_BN.shape[1]) <= image_index_BT[:, :, None]
    return same_BTN & (segment_ids_BT > 0)[:, :, None] & earlier_BTN
