"""CPU-specific implementations: the same results in an order that XLA for CPUs runs faster.

Each docstring says how much more processor time a training step of the preset `tiny` takes without it (8 rows of 512
tokens, everything trains; medians of seven pairs on two cores).
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from unimp_jax.model.axes import gathered, platform, splits

if TYPE_CHECKING:
    from unimp_jax.model.resampler import ResamplerLayer


def of_matrices() -> bool:
    """Whether products should be computed as products of two matrices, and so their gradients: true on CPUs, where XLA
    would first transpose the operands of a product over several axes, which takes longer than the product (without: 21
    % more). If the tokens of a row are split over devices, rows and tokens cannot be merged into one axis."""
    return platform() == "cpu" and splits("sequence") == 1


def matmul(x: jax.Array, matrix_IO: jax.Array, contracted: int) -> jax.Array:
    """Multiplies the last `contracted` axes of x by a matrix, giving [..., O]; on CPUs as a product of two matrices."""
    rows, (inputs, outputs) = x.shape[: x.ndim - contracted], matrix_IO.shape  # there may be no rows
    if not of_matrices():
        return x.reshape(*rows, inputs) @ matrix_IO
    return (x.reshape(math.prod(rows), inputs) @ matrix_IO).reshape(*rows, outputs)


def attend_in_blocks(
    attend: Callable[..., jax.Array], q_BTHh: jax.Array, k_BTKh: jax.Array, v_BTKh: jax.Array, mask_BTT: jax.Array,
    bias: jax.Array | None,
) -> jax.Array:  # fmt: skip
    """Computes `attention.attend` for causal masks in four blocks of queries. Each block reads the keys up to its end
    only, which saves 3 of 8 parts of the work. Short rows, and rows whose tokens are split over devices, are not cut.
    Without: 6 % more."""
    T = q_BTHh.shape[1]
    if T < 128 or T % 4 or splits("sequence") > 1:
        return attend(q_BTHh, k_BTKh, v_BTKh, mask_BTT, bias)
    # With a split, the blocks' gradients are concatenated instead of each being padded to a whole row and added.
    q_blocks, k_blocks, v_blocks = (jax.lax.split(x, [T // 4] * 4, axis=1) for x in (q_BTHh, k_BTKh, v_BTKh))
    outs = []
    for number, q_block in enumerate(q_blocks, start=1):
        rows, end = slice((number - 1) * T // 4, number * T // 4), number * T // 4
        keys, values = (jnp.concatenate(blocks[:number], axis=1) for blocks in (k_blocks, v_blocks))
        part = None if bias is None else bias[:, :, rows, :end]
        outs.append(attend(q_block, keys, values, mask_BTT[:, rows, :end], part))
    return jnp.concatenate(outs, axis=1)


def unrolled(steps: Sequence[Callable[..., Any]], carry: Any, xs: Any) -> tuple[Any, Any]:
    """Computes `jax.lax.scan` without a loop: unrolls all steps."""
    leaves, tree = jax.tree.flatten(xs)
    columns = [jax.lax.split(x, [1] * len(steps)) for x in leaves]  # its gradient is one concatenation
    outs = []
    for step, *own in zip(steps, *columns, strict=True):
        carry, out = step(carry, tree.unflatten([x.squeeze(0) for x in own]))
        outs.append(out)
    return carry, jax.tree.map(lambda *out: jnp.stack(out), *outs)


def attend_directly(layer: "ResamplerLayer", normed_BLC: jax.Array, media_BPC: jax.Array) -> jax.Array:
    """Computes `ResamplerLayer.attend` in another order: q (x W)^T as (q W^T) x^T, and a (x W) as (a x) W. If the tower
    is frozen, no gradient has the size of the patch tokens. Without: 7 % more."""
    f32 = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
    dtype, media_BPC = normed_BLC.dtype, media_BPC.astype(normed_BLC.dtype)
    scale_C, bias_C = layer.media_norm.scale_and_bias()
    key_CHh, value_CHh = gathered(layer.key.kernel, dtype), gathered(layer.value.kernel, dtype)
    query_BLHh = layer.query(normed_BLC)
    query_BLHh = query_BLHh * query_BLHh.shape[-1] ** -0.5

    query_BHLC = f32("blhd,chd->bhlc", query_BLHh, key_CHh)
    to_media = f32("bhlc,bpc->bhlp", (query_BHLC * scale_C).astype(dtype), media_BPC)
    to_media += (query_BHLC * bias_C).sum(-1, keepdims=True)
    to_latents = f32("blhd,bmhd->bhlm", query_BLHh, layer.key(normed_BLC))
    largest = jnp.maximum(to_media.max(-1, keepdims=True), to_latents.max(-1, keepdims=True))
    media_weights, latent_weights = (jnp.exp(x - jax.lax.stop_gradient(largest)) for x in (to_media, to_latents))
    of_media, of_latents = (x.sum(-1, keepdims=True) for x in (media_weights, latent_weights))

    media_BHLC = f32("bhlp,bpc->bhlc", media_weights.astype(dtype), media_BPC) * scale_C + of_media * bias_C
    media_BHLC = (media_BHLC / (of_media + of_latents)).astype(dtype)
    latent_weights = (latent_weights / (of_media + of_latents)).astype(dtype)
    out_BLHh = f32("bhlc,chd->blhd", media_BHLC, value_CHh)
    out_BLHh += f32("bhlm,bmhd->blhd", latent_weights, layer.value(normed_BLC))
    return out_BLHh.astype(dtype)
