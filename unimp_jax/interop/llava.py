"""LLaVA (LlavaForConditionalGeneration): images as tokens of a LLaMA or Qwen, projected by an MLP.

Names are those of llava-hf's checkpoints, which transformers and vLLM read; `ALIASES` maps transformers' names to them.
"""

import dataclasses
from typing import Any

from unimp_jax.interop import language
from unimp_jax.interop.exporting import refuse_others
from unimp_jax.interop.layout import Table, WeightsError, linear
from unimp_jax.interop.vision import described_as as described_tower
from unimp_jax.interop.vision import tower, vision_config
from unimp_jax.model import ModelConfig, ProjectorConfig

IMAGE_ID = "image_token_index"
VISION, LANGUAGE = "vision_tower.vision_model.", "language_model."
LAST_NORM = f"{VISION}post_layernorm"
DECODERS = ("llama", "qwen2", "qwen3")
ALIASES = (
    (r"^model\.language_model\.", "language_model.model."),
    (r"^lm_head\.", "language_model.lm_head."),
    (r"^model\.(vision_tower|multi_modal_projector)\.", r"\1."),
    (r"^vision_tower\.(?!vision_model\.)", VISION),
)


def table(config: ModelConfig) -> Table:
    """Returns the table of a whole checkpoint."""
    return [
        *tower(VISION, config.vision),
        *linear("multi_modal_projector.linear_1", "projector/first", bias=True),
        *linear("multi_modal_projector.linear_2", "projector/second", bias=True),
        *language.llama(config.decoder, LANGUAGE, f"{LANGUAGE}model.layers.{{}}"),
    ]


def model_config(described: dict[str, Any]) -> ModelConfig:
    """Returns the configuration for a `config.json` of LLaVA; raises WeightsError if it has a part that this model
    lacks."""
    language.expect(described, projector_hidden_act="gelu", multimodal_projector_bias=True)
    tied = described.get("tie_word_embeddings") or (described.get("text_config") or {}).get("tie_word_embeddings")
    decoder = language.text_decoder(described, DECODERS, tied=bool(tied))
    seen, layer = described.get("vision_config") or {}, described.get("vision_feature_layer", -2)
    if not isinstance(layer, int):
        raise WeightsError(
            f"config.json: vision_feature_layer {layer} is not supported; it must be the number of one layer"
        )
    strategy = described.get("vision_feature_select_strategy", "default")
    whole = vision_config({"model_type": "clip_vision_model"} | seen)
    layers = layer if layer >= 0 else whole.layers + 1 + layer
    if not 0 <= layers <= whole.layers:
        raise WeightsError(
            f"config.json: vision_feature_layer {layer} is not one of the {whole.layers} layers of the tower"
        )
    if strategy not in ("full", "default") or (strategy == "default" and not whole.class_token):
        raise WeightsError(
            f"config.json: vision_feature_select_strategy {strategy!r} is not supported for this tower; it must "
            "be full or, for a CLIP, default"
        )
    norm = "first" if whole.class_token else "none"
    changes = {"num_hidden_layers": layers}
    read = vision_config({"model_type": "clip_vision_model"} | seen | changes, norm=norm)
    class_token_out = whole.class_token and strategy == "full"
    return ModelConfig(
        vision=dataclasses.replace(read, class_token_out=class_token_out),
        decoder=decoder,
        fusion="interleaved",
        projector=ProjectorConfig("mlp"),
    )


def image_size_of(settings: dict[str, Any]) -> Any:
    """Returns the size of the images that an image processor produces."""
    return settings.get("crop_size") if settings.get("do_center_crop") else settings.get("size")


def image_tokens_of(processor: dict[str, Any], config: ModelConfig) -> int | None:
    """Returns the tokens per image that a processor writes; None if it leaves that to the model, as older ones do."""
    if not (patch_size := processor.get("patch_size")):
        return None
    tokens = (config.vision.image_size // patch_size) ** 2 + (processor.get("num_additional_image_tokens") or 0)
    return tokens - (processor.get("vision_feature_select_strategy") == "default")


def described_as(config: ModelConfig) -> dict[str, Any]:
    """Returns the `config.json` of a model configuration, without token ids; raises like `refuse_others`."""
    vision = config.vision
    wanted = {
        "fusion": "interleaved",
        "projector.kind": "mlp",
        "vision.patch_bias": not vision.class_token,
        "vision.norm": "first" if vision.class_token else "none",
    }
    refuse_others("LLaVA", config, wanted)
    text = language.described_as(config)
    return {
        "architectures": ["LlavaForConditionalGeneration"],
        "model_type": "llava",
        "image_seq_length": config.image_tokens,
        "multimodal_projector_bias": True,
        "projector_hidden_act": "gelu",
        "tie_word_embeddings": config.decoder.tie_embeddings,
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": strategy(config),
        "text_config": text,
        "vision_config": described_tower(vision) | ({} if vision.class_token else {"vision_use_head": False}),
    }


def strategy(config: ModelConfig) -> str:
    """Returns which vectors of the tower become tokens: all ("full"), or all but the class token ("default")."""
    return "default" if config.vision.class_token and not config.vision.class_token_out else "full"


def processor(config: ModelConfig) -> dict[str, Any]:
    """Returns a `processor_config.json` that writes as many image tokens as the model has."""
    return {
        "processor_class": "LlavaProcessor",
        "image_token": "<image>",
        "num_additional_image_tokens": int(config.vision.class_token),
        "patch_size": config.vision.patch_size,
        "vision_feature_select_strategy": strategy(config),
    }
