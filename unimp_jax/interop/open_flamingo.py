"""The package open-flamingo 2.0.1: names of its state dict, in and out."""

from __future__ import annotations

import re
from collections.abc import Iterable

from unimp_jax.interop.clip import open_clip, transformers_clip
from unimp_jax.interop.language import Tabulate, gpt_neox, llama, mosaic_gpt, mpt
from unimp_jax.interop.layout import Stack, Table, WeightsError, entry, linear, norm, out_of_heads
from unimp_jax.model import ModelConfig

LANGUAGE, VISION, LAST_NORM = "lang_encoder.", "vision_encoder", "vision_encoder.ln_post"
BLOCK, LAYER = "lang_encoder.gated_cross_attn_layers.{}", "lang_encoder.old_decoder_blocks.{}"


def feed_forward(theirs: str, ours: str, stack: Stack) -> Table:
    return [
        *norm(f"{theirs}.0", f"{ours}/mlp_norm", stack),
        *linear(f"{theirs}.1", f"{ours}/mlp/up", stack, bias=False),
        *linear(f"{theirs}.3", f"{ours}/mlp/down", stack, bias=False),
    ]


def cross_attention(theirs: str, ours: str, stack: Stack) -> Table:
    return [
        entry(f"{theirs}.to_q.weight", f"{ours}/query/kernel", "(h k) d -> d h k", stack),
        entry(f"{theirs}.to_kv.weight", f"{ours}/key/kernel {ours}/value/kernel", "(p h k) d -> p d h k", stack),
        *out_of_heads(f"{theirs}.to_out", f"{ours}/out", stack),
    ]


RESAMPLER_TABLE: Table = [
    entry("perceiver.latents", "resampler/latents", "l c -> l c"),
    *norm("perceiver.norm", "resampler/norm"),
    *norm("perceiver.layers.{}.0.norm_media", "resampler/layers/media_norm", "resampler"),
    *norm("perceiver.layers.{}.0.norm_latents", "resampler/layers/latents_norm", "resampler"),
    *cross_attention("perceiver.layers.{}.0", "resampler/layers", "resampler"),
    *feed_forward("perceiver.layers.{}.1", "resampler/layers", "resampler"),
]

GATED_TABLE: Table = [
    *norm(f"{BLOCK}.attn.norm", "gated/norm", "gated_by_layer"),
    *cross_attention(f"{BLOCK}.attn", "gated", "gated_by_layer"),
    *feed_forward(f"{BLOCK}.ff", "gated", "gated_by_layer"),
    entry(f"{BLOCK}.attn_gate", "gated/attention_gate", "g -> g", "gated_by_layer"),
    entry(f"{BLOCK}.ff_gate", "gated/mlp_gate", "g -> g", "gated_by_layer"),
]


def trained_table() -> Table:
    """What a checkpoint of only the trained keys has, beside embeddings."""
    return RESAMPLER_TABLE + GATED_TABLE


def language_table(config: ModelConfig, tabulate: Tabulate) -> Table:
    return tabulate(config.decoder, LANGUAGE, LAYER)


def vision_table(keys: Iterable[str] = ()) -> Table:
    """By open_clip's names, or by transformers', as the keys have them."""
    inside = f"{VISION}.clip.vision_model."
    return transformers_clip(inside) if any(key.startswith(inside) for key in keys) else open_clip(VISION)


def tabulate_by_keys(keys: Iterable[str]) -> Tabulate:
    """The language family that the (canonical) keys show.

    Raises:
      WeightsError: none that is known.
    """
    keys = set(keys)
    if "lang_encoder.gpt_neox.embed_in.weight" in keys:
        return gpt_neox
    if "lang_encoder.model.embed_tokens.weight" in keys:
        return llama
    if "lang_encoder.transformer.wte.weight" in keys:
        old = any(re.match(r"lang_encoder\.old_decoder_blocks\.\d+\.(ln_1|mlp\.mlp_up)\.", key) for key in keys)
        return mosaic_gpt if old else mpt
    raise WeightsError("the checkpoint has no embeddings of a language model that is known (GPT-NeoX, MPT, LLaMA)")


def tabulate_by_config(config: ModelConfig) -> Tabulate:
    """The language family that a decoder can be written as.

    Raises:
      WeightsError: the geometry is none of theirs.
    """
    decoder = config.decoder
    if decoder.position == "alibi" and decoder.mlp == "gelu" and not decoder.bias and decoder.norm == "layer_norm":
        return mosaic_gpt if decoder.qk_norm else mpt
    if decoder.position == "rotary" and decoder.mlp == "gelu" and decoder.bias and decoder.norm == "layer_norm":
        return gpt_neox
    if decoder.position == "rotary" and decoder.mlp == "swiglu" and not decoder.bias and decoder.norm == "rms_norm":
        return llama
    raise WeightsError("the decoder is none that open-flamingo has: GPT-NeoX, MPT or LLaMA")


def table(config: ModelConfig, tabulate: Tabulate, vision: Table) -> Table:
    """A whole state dict."""
    return vision + trained_table() + language_table(config, tabulate)


BLOCKS = r"lang_encoder\.(?:transformer\.blocks|gpt_neox\.layers|model\.layers|model\.decoder\.layers)\.(\d+)\."
ALIASES = (
    (re.compile(r"^module\."), ""),
    (re.compile(r"\._checkpoint_wrapped_module|\._fsdp_wrapped_module"), ""),
    (re.compile(f"^{BLOCKS}gated_cross_attn_layer\\."), r"lang_encoder.gated_cross_attn_layers.\1."),
    (re.compile(f"^{BLOCKS}decoder_layer\\."), r"lang_encoder.old_decoder_blocks.\1."),
    (re.compile(r"^vision_encoder\.visual\."), "vision_encoder."),
)
"""The package's wrapper registers each layer twice; saved keys may have either name."""


def canonical(key: str) -> str:
    """The one name of an array among those that wrappers give it."""
    for pattern, replacement in ALIASES:
        key = pattern.sub(replacement, key)
    return key


def refuse(config: ModelConfig) -> None:
    """
    Raises:
      WeightsError: open-flamingo has no such geometry; says which fields would have to be what.
    """
    wanted = {
        "vision.class_token": (config.vision.class_token, True),
        "vision.class_token_out": (config.vision.class_token_out, False),
        "resampler.mlp": (config.resampler.mlp, "gelu"),
        "resampler.mlp_ratio": (config.resampler.mlp_ratio, 4),
        "resampler.qk_norm": (config.resampler.qk_norm, False),
        "gated.place": (config.gated.place, "before_last"),
        "gated.mlp": (config.gated.mlp, "gelu"),
        "gated.mlp_width": (config.gated.hidden_width(config.decoder.width), 4 * config.decoder.width),
        "gated.norm": (config.gated.norm, "layer_norm"),
        "gated.norm_eps": (config.gated.norm_eps, 1e-5),
        "gated.attend": (config.gated.attend, "last_image"),
        "gated.qk_norm": (config.gated.qk_norm, False),
        "gated.gate": (config.gated.gate, "scalar"),
        "decoder.new_tokens": (config.decoder.new_tokens, 0),
    }
    wrong = [f"{name} is {value!r}, not {right!r}" for name, (value, right) in wanted.items() if value != right]
    if wrong:
        raise WeightsError(f"open-flamingo has no such geometry: {'; '.join(wrong)}")
