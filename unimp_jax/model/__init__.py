"""The UniMP model: vision tower, then resampler and decoder with gated cross-attention, or projector and decoder."""

from unimp_jax.model.adapters import AdapterConfig
from unimp_jax.model.decoder import DecoderConfig
from unimp_jax.model.gated import GatedCrossAttentionConfig
from unimp_jax.model.projector import ProjectorConfig
from unimp_jax.model.resampler import ResamplerConfig
from unimp_jax.model.rotary import RotaryScaling
from unimp_jax.model.unimp import PARTS, ModelConfig, Part, UniMP, part_of
from unimp_jax.model.vision import VisionConfig
