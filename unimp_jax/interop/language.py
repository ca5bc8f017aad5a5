"""Causal language models: GPT-NeoX, MPT (transformers' and MosaicML's own files) and LLaMA."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from unimp_jax.interop.layout import Table, WeightsError, entry, into_heads, linear, norm, out_of_heads
from unimp_jax.model import DecoderConfig

OURS = "decoder/layers"
QKV = f"{OURS}/attention/query/{{0}} {OURS}/attention/key/{{0}} {OURS}/attention/value/{{0}}"


def embeddings(embed: str, head: str, config: DecoderConfig) -> Table:
    """The table of base tokens, and the head where it is another."""
    table = [entry(embed, "embeddings/base", "v d -> v d")]
    return table if config.tie_embeddings else [*table, entry(head, "embeddings/base_head", "v d -> v d")]


def gpt_neox(config: DecoderConfig, root: str = "", layer: str = "gpt_neox.layers.{}") -> Table:
    """`root` stands before all names but those of layers, which `layer` is."""
    return [
        *embeddings(f"{root}gpt_neox.embed_in.weight", f"{root}embed_out.weight", config),
        *norm(f"{root}gpt_neox.final_layer_norm", "decoder/norm"),
        *norm(f"{layer}.input_layernorm", f"{OURS}/attention_norm"),
        entry(f"{layer}.attention.query_key_value.weight", QKV.format("kernel"), "(h p k) d -> p d h k"),
        entry(f"{layer}.attention.query_key_value.bias", QKV.format("bias"), "(h p k) -> p h k"),
        *out_of_heads(f"{layer}.attention.dense", f"{OURS}/attention/out", bias=True),
        *norm(f"{layer}.post_attention_layernorm", f"{OURS}/mlp_norm"),
        *linear(f"{layer}.mlp.dense_h_to_4h", f"{OURS}/mlp/up", bias=True),
        *linear(f"{layer}.mlp.dense_4h_to_h", f"{OURS}/mlp/down", bias=True),
    ]


def mpt(
    config: DecoderConfig, root: str = "", layer: str = "transformer.blocks.{}", *, old_names: bool = False
) -> Table:
    """`old_names`: those of MPT-1B, whose class MosaicML called MosaicGPT."""
    names = ("ln_1", "ln_2", "ln_f", "mlp.mlp_up", "mlp.mlp_down") if old_names else (
        "norm_1", "norm_2", "norm_f", "ffn.up_proj", "ffn.down_proj")  # fmt: skip
    before_attention, before_mlp, last, up, down = names
    heads = [
        entry(f"{layer}.attn.{theirs}.weight", f"{OURS}/attention/{ours}/scale", "(h k) -> h k")
        for theirs, ours in (("q_ln", "query_norm"), ("k_ln", "key_norm"))
    ]
    return [
        *embeddings(f"{root}transformer.wte.weight", f"{root}lm_head.weight", config),
        *norm(f"{root}transformer.{last}", "decoder/norm", bias=False),
        *norm(f"{layer}.{before_attention}", f"{OURS}/attention_norm", bias=False),
        entry(f"{layer}.attn.Wqkv.weight", QKV.format("kernel"), "(p h k) d -> p d h k"),
        *(heads if config.qk_norm else []),
        *out_of_heads(f"{layer}.attn.out_proj", f"{OURS}/attention/out"),
        *norm(f"{layer}.{before_mlp}", f"{OURS}/mlp_norm", bias=False),
        *linear(f"{layer}.{up}", f"{OURS}/mlp/up"),
        *linear(f"{layer}.{down}", f"{OURS}/mlp/down"),
    ]


def llama(config: DecoderConfig, root: str = "", layer: str = "model.layers.{}", *, copies: int = 1) -> Table:
    """`copies`: theirs has each key and value head so many times."""
    return [
        *embeddings(f"{root}model.embed_tokens.weight", f"{root}lm_head.weight", config),
        *norm(f"{root}model.norm", "decoder/norm", bias=False),
        *norm(f"{layer}.input_layernorm", f"{OURS}/attention_norm", bias=False),
        *into_heads(f"{layer}.self_attn.q_proj", f"{OURS}/attention/query"),
        *into_heads(f"{layer}.self_attn.k_proj", f"{OURS}/attention/key", copies=copies),
        *into_heads(f"{layer}.self_attn.v_proj", f"{OURS}/attention/value", copies=copies),
        *out_of_heads(f"{layer}.self_attn.o_proj", f"{OURS}/attention/out"),
        *norm(f"{layer}.post_attention_layernorm", f"{OURS}/mlp_norm", bias=False),
        *linear(f"{layer}.mlp.gate_proj", f"{OURS}/mlp/gate"),
        *linear(f"{layer}.mlp.up_proj", f"{OURS}/mlp/up"),
        *linear(f"{layer}.mlp.down_proj", f"{OURS}/mlp/down"),
    ]


def rotary_base(described: dict[str, Any], default: float = 10000.0) -> float:
    """
    Raises:
      WeightsError: positions are scaled, which this decoder does not do.
    """
    parameters = described.get("rope_parameters") or described.get("rope_scaling") or {}
    kind = parameters.get("rope_type", parameters.get("type", "default"))
    if kind != "default":
        raise WeightsError(f"rotary positions of type {kind!r} are not known; only the plain ones are")
    base = parameters.get("rope_theta") or described.get("rope_theta") or described.get("rotary_emb_base")
    return float(base or default)


def expect(described: dict[str, Any], **wanted: Any) -> None:
    """
    Raises:
      WeightsError: a field that has a value says something else.
    """
    for name, values in wanted.items():
        values = values if isinstance(values, tuple) else (values,)
        if described.get(name) not in (None, *values):
            raise WeightsError(f"config.json: {name} {described[name]!r} is not known; it must be {values[0]!r}")


def gpt_neox_config(described: dict[str, Any]) -> DecoderConfig:
    expect(described, hidden_act="gelu", attention_bias=True)
    parameters = described.get("rope_parameters") or {}
    return DecoderConfig(
        vocab_size=described.get("vocab_size", 50432),
        width=described.get("hidden_size", 6144),
        layers=described.get("num_hidden_layers", 44),
        heads=described.get("num_attention_heads", 64),
        mlp_width=described.get("intermediate_size", 24576),
        norm_eps=described.get("layer_norm_eps", 1e-5),
        rotary_fraction=parameters.get("partial_rotary_factor") or described.get("rotary_pct", 0.25),
        rotary_base=rotary_base(described),
        parallel_residual=described.get("use_parallel_residual", True),
        tie_embeddings=described.get("tie_word_embeddings", False),
    )


def mpt_config(described: dict[str, Any]) -> DecoderConfig:
    """Of MPT, or of MosaicGPT, whose attention is described beside the rest."""
    attention = described.get("attn_config") or {}
    attention = attention | {name[5:]: value for name, value in described.items() if name.startswith("attn_")}
    attention = {name: described[name] for name in ("alibi", "alibi_bias_max") if name in described} | attention
    width, heads = described.get("d_model", 2048), described.get("n_heads", 16)
    default_scale = (width // heads) ** -0.5
    expect(attention, attn_type="multihead_attention", alibi_bias_max=8, clip_qkv=(None,), softmax_scale=default_scale)
    expect(described, logit_scale=(None,), no_bias=True)
    if not attention.get("alibi", True):
        raise WeightsError("config.json: alibi is false; MPT with learned positions is not known")
    return DecoderConfig(
        vocab_size=described.get("vocab_size", 50368),
        width=width,
        layers=described.get("n_layers", 24),
        heads=heads,
        mlp_width=width * (described.get("expansion_ratio") or described.get("mlp_ratio") or 4),
        norm_eps=described.get("layer_norm_epsilon", 1e-5),
        bias=False,
        position="alibi",
        qk_norm=bool(attention.get("qk_ln", False)),
        tie_embeddings=described.get("tie_word_embeddings", True),
    )


def llama_config(described: dict[str, Any]) -> DecoderConfig:
    """Also of Idefics, whose decoder is LLaMA's."""
    expect(described, hidden_act="silu", attention_bias=False, mlp_bias=False)
    width, heads = described.get("hidden_size", 4096), described.get("num_attention_heads", 32)
    expect(described, head_dim=width // heads)
    kv_heads = described.get("num_key_value_heads") or heads
    return DecoderConfig(
        vocab_size=described.get("vocab_size", 32000),
        width=width,
        layers=described.get("num_hidden_layers", 32),
        heads=heads,
        kv_heads=None if kv_heads == heads else kv_heads,
        mlp_width=described.get("intermediate_size", 11008),
        norm="rms_norm",
        norm_eps=described.get("rms_norm_eps", 1e-6),
        bias=False,
        rotary_base=rotary_base(described),
        mlp="swiglu",
        tie_embeddings=described.get("tie_word_embeddings", False),
    )


def mosaic_gpt(config: DecoderConfig, root: str = "", layer: str = "transformer.blocks.{}") -> Table:
    return mpt(config, root, layer, old_names=True)


Tabulate = Callable[..., Table]
FAMILIES: dict[str, tuple[Callable[[dict[str, Any]], DecoderConfig], Tabulate]] = {
    "gpt_neox": (gpt_neox_config, gpt_neox),
    "mpt": (mpt_config, mpt),
    "mosaic_gpt": (mpt_config, mosaic_gpt),
    "llama": (llama_config, llama),
}
"""`model_type` of a config.json -> (its geometry, the table of its weights)."""


def family(described: dict[str, Any]) -> tuple[DecoderConfig, Tabulate]:
    """
    Raises:
      WeightsError: the family is not known, or has a part that this decoder lacks.
    """
    kind = described.get("model_type")
    if kind not in FAMILIES:
        hint = "; give it as --idefics" if kind == "idefics" else ""
        raise WeightsError(f"a language model of family {kind!r} is not known; {', '.join(FAMILIES)} are{hint}")
    geometry, tabulate = FAMILIES[kind]
    return geometry(described), tabulate
