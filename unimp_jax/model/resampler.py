"""The Perceiver resampler (Flamingo, arXiv:2204.14198, section 2.1): maps an image's patch tokens to a few latents."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from unimp_jax.model import cpu
from unimp_jax.model.attention import attend_to_all
from unimp_jax.model.axes import constrain
from unimp_jax.model.layers import MLP, DTypes, Linear, Loop, MLPKind, Norm, normal, scan, stack


@dataclasses.dataclass(frozen=True)
class ResamplerConfig:
    """Architecture of the resampler; its width is that of the vision tower."""

    layers: int = 6
    heads: int = 8
    head_dim: int = 64
    latents: int = 64
    """Number of latent vectors per image."""
    mlp_ratio: int = 4
    """Hidden width of the MLP divided by the width."""
    mlp: MLPKind = "gelu"
    """Activation of the MLP; Idefics uses relu."""
    qk_norm: bool = False
    """Whether queries and keys are normalised, each head separately."""

    def __post_init__(self) -> None:
        if min(self.layers, self.heads, self.head_dim, self.latents, self.mlp_ratio) < 1:
            raise ValueError(f"resampler: every size must be at least 1, not {self}")

    def attends_directly(self, width: int) -> bool:
        """Whether latents attend to the patch tokens directly instead of to keys and values computed from them: if that
        takes at most 90 % of the operations, per head and patch token L C instead of C h + L h."""
        return not self.qk_norm and 10 * self.latents * width <= 9 * self.head_dim * (self.latents + width)


class ResamplerLayer(nnx.Module):
    """Latents attend to the patch tokens and to themselves; an MLP follows."""

    def __init__(self, config: ResamplerConfig, width: int, dtypes: DTypes, rngs: nnx.Rngs):
        embed, heads = {"vision_embed": width}, {"heads": config.heads, "head_dim": config.head_dim}
        self.media_norm = Norm("layer_norm", {"norm": width}, eps=1e-5, bias=True, dtypes=dtypes)
        self.latents_norm = Norm("layer_norm", {"norm": width}, eps=1e-5, bias=True, dtypes=dtypes)
        self.query = Linear(embed, heads, bias=False, dtypes=dtypes, rngs=rngs)
        self.key = Linear(embed, heads, bias=False, dtypes=dtypes, rngs=rngs)
        self.value = Linear(embed, heads, bias=False, dtypes=dtypes, rngs=rngs)
        self.out = Linear(heads, embed, bias=False, dtypes=dtypes, rngs=rngs)
        self.mlp_norm = Norm("layer_norm", {"norm": width}, eps=1e-5, bias=True, dtypes=dtypes)
        self.mlp = MLP(config.mlp, embed, config.mlp_ratio * width, bias=False, dtypes=dtypes, rngs=rngs)

        def qk_norm() -> Norm | None:
            head = {"head_dim": config.head_dim}
            return Norm("layer_norm", head, eps=1e-5, bias=True, dtypes=dtypes) if config.qk_norm else None

        self.query_norm, self.key_norm = qk_norm(), qk_norm()
        self.direct = config.attends_directly(width)

    def __call__(self, latents_BLC: jax.Array, media_BPC: jax.Array) -> jax.Array:
        """Applies the layer; `media_BPC` must already be standardised."""
        normed = self.latents_norm(latents_BLC)
        attended = cpu.attend_directly(self, normed, media_BPC) if self.direct else self.attend(normed, media_BPC)
        latents_BLC = latents_BLC + self.out(attended)
        return constrain(latents_BLC + self.mlp(self.mlp_norm(latents_BLC)), "images", None, None)

    def attend(self, normed_BLC: jax.Array, media_BPC: jax.Array) -> jax.Array:
        """Computes attention of latents to patch tokens and latents, [B, L, H, h]."""
        media_BPC = self.media_norm.scaled(media_BPC).astype(normed_BLC.dtype)
        both = jnp.concatenate([media_BPC, normed_BLC], axis=1)
        query, key = self.query(normed_BLC), self.key(both)
        if self.query_norm is not None and self.key_norm is not None:
            query, key = self.query_norm(query), self.key_norm(key)
        return attend_to_all(query, key, self.value(both), "images")


class Resampler(nnx.Module):
    """Maps patch tokens to latents."""

    def __init__(self, config: ResamplerConfig, width: int, dtypes: DTypes, loop: Loop, rngs: nnx.Rngs):
        self.dtype, self.loop = dtypes.compute, loop
        self.latents = normal(rngs, {"latents": config.latents, "vision_embed": width}, 1.0, dtypes)
        self.layers = stack(lambda rngs: ResamplerLayer(config, width, dtypes, rngs), config.layers, rngs)
        self.norm = Norm("layer_norm", {"norm": width}, eps=1e-5, bias=True, dtypes=dtypes)

    def __call__(self, media_BPC: jax.Array) -> jax.Array:
        """[B, P, C] -> [B, L, C]."""
        media_BPC = self.norm.standardised(media_BPC).astype(self.dtype)  # shared by the norms of all layers
        latents = self.latents[...].astype(self.dtype)
        latents_BLC = jnp.broadcast_to(latents, (media_BPC.shape[0], *latents.shape))
        latents_BLC, _ = scan(lambda x, layer: (layer(x, media_BPC), None), latents_BLC, self.layers, loop=self.loop)
        return self.norm(latents_BLC)
