"""The complete CLIP model (arXiv:2103.00020): embeds images and texts, whose cosine measures how well they match."""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx

from unimp_jax.model.layers import DTypes, Linear, Loop, Norm, normal, scan, stack
from unimp_jax.model.vision import VisionBlock, VisionConfig, VisionTower


@dataclasses.dataclass(frozen=True)
class TextConfig:
    """Architecture of the text tower; the defaults are those of CLIP ViT-B/32."""

    vocab_size: int = 49408
    length: int = 77
    """Number of tokens in the longest text."""
    width: int = 512
    layers: int = 12
    heads: int = 8
    """Number of attention heads; must divide width."""
    mlp_width: int = 2048
    activation: Literal["quick_gelu", "gelu"] = "quick_gelu"
    norm_eps: float = 1e-5

    @property
    def head_dim(self) -> int:
        return self.width // self.heads


@dataclasses.dataclass(frozen=True)
class CLIPConfig:
    """Architecture of both towers.

    Attributes:
      vision: Vision tower, with the class token, which becomes the embedding, in its output.
      text: Text tower; None if only images are embedded.
      width: Width of embeddings; None: the vision tower's output without a projection.
    """

    vision: VisionConfig
    text: TextConfig | None = None
    width: int | None = None

    def __post_init__(self) -> None:
        if not self.vision.class_token_out:
            raise ValueError(
                "clip: vision.class_token_out must be True, because the class token is the image embedding"
            )
        if self.text and self.width is None:
            raise ValueError("clip: the width of the joint space of images and texts is not given")


class TextTower(nnx.Module):
    """Maps tokens to the hidden state of each text's last token."""

    def __init__(self, config: TextConfig, dtypes: DTypes, loop: Loop, rngs: nnx.Rngs):
        self.config, self.loop = config, loop
        width = {"vision_embed": config.width}
        self.tokens = normal(rngs, {"vocab": config.vocab_size} | width, 0.02, dtypes)
        self.positions = normal(rngs, {"patches": config.length} | width, 0.02, dtypes)
        self.blocks = stack(lambda rngs: VisionBlock(config, dtypes, rngs), config.layers, rngs)
        self.norm = Norm("layer_norm", {"norm": config.width}, eps=config.norm_eps, bias=True, dtypes=dtypes)

    def __call__(self, tokens_BT: jax.Array, last_B: jax.Array) -> jax.Array:
        """Encodes texts, int32 [B, T] with T at most `length`, of which tokens after the last one (at int32 [B]) are
        ignored: [B, C]."""
        B, T = tokens_BT.shape
        x_BTC = self.tokens[...][tokens_BT] + self.positions[:T]
        before_BTS = jnp.broadcast_to(jnp.tri(T, dtype=bool), (B, T, T))
        x_BTC, _ = scan(lambda x, block: (block(x, before_BTS), None), x_BTC, self.blocks, loop=self.loop)
        return self.norm(x_BTC[jnp.arange(B), last_B])


class CLIP(nnx.Module):
    """Embeddings of images and texts, each of length 1."""

    def __init__(self, config: CLIPConfig, rngs: nnx.Rngs):
        self.config, dtypes, loop = config, DTypes(), Loop()
        vision, text = config.vision, config.text
        self.vision = VisionTower(vision, dtypes, loop, rngs)
        self.vision_norm = Norm("layer_norm", {"norm": vision.width}, eps=vision.norm_eps, bias=True, dtypes=dtypes)
        self.image_projection = projection(vision.width, config.width, dtypes, rngs) if config.width else None
        self.text = TextTower(text, dtypes, loop, rngs) if text else None
        self.text_projection = projection(text.width, config.width, dtypes, rngs) if text and config.width else None

    def see(self, images_BHW3: jax.Array) -> jax.Array:
        """Embeds images: float32 [B, F] from uint8 of the tower's size."""
        x_BC = self.vision_norm(self.vision(images_BHW3)[:, 0])
        return unit(x_BC if self.image_projection is None else self.image_projection(x_BC))

    def read(self, tokens_BT: jax.Array, last_B: jax.Array) -> jax.Array:
        """Embeds texts, float32 [B, F]; for arguments see `TextTower`. Raises ValueError if this CLIP has no text
        tower."""
        if self.text is None or self.text_projection is None:
            raise ValueError("this CLIP has no text tower")
        return unit(self.text_projection(self.text(tokens_BT, last_B)))


def projection(inputs: int, outputs: int, dtypes: DTypes, rngs: nnx.Rngs) -> Linear:
    return Linear({"vision_embed": inputs}, {"head_dim": outputs}, bias=False, dtypes=dtypes, rngs=rngs)


def unit(x_BC: jax.Array) -> jax.Array:
    return x_BC / jnp.linalg.norm(x_BC, axis=-1, keepdims=True)
