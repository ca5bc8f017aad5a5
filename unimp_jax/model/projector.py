"""The projector, which maps the vision tower's output for an image to token embeddings in the text sequence."""

import dataclasses
from typing import Literal

import einops
import jax
from flax import nnx

from unimp_jax.model import tpu
from unimp_jax.model.axes import constrain
from unimp_jax.model.layers import DTypes, Linear, Loop
from unimp_jax.model.resampler import Resampler, ResamplerConfig
from unimp_jax.model.vision import VisionConfig


@dataclasses.dataclass(frozen=True)
class ProjectorConfig:
    """How an image becomes tokens, if fusion is interleaved."""

    kind: Literal["mlp", "pixel_shuffle", "resampler"] = "mlp"
    """mlp: one token per vector of the tower, by an MLP (LLaVA); pixel_shuffle: one token per square of patches, by one
    matrix (Idefics3, SmolVLM); resampler: one token per latent of the resampler, by one matrix."""
    scale: int = 2
    """pixel_shuffle: side of a square in patches; must divide the number of patches in a row of the image."""

    def __post_init__(self) -> None:
        if self.scale < 1:
            raise ValueError(f"projector: scale {self.scale} must be at least 1")

    def tokens(self, vision: VisionConfig, resampler: ResamplerConfig) -> int:
        """Returns the number of tokens per image; raises ValueError if the tower's vectors cannot be divided into
        squares."""
        if self.kind == "resampler":
            return resampler.latents
        if self.kind == "mlp":
            return vision.tokens_out
        side = vision.image_size // vision.patch_size
        if side % self.scale or vision.class_token_out:
            raise ValueError(
                f"projector: squares of {self.scale} x {self.scale} patches do not cover the {side} x {side} patches "
                f"of the tower{' and its class token (vision.class_token_out)' if vision.class_token_out else ''}"
            )
        return (side // self.scale) ** 2


class Projector(nnx.Module):
    """Maps vectors of the tower to token embeddings."""

    def __init__(
        self, config: ProjectorConfig, vision: VisionConfig, resampler: ResamplerConfig, width: int, dtypes: DTypes,
        loop: Loop, rngs: nnx.Rngs,
    ):  # fmt: skip
        self.kind, self.scale = config.kind, config.scale
        inputs = vision.width * (config.scale**2 if config.kind == "pixel_shuffle" else 1)
        mlp, embed = config.kind == "mlp", {"embed": width}
        resamples = config.kind == "resampler"
        self.resampler = Resampler(resampler, vision.width, dtypes, loop, rngs) if resamples else None
        # A single matrix between two widths that are both split over fsdp is sharded along its output only.
        seen, hidden = ({"vision_embed": inputs}, {"mlp": width}) if mlp else ({"seen": inputs}, embed)
        self.first = Linear(seen, hidden, bias=mlp, dtypes=dtypes, rngs=rngs)
        self.second = Linear(hidden, embed, bias=True, dtypes=dtypes, rngs=rngs) if mlp else None

    def __call__(self, x_BPC: jax.Array) -> jax.Array:
        """[B, P, C] -> [B, L, D]."""
        if self.resampler is not None:
            x_BPC = self.resampler(x_BPC)
        if self.kind == "pixel_shuffle":
            side = round(x_BPC.shape[1] ** 0.5)
            x_BPC = einops.rearrange(
                x_BPC, "b (h r w q) c -> b (h w) (r q c)", r=self.scale, q=self.scale, w=side // self.scale
            )
        x_BLD = self.first(x_BPC)
        if self.second is not None:
            x_BLD = self.second(tpu.gelu(x_BLD))
        return constrain(x_BLD, "images", None, None)
