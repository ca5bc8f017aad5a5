"""Causal language models: GPT-NeoX, MPT (in the formats of transformers and MosaicML), LLaMA, Qwen2 and Qwen3."""

from collections.abc import Callable, Sequence
from typing import Any

from unimp_jax.interop.exporting import refuse_others
from unimp_jax.interop.layout import Table, WeightsError, entry, into_heads, linear, norm, out_of_heads
from unimp_jax.model import DecoderConfig, ModelConfig, RotaryScaling

OURS = "decoder/layers"
QKV = f"{OURS}/attention/query/{{0}} {OURS}/attention/key/{{0}} {OURS}/attention/value/{{0}}"


def embeddings(embed: str, head: str, config: DecoderConfig) -> Table:
    """Returns the table for base tokens, including the head if it is untied."""
    table = [entry(embed, "embeddings/base", "v d -> v d")]
    return table if config.tie_embeddings else [*table, entry(head, "embeddings/base_head", "v d -> v d")]


def gpt_neox(config: DecoderConfig, root: str = "", layer: str = "gpt_neox.layers.{}") -> Table:
    """Returns the table of GPT-NeoX; `root` prefixes all names except those of layers, which follow `layer`."""
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
    """Returns the table of MPT; `old_names` are those of MPT-1B, whose class MosaicML called MosaicGPT."""
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


def llama(
    config: DecoderConfig, root: str = "", layer: str = "model.layers.{}", *, body: str = "model.", copies: int = 1
) -> Table:
    """Returns the table of LLaMA, Qwen2 and Qwen3; `body` prefixes, after `root`, the embeddings and the final norm,
    and each key and value head has `copies` copies in the other package."""
    bias, norms = config.qkv_bias, []
    if config.qk_norm:
        norms += norm(f"{layer}.self_attn.q_norm", f"{OURS}/attention/query_norm", bias=False)
        norms += norm(f"{layer}.self_attn.k_norm", f"{OURS}/attention/key_norm", bias=False)
    return [
        *embeddings(f"{root}{body}embed_tokens.weight", f"{root}lm_head.weight", config),
        *norm(f"{root}{body}norm", "decoder/norm", bias=False),
        *norm(f"{layer}.input_layernorm", f"{OURS}/attention_norm", bias=False),
        *into_heads(f"{layer}.self_attn.q_proj", f"{OURS}/attention/query", bias=bias),
        *into_heads(f"{layer}.self_attn.k_proj", f"{OURS}/attention/key", bias=bias, copies=copies),
        *into_heads(f"{layer}.self_attn.v_proj", f"{OURS}/attention/value", bias=bias, copies=copies),
        *norms,
        *out_of_heads(f"{layer}.self_attn.o_proj", f"{OURS}/attention/out"),
        *norm(f"{layer}.post_attention_layernorm", f"{OURS}/mlp_norm", bias=False),
        *linear(f"{layer}.mlp.gate_proj", f"{OURS}/mlp/gate"),
        *linear(f"{layer}.mlp.up_proj", f"{OURS}/mlp/up"),
        *linear(f"{layer}.mlp.down_proj", f"{OURS}/mlp/down"),
    ]


def rotary_base(described: dict[str, Any], default: float = 10000.0) -> float:
    """Returns the base of the rotary positions from a config.json."""
    parameters = described.get("rope_parameters") or described.get("rope_scaling") or {}
    base = parameters.get("rope_theta") or described.get("rope_theta") or described.get("rotary_emb_base")
    return float(base or default)


ROTARY: dict[str, dict[str, str]] = {
    "default": {},
    "linear": {"factor": "factor"},
    "llama3": {
        "factor": "factor",
        "low_factor": "low_freq_factor",
        "high_factor": "high_freq_factor",
        "original_positions": "original_max_position_embeddings",
    },
}
"""Kind of rotary positions -> field of `RotaryScaling` -> its name in a config.json."""


def rotary_scaling(described: dict[str, Any]) -> RotaryScaling:
    """Returns the scaling of the rotary positions from a config.json; raises WeightsError if its kind is not supported,
    or its description is incomplete."""
    parameters = described.get("rope_parameters") or described.get("rope_scaling") or {}
    kind = parameters.get("rope_type", parameters.get("type", "default"))
    if kind not in ROTARY:
        raise WeightsError(f"rotary positions of type {kind!r} are not supported; supported are {', '.join(ROTARY)}")
    if absent := [theirs for theirs in ROTARY[kind].values() if theirs not in parameters]:
        raise WeightsError(f"config.json: rotary positions of type {kind!r} lack {', '.join(absent)}")
    read = {ours: parameters[theirs] for ours, theirs in ROTARY[kind].items()}
    return RotaryScaling(kind="none" if kind == "default" else kind, **read)


def expect(described: dict[str, Any], **wanted: Any) -> None:
    """Raises WeightsError if a field of a config.json is present with another value than the supported ones."""
    for name, values in wanted.items():
        values = values if isinstance(values, tuple) else (values,)
        if described.get(name) not in (None, *values):
            raise WeightsError(f"config.json: {name} {described[name]!r} is not supported; it must be {values[0]!r}")


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
        rotary_scaling=rotary_scaling(described),
        parallel_residual=described.get("use_parallel_residual", True),
        tie_embeddings=described.get("tie_word_embeddings", False),
    )


def mpt_config(described: dict[str, Any]) -> DecoderConfig:
    """Returns the configuration of MPT, or of MosaicGPT, which describes attention at the top level."""
    attention = described.get("attn_config") or {}
    attention = attention | {name[5:]: value for name, value in described.items() if name.startswith("attn_")}
    attention = {name: described[name] for name in ("alibi", "alibi_bias_max") if name in described} | attention
    width, heads = described.get("d_model", 2048), described.get("n_heads", 16)
    default_scale = (width // heads) ** -0.5
    expect(attention, attn_type="multihead_attention", alibi_bias_max=8, clip_qkv=(None,), softmax_scale=default_scale)
    expect(described, logit_scale=(None,), no_bias=True)
    if not attention.get("alibi", True):
        raise WeightsError("config.json: alibi is false; MPT with learned positions is not supported")
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


def llama_config(described: dict[str, Any], **changes: Any) -> DecoderConfig:
    """Returns the configuration of LLaMA, of the decoder of Idefics, or with `changes` of Qwen."""
    expect(described, hidden_act="silu", attention_bias=False, mlp_bias=False, use_sliding_window=False)
    expect(described.get("rope_parameters") or described.get("rope_scaling") or {}, partial_rotary_factor=1)
    if others := set(described.get("layer_types") or ()) - {"full_attention"}:
        raise WeightsError(f"config.json: layer_types has {min(others)!r}; only full_attention is supported")
    width, heads = described.get("hidden_size", 4096), described.get("num_attention_heads", 32)
    kv_heads, head_width = described.get("num_key_value_heads") or heads, described.get("head_dim")
    return DecoderConfig(
        vocab_size=described.get("vocab_size", 32000),
        width=width,
        layers=described.get("num_hidden_layers", 32),
        heads=heads,
        head_width=None if head_width and head_width * heads == width else head_width,
        kv_heads=None if kv_heads == heads else kv_heads,
        mlp_width=described.get("intermediate_size", 11008),
        norm="rms_norm",
        norm_eps=described.get("rms_norm_eps", 1e-6),
        bias=False,
        rotary_base=rotary_base(described),
        rotary_scaling=rotary_scaling(described),
        mlp="swiglu",
        tie_embeddings=described.get("tie_word_embeddings", False),
        **changes,
    )


QWEN = {"vocab_size": 151936, "intermediate_size": 22016, "num_key_value_heads": 32}
"""Defaults of transformers for Qwen that differ from those for LLaMA."""


def qwen2_config(described: dict[str, Any]) -> DecoderConfig:
    """Returns the configuration of Qwen2 or Qwen2.5."""
    return llama_config(QWEN | described, qkv_bias=True)


def qwen3_config(described: dict[str, Any]) -> DecoderConfig:
    return llama_config(QWEN | {"head_dim": 128} | described, qk_norm=True, qk_norm_per_head=True)


def mosaic_gpt(config: DecoderConfig, root: str = "", layer: str = "transformer.blocks.{}") -> Table:
    return mpt(config, root, layer, old_names=True)


Tabulate = Callable[..., Table]
FAMILIES: dict[str, tuple[Callable[[dict[str, Any]], DecoderConfig], Tabulate]] = {
    "gpt_neox": (gpt_neox_config, gpt_neox),
    "mpt": (mpt_config, mpt),
    "mosaic_gpt": (mpt_config, mosaic_gpt),
    "llama": (llama_config, llama),
    "qwen2": (qwen2_config, llama),
    "qwen3": (qwen3_config, llama),
}
"""`model_type` of a config.json -> (reader of its configuration, table of its weights)."""


def family(described: dict[str, Any]) -> tuple[DecoderConfig, Tabulate]:
    """Returns the decoder configuration and the table for a config.json; raises WeightsError if the family is not
    supported, or has a part that this decoder lacks."""
    kind = described.get("model_type")
    if kind not in FAMILIES:
        hint = "; give it as --vision-language" if kind in ("idefics", "idefics3", "llava", "smolvlm") else ""
        raise WeightsError(
            f"a language model of family {kind!r} is not supported; supported are {', '.join(FAMILIES)}{hint}"
        )
    geometry, tabulate = FAMILIES[kind]
    return geometry(described), tabulate


def text_decoder(described: dict[str, Any], families: Sequence[str], *, tied: bool) -> DecoderConfig:
    """Returns the configuration of the decoder in a vision-language model's `config.json`; raises WeightsError if it is
    of another family, has a part that this decoder lacks, or no row for the image token."""
    text = {"model_type": "llama"} | (described.get("text_config") or {})
    if text["model_type"] not in families:
        raise WeightsError(
            f"config.json: a text_config of family {text['model_type']!r} is not supported; supported are "
            f"{', '.join(families)}"
        )
    decoder, _ = family(text | {"tie_word_embeddings": tied})
    for name in ("image_token_index", "image_token_id"):
        if (image := described.get(name)) is not None and image >= decoder.vocab_size:
            raise WeightsError(f"config.json: {name} {image} exceeds the {decoder.vocab_size} tokens of text_config")
    return decoder


def described_as(config: ModelConfig) -> dict[str, Any]:
    """Returns the `config.json` of a decoder as LLaMA, Qwen2 or Qwen3, whose table is `llama`, without token ids;
    raises like `refuse_others` if it is none of these."""
    decoder = config.decoder
    kind = "qwen3" if decoder.qk_norm else "qwen2" if decoder.qkv_bias else "llama"
    wanted = {
        "decoder.new_tokens": 0,
        "decoder.content": 0,
        "decoder.norm": "rms_norm",
        "decoder.bias": False,
        "decoder.qkv_bias": kind == "qwen2",
        "decoder.position": "rotary",
        "decoder.rotary_fraction": 1.0,
        "decoder.parallel_residual": False,
        "decoder.mlp": "swiglu",
        "decoder.qk_norm_per_head": kind == "qwen3",
    }
    if kind == "qwen2":
        wanted["decoder.head_width"] = None
    names = {"llama": "LLaMA", "qwen2": "Qwen2", "qwen3": "Qwen3"}
    refuse_others(names[kind], config, wanted)
    described = {
        "architectures": [f"{kind.capitalize()}ForCausalLM"],
        "model_type": kind,
        "vocab_size": decoder.vocab_size,
        "hidden_size": decoder.width,
        "intermediate_size": decoder.mlp_width,
        "num_hidden_layers": decoder.layers,
        "num_attention_heads": decoder.heads,
        "num_key_value_heads": decoder.num_kv_heads,
        "hidden_act": "silu",
        "rms_norm_eps": decoder.norm_eps,
        "rope_parameters": rope_parameters(decoder),
        "tie_word_embeddings": decoder.tie_embeddings,
    }
    return described if kind == "qwen2" else described | {"head_dim": decoder.head_dim}


def rope_parameters(decoder: DecoderConfig) -> dict[str, Any]:
    """Returns the inverse of `rotary_base` and `rotary_scaling`."""
    scaling = decoder.rotary_scaling
    kind = "default" if scaling.kind == "none" else scaling.kind
    read = {theirs: getattr(scaling, ours) for ours, theirs in ROTARY[kind].items()}
    return {"rope_type": kind, "rope_theta": decoder.rotary_base, **read}
