"""Attention: positions (rotary and ALiBi), masks of packed rows, and `attention`, which all parts of the model call.

Hardware-specific kernels are in `unimp_jax.model.kernels`.
"""

import math
from typing import Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from unimp_jax.model import cpu, kernels, row_kernel
from unimp_jax.model.axes import Name, platform, splits

Kernel = Literal["xla", "rows", "splash", "cudnn", "triton"]
"""The attention implementation: xla; rows, which is `row_kernel` on TPUs, or splash for rows it does not support;
splash; cudnn for NVIDIA GPUs; or triton, for tokens of the same row on NVIDIA GPUs, with cudnn for all else."""

MASKED = -1e30
"""A score that vanishes in a softmax yet is finite, so that a row without keys has no NaN in its gradient."""


class KeysValues(NamedTuple):
    """Keys and values, [B, S, K, h] each, of text or of image latents."""

    keys: jax.Array
    values: jax.Array


class SegmentMask(NamedTuple):
    """An attention mask given by segment ids, so that kernels need not read an array; created by `segment_mask`.

    Attributes:
      query_segment_ids_BT, key_segment_ids_BS: int32; a query attends to the keys with its id, and to none if its id is
        0.
      causal: Queries and keys are the same tokens, and none attends to a later one.
      alibi_positions: int32 [B, T] and [B, S], positions of queries and keys for ALiBi; None: no ALiBi.
      mask_BTS: The same mask as an array, for implementations that read one.
    """

    query_segment_ids_BT: jax.Array
    key_segment_ids_BS: jax.Array
    causal: bool
    alibi_positions: tuple[jax.Array, jax.Array] | None
    kernel: Kernel
    mask_BTS: jax.Array | None


Mask: TypeAlias = jax.Array | SegmentMask
"""An attention mask: segments, or bool [B, T, S], which only the XLA implementation supports."""


def kernel_for(wanted: Literal["auto", "xla", "rows", "splash", "cudnn", "triton"]) -> Kernel:
    """Returns the requested kernel, or for "auto" that of this platform."""
    made_for: dict[str, Kernel] = {"tpu": "rows", "gpu": "cudnn", "cpu": "xla"}
    return made_for[platform()] if wanted == "auto" else wanted


def segment_mask(
    query_segment_ids_BT: jax.Array, key_segment_ids_BS: jax.Array, kernel: Kernel, *, causal: bool = False,
    alibi_positions_BT: jax.Array | None = None, query_positions_BA: jax.Array | None = None,
) -> SegmentMask:  # fmt: skip
    """Creates a mask for a kernel; it falls back to XLA if the TPU kernels do not support the number of tokens or keys,
    and from triton to the kernel for all else (XLA without a GPU).

    Args:
      alibi_positions_BT: int32, positions of these tokens, for ALiBi.
      query_positions_BA: int32, positions in the row of the only tokens that are queries; None: all tokens are.
    """
    T, S = query_segment_ids_BT.shape[1], key_segment_ids_BS.shape[1]
    alibi_positions = None if alibi_positions_BT is None else (alibi_positions_BT, alibi_positions_BT)
    if query_positions_BA is None and kernel in ("rows", "splash") and kernels.splash_fits(T, S):
        return SegmentMask(query_segment_ids_BT, key_segment_ids_BS, causal, alibi_positions, kernel, None)
    if query_positions_BA is None and kernel == "triton" and causal and splits("sequence") == 1:
        return SegmentMask(query_segment_ids_BT, key_segment_ids_BS, causal, alibi_positions, kernel, None)
    rows = jnp.arange(T)[None] if query_positions_BA is None else query_positions_BA
    if query_positions_BA is not None:
        query_segment_ids_BT = jnp.take_along_axis(query_segment_ids_BT, query_positions_BA, axis=1)
        if alibi_positions_BT is not None:
            alibi_positions = (jnp.take_along_axis(alibi_positions_BT, query_positions_BA, axis=1), alibi_positions_BT)
    mask_BTS = query_segment_ids_BT[:, :, None] == key_segment_ids_BS[:, None, :]
    mask_BTS &= (query_segment_ids_BT > 0)[:, :, None]
    if causal:
        mask_BTS &= jnp.arange(S) <= rows[..., None]
    in_blocks = causal and query_positions_BA is None
    if kernel == "triton" and platform() == "gpu":
        kernel = "cudnn"
    kernel = "xla" if kernel != "cudnn" or query_positions_BA is not None else kernel
    return SegmentMask(query_segment_ids_BT, key_segment_ids_BS, in_blocks, alibi_positions, kernel, mask_BTS)


def attention(q_BTHh: jax.Array, k_BSKh: jax.Array, v_BSKh: jax.Array, mask: Mask) -> jax.Array:
    """Computes `attend` with the kernel that the mask names."""
    if not isinstance(mask, SegmentMask):
        return attend(q_BTHh, k_BSKh, v_BSKh, mask)
    costs = mask.alibi_positions and (mask.alibi_positions[1], alibi_slopes(q_BTHh.shape[2]))
    if mask.mask_BTS is None and mask.kernel == "rows" and row_kernel.fits(q_BTHh, k_BSKh):
        segments = row_kernel.Segments(mask.query_segment_ids_BT, mask.key_segment_ids_BS)
        of_rows = costs and row_kernel.Alibi(*costs)
        return row_kernel.row_attention(q_BTHh, k_BSKh, v_BSKh, segments, of_rows, causal=mask.causal)
    if mask.mask_BTS is None and mask.kernel == "triton":
        if kernels.triton_fits(q_BTHh, 0 if costs is None else kernels.ALIBI_CHANNELS):
            return kernels.triton(q_BTHh, k_BSKh, v_BSKh, mask.query_segment_ids_BT, costs)
        ids_BT, positions_BT = mask.query_segment_ids_BT, costs and costs[0]
        mask = segment_mask(ids_BT, ids_BT, "xla", causal=True, alibi_positions_BT=positions_BT)
    if mask.mask_BTS is None:
        segments_BT, segments_BS = mask.query_segment_ids_BT, mask.key_segment_ids_BS
        return kernels.splash(q_BTHh, k_BSKh, v_BSKh, segments_BT, segments_BS, causal=mask.causal, alibi=costs)
    if mask.kernel == "cudnn" and costs and kernels.cudnn_fits(q_BTHh, k_BSKh, kernels.ALIBI_CHANNELS):
        return kernels.cudnn(q_BTHh, k_BSKh, v_BSKh, mask.mask_BTS, alibi=costs)
    bias = None if mask.alibi_positions is None else alibi(*mask.alibi_positions, q_BTHh.shape[2])
    if mask.kernel == "cudnn" and kernels.cudnn_fits(q_BTHh, k_BSKh):
        return kernels.cudnn(q_BTHh, k_BSKh, v_BSKh, mask.mask_BTS, bias)
    if mask.causal:
        return cpu.attend_in_blocks(attend, q_BTHh, k_BSKh, v_BSKh, mask.mask_BTS, bias)
    return attend(q_BTHh, k_BSKh, v_BSKh, mask.mask_BTS, bias)


def attend_to_all(q_BTHh: jax.Array, k_BSKh: jax.Array, v_BSKh: jax.Array, rows: Name) -> jax.Array:
    """Computes `attend` without a mask, with the platform's kernel; `rows` is the logical name of the first axis."""
    if platform() == "tpu" and row_kernel.fits(q_BTHh, k_BSKh):
        return row_kernel.row_attention(q_BTHh, k_BSKh, v_BSKh, rows=rows)
    if platform() == "gpu" and kernels.cudnn_fits(q_BTHh, k_BSKh):
        return kernels.cudnn(q_BTHh, k_BSKh, v_BSKh, None)
    return attend(q_BTHh, k_BSKh, v_BSKh, None)


def attend(
    q_BTHh: jax.Array, k_BSKh: jax.Array, v_BSKh: jax.Array, mask_BTS: jax.Array | None, bias: jax.Array | None = None
) -> jax.Array:
    """Computes softmax attention, with scores and softmax in float32.

    Args:
      q_BTHh: Unscaled queries; H is a multiple of K, and query heads that share a key head are adjacent.
      k_BSKh, v_BSKh: Keys and values; S may be 0.
      mask_BTS: bool, the keys that a query attends to; a query without keys gives exactly 0. None: all keys.
      bias: float32, added to the scores, of a shape that broadcasts with [B, H, T, S].

    Returns:
      [B, T, H, h], in the dtype of v.
    """
    B, T, H, h = q_BTHh.shape
    S, K = k_BSKh.shape[1:3]
    if S == 0:
        return jnp.zeros_like(q_BTHh)
    q_BKgTh = jnp.einsum("btkgh->bkgth", (q_BTHh * h**-0.5).reshape(B, T, K, H // K, h))
    scores = jnp.einsum("bkgth,bskh->bkgts", q_BKgTh, k_BSKh, preferred_element_type=jnp.float32)
    if bias is not None:
        scores = scores + jnp.broadcast_to(bias, (B, H, T, S)).reshape(scores.shape)
    if mask_BTS is not None:
        scores = jnp.where(mask_BTS[:, None, None], scores, MASKED)
    weights = jnp.exp(scores - jax.lax.stop_gradient(scores.max(-1, keepdims=True)))
    total = weights.sum(-1, keepdims=True)
    out = jnp.einsum("bkgts,bskh->bkgth", weights.astype(v_BSKh.dtype), v_BSKh, preferred_element_type=jnp.float32)
    out = (out / total).astype(v_BSKh.dtype)  # cheaper here: h numbers per query, not S
    out_BTHh = jnp.einsum("bkgth->btkgh", out).reshape(B, T, H, h)
    if mask_BTS is not None:
        out_BTHh = jnp.where(mask_BTS.any(-1)[..., None, None], out_BTHh, 0)
    return out_BTHh


def rotate(x_BTHh: jax.Array, angles: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Rotates the first 2r of h channels, channel i together with channel i + r (GPT-NeoX's and LLaMA's layout)."""
    cos, sin = (a[:, :, None].astype(x_BTHh.dtype) for a in angles)
    r = cos.shape[-1]
    a, b, rest = jnp.split(x_BTHh, [r, 2 * r], axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin, rest], axis=-1)


def alibi_slopes(heads: int) -> np.ndarray:
    """Returns ALiBi slopes, float32 [H], positive: head i of H has 2^(-8 i / H) (arXiv:2108.12409). If H is not a power
    of two, they are slopes of the next power: first every other one, from the second on."""
    power = 2 ** math.ceil(math.log2(heads))
    slopes = 2.0 ** (-np.arange(1, power + 1) * 8 / power)
    if power != heads:
        slopes = np.concatenate([slopes[1::2], slopes[::2]])[:heads]
    return slopes.astype(np.float32)


def alibi(query_positions_BT: jax.Array, key_positions_BS: jax.Array, heads: int) -> jax.Array:
    """Returns float32 [B, H, T, S] to add to the scores: minus slope times distance, for keys before their query."""
    behind_BTS = (key_positions_BS[:, None, :] - query_positions_BT[:, :, None]).astype(jnp.float32)
    return alibi_slopes(heads)[:, None, None] * behind_BTS[:, None]
