"""Geometries by name."""

from __future__ import annotations

import dataclasses

from unimp_jax.model.decoder import DecoderConfig
from unimp_jax.model.gated import GatedCrossAttentionConfig
from unimp_jax.model.resampler import ResamplerConfig
from unimp_jax.model.unimp import ModelConfig
from unimp_jax.model.vision import VisionConfig

POSTERS = VisionConfig(image_size=32, patch_size=8, width=64, layers=2, heads=4, mlp_width=256)
FROM_NOTHING = DecoderConfig(
    vocab_size=4096, width=64, layers=2, heads=2, mlp_width=192,
    norm="rms_norm", bias=False, mlp="swiglu", tie_embeddings=True,
)  # fmt: skip

tiny = ModelConfig(
    vision=dataclasses.replace(POSTERS, layers=1),
    resampler=ResamplerConfig(layers=1, heads=4, head_dim=16, latents=4),
    gated=GatedCrossAttentionConfig(every=2, heads=2, head_dim=32, mlp_multiple=2),
    decoder=FROM_NOTHING,
    compute_dtype="float32",
)
"""Minutes on two CPU cores."""

small = dataclasses.replace(tiny, vision=POSTERS, decoder=dataclasses.replace(tiny.decoder, dropout=0.1))
"""An hour on a CPU core; width, layers and dropout as its rival SASRec has."""

openflamingo_3b = ModelConfig(
    gated=GatedCrossAttentionConfig(every=1),
    decoder=DecoderConfig(
        width=2048, layers=24, heads=16, mlp_width=8192, bias=False, position="alibi", qk_norm=True,
        tie_embeddings=True,
    ),
    remat="full",
)  # fmt: skip
"""CLIP ViT-L/14 and MPT-1B."""

openflamingo_4b = ModelConfig(
    gated=GatedCrossAttentionConfig(every=2),
    decoder=DecoderConfig(width=2560, layers=32, heads=32, mlp_width=10240),
    remat="full",
)
"""CLIP ViT-L/14 and RedPajama-INCITE-3B."""

openflamingo_9b = ModelConfig(
    gated=GatedCrossAttentionConfig(every=4),
    decoder=DecoderConfig(
        width=4096, layers=32, heads=32, mlp_width=16384, bias=False, position="alibi", tie_embeddings=True
    ),
    remat="full",
)
"""CLIP ViT-L/14 and MPT-7B."""

PRESETS: dict[str, ModelConfig] = {
    "tiny": tiny,
    "small": small,
    "openflamingo_3b": openflamingo_3b,
    "openflamingo_4b": openflamingo_4b,
    "openflamingo_9b": openflamingo_9b,
}
