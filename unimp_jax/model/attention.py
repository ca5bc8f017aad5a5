"""Attention: `attention`, the one function that the model calls, and what it is made of."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from unimp_jax.model.axes import splits
from unimp_jax.model.kernels import Kernel, cudnn, cudnn_fits, splash, splash_fits
from unimp_jax.model.positions import alibi

MASKED = -1e30
"""A score that no softmax notices, yet finite, so that a row without a single key has no NaN in its gradient."""


class KeysValues(NamedTuple):
    """What tokens, or latents of images, show to those that look at them: [B, S, K, h] each."""

    keys: jax.Array
    values: jax.Array


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
    q_BKgTh = (q_BTHh * h**-0.5).reshape(B, T, K, H // K, h).transpose(0, 2, 3, 1, 4)
    k_BKSh, v_BKSh = k_BSKh.swapaxes(1, 2), v_BSKh.swapaxes(1, 2)
    scores = jnp.einsum("bkgth,bksh->bkgts", q_BKgTh, k_BKSh, preferred_element_type=jnp.float32)
    if bias is not None:
        scores = scores + jnp.broadcast_to(bias, (B, H, T, S)).reshape(scores.shape)
    if mask_BTS is not None:
        scores = jnp.where(mask_BTS[:, None, None], scores, MASKED)
    weights = jnp.exp(scores - jax.lax.stop_gradient(scores.max(-1, keepdims=True)))
    total = weights.sum(-1, keepdims=True)
    out = jnp.einsum("bkgts,bksh->bkgth", weights.astype(v_BSKh.dtype), v_BKSh, preferred_element_type=jnp.float32)
    # Divided here, where there are h numbers a query, not S.
    out_BTHh = (out / total).astype(v_BSKh.dtype).transpose(0, 3, 1, 2, 4).reshape(B, T, H, h)
    if mask_BTS is not None:
        out_BTHh = jnp.where(mask_BTS.any(-1)[..., None, None], out_BTHh, 0)
    return out_BTHh


class Segments(NamedTuple):
    """Who sees whom, said in numbers, so that a kernel need not read a mask; made by `segments`.

    Attributes:
      queries_BT, keys_BS: int32; a query sees the keys with its number, and none where that is 0.
      causal: of those keys, it sees the ones up to its own place.
      alibi_BT: int32, positions of the tokens, which are queries and keys, whose distance costs; None: it does not.
      kernel: what computes attention.
      mask_BTS: the same as an array, for kernels that read one.
    """

    queries_BT: jax.Array
    keys_BS: jax.Array
    causal: bool
    alibi_BT: jax.Array | None
    kernel: Kernel
    mask_BTS: jax.Array | None


def segments(
    queries_BT: jax.Array, keys_BS: jax.Array, kernel: Kernel, *, causal: bool = False,
    alibi_BT: jax.Array | None = None,
) -> Segments:  # fmt: skip
    """`Segments` for the kernel wanted, or for XLA where splash has no tiles for so many tokens or keys."""
    T, S = queries_BT.shape[1], keys_BS.shape[1]
    if kernel == "splash" and splash_fits(T, S):
        return Segments(queries_BT, keys_BS, causal, alibi_BT, kernel, None)
    mask_BTS = (queries_BT[:, :, None] == keys_BS[:, None, :]) & (queries_BT > 0)[:, :, None]
    mask_BTS = mask_BTS & jnp.tri(T, S, dtype=bool) if causal else mask_BTS
    return Segments(queries_BT, keys_BS, causal, alibi_BT, "xla" if kernel == "splash" else kernel, mask_BTS)


def attention(q_BTHh: jax.Array, k_BSKh: jax.Array, v_BSKh: jax.Array, sees: jax.Array | Segments) -> jax.Array:
    """What `attend` gives, by the kernel that `sees` asks for.

    Args:
      q_BTHh, k_BSKh, v_BSKh: as of `attend`.
      sees: segments, or a mask, bool [B, T, S], which XLA alone works with.
    """
    if not isinstance(sees, Segments):
        return attend(q_BTHh, k_BSKh, v_BSKh, sees)
    if sees.mask_BTS is None:
        return splash(
            q_BTHh, k_BSKh, v_BSKh, sees.queries_BT, sees.keys_BS, causal=sees.causal, positions_BS=sees.alibi_BT
        )
    bias = None if sees.alibi_BT is None else alibi(sees.alibi_BT, sees.alibi_BT, q_BTHh.shape[2])
    if sees.kernel == "cudnn" and cudnn_fits(q_BTHh, k_BSKh):
        return cudnn(q_BTHh, k_BSKh, v_BSKh, sees.mask_BTS, bias)
    return (causal_attend if sees.causal else attend)(q_BTHh, k_BSKh, v_BSKh, sees.mask_BTS, bias)


def causal_attend(
    q_BTHh: jax.Array, k_BTKh: jax.Array, v_BTKh: jax.Array, mask_BTT: jax.Array, bias: jax.Array | None = None
) -> jax.Array:
    """`attend` where the mask lets no query see a later key: long rows in four blocks of queries, each with the keys
    up to its end, which saves 3 of 8 parts of the work; whole ones where the tokens of a row lie on several devices."""
    T = q_BTHh.shape[1]
    if T < 128 or T % 4 or splits("sequence") > 1:
        return attend(q_BTHh, k_BTKh, v_BTKh, mask_BTT, bias)
    # Split, so that gradients of the blocks are laid side by side, not each padded to a whole row and added up.
    q_blocks, k_blocks, v_blocks = (jax.lax.split(x, [T // 4] * 4, axis=1) for x in (q_BTHh, k_BTKh, v_BTKh))
    outs = []
    for number, q_block in enumerate(q_blocks, start=1):
        rows, end = slice((number - 1) * T // 4, number * T // 4), number * T // 4
        keys, values = (jnp.concatenate(blocks[:number], axis=1) for blocks in (k_blocks, v_blocks))
        part = None if bias is None else bias[:, :, rows, :end]
        outs.append(attend(q_block, keys, values, mask_BTT[:, rows, :end], part))
    return jnp.concatenate(outs, axis=1)


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
