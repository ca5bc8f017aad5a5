"""Hardware-specific kernels that compute `attention.attend`.

Splash on TPUs and Triton on NVIDIA GPUs never materialise scores or masks of whole rows; cuDNN reads a mask.
"""

import dataclasses
import functools
from typing import TYPE_CHECKING, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from unimp_jax.model.axes import fitting_spec, platform, splits

if TYPE_CHECKING:  # importing Pallas is slow, and only TPUs need it
    from jax.experimental.pallas.ops.tpu.splash_attention.splash_attention_kernel import SplashAttentionKernel

ALIBI_CHANNELS = 8
"""The six channels of `with_alibi`, padded to a head width that cuDNN supports."""

BLOCKS = (512, 384, 256, 128)
"""Tile sides for splash; lengths are padded to a multiple of one of them."""

TRITON_TILES = {256: (128, 128), 512: (64, 32)}
"""Queries and keys of a tile of the Triton kernel's forward pass, for heads of up to so many bytes. A tile of queries
and two each of keys and values take at most 160 KiB; an A100 has 163 KiB of shared memory."""


def splash_fits(tokens: int, keys: int) -> bool:
    """Whether splash supports these tokens and keys per row; a row split over devices must fill whole tiles."""
    parts = splits("sequence")
    return min(tokens, keys) > 0 and (parts == 1 or tokens % (parts * BLOCKS[-1]) == 0)


def splash(
    q_BTHh: jax.Array, k_BSKh: jax.Array, v_BSKh: jax.Array, query_segment_ids_BT: jax.Array,
    key_segment_ids_BS: jax.Array, *, causal: bool, alibi: tuple[jax.Array, np.ndarray] | None,
) -> jax.Array:  # fmt: skip
    """Runs splash attention (JAX's Pallas kernel) on each device's rows, heads and tokens.

    Args:
      q_BTHh, k_BSKh, v_BSKh: See `attention.attend`.
      query_segment_ids_BT, key_segment_ids_BS, causal: See `attention.SegmentMask`.
      alibi: Adds ALiBi for positions, int32 [B, S] below 2^16, with slopes, float32 [H].

    Returns:
      [B, T, H, h].
    """
    T, H, h = q_BTHh.shape[1:]
    q_BTHh = q_BTHh * h**-0.5
    if alibi is not None:
        q_BTHh, k_BSKh = with_alibi(q_BTHh, k_BSKh, *alibi)
    q_BTHh, queries_BT = _padded(q_BTHh), _padded(query_segment_ids_BT)
    k_BSKh, v_BSKh, keys_BS = _padded(k_BSKh), _padded(v_BSKh), _padded(key_segment_ids_BS)
    kernel = _splash_kernel(queries_BT.shape[1], keys_BS.shape[1], H, causal)

    arguments = (q_BTHh, k_BSKh, v_BSKh, queries_BT, keys_BS)

    def each(
        kernel: "SplashAttentionKernel", q: jax.Array, k: jax.Array, v: jax.Array, queries: jax.Array, keys: jax.Array
    ) -> jax.Array:
        from jax.experimental.pallas.ops.tpu.splash_attention.splash_attention_kernel import SegmentIds

        segment_ids = SegmentIds(queries, keys)
        heads_first = (x.swapaxes(1, 2) for x in (q, k, v))
        return jax.vmap(kernel)(*heads_first, segment_ids).swapaxes(1, 2)

    mesh = jax.sharding.get_abstract_mesh()
    if not mesh.empty and mesh.size > 1:
        query, key = ("batch", "sequence", "heads", None), ("batch", None, "kv_heads", None)
        names = (query, key, key, query[:2], key[:2])
        specs = tuple(fitting_spec(x.shape, name) for x, name in zip(arguments, names, strict=True))
        tiles = kernel.manual_sharding_spec(NamedSharding(mesh, PartitionSpec(specs[0][2], specs[0][1])))
        each = jax.shard_map(each, in_specs=(tiles, *specs), out_specs=specs[0], check_vma=False)
    out_BTHh = each(kernel, *arguments)
    return jnp.where((queries_BT > 0)[..., None, None], out_BTHh, 0)[:, :T]


def _padded(x_BT: jax.Array) -> jax.Array:
    """Pads with zeros to whole tiles. The padding has segment id 0, so no real token attends to it."""
    more = -x_BT.shape[1] % BLOCKS[-1]
    return jnp.pad(x_BT, [(0, 0), (0, more), *[(0, 0)] * (x_BT.ndim - 2)]) if more else x_BT


def _splash_kernel(tokens: int, keys: int, heads: int, causal: bool) -> "SplashAttentionKernel":
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel, splash_attention_mask

    parts = splits("sequence")
    q = next(size for size in BLOCKS if tokens % (parts * size) == 0)
    kv = next(size for size in BLOCKS if keys % size == 0)
    blocks = splash_attention_kernel.BlockSizes(
        block_q=q, block_kv=kv, block_q_dkv=q, block_kv_dkv=kv, block_q_dq=q, block_kv_dq=kv
    )
    kind = splash_attention_mask.CausalMask if causal else splash_attention_mask.FullMask
    mask = splash_attention_mask.MultiHeadMask([kind((tokens, keys)) for _ in range(heads)])
    return splash_attention_kernel.make_splash_mha(
        mask, block_sizes=blocks, head_shards=splits("heads"), q_seq_shards=parts, interpret=platform() == "cpu"
    )


def with_alibi(
    q_BTHh: jax.Array, k_BSKh: jax.Array, positions_BS: jax.Array, slopes_H: np.ndarray
) -> tuple[jax.Array, jax.Array]:
    """Appends six channels to queries and keys whose product is slope times key position; the softmax is invariant to
    the query's own position, so it is not subtracted. Slopes are split into three bfloat16 numbers and positions into
    two, so that nothing is lost to rounding whatever the dtype of q and k."""
    B, T, H, _ = q_BTHh.shape
    slopes_H3 = _three_parts(slopes_H)
    high_BS, low_BS = positions_BS // 256, positions_BS % 256
    of_heads_H6 = np.concatenate([slopes_H3 * 256, slopes_H3], axis=1)
    of_keys_BS6 = jnp.repeat(jnp.stack([high_BS, low_BS], axis=-1), 3, axis=-1).astype(k_BSKh.dtype)
    of_keys_BSK6 = jnp.broadcast_to(of_keys_BS6[:, :, None], (*k_BSKh.shape[:3], 6))
    of_queries_BTH6 = jnp.broadcast_to(jnp.asarray(of_heads_H6, q_BTHh.dtype), (B, T, H, 6))
    return jnp.concatenate([q_BTHh, of_queries_BTH6], -1), jnp.concatenate([k_BSKh, of_keys_BSK6], -1)


def _three_parts(values: np.ndarray) -> np.ndarray:
    """Splits each number into three bfloat16 numbers that add up to it: float32 [H] -> [H, 3]."""
    parts = []
    for _ in range(3):
        parts.append(values.astype(jnp.bfloat16).astype(np.float32))
        values = values - parts[-1]
    return np.stack(parts, axis=1)


def triton_fits(q_BTHh: jax.Array, more: int = 0) -> bool:
    """Whether the Triton kernel has tiles for heads of this dtype and width plus `more` channels."""
    return _triton_bytes(q_BTHh, more) <= max(TRITON_TILES)


def _triton_bytes(q_BTHh: jax.Array, more: int = 0) -> int:
    """Returns the bytes of a head, whose channels the kernel fills up to a power of 2."""
    return q_BTHh.dtype.itemsize << (q_BTHh.shape[-1] + more - 1).bit_length()


def triton(
    q_BTHh: jax.Array, k_BTKh: jax.Array, v_BTKh: jax.Array, segment_ids_BT: jax.Array,
    alibi: tuple[jax.Array, np.ndarray] | None = None,
) -> jax.Array:  # fmt: skip
    """Runs JAX's Pallas kernel for GPUs, causal attention within segments, on each device's rows and heads.

    The kernel reads a key head per query head, so shared ones are repeated, and rows of whole tiles, so the last one is
    filled up.

    Args:
      q_BTHh, k_BTKh, v_BTKh: Queries for which `triton_fits` holds, keys and values; see `attention.attend`.
      segment_ids_BT: See `attention.SegmentMask`.
      alibi: See `splash`.

    Returns:
      [B, T, H, h].
    """
    from jax.experimental.pallas.ops.gpu.attention import BlockSizes, mha

    T, H, h = q_BTHh.shape[1:]
    q_BTHh = q_BTHh * h**-0.5
    k_BTHh, v_BTHh = (jnp.repeat(x, H // x.shape[2], axis=2) for x in (k_BTKh, v_BTKh))
    if alibi is not None:
        q_BTHh, k_BTHh = with_alibi(q_BTHh, k_BTHh, *alibi)
        q_BTHh, k_BTHh, v_BTHh = (_widened(x, h + ALIBI_CHANNELS) for x in (q_BTHh, k_BTHh, v_BTHh))
    q, k = next(tiles for most, tiles in TRITON_TILES.items() if _triton_bytes(q_BTHh) <= most)
    each = functools.partial(
        mha, sm_scale=1.0, causal=True, interpret=platform() != "gpu",
        block_sizes=dataclasses.replace(BlockSizes.get_default(), block_q=q, block_k=k),
    )  # fmt: skip
    arguments = tuple(_padded(x) for x in (q_BTHh, k_BTHh, v_BTHh, segment_ids_BT))
    mesh = jax.sharding.get_abstract_mesh()
    if not mesh.empty and mesh.size > 1:
        specs = tuple(fitting_spec(x.shape, ("batch", None, "heads", None)[: x.ndim]) for x in arguments)
        each = jax.shard_map(each, in_specs=specs, out_specs=specs[0], check_vma=False)
    out_BTHh = each(*arguments)[:, :T, :, :h]
    return jnp.where((segment_ids_BT > 0)[..., None, None], out_BTHh, 0)


def cudnn_fits(q_BTHh: jax.Array, k_BSKh: jax.Array, more: int = 0) -> bool:
    """Whether cuDNN attention supports this dtype and head width plus `more` channels, and there are any keys."""
    width = q_BTHh.shape[-1] + more
    return (
        k_BSKh.shape[1] > 0
        and q_BTHh.dtype in (jnp.bfloat16, jnp.float16)
        and width % 8 == 0
        and (width <= 128 or width <= cudnn_widest())
    )


def cudnn_widest() -> int:
    """Returns the widest head cuDNN attention supports: 256 from compute capability 9 (Hopper) on, 128 before."""
    capability = getattr(jax.devices()[0], "compute_capability", "0")
    return 256 if float(capability) >= 9 else 128


def cudnn(
    q_BTHh: jax.Array, k_BSKh: jax.Array, v_BSKh: jax.Array, mask_BTS: jax.Array | None,
    bias: jax.Array | None = None, alibi: tuple[jax.Array, np.ndarray] | None = None,
    implementation: Literal["cudnn", "xla"] = "cudnn",
) -> jax.Array:  # fmt: skip
    """Runs cuDNN attention, which reads a mask as an array [B, T, S], and a bias with a head axis as well.

    Args:
      mask_BTS: None: a query attends to all keys.
      alibi: See `splash`; implemented by eight more channels per head (`ALIBI_CHANNELS`), so no bias array is needed.
      implementation: "xla" computes the same without a GPU.
    """
    h, scale = q_BTHh.shape[-1], None
    if alibi is not None:
        q_BTHh, k_BSKh = with_alibi(q_BTHh * h**-0.5, k_BSKh, *alibi)
        width, scale = h + ALIBI_CHANNELS, 1.0
        q_BTHh, k_BSKh, v_BSKh = (_widened(x, width) for x in (q_BTHh, k_BSKh, v_BSKh))
    bias = None if bias is None else bias.astype(q_BTHh.dtype)
    mask_B1TS = None if mask_BTS is None else mask_BTS[:, None]
    out_BTHh = jax.nn.dot_product_attention(
        q_BTHh, k_BSKh, v_BSKh, bias=bias, mask=mask_B1TS, scale=scale, implementation=implementation
    )[..., :h]
    return out_BTHh if mask_BTS is None else jnp.where(mask_BTS.any(-1)[..., None, None], out_BTHh, 0)


def _widened(x: jax.Array, width: int) -> jax.Array:
    """Pads the last axis with zeros to `width` channels."""
    return jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, width - x.shape[-1])])
