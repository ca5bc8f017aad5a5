"""CLIP's vision tower, as transformers and as open_clip name it."""

from __future__ import annotations

from typing import Any

import numpy as np

from unimp_jax.interop.layout import Table, WeightsError, entry, into_heads, linear, norm, out_of_heads
from unimp_jax.model import VisionConfig


def last_norm(name: str, config: VisionConfig) -> dict[str, np.ndarray]:
    """CLIP's norm of its pooled output, on which no patch token depends, as it is before training."""
    return {f"{name}.weight": np.ones(config.width), f"{name}.bias": np.zeros(config.width)}


ACTIVATIONS = {"quick_gelu": "quick_gelu", "gelu": "gelu"}


def transformers_clip(root: str) -> Table:
    """`root` stands before all names: "vision_model." and what is before that, or nothing."""
    embeddings, layer, blocks = f"{root}embeddings", f"{root}encoder.layers.{{}}", "vision/blocks"
    return [
        entry(f"{embeddings}.class_embedding", "vision/class_embedding", "c -> c"),
        entry(f"{embeddings}.patch_embedding.weight", "vision/patch_embedding/kernel", "c r y x -> y x r c"),
        entry(f"{embeddings}.position_embedding.weight", "vision/positions", "n c -> n c"),
        *norm(f"{root}pre_layrnorm", "vision/norm"),
        *norm(f"{layer}.layer_norm1", f"{blocks}/attention_norm", "vision"),
        *into_heads(f"{layer}.self_attn.q_proj", f"{blocks}/query", "vision", bias=True),
        *into_heads(f"{layer}.self_attn.k_proj", f"{blocks}/key", "vision", bias=True),
        *into_heads(f"{layer}.self_attn.v_proj", f"{blocks}/value", "vision", bias=True),
        *out_of_heads(f"{layer}.self_attn.out_proj", f"{blocks}/out", "vision", bias=True),
        *norm(f"{layer}.layer_norm2", f"{blocks}/mlp_norm", "vision"),
        *linear(f"{layer}.mlp.fc1", f"{blocks}/up", "vision", bias=True),
        *linear(f"{layer}.mlp.fc2", f"{blocks}/down", "vision", bias=True),
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
        *norm(f"{layer}.ln_1", f"{blocks}/attention_norm", "vision"),
        entry(f"{layer}.attn.in_proj_weight", fused.format("kernel"), "(p h k) d -> p d h k", "vision"),
        entry(f"{layer}.attn.in_proj_bias", fused.format("bias"), "(p h k) -> p h k", "vision"),
        *out_of_heads(f"{layer}.attn.out_proj", f"{blocks}/out", "vision", bias=True),
        *norm(f"{layer}.ln_2", f"{blocks}/mlp_norm", "vision"),
        *linear(f"{layer}.mlp.c_fc", f"{blocks}/up", "vision", bias=True),
        *linear(f"{layer}.mlp.c_proj", f"{blocks}/down", "vision", bias=True),
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
    act = described.get("hidden_act", "quick_gelu")
    if act not in ACTIVATIONS:
        raise WeightsError(f"the vision tower's activation {act!r} is not known; {' and '.join(ACTIVATIONS)} are")
    return VisionConfig(
        image_size=described.get("image_size", 224),
        patch_size=described.get("patch_size", 32),
        width=described.get("hidden_size", 768),
        layers=described.get("num_hidden_layers", 12),
        heads=described.get("num_attention_heads", 12),
        mlp_width=described.get("intermediate_size", 3072),
        activation=ACTIVATIONS[act],  # type: ignore[arg-type]
        norm_eps=described.get("layer_norm_eps", 1e-5),
        **changes,
    )
