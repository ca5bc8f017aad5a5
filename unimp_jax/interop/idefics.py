"""Hugging Face's Idefics (IdeficsForVisionText2Text): a LLaMA with gated cross-attention to images."""

import dataclasses
from typing import Any

from unimp_jax.interop.exporting import refuse_others
from unimp_jax.interop.language import llama, llama_config
from unimp_jax.interop.layout import Table, WeightsError, entry, into_heads, linear, norm, out_of_heads
from unimp_jax.interop.vision import described_as as described_tower
from unimp_jax.interop.vision import tower, vision_config
from unimp_jax.interop.weights import Aliases
from unimp_jax.model import GatedCrossAttentionConfig, ModelConfig, ResamplerConfig, RotaryScaling

ALIASES: Aliases = ()
LAST_NORM = "model.vision_model.post_layernorm"


def table(config: ModelConfig) -> Table:
    """Returns the table of a whole checkpoint; query heads that share keys get one copy of them each."""
    decoder, root = config.decoder, "model.gated_cross_attn_layers.{}"
    attention, gates = f"{root}.cross_attn", "1 1 g -> g" if config.gated.gate == "channel" else "g -> g"
    gated = [
        *norm(f"{root}.input_layernorm", "gated/norm", bias=False),
        *into_heads(f"{attention}.q_proj", "gated/query"),
        *into_heads(f"{attention}.k_proj", "gated/key"),
        *into_heads(f"{attention}.v_proj", "gated/value"),
        *out_of_heads(f"{attention}.o_proj", "gated/out"),
        *norm(f"{root}.post_attention_layernorm", "gated/mlp_norm", bias=False),
        *linear(f"{root}.mlp.gate_proj", "gated/mlp/gate"),
        *linear(f"{root}.mlp.up_proj", "gated/mlp/up"),
        *linear(f"{root}.mlp.down_proj", "gated/mlp/down"),
        entry(f"{root}.alpha_cross_attn", "gated/attention_gate", gates),
        entry(f"{root}.alpha_dense", "gated/mlp_gate", gates),
    ]
    if config.gated.qk_norm:
        gated += norm(f"{attention}.q_layer_norm", "gated/query_norm", bias=False)
        gated += norm(f"{attention}.k_layer_norm", "gated/key_norm", bias=False)
    new = []
    if decoder.new_tokens:
        new.append(entry("model.embed_tokens.additional_embedding.weight", "embeddings/new", "v d -> v d"))
        if not decoder.tie_embeddings:
            new.append(entry("lm_head.additional_fc.weight", "embeddings/new_head", "v d -> v d"))
    decoding = llama(decoder, copies=decoder.heads // decoder.num_kv_heads)
    return tower("model.vision_model.", config.vision) + resampler_table(config.resampler) + gated + decoding + new


def resampler_table(config: ResamplerConfig) -> Table:
    root, ours = "model.perceiver_resampler", "resampler/layers"
    attention, mlp = f"{root}.blocks.{{}}.0", f"{root}.blocks.{{}}.1"
    table = [
        entry(f"{root}.latents", "resampler/latents", "l c -> l c"),
        *norm(f"{root}.layer_norm", "resampler/norm"),
        *norm(f"{attention}.context_layer_norm", f"{ours}/media_norm"),
        *norm(f"{attention}.latents_layer_norm", f"{ours}/latents_norm"),
        *into_heads(f"{attention}.q_proj", f"{ours}/query"),
        *into_heads(f"{attention}.k_proj", f"{ours}/key"),
        *into_heads(f"{attention}.v_proj", f"{ours}/value"),
        *out_of_heads(f"{attention}.output_proj", f"{ours}/out"),
        *norm(f"{mlp}.ln", f"{ours}/mlp_norm"),
        *linear(f"{mlp}.fc", f"{ours}/mlp/up"),
        *linear(f"{mlp}.c_proj", f"{ours}/mlp/down"),
    ]
    if config.qk_norm:
        table += norm(f"{attention}.q_layer_norm", f"{ours}/query_norm")
        table += norm(f"{attention}.k_layer_norm", f"{ours}/key_norm")
    return table


def model_config(described: dict[str, Any]) -> ModelConfig:
    """Returns the configuration for a `config.json` of Idefics; raises WeightsError if it has a part that this model
    lacks."""
    if not described.get("use_resampler", False):
        raise WeightsError("config.json: use_resampler is false; Idefics without a resampler is not supported")
    decoder = llama_config(described)
    if decoder.rotary_scaling != RotaryScaling():
        raise WeightsError("config.json: Idefics with scaled rotary positions is not supported")
    vision = described.get("vision_config") or {}
    perceiver = described.get("perceiver_config") or {}
    names = {"hidden_size": vision.get("embed_dim", 768), "hidden_act": vision.get("hidden_act", "gelu")}
    defaults = {"num_hidden_layers": 32, "num_attention_heads": 16, "intermediate_size": 5120, "patch_size": 14}
    vision_tower = vision_config(defaults | vision | names | {"model_type": "idefics_vision"}, class_token_out=True)
    return ModelConfig(
        vision=vision_tower,
        resampler=ResamplerConfig(
            layers=perceiver.get("resampler_depth", 6),
            heads=perceiver.get("resampler_n_heads", 16),
            head_dim=perceiver.get("resampler_head_dim", 96),
            latents=perceiver.get("resampler_n_latents", 64),
            mlp="relu",
            qk_norm=perceiver.get("qk_layer_norms_perceiver", False),
        ),
        gated=GatedCrossAttentionConfig(
            every=described.get("cross_layer_interval", 1),
            place="before_first",
            heads=decoder.heads,
            head_dim=decoder.head_dim,
            mlp_width=decoder.mlp_width,
            mlp="swiglu",
            norm="rms_norm",
            norm_eps=decoder.norm_eps,
            qk_norm=described.get("qk_layer_norms", False),
            gate="channel" if described.get("alpha_type", "float") == "vector" else "scalar",
        ),
        decoder=dataclasses.replace(decoder, new_tokens=described.get("additional_vocab_size", 0)),
    )


def image_size_of(settings: dict[str, Any]) -> Any:
    """Returns the size of the images that an image processor produces."""
    return settings.get("image_size", 224)


def image_tokens_of(processor: dict[str, Any], config: ModelConfig) -> int | None:
    """Returns None: Idefics processors always write one token per image."""
    return None


def described_as(config: ModelConfig) -> dict[str, Any]:
    """Returns the `config.json` of a model configuration, without token ids; raises like `refuse_others`."""
    vision, resampler, gated, decoder = config.vision, config.resampler, config.gated, config.decoder
    wanted = {
        "fusion": "cross_attention",
        "vision.class_token_out": True,
        "vision.patch_bias": False,
        "vision.norm": "first",
        "resampler.mlp": "relu",
        "resampler.mlp_ratio": 4,
        "gated.place": "before_first",
        "gated.heads": decoder.heads,
        "gated.head_dim": decoder.head_dim,
        "gated.mlp": "swiglu",
        "gated.mlp_width": decoder.mlp_width,
        "gated.norm": "rms_norm",
        "gated.norm_eps": decoder.norm_eps,
        "gated.attend": "last_image",
        "decoder.norm": "rms_norm",
        "decoder.bias": False,
        "decoder.qkv_bias": False,
        "decoder.head_dim": decoder.width // decoder.heads,
        "decoder.position": "rotary",
        "decoder.rotary_fraction": 1.0,
        "decoder.rotary_scaling": RotaryScaling(),
        "decoder.parallel_residual": False,
        "decoder.mlp": "swiglu",
        "decoder.qk_norm": False,
    }
    refuse_others("Idefics", config, wanted)
    described = described_tower(vision)
    described |= {"model_type": "idefics_vision", "embed_dim": described.pop("hidden_size")}
    return {
        "architectures": ["IdeficsForVisionText2Text"],
        "model_type": "idefics",
        "vocab_size": decoder.vocab_size,
        "additional_vocab_size": decoder.new_tokens,
        "hidden_size": decoder.width,
        "intermediate_size": decoder.mlp_width,
        "num_hidden_layers": decoder.layers,
        "num_attention_heads": decoder.heads,
        "hidden_act": "silu",
        "rms_norm_eps": decoder.norm_eps,
        "rope_parameters": {"rope_type": "default", "rope_theta": decoder.rotary_base},
        "tie_word_embeddings": decoder.tie_embeddings,
        "cross_layer_interval": gated.every,
        "qk_layer_norms": gated.qk_norm,
        "alpha_type": "vector" if gated.gate == "channel" else "float",
        "alpha_initializer": "zeros",
        "use_resampler": True,
        "freeze_text_layers": False,
        "freeze_vision_layers": False,
        "perceiver_config": {
            "model_type": "idefics_perciever",
            "use_resampler": True,
            "resampler_n_latents": resampler.latents,
            "resampler_depth": resampler.layers,
            "resampler_n_heads": resampler.heads,
            "resampler_head_dim": resampler.head_dim,
            "qk_layer_norms_perceiver": resampler.qk_norm,
        },
        "vision_config": described,
    }
