"""Where a token stands: rotary embedding and ALiBi."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def rotary_angles(positions_BT: jax.Array, width: int, base: float) -> tuple[jax.Array, jax.Array]:
    """(cos, sin), float32 [B, T, width / 2], of position * base^(-2i / width) (RoFormer, arXiv:2104.09864, eq. 15)."""
    frequencies = base ** (-np.arange(0, width, 2, dtype=np.float32) / width)
    angles = positions_BT[..., None].astype(jnp.float32) * frequencies
    return jnp.cos(angles), jnp.sin(angles)


@jax.custom_vjp
def rotate(x_BTHh: jax.Array, angles: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Turns the first 2r of h channels, channel i together with channel i + r (GPT-NeoX's and LLaMA's layout).

    Its gradient is turned back, by the same function; that of slices would be an array of zeros for each of them.
    """
    cos, sin = (a[:, :, None].astype(x_BTHh.dtype) for a in angles)
    r = cos.shape[-1]
    a, b, rest = x_BTHh[..., :r], x_BTHh[..., r : 2 * r], x_BTHh[..., 2 * r :]
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin, rest], axis=-1)


def _rotate_forward(x_BTHh: jax.Array, angles: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, Any]:
    return rotate(x_BTHh, angles), angles


def _rotate_backward(angles: tuple[jax.Array, jax.Array], slope_BTHh: jax.Array) -> tuple[jax.Array, None]:
    cos, sin = angles
    return rotate(slope_BTHh, (cos, -sin)), None


rotate.defvjp(_rotate_forward, _rotate_backward)


def alibi_slopes(heads: int, largest: float = 8.0) -> np.ndarray:
    """float32 [H], positive: head i of H has 2^(-largest i / H) (arXiv:2108.12409).

    Where H is no power of two: of the next one's slopes, first every other one, from the second on.
    """
    power = 2 ** math.ceil(math.log2(heads))
    slopes = 2.0 ** (-np.arange(1, power + 1) * largest / power)
    if power != heads:
        slopes = np.concatenate([slopes[1::2], slopes[::2]])[:heads]
    return slopes.astype(np.float32)


def alibi(queries_BT: jax.Array, keys_BS: jax.Array, heads: int) -> jax.Array:
    """float32 [B, H, T, S], from positions of queries and keys: minus slope times distance, for keys before."""
    behind_BTS = (keys_BS[:, None, :] - queries_BT[:, :, None]).astype(jnp.float32)
    return alibi_slopes(heads)[:, None, None] * behind_BTS[:, None]
