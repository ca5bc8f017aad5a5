"""The networks of SASRec, eSASRec and HSTU: a causal stack of blocks over item ids, with the item embeddings as head.

All three predict the next item at every position and differ only in their block. Dimension letters in addition to those
of `unimp_jax.batch`: I items of the catalogue; H heads of width h; S positions that are attended to.
"""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx

Block = Literal["sasrec", "ligr", "hstu"]

TIME_BUCKETS = 72
"""Number of buckets of HSTU's time bias: enough for differences of up to 2^31 seconds."""


@dataclasses.dataclass(frozen=True)
class SASRecModelConfig:
    """Geometry of the networks."""

    block: Block = "sasrec"
    """Block type: that of a transformer (SASRec), one with gated residuals (eSASRec), or HSTU's."""
    max_length: int = 128
    """Maximum number of history items that the model sees."""
    width: int = 64
    layers: int = 2
    heads: int = 2
    mlp: int = 4
    """Width of the feed-forward layer as a multiple of `width` (1 in SASRec's paper); HSTU has none."""
    activation: Literal["relu", "gelu"] = "gelu"
    """Activation of `sasrec` blocks; the others use SwiGLU and SiLU."""
    dropout: float = 0.1
    """Dropout rate after the embeddings and after each branch."""
    embedding_std: float = 0.02
    """Standard deviation of the initial embeddings."""

    def __post_init__(self) -> None:
        if min(self.max_length, self.width, self.heads, self.mlp) < 1:
            raise ValueError(f"max_length, width, heads and mlp must be at least 1: {self}")
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not divisible by heads {self.heads}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout {self.dropout} must be at least 0 and below 1")


class SASRec(nnx.Module):
    """Maps item ids to hidden states that score the next item."""

    def __init__(self, config: SASRecModelConfig, num_items: int, *, rngs: nnx.Rngs):
        normal = nnx.initializers.normal(config.embedding_std)
        block = HSTUBlock if config.block == "hstu" else TransformerBlock
        self.items = nnx.Param(normal(rngs.params(), (num_items, config.width)))
        self.positions = nnx.Param(normal(rngs.params(), (config.max_length, config.width)))
        self.blocks = nnx.List([block(config, rngs=rngs) for _ in range(config.layers)])
        self.norm = nnx.LayerNorm(config.width, rngs=rngs)
        self.dropout = nnx.Dropout(config.dropout)

    def __call__(
        self,
        items_BT: jax.Array,
        segments_BT: jax.Array,
        positions_BT: jax.Array,
        times_BT: jax.Array,
        rngs: nnx.Rngs | None = None,
    ) -> jax.Array:
        """Returns hidden states, float32 [B, T, D], whose products with `items` are the scores of the next item.

        Args:
          items_BT: int32 [B, T]; T is at most `max_length`.
          segments_BT: int32 [B, T]; a position attends to itself and to earlier ones of its own segment.
          positions_BT: int32 [B, T], counted from 0 in each segment.
          times_BT: int32 [B, T], the time of each interaction in seconds since 1970; all equal if it is unknown.
          rngs: a stream of keys for dropout; None for no dropout.
        """
        T = items_BT.shape[1]
        mask_BTS = (segments_BT[:, :, None] == segments_BT[:, None, :]) & jnp.tri(T, dtype=bool)
        x_BTD = self.items[...][items_BT] + self.positions[...][positions_BT]
        x_BTD = self.dropout(x_BTD, deterministic=rngs is None, rngs=rngs)
        for block in self.blocks:
            x_BTD = block(x_BTD, mask_BTS, times_BT, rngs)
        return self.norm(x_BTD)


class TransformerBlock(nnx.Module):
    """Attention and feed-forward layer with pre-normalisation, and with a gate after each for `ligr`.

    This is SASRec's block, Kang and McAuley 2018 (arXiv:1808.09781), with the normalisation of later transformers. With
    `ligr`, the output that a branch adds to x is scaled by sigmoid(W x + b), and the feed-forward layer is SwiGLU
    without biases: LiGR, Borisyuk et al. 2025 (arXiv:2502.03417), as in eSASRec, Tikhonovich et al. 2025
    (arXiv:2508.06450; RecTools, `LiGRLayer`).
    """

    def __init__(self, config: SASRecModelConfig, *, rngs: nnx.Rngs):
        D, gated = config.width, config.block == "ligr"
        self.heads, self.gated = config.heads, gated
        self.activation = jax.nn.silu if gated else {"relu": jax.nn.relu, "gelu": jax.nn.gelu}[config.activation]
        self.norm_attention, self.norm_mlp = nnx.LayerNorm(D, rngs=rngs), nnx.LayerNorm(D, rngs=rngs)
        self.qkv = nnx.Linear(D, 3 * D, use_bias=False, rngs=rngs)
        self.out = nnx.Linear(D, D, use_bias=False, rngs=rngs)
        self.up = nnx.Linear(D, config.mlp * D, use_bias=not gated, rngs=rngs)
        self.down = nnx.Linear(config.mlp * D, D, use_bias=not gated, rngs=rngs)
        if gated:
            self.up_linear = nnx.Linear(D, config.mlp * D, use_bias=False, rngs=rngs)
            self.gate_attention, self.gate_mlp = nnx.Linear(D, D, rngs=rngs), nnx.Linear(D, D, rngs=rngs)
        self.dropout = nnx.Dropout(config.dropout)

    def __call__(self, x_BTD: jax.Array, mask_BTS: jax.Array, times_BT: jax.Array, rngs: nnx.Rngs | None) -> jax.Array:
        B, T, D = x_BTD.shape
        qkv = jnp.reshape(self.qkv(self.norm_attention(x_BTD)), (B, T, 3, self.heads, D // self.heads))
        q_BTHh, k_BTHh, v_BTHh = (qkv[:, :, part] for part in range(3))
        logits_BHTS = jnp.einsum("bthd,bshd->bhts", q_BTHh, k_BTHh) * (D // self.heads) ** -0.5
        weights_BHTS = jax.nn.softmax(jnp.where(mask_BTS[:, None], logits_BHTS, -1e30))
        y_BTD = self.out(jnp.einsum("bhts,bshd->bthd", weights_BHTS, v_BTHh).reshape(B, T, D))
        gate_BTD = jax.nn.sigmoid(self.gate_attention(x_BTD)) if self.gated else 1
        x_BTD += gate_BTD * self.dropout(y_BTD, deterministic=rngs is None, rngs=rngs)
        normed_BTD = self.norm_mlp(x_BTD)
        linear_BTF = self.up_linear(normed_BTD) if self.gated else 1
        y_BTD = self.down(self.activation(self.up(normed_BTD)) * linear_BTF)
        gate_BTD = jax.nn.sigmoid(self.gate_mlp(x_BTD)) if self.gated else 1
        return x_BTD + gate_BTD * self.dropout(y_BTD, deterministic=rngs is None, rngs=rngs)


class HSTUBlock(nnx.Module):
    """HSTU's layer, Zhai et al. 2024 (arXiv:2402.17152, equations 1 to 3), as in the authors' code for public data
    (meta-recsys/generative-recommenders, `SequentialTransductionUnitJagged`).

        u, v, q, k = silu(norm(x) W)
        x + (u * norm(silu(q k + bias of the distance + bias of the time between) / max_length . v)) W' + b

    All heads share the biases; norms have no parameters. Unlike in the authors' code, the time between is measured from
    the key's item to the query's item, not to the predicted item, whose time no ranker here knows.
    """

    def __init__(self, config: SASRecModelConfig, *, rngs: nnx.Rngs):
        D, normal = config.width, nnx.initializers.normal(0.02)
        self.heads, self.max_length = config.heads, config.max_length
        self.norm = nnx.LayerNorm(D, use_bias=False, use_scale=False, rngs=rngs)
        self.uvqk = nnx.Linear(D, 4 * D, use_bias=False, kernel_init=normal, rngs=rngs)
        self.out = nnx.Linear(D, D, kernel_init=nnx.initializers.xavier_uniform(), rngs=rngs)
        self.distance_bias = nnx.Param(normal(rngs.params(), (config.max_length,)))
        self.time_bias = nnx.Param(normal(rngs.params(), (TIME_BUCKETS,)))
        self.dropout = nnx.Dropout(config.dropout)

    def __call__(self, x_BTD: jax.Array, mask_BTS: jax.Array, times_BT: jax.Array, rngs: nnx.Rngs | None) -> jax.Array:
        B, T, D = x_BTD.shape
        uvqk = jax.nn.silu(self.uvqk(self.norm(x_BTD)))
        u_BTD = uvqk[..., :D]
        v_BTHh, q_BTHh, k_BTHh = jnp.moveaxis(uvqk[..., D:].reshape(B, T, 3, self.heads, D // self.heads), 2, 0)
        distances_TS = jnp.maximum(jnp.arange(T)[:, None] - jnp.arange(T), 0)
        seconds_BTS = jnp.abs(times_BT[:, :, None] - times_BT[:, None, :])
        buckets_BTS = (jnp.log(jnp.maximum(seconds_BTS, 1).astype(jnp.float32)) / 0.301).astype(jnp.int32)
        bias_BTS = self.distance_bias[...][distances_TS] + self.time_bias[...][buckets_BTS]
        logits_BHTS = jnp.einsum("bthd,bshd->bhts", q_BTHh, k_BTHh) + bias_BTS[:, None]
        weights_BHTS = jnp.where(mask_BTS[:, None], jax.nn.silu(logits_BHTS) / self.max_length, 0)
        y_BTD = jnp.einsum("bhts,bshd->bthd", weights_BHTS, v_BTHh).reshape(B, T, D)
        return x_BTD + self.out(self.dropout(u_BTD * self.norm(y_BTD), deterministic=rngs is None, rngs=rngs))
