"""The model: vision tower, resampler, decoder with gated cross-attention."""

from unimp_jax.model.decoder import DecoderConfig
from unimp_jax.model.gated import GatedCrossAttentionConfig
from unimp_jax.model.resampler import ResamplerConfig
from unimp_jax.model.rotary import RotaryScaling
from unimp_jax.model.unimp import PARTS, ModelConfig, Part, UniMP, part_of
from unimp_jax.model.vision import VisionConfig

__all__ = [
    "PARTS",
    "DecoderConfig",
    "GatedCrossAttentionConfig",
    "ModelConfig",
    "Part",
    "ResamplerConfig",
    "RotaryScaling",
    "UniMP",
    "VisionConfig",
    "part_of",
]
