"""Vision towers: CLIP with transformers' or open_clip's names, and SigLIP (also SigLIP 2 of a fixed resolution)."""

from typing import Any

import numpy as np

from unimp_jax.feature_extractors import CLIPConfig, TextConfig
from unimp_jax.interop.layout import Table, WeightsError, entry, into_heads, linear, norm, out_of_heads
from unimp_jax.interop.weights import Weights
from unimp_jax.model import VisionConfig


def last_norm(name: str | None, config: VisionConfig) -> dict[str, np.ndarray]:
    """Returns initial values for a final norm that a format has but no answer depends on."""
    return {} if name is None else {f"{name}.weight": np.ones(config.width), f"{name}.bias": np.zeros(config.width)}


ACTIVATIONS = {"quick_gelu": "quick_gelu", "gelu": "gelu", "gelu_pytorch_tanh": "gelu_tanh"}
"""transformers' name of an activation -> ours."""
CLIP, SIGLIP = ("clip", "clip_vision_model"), ("siglip", "siglip_vision_model")


def tower(root: str, config: VisionConfig) -> Table:
    """Returns the table of a CLIP (with a class token), or of a SigLIP without its pooling head; `root` prefixes all
    names, such as "vision_model.", and may be empty."""
    embeddings, clip = f"{root}embeddings", config.class_token
    return [
        *([entry(f"{embeddings}.class_embedding", "vision/class_embedding", "c -> c")] if clip else []),
        entry(f"{embeddings}.patch_embedding.weight", "vision/patch_embedding/kernel", "c r y x -> y x r c"),
        *([] if clip else [entry(f"{embeddings}.patch_embedding.bias", "vision/patch_embedding/bias", "c -> c")]),
        entry(f"{embeddings}.position_embedding.weight", "vision/positions", "n c -> n c"),
        *(norm(f"{root}pre_layrnorm", "vision/norm") if clip else []),
        *encoder_layer(f"{root}encoder.layers.{{}}", "vision/blocks"),
        *(norm(f"{root}post_layernorm", "vision/norm") if not clip and config.norm == "last" else []),
    ]


def encoder_layer(layer: str, blocks: str) -> Table:
    """Returns the table of an encoder layer, for both families."""
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
    """Returns the prefix of all names of the vision tower in a folder of weights; raises WeightsError if there is not
    exactly one."""
    last = "embeddings.patch_embedding.weight"
    roots = [key.removesuffix(last) for key in weights.arrays if key.endswith(last)]
    if len(roots) != 1:
        raise WeightsError(f"{weights.name}: the file has no vision tower of CLIP or SigLIP (no …{last})")
    return roots[0]


def transformers_clip_whole(root: str, config: CLIPConfig) -> Table:
    """Returns the table of a `CLIPModel` or of its vision tower with projection; for `root` see `tower`."""
    entries = [*tower(root, config.vision), *norm(f"{root}post_layernorm", "vision_norm")]
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
    """Returns the table of open_clip's tower; `root` is the name of the tower's module, such as "vision_encoder"."""
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
    """Returns the tower configuration for a `config.json` of a CLIP or SigLIP model or of its vision tower; raises
    WeightsError if it is of another family, or has a part that this tower lacks."""
    kind = described.get("model_type")
    described = described.get("vision_config", described) if kind in ("clip", "siglip") else described
    if kind not in (*CLIP, *SIGLIP, "idefics_vision"):
        hint = " (SigLIP 2 only with a fixed resolution)" if kind == "siglip2" else ""
        raise WeightsError(
            f"a vision tower of family {kind!r} is not supported; supported are {', '.join((*CLIP, *SIGLIP))}{hint}"
        )
    # Missing fields have transformers' defaults: CLIP ViT-B/32, or SigLIP base with patches of 16 pixels.
    if kind in SIGLIP:
        defaults: dict[str, Any] = {"patch_size": 16, "hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6}
        family: dict[str, Any] = {"class_token": False, "patch_bias": True, "norm": "last", "colours": "siglip"}
        described, changes = defaults | described, family | changes
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


def described_as(config: VisionConfig) -> dict[str, Any]:
    """Returns the `config.json` of a tower, for its family."""
    return {
        "model_type": "clip_vision_model" if config.class_token else "siglip_vision_model",
        "image_size": config.image_size,
        "patch_size": config.patch_size,
        "hidden_size": config.width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "intermediate_size": config.mlp_width,
        "hidden_act": next(theirs for theirs, ours in ACTIVATIONS.items() if ours == config.activation),
        "layer_norm_eps": config.norm_eps,
    }


def activation(described: dict[str, Any]) -> Any:
    act = described.get("hidden_act", "quick_gelu")
    if act not in ACTIVATIONS:
        raise WeightsError(
            f"the activation {act!r} of the tower is not supported; supported are {', '.join(ACTIVATIONS)}"
        )
    return ACTIVATIONS[act]


def clip_config(described: dict[str, Any], projected: bool) -> CLIPConfig:
    """Returns the CLIP configuration for a `config.json` of a `CLIPModel`, or of its vision tower alone; `projected`
    says whether the weights include a projection after the vision tower. Raises like `vision_config`."""
    if (kind := described.get("model_type")) not in CLIP:
        raise WeightsError(f"a vision tower of family {kind!r} is not a CLIP; it must be one of {', '.join(CLIP)}")
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
