"""The package open-flamingo 2.0.1: names of its state dict, for import and export."""

import dataclasses
import re
from collections.abc import Iterable
from typing import Any

from unimp_jax.interop.exporting import refuse_others
from unimp_jax.interop.language import Tabulate, gpt_neox, llama, mosaic_gpt, mpt
from unimp_jax.interop.layout import Table, WeightsError, entry, into_heads, linear, norm, out_of_heads
from unimp_jax.interop.vision import open_clip, tower
from unimp_jax.interop.weights import Weights
from unimp_jax.model import GatedCrossAttentionConfig, ModelConfig, ResamplerConfig, VisionConfig

LANGUAGE, VISION, LAST_NORM = "lang_encoder.", "vision_encoder", "vision_encoder.ln_post"
BLOCK, LAYER = "lang_encoder.gated_cross_attn_layers.{}", "lang_encoder.old_decoder_blocks.{}"


def feed_forward(theirs: str, ours: str) -> Table:
    return [
        *norm(f"{theirs}.0", f"{ours}/mlp_norm"),
        *linear(f"{theirs}.1", f"{ours}/mlp/up"),
        *linear(f"{theirs}.3", f"{ours}/mlp/down"),
    ]


def cross_attention(theirs: str, ours: str) -> Table:
    return [
        *into_heads(f"{theirs}.to_q", f"{ours}/query"),
        entry(f"{theirs}.to_kv.weight", f"{ours}/key/kernel {ours}/value/kernel", "(p h k) d -> p d h k"),
        *out_of_heads(f"{theirs}.to_out", f"{ours}/out"),
    ]


RESAMPLER_TABLE: Table = [
    entry("perceiver.latents", "resampler/latents", "l c -> l c"),
    *norm("perceiver.norm", "resampler/norm"),
    *norm("perceiver.layers.{}.0.norm_media", "resampler/layers/media_norm"),
    *norm("perceiver.layers.{}.0.norm_latents", "resampler/layers/latents_norm"),
    *cross_attention("perceiver.layers.{}.0", "resampler/layers"),
    *feed_forward("perceiver.layers.{}.1", "resampler/layers"),
]

GATED_TABLE: Table = [
    *norm(f"{BLOCK}.attn.norm", "gated/norm"),
    *cross_attention(f"{BLOCK}.attn", "gated"),
    *feed_forward(f"{BLOCK}.ff", "gated"),
    entry(f"{BLOCK}.attn_gate", "gated/attention_gate", "g -> g"),
    entry(f"{BLOCK}.ff_gate", "gated/mlp_gate", "g -> g"),
]


def trained_table(config: GatedCrossAttentionConfig) -> Table:
    """Returns the table of the trained keys, without embeddings; blocks have the numbers of their layers."""
    gated = [dataclasses.replace(entry, first=config.block_layer, step=config.every) for entry in GATED_TABLE]
    return RESAMPLER_TABLE + gated


def vision_table(keys: Iterable[str] = ()) -> Table:
    """Returns the vision table with open_clip's names or transformers', depending on the keys."""
    inside = f"{VISION}.clip.vision_model."
    return tower(inside, VisionConfig()) if any(key.startswith(inside) for key in keys) else open_clip(VISION)


def tabulate_by_keys(keys: Iterable[str]) -> Tabulate:
    """Returns the table function of the language family of (canonical) keys; raises WeightsError if it is not
    supported."""
    keys = set(keys)
    if "lang_encoder.gpt_neox.embed_in.weight" in keys:
        return gpt_neox
    if "lang_encoder.model.embed_tokens.weight" in keys:
        return llama
    if "lang_encoder.transformer.wte.weight" in keys:
        old = any(re.match(r"lang_encoder\.old_decoder_blocks\.\d+\.(ln_1|mlp\.mlp_up)\.", key) for key in keys)
        return mosaic_gpt if old else mpt
    raise WeightsError("the checkpoint has no embeddings of a supported language model (GPT-NeoX, MPT, LLaMA)")


def tabulate_by_config(config: ModelConfig) -> Tabulate:
    """Returns the table function of the language family that can represent a decoder; raises WeightsError if none
    can."""
    decoder = config.decoder
    if decoder.position == "alibi" and decoder.mlp == "gelu" and not decoder.bias and decoder.norm == "layer_norm":
        return mosaic_gpt if decoder.qk_norm else mpt
    if decoder.position == "rotary" and decoder.mlp == "gelu" and decoder.bias and decoder.norm == "layer_norm":
        return gpt_neox
    plain = not (decoder.bias or decoder.qkv_bias or decoder.qk_norm)
    if decoder.position == "rotary" and decoder.mlp == "swiglu" and decoder.norm == "rms_norm" and plain:
        return llama
    raise WeightsError("open-flamingo does not support this decoder; it must be GPT-NeoX, MPT or LLaMA")


def table(config: ModelConfig, tabulate: Tabulate, vision: Table) -> Table:
    """Returns the table of a whole state dict."""
    return vision + trained_table(config.gated) + tabulate(config.decoder, LANGUAGE, LAYER)


def geometry(weights: Weights, heads: int) -> tuple[ResamplerConfig, GatedCrossAttentionConfig]:
    """Returns the configurations of a checkpoint's resampler and gated blocks, from the shapes of its arrays; raises
    WeightsError if one is missing, or the architecture is not supported."""
    name, arrays = weights.name, weights.arrays

    def numbered(pattern: str) -> list[int]:
        return sorted({int(found[1]) for key in arrays if (found := re.match(pattern, key))})

    layers, blocks = numbered(r"perceiver\.layers\.(\d+)\."), numbered(BLOCK.replace(".", r"\.").format(r"(\d+)\."))
    needed = ("perceiver.latents", "perceiver.layers.0.0.to_q.weight", "perceiver.layers.0.1.1.weight")
    if not layers or not blocks or not arrays.keys() >= set(needed):
        raise WeightsError(
            f"{name}: not an OpenFlamingo checkpoint: there is no resampler, or there are no gated blocks"
        )
    every = blocks[0] + 1
    if blocks != list(range(every - 1, blocks[-1] + 1, every)):
        raise WeightsError(f"{name}: gated blocks precede layers {blocks}; they must precede every n-th layer")

    def sizes(query: str, up: str) -> dict[str, Any]:
        (inner, _), (hidden, width) = arrays[query].shape, arrays[up].shape
        if inner % heads:
            raise WeightsError(f"{name}: {query} has {inner} rows, which is not a multiple of heads {heads}")
        return {"heads": heads, "head_dim": inner // heads, "mlp_ratio": hidden // width}

    latents, query, up = needed
    block = BLOCK.format(blocks[0])
    return (
        ResamplerConfig(layers=len(layers), latents=arrays[latents].shape[0], **sizes(query, up)),
        GatedCrossAttentionConfig(every=every, **sizes(f"{block}.attn.to_q.weight", f"{block}.ff.1.weight")),
    )


BLOCKS = r"lang_encoder\.(?:transformer\.blocks|gpt_neox\.layers|model\.layers|model\.decoder\.layers)\.(\d+)\."
ALIASES = (
    (r"^module\.", ""),
    (r"\._checkpoint_wrapped_module|\._fsdp_wrapped_module", ""),
    (f"^{BLOCKS}gated_cross_attn_layer\\.", r"lang_encoder.gated_cross_attn_layers.\1."),
    (f"^{BLOCKS}decoder_layer\\.", r"lang_encoder.old_decoder_blocks.\1."),
    (r"^vision_encoder\.visual\.", "vision_encoder."),
)
"""The package's wrapper registers each layer twice; saved keys may have either name."""


def refuse(config: ModelConfig) -> None:
    """Raises WeightsError, as `refuse_others`, if open-flamingo cannot represent the configuration."""
    wanted = {
        "fusion": "cross_attention",
        "vision.class_token": True,
        "vision.class_token_out": False,
        "vision.patch_bias": False,
        "vision.norm": "first",
        "resampler.mlp": "gelu",
        "resampler.mlp_ratio": 4,
        "resampler.qk_norm": False,
        "gated.place": "before_last",
        "gated.mlp": "gelu",
        "gated.mlp_width": 4 * config.decoder.width,
        "gated.norm": "layer_norm",
        "gated.norm_eps": 1e-5,
        "gated.attend": "last_image",
        "gated.qk_norm": False,
        "gated.gate": "scalar",
        "decoder.new_tokens": 0,
    }
    refuse_others("open-flamingo", config, wanted)
