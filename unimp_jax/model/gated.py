"""Gated cross-attention (Flamingo, arXiv:2204.14198, section 2.2): text attends to images before a decoder layer."""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx

from unimp_jax.model.attention import KeysValues, Mask, attention
from unimp_jax.model.axes import constrain
from unimp_jax.model.layers import MLP, DTypes, Linear, MLPKind, Norm, NormKind, constant


@dataclasses.dataclass(frozen=True)
class GatedCrossAttentionConfig:
    """Architecture of the gated blocks, and which images a token attends to."""

    every: int = 1
    """Number of decoder layers per gated block; must divide the number of decoder layers."""
    place: Literal["before_last", "before_first"] = "before_last"
    """The layer of a group that the block precedes: the last (OpenFlamingo) or the first (Idefics)."""
    heads: int = 8
    head_dim: int = 64
    mlp_ratio: int = 4
    """Hidden width of the MLP divided by the decoder's width, if `mlp_width` is None."""
    mlp_width: int | None = None
    mlp: MLPKind = "gelu"
    norm: NormKind = "layer_norm"
    norm_eps: float = 1e-5
    qk_norm: bool = False
    """Whether queries and keys are normalised, each head separately."""
    gate: Literal["scalar", "channel"] = "scalar"
    """One gate for all channels, or one per channel."""
    attend: Literal["last_image", "all_earlier_images"] = "last_image"
    """Images that a token attends to: the most recent one (as in OpenFlamingo), or all earlier ones of its segment."""

    def __post_init__(self) -> None:
        if min(self.every, self.heads, self.head_dim, self.mlp_ratio, self.mlp_width or 1) < 1:
            raise ValueError(f"gated: every size must be at least 1, not {self}")

    @property
    def block_layer(self) -> int:
        """Index in its group of the layer that the block precedes."""
        return 0 if self.place == "before_first" else self.every - 1

    def hidden_width(self, width: int) -> int:
        """Returns the hidden width of the MLP for a decoder of this width."""
        return self.mlp_width or self.mlp_ratio * width


class GatedCrossAttention(nnx.Module):
    """Computes y = x + tanh(a) attention(x, latents), then y + tanh(b) MLP(y); a and b start at 0."""

    def __init__(
        self, config: GatedCrossAttentionConfig, width: int, latent_width: int, dtypes: DTypes, rngs: nnx.Rngs
    ):
        embed, media = {"embed": width}, {"vision_embed": latent_width}
        heads = {"heads": config.heads, "head_dim": config.head_dim}
        self.norm = Norm(config.norm, {"norm": width}, eps=config.norm_eps, bias=True, dtypes=dtypes)
        self.query = Linear(embed, heads, bias=False, dtypes=dtypes, rngs=rngs)
        self.key = Linear(media, heads, bias=False, dtypes=dtypes, rngs=rngs)
        self.value = Linear(media, heads, bias=False, dtypes=dtypes, rngs=rngs)
        self.out = Linear(heads, embed, bias=False, dtypes=dtypes, rngs=rngs)
        self.mlp_norm = Norm(config.norm, {"norm": width}, eps=config.norm_eps, bias=True, dtypes=dtypes)
        self.mlp = MLP(config.mlp, embed, config.hidden_width(width), bias=False, dtypes=dtypes, rngs=rngs)
        gates = {"gate": 1 if config.gate == "scalar" else width}
        self.attention_gate, self.mlp_gate = constant(0.0, gates, dtypes), constant(0.0, gates, dtypes)

        def qk_norm() -> Norm | None:
            head = {"head_dim": config.head_dim}
            return Norm(config.norm, head, eps=config.norm_eps, bias=True, dtypes=dtypes) if config.qk_norm else None

        self.query_norm, self.key_norm = qk_norm(), qk_norm()

    def keys_values(self, latents_BSC: jax.Array) -> KeysValues:
        """Returns keys and values of the latents of a row's images, in image order; S may be 0."""
        key = self.key(latents_BSC)
        return KeysValues(key if self.key_norm is None else self.key_norm(key), self.value(latents_BSC))

    def __call__(self, x_BTD: jax.Array, images: KeysValues, mask: Mask) -> jax.Array:
        """Applies the block to the text; `mask` says which latents a token attends to (if none, attention adds exactly
        0)."""
        if images.keys.shape[1]:
            query = self.query(self.norm(x_BTD))
            query = query if self.query_norm is None else self.query_norm(query)
            x_BTD = x_BTD + gate(self.attention_gate, x_BTD) * self.out(attention(query, *images, mask))
        x_BTD = x_BTD + gate(self.mlp_gate, x_BTD) * self.mlp(self.mlp_norm(x_BTD))
        return constrain(x_BTD, "batch", "sequence", None)


def gate(parameter: nnx.Param, like: jax.Array) -> jax.Array:
    """Returns tanh of a gate, [1] or [D], computed in float32."""
    return jnp.tanh(parameter[...].astype(jnp.float32)).astype(like.dtype)
