"""The models that benchmarks beside transformers are run with: Idefics of one make, from small to large."""

from __future__ import annotations

import dataclasses

from unimp_jax.model import DecoderConfig, ModelConfig, ResamplerConfig
from unimp_jax.model.presets import POSTERS, blocks_of


@dataclasses.dataclass(frozen=True)
class Size:
    """Width and depth."""

    width: int
    layers: int

    @property
    def name(self) -> str:
        return f"{self.width} x {self.layers}"


def geometry(size: Size, *, clip_patches: bool = False) -> ModelConfig:
    """An Idefics in OpenFlamingo 3B's proportions: the tower half as wide as the decoder, and as deep.

    Args:
      size: of the decoder.
      clip_patches: pictures of 224 pixels in 256 patches, as CLIP ViT-L/14 reads them, become 16 latents; else
        pictures of 32 pixels in 16 patches become 4.
    """
    decoder = DecoderConfig(
        width=size.width, layers=size.layers, heads=max(size.width // 64, 2), mlp_width=4 * size.width,
        norm="rms_norm", bias=False, mlp="swiglu", tie_embeddings=True,
    )  # fmt: skip
    width = size.width // 2
    vision = dataclasses.replace(
        POSTERS, width=width, layers=size.layers, heads=max(width // 64, 1), mlp_width=4 * width
    )
    if clip_patches:
        vision = dataclasses.replace(vision, image_size=224, patch_size=14)
    return ModelConfig(
        vision=vision,
        resampler=ResamplerConfig(layers=1, heads=4, head_dim=16, latents=16 if clip_patches else 4, mlp="relu"),
        gated=blocks_of(decoder, every=2),
        decoder=decoder,
        compute_dtype="float32",
        unroll=size.layers,
    )
