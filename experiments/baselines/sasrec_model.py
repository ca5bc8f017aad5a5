"""The network of SASRec (Kang and McAuley 2018): a causal transformer over item ids, item embeddings tied to the head.

Beside the letters of `unimp_jax.batch`: I items of the catalogue.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx


@dataclasses.dataclass(frozen=True)
class SASRecModelConfig:
    """Geometry."""

    max_length: int = 128
    """The items of history that the model sees at most."""
    width: int = 64
    layers: int = 2
    heads: int = 2
    mlp: int = 4
    """Width of the feed-forward layer, in `width`s (1 in the paper)."""
    activation: Literal["relu", "gelu"] = "gelu"
    dropout: float = 0.1
    """After the embeddings and after each branch."""
    embedding_std: float = 0.02
    """Standard deviation of the first embeddings."""

    def __post_init__(self) -> None:
        if min(self.max_length, self.width, self.heads, self.mlp) < 1:
            raise ValueError(f"max_length, width, heads and mlp must be at least 1: {self}")
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not divisible by heads {self.heads}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout {self.dropout} must be at least 0 and below 1")


class SASRec(nnx.Module):
    """Item ids in, the hidden state that scores the next item out."""

    def __init__(self, config: SASRecModelConfig, num_items: int, *, rngs: nnx.Rngs):
        normal = nnx.initializers.normal(config.embedding_std)
        self.items = nnx.Param(normal(rngs.params(), (num_items, config.width)))
        self.positions = nnx.Param(normal(rngs.params(), (config.max_length, config.width)))
        self.blocks = nnx.List([Block(config, rngs=rngs) for _ in range(config.layers)])
        self.norm = nnx.LayerNorm(config.width, rngs=rngs)
        self.dropout = nnx.Dropout(config.dropout)

    def __call__(
        self, items_BT: jax.Array, segments_BT: jax.Array, positions_BT: jax.Array, rngs: nnx.Rngs | None = None
    ) -> jax.Array:
        """Hidden states, float32 [B, T, D], whose products with `items` are scores of the next item.

        Args:
          items_BT: int32 [B, T].
          segments_BT: int32 [B, T]; a position sees itself and earlier ones of its own segment.
          positions_BT: int32 [B, T], counted from 0 in each segment.
          rngs: a stream of keys for dropout; None for none.
        """
        T = items_BT.shape[1]
        mask_BTS = (segments_BT[:, :, None] == segments_BT[:, None, :]) & jnp.tri(T, dtype=bool)
        x_BTD = self.items[...][items_BT] + self.positions[...][positions_BT]
        x_BTD = self.dropout(x_BTD, deterministic=rngs is None, rngs=rngs)
        for block in self.blocks:
            x_BTD = block(x_BTD, mask_BTS, rngs)
        return self.norm(x_BTD)


class Block(nnx.Module):
    """Attention and feed-forward layer, normalised before each."""

    def __init__(self, config: SASRecModelConfig, *, rngs: nnx.Rngs):
        D = config.width
        self.heads = config.heads
        self.activation = {"relu": jax.nn.relu, "gelu": jax.nn.gelu}[config.activation]
        self.norm_attention, self.norm_mlp = nnx.LayerNorm(D, rngs=rngs), nnx.LayerNorm(D, rngs=rngs)
        self.qkv = nnx.Linear(D, 3 * D, use_bias=False, rngs=rngs)
        self.out = nnx.Linear(D, D, use_bias=False, rngs=rngs)
        self.up, self.down = nnx.Linear(D, config.mlp * D, rngs=rngs), nnx.Linear(config.mlp * D, D, rngs=rngs)
        self.dropout = nnx.Dropout(config.dropout)

    def __call__(self, x_BTD: jax.Array, mask_BTS: jax.Array, rngs: nnx.Rngs | None) -> jax.Array:
        B, T, D = x_BTD.shape
        qkv = jnp.reshape(self.qkv(self.norm_attention(x_BTD)), (B, T, 3, self.heads, D // self.heads))
        q_BTHh, k_BTHh, v_BTHh = (qkv[:, :, part] for part in range(3))
        logits_BHTS = jnp.einsum("bthd,bshd->bhts", q_BTHh, k_BTHh) * (D // self.heads) ** -0.5
        weights_BHTS = jax.nn.softmax(jnp.where(mask_BTS[:, None], logits_BHTS, -1e30))
        y_BTD = jnp.einsum("bhts,bshd->bthd", weights_BHTS, v_BTHh).reshape(B, T, D)
        x_BTD += self.dropout(self.out(y_BTD), deterministic=rngs is None, rngs=rngs)
        y_BTD = self.down(self.activation(self.up(self.norm_mlp(x_BTD))))
        return x_BTD + self.dropout(y_BTD, deterministic=rngs is None, rngs=rngs)
