"""SmolVLM and Idefics3 (SmolVLMForConditionalGeneration, Idefics3ForConditionalGeneration), which differ only in name.

Images are tokens of a LLaMA; squares of a SigLIP's patches are projected by one matrix. Images are read whole, as one
square each; splitting by their processors is not supported.
"""

from typing import Any

import numpy as np

from unimp_jax.interop import language
from unimp_jax.interop.exporting import refuse_others
from unimp_jax.interop.layout import Table, WeightsError, linear
from unimp_jax.interop.vision import described_as as described_tower
from unimp_jax.interop.vision import tower, vision_config
from unimp_jax.interop.weights import Aliases
from unimp_jax.model import ModelConfig, ProjectorConfig

ALIASES: Aliases = ()
IMAGE_ID = "image_token_id"
LAST_NORM = None  # None because the norm is in the table
VISION = {"model_type": "siglip_vision_model", "hidden_size": 1152, "num_attention_heads": 16, "patch_size": 32}
"""Defaults of transformers for the vision tower that differ from those for SigLIP."""
LANES = (1, 4, 8, 16)
"""Numbers of lanes of CPU vector instructions."""


def table(config: ModelConfig) -> Table:
    """Returns the table of a whole checkpoint."""
    return [
        *tower("model.vision_model.", config.vision),
        *linear("model.connector.modality_projection.proj", "projector/first"),
        *language.llama(config.decoder, layer="model.text_model.layers.{}", body="model.text_model."),
    ]


def model_config(described: dict[str, Any]) -> ModelConfig:
    """Returns the configuration for a `config.json` of SmolVLM or Idefics3; raises WeightsError if it has a part that
    this model lacks."""
    decoder = language.text_decoder(described, ("llama",), tied=bool(described.get("tie_word_embeddings")))
    vision = vision_config(VISION | (described.get("vision_config") or {}) | {"model_type": VISION["model_type"]})
    refuse_rounded_positions(vision.image_size // vision.patch_size)
    projector = ProjectorConfig("pixel_shuffle", scale=described.get("scale_factor", 2))
    return ModelConfig(vision=vision, decoder=decoder, fusion="interleaved", projector=projector)


def refuse_rounded_positions(side: int) -> None:
    """Raises WeightsError if, on some machine, rounding gives a patch the position of the previous one. These towers
    find the position of patch i of n in a row by comparing i * (1 / n) with fractions from `torch.arange`, both in
    single precision; `arange` rounds the first of each vector and counts on from there."""
    step, patches = 1 / side, np.arange(side)
    found = patches.astype(np.float32) * np.float32(step)
    for lanes in LANES:
        lane = patches[:-1] % lanes
        first = (step + step * (patches[:-1] - lane)).astype(np.float32)
        fractions = (first + step * lane).astype(np.float32)
        if (np.searchsorted(fractions, found, side="right") != patches).any():
            raise WeightsError(
                f"rows of {side} patches have no exact positions in SmolVLM, which rounds fractions of {side}; "
                "image_size and patch_size must give another number of patches (any up to 18, or a power of 2)"
            )


def image_size_of(settings: dict[str, Any]) -> Any:
    """Returns the size of the images that an image processor produces."""
    return settings.get("max_image_size", {"longest_edge": 364})


def image_tokens_of(processor: dict[str, Any], config: ModelConfig) -> int | None:
    """Returns the number of tokens per image that a processor writes."""
    return processor.get("image_seq_len")


def described_as(config: ModelConfig) -> dict[str, Any]:
    """Returns the `config.json` of a model configuration, without token ids; raises like `refuse_others`."""
    wanted = {
        "fusion": "interleaved",
        "projector.kind": "pixel_shuffle",
        "vision.class_token": False,
        "vision.patch_bias": True,
        "vision.norm": "last",
        "vision.colours": "siglip",
        "decoder.qk_norm": False,
        "decoder.qkv_bias": False,
    }
    refuse_others("SmolVLM", config, wanted)
    refuse_rounded_positions(config.vision.image_size // config.vision.patch_size)
    return {
        "architectures": ["SmolVLMForConditionalGeneration"],
        "model_type": "smolvlm",
        "scale_factor": config.projector.scale,
        "tie_word_embeddings": config.decoder.tie_embeddings,
        "text_config": language.described_as(config),
        "vision_config": described_tower(config.vision) | {"model_type": "smolvlm_vision"},
    }


def processor(config: ModelConfig) -> dict[str, Any]:
    """Returns a `processor_config.json` that writes as many image tokens as the model has."""
    return {"processor_class": "SmolVLMProcessor", "image_seq_len": config.image_tokens}
