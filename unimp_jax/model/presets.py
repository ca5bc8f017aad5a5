"""Named model configurations."""

import dataclasses
from typing import Any

from unimp_jax.model.decoder import DecoderConfig
from unimp_jax.model.gated import GatedCrossAttentionConfig
from unimp_jax.model.projector import ProjectorConfig
from unimp_jax.model.resampler import ResamplerConfig
from unimp_jax.model.unimp import ModelConfig
from unimp_jax.model.vision import VisionConfig

POSTERS = VisionConfig(
    image_size=32, patch_size=8, width=64, layers=2, heads=4, mlp_width=256, class_token_out=True
)  # fmt: skip
FROM_NOTHING = DecoderConfig(
    vocab_size=4096, width=64, layers=2, heads=2, mlp_width=192,
    norm="rms_norm", bias=False, mlp="swiglu", tie_embeddings=True,
)  # fmt: skip


def blocks_of(decoder: DecoderConfig, every: int, **changes: Any) -> GatedCrossAttentionConfig:
    """Returns gated blocks as in Idefics: built like the decoder's layers, before the first layer of each group."""
    return GatedCrossAttentionConfig(
        every=every, place="before_first", heads=decoder.heads, head_dim=decoder.head_dim, mlp="swiglu",
        mlp_width=decoder.mlp_width, norm="rms_norm", norm_eps=decoder.norm_eps, **changes,
    )  # fmt: skip


tiny = ModelConfig(
    vision=dataclasses.replace(POSTERS, layers=1),
    resampler=ResamplerConfig(layers=1, heads=4, head_dim=16, latents=4, mlp="relu"),
    gated=blocks_of(FROM_NOTHING, every=2),
    decoder=FROM_NOTHING,
    compute_dtype="float32",
)
"""Trains in minutes on two CPU cores. Follows Idefics, so that it can be exported to stock transformers."""

small = dataclasses.replace(tiny, vision=POSTERS, decoder=dataclasses.replace(tiny.decoder, dropout=0.1))
"""Trains in an hour on a CPU core; has the width, layers and dropout of the SASRec baseline."""

READER = dataclasses.replace(FROM_NOTHING, width=128, layers=4, mlp_width=384, dropout=0.1)
reviews = dataclasses.replace(tiny, decoder=READER, gated=blocks_of(READER, every=4))
"""A wider and deeper model that generates whole sentences."""

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

LLAMA_7B = DecoderConfig(
    vocab_size=32000, new_tokens=2, width=4096, layers=32, heads=32, mlp_width=11008, norm="rms_norm", norm_eps=1e-6,
    bias=False, mlp="swiglu",
)  # fmt: skip

idefics_9b = ModelConfig(
    vision=VisionConfig(width=1280, layers=32, heads=16, mlp_width=5120, activation="gelu", class_token_out=True),
    resampler=ResamplerConfig(layers=6, heads=16, head_dim=96, latents=64, mlp="relu", qk_norm=True),
    gated=blocks_of(LLAMA_7B, every=4, qk_norm=True, gate="channel"),
    decoder=LLAMA_7B,
    remat="full",
)
"""CLIP ViT-H/14 and LLaMA-7B."""

SMOLLM2_135M = DecoderConfig(
    vocab_size=49152, width=576, layers=30, heads=9, kv_heads=3, mlp_width=1536, norm="rms_norm", bias=False,
    rotary_base=100_000.0, mlp="swiglu", tie_embeddings=True,
)  # fmt: skip

smol = ModelConfig(
    vision=dataclasses.replace(POSTERS, image_size=64, width=128),
    resampler=ResamplerConfig(layers=1, heads=4, head_dim=32, latents=8, mlp="relu"),
    decoder=SMOLLM2_135M,
    fusion="interleaved",
    projector=ProjectorConfig(kind="resampler"),
    compute_dtype="float32",
)
"""SmolLM2-135M with a small vision tower of our own, which encodes an image as eight tokens."""

SIGLIP2_BASE = VisionConfig(
    image_size=256, patch_size=32, width=768, layers=12, heads=12, mlp_width=3072, activation="gelu_tanh",
    class_token=False, patch_bias=True, norm="none", colours="siglip", norm_eps=1e-6,
)  # fmt: skip
"""siglip2-base-patch32-256, as LLaVA reads it: 64 tokens per image."""
SIGLIP2_SO400M = dataclasses.replace(
    SIGLIP2_BASE, image_size=224, patch_size=14, width=1152, layers=27, heads=16, mlp_width=4304
)
"""siglip2-so400m-patch14-224, as LLaVA reads it: 256 tokens per image."""


def qwen3(vision: VisionConfig, **sizes: Any) -> ModelConfig:
    """Returns a LLaVA with a Qwen3 decoder whose heads are 128 wide; images are tokens in the text sequence."""
    head_width = None if 128 * sizes["heads"] == sizes["width"] else 128
    decoder = DecoderConfig(
        vocab_size=151936, head_width=head_width, kv_heads=8, norm="rms_norm", norm_eps=1e-6, bias=False,
        rotary_base=1_000_000.0, mlp="swiglu", qk_norm=True, qk_norm_per_head=True, **sizes,
    )  # fmt: skip
    return ModelConfig(vision=vision, decoder=decoder, fusion="interleaved", remat="full")


qwen3_0_6b = qwen3(SIGLIP2_BASE, width=1024, layers=28, heads=16, mlp_width=3072, tie_embeddings=True)
qwen3_1_7b = qwen3(SIGLIP2_BASE, width=2048, layers=28, heads=16, mlp_width=6144, tie_embeddings=True)
qwen3_4b = qwen3(SIGLIP2_SO400M, width=2560, layers=36, heads=32, mlp_width=9728, tie_embeddings=True)
qwen3_8b = qwen3(SIGLIP2_SO400M, width=4096, layers=36, heads=32, mlp_width=12288)

smolvlm_256m = ModelConfig(
    vision=dataclasses.replace(SIGLIP2_BASE, image_size=512, patch_size=16, norm="last"),
    decoder=dataclasses.replace(SMOLLM2_135M, vocab_size=49280, tie_embeddings=False),
    fusion="interleaved",
    projector=ProjectorConfig("pixel_shuffle", scale=4),
    remat="full",
)
"""SmolVLM-256M: SmolLM2-135M with SigLIP base, 64 tokens per image."""

PRESETS: dict[str, ModelConfig] = {
    "tiny": tiny,
    "small": small,
    "smol": smol,
    "reviews": reviews,
    "openflamingo_3b": openflamingo_3b,
    "openflamingo_4b": openflamingo_4b,
    "openflamingo_9b": openflamingo_9b,
    "idefics_9b": idefics_9b,
    "qwen3_0_6b": qwen3_0_6b,
    "qwen3_1_7b": qwen3_1_7b,
    "qwen3_4b": qwen3_4b,
    "qwen3_8b": qwen3_8b,
    "smolvlm_256m": smolvlm_256m,
}
