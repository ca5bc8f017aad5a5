"""CLIP's vision tower, as transformers and as open_clip name it."""

from __future__ import annotations

from typing import Any

import numpy as np

from unimp_jax.feature_extractors import CLIPConfig, TextConfig
from unimp_jax.interop.layout import Table, WeightsError, entry, into_heads, linear, norm, out_of_heads
from unimp_jax.interop.weights import Weights
from unimp_jax.model import VisionConfig


def last_norm(name: str, config: VisionConfig) -> dict[str, np.ndarray]:
    """CLIP's norm of its pooled output, on which no patch token depends, as it is before training."""
    return {f"{name}.weight": np.ones(config.width), f"{name}.bias": np.zeros(config.width)}


ACTIVATIONS = ("quick_gelu", "gelu")


def transformers_clip(root: str) -> Table:
    """The vision tower; `root` stands before all names: "vision_model." and what is before that, or nothing."""
    embeddings = f"{root}embeddings"
    return [
        entry(f"{embeddings}.class_embedding", "vision/class_embedding", "c -> c"),
        entry(f"{embeddings}.patch_embedding.weight", "vision/patch_embedding/kernel", "c r y x -> y x r c"),
        entry(f"{embeddings}.position_embedding.weight", "vision/positions", "n c -> n c"),
        *norm(f"{root}pre_layrnorm", "vision/norm"),
        *encoder_layer(f"{root}encoder.layers.{{}}", "vision/blocks"),
    ]


def encoder_layer(layer: str, blocks: str) -> Table:
    """Of either tower."""
    return [
        *norm(f"{layer}.layer_norm1", f"{blocks}/attention_norm"),
        *into_heads(f"{layer}.self_attn.q_proj", f"{blocks}/query", bias=True),
        *into_heads(f"{layer}.self_attn.k_proj", f"{blocks}/key", bias=True),
        *into_heads(f"{layer}.self_attn.v_proj", f"{blocks}/value", bias=True),
        *out_of_heads(f"{layer}.self_attn.out_proj", f"{blocks}/out", bias=True),
        *norm(f"{layer}.layer_norm2", f"{blocks}/mlp_norm"),
        *linear(f"{layer}.mlp.fc1", f"{blocks}/up", bias=True),
        *linear(f"{layer}.mlp.fc2", f"{blocks}/down", bias=True),
    ]


def vision_root(weights: Weights) -> str:
    """What stands before all names of the vision tower in a folder of weights.

    Raises:
      WeightsError: there is none, or more than one.
    """
    last = "embeddings.class_embedding"
    roots = [key.removesuffix(last) for key in weights.arrays if key.endswith(last)]
    if len(roots) != 1:
        raise WeightsError(f"{weights.name}: no vision tower of CLIP in it (no …{last})")
    return roots[0]


def transformers_clip_whole(root: str, config: CLIPConfig) -> Table:
    """A `CLIPModel`, or its vision tower alone, with what stands behind it; `root` as of `transformers_clip`."""
    entries = [*transformers_clip(root), *norm(f"{root}post_layernorm", "vision_norm")]
    if config.width:
        entries.append(entry("visual_projection.weight", "image_projection/kernel", "o i -> i o"))
    if config.text is None:
        return entries
    return [
        *entries,
        entry("text_projection.weight", "text_projection/kernel", "o i -> i o"),
        entry("text_model.embeddings.token_embedding.weight", "text/tokens", "v c -> v c"),
        entry("text_model.embeddings.position_embedding.weight", "text/positions", "t c -> t c"),
        *encoder_layer("text_model.encoder.layers.{}", "text/blocks"),
        *norm("text_model.final_layer_norm", "text/norm"),
    ]


def open_clip(root: str) -> Table:
    """`root` is what open_clip's tower hangs on, such as "vision_encoder"."""
    layer, blocks = f"{root}.transformer.resblocks.{{}}", "vision/blocks"
    fused = f"{blocks}/query/{{0}} {blocks}/key/{{0}} {blocks}/value/{{0}}"
    return [
        entry(f"{root}.class_embedding", "vision/class_embedding", "c -> c"),
        entry(f"{root}.conv1.weight", "vision/patch_embedding/kernel", "c r y x -> y x r c"),
        entry(f"{root}.positional_embedding", "vision/positions", "n c -> n c"),
        *norm(f"{root}.ln_pre", "vision/norm"),
        *norm(f"{layer}.ln_1", f"{blocks}/attention_norm"),
        entry(f"{layer}.attn.in_proj_weight", fused.format("kernel"), "(p h k) d -> p d h k"),
        entry(f"{layer}.attn.in_proj_bias", fused.format("bias"), "(p h k) -> p h k"),
        *out_of_heads(f"{layer}.attn.out_proj", f"{blocks}/out", bias=True),
        *norm(f"{layer}.ln_2", f"{blocks}/mlp_norm"),
        *linear(f"{layer}.mlp.c_fc", f"{blocks}/up", bias=True),
        *linear(f"{layer}.mlp.c_proj", f"{blocks}/down", bias=True),
    ]


def vision_config(described: dict[str, Any], **changes: Any) -> VisionConfig:
    """The geometry that a `config.json` of a CLIP model, or of its vision tower, describes.

    Raises:
      WeightsError: it is of another family, or has a part that this tower lacks.
    """
    kind = described.get("model_type")
    described = described.get("vision_config", described) if kind == "clip" else described
    if kind not in ("clip", "clip_vision_model", "idefics_vision"):
        raise WeightsError(
            f"a vision tower of family {kind!r} is not known; it must be CLIP's (clip, clip_vision_model)"
        )
    # What a config.json leaves out is transformers' default: CLIP ViT-B/32.
    return VisionConfig(
        image_size=described.get("image_size", 224),
        patch_size=described.get("patch_size", 32),
        width=described.get("hidden_size", 768),
        layers=described.get("num_hidden_layers", 12),
        heads=described.get("num_attention_heads", 12),
        mlp_width=described.get("intermediate_size", 3072),
        activation=activation(described),
        norm_eps=described.get("layer_norm_eps", 1e-5),
        **changes,
    )


def activation(described: dict[str, Any]) -> Any:
    act = described.get("hidden_act", "quick_gelu")
    if act not in ACTIVATIONS:
        raise WeightsError(f"the tower's activation {act!r} is not known; {' and '.join(ACTIVATIONS)} are")
    return act


def clip_config(described: dict[str, Any], projected: bool) -> CLIPConfig:
    """The geometry of all that a `config.json` describes: both towers of a `CLIPModel`, or its vision tower alone.

    Args:
      projected: whether the weights have a projection behind the vision tower.

    Raises:
      WeightsError: as of `vision_config`.
    """
    vision, text = vision_config(described, class_token_out=True), described.get("text_config")
    width = described.get("projection_dim", 512) if projected else None
    if text is None or not projected:
        return CLIPConfig(vision, None, width)
    read = TextConfig(
        vocab_size=text.get("vocab_size", 49408),
        length=text.get("max_position_embeddings", 77),
        width=text.get("hidden_size", 512),
        layers=text.get("num_hidden_layers", 12),
        heads=text.get("num_attention_heads", 8),
        mlp_width=text.get("intermediate_size", 2048),
        activation=activation(text),
        norm_eps=text.get("layer_norm_eps", 1e-5),
    )
    return CLIPConfig(vision, read, width)
