"""Weights of the package open-flamingo 2.0.1, by one table that reads in both directions.

A layout such as "(h p k) d -> p d h k" names the axes of their array, parentheses around those that are merged into
one, and of ours. Where one of their arrays holds several of ours, p counts these.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterable, Mapping
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from unimp_jax.model import ModelConfig, UniMP

Stack = Literal["one", "vision", "resampler", "gated", "decoder"]


@dataclasses.dataclass(frozen=True)
class Entry:
    """One of their arrays (or one a layer, {} its number) and the parameters it becomes."""

    theirs: str
    ours: tuple[str, ...]
    layout: str
    stack: Stack = "one"


def entry(theirs: str, ours: str, layout: str, stack: Stack = "one") -> Entry:
    """`ours` lists the parameters, separated by blanks."""
    return Entry(theirs, tuple(ours.split()), layout, stack)


def norm(theirs: str, ours: str, stack: Stack = "one", *, bias: bool = True) -> list[Entry]:
    """A layer norm's weight and bias."""
    scale = entry(f"{theirs}.weight", f"{ours}/scale", "d -> d", stack)
    return [scale, entry(f"{theirs}.bias", f"{ours}/bias", "d -> d", stack)] if bias else [scale]


def linear(theirs: str, ours: str, stack: Stack = "one", *, bias: bool = True) -> list[Entry]:
    """A matrix and a bias between unsplit axes."""
    kernel = entry(f"{theirs}.weight", f"{ours}/kernel", "o i -> i o", stack)
    return [kernel, entry(f"{theirs}.bias", f"{ours}/bias", "o -> o", stack)] if bias else [kernel]


def feed_forward(theirs: str, ours: str, stack: Stack) -> list[Entry]:
    return [
        *norm(f"{theirs}.0", f"{ours}/norm", stack),
        *linear(f"{theirs}.1", f"{ours}/up", stack, bias=False),
        *linear(f"{theirs}.3", f"{ours}/down", stack, bias=False),
    ]


def cross_attention(theirs: str, ours: str, stack: Stack) -> list[Entry]:
    return [
        entry(f"{theirs}.to_q.weight", f"{ours}/query/kernel", "(h k) d -> d h k", stack),
        entry(f"{theirs}.to_kv.weight", f"{ours}/key/kernel {ours}/value/kernel", "(p h k) d -> p d h k", stack),
        entry(f"{theirs}.to_out.weight", f"{ours}/out/kernel", "d (h k) -> h k d", stack),
    ]


CLIP = "vision_encoder.clip.vision_model"
CLIP_LAYER = f"{CLIP}.encoder.layers.{{}}"
VISION = [
    entry(f"{CLIP}.embeddings.class_embedding", "vision/class_embedding", "c -> c"),
    entry(f"{CLIP}.embeddings.patch_embedding.weight", "vision/patch_embedding/kernel", "c r y x -> y x r c"),
    entry(f"{CLIP}.embeddings.position_embedding.weight", "vision/positions", "n c -> n c"),
    *norm(f"{CLIP}.pre_layrnorm", "vision/norm"),
    *norm(f"{CLIP_LAYER}.layer_norm1", "vision/blocks/attention_norm", "vision"),
    *[
        e
        for theirs, ours in (("q_proj", "query"), ("k_proj", "key"), ("v_proj", "value"))
        for e in (
            entry(
                f"{CLIP_LAYER}.self_attn.{theirs}.weight", f"vision/blocks/{ours}/kernel", "(h k) d -> d h k", "vision"
            ),
            entry(f"{CLIP_LAYER}.self_attn.{theirs}.bias", f"vision/blocks/{ours}/bias", "(h k) -> h k", "vision"),
        )
    ],
    entry(f"{CLIP_LAYER}.self_attn.out_proj.weight", "vision/blocks/out/kernel", "d (h k) -> h k d", "vision"),
    entry(f"{CLIP_LAYER}.self_attn.out_proj.bias", "vision/blocks/out/bias", "d -> d", "vision"),
    *norm(f"{CLIP_LAYER}.layer_norm2", "vision/blocks/mlp_norm", "vision"),
    *linear(f"{CLIP_LAYER}.mlp.fc1", "vision/blocks/up", "vision"),
    *linear(f"{CLIP_LAYER}.mlp.fc2", "vision/blocks/down", "vision"),
]

RESAMPLER = [
    entry("perceiver.latents", "resampler/latents", "l c -> l c"),
    *norm("perceiver.norm", "resampler/norm"),
    *norm("perceiver.layers.{}.0.norm_media", "resampler/layers/media_norm", "resampler"),
    *norm("perceiver.layers.{}.0.norm_latents", "resampler/layers/latents_norm", "resampler"),
    *cross_attention("perceiver.layers.{}.0", "resampler/layers", "resampler"),
    *feed_forward("perceiver.layers.{}.1", "resampler/layers/feed_forward", "resampler"),
]

BLOCK = "lang_encoder.gated_cross_attn_layers.{}"
GATED = [
    *norm(f"{BLOCK}.attn.norm", "gated/norm", "gated"),
    *cross_attention(f"{BLOCK}.attn", "gated", "gated"),
    *feed_forward(f"{BLOCK}.ff", "gated/feed_forward", "gated"),
    entry(f"{BLOCK}.attn_gate", "gated/attention_gate", "g -> g", "gated"),
    entry(f"{BLOCK}.ff_gate", "gated/mlp_gate", "g -> g", "gated"),
]

LAYER = "lang_encoder.old_decoder_blocks.{}"
OURS = "decoder/layers"
QKV = f"{OURS}/attention/query/{{0}} {OURS}/attention/key/{{0}} {OURS}/attention/value/{{0}}"

GPT_NEOX = [
    entry("lang_encoder.gpt_neox.embed_in.weight", "embeddings/base", "v d -> v d"),
    entry("lang_encoder.embed_out.weight", "embeddings/base_head", "v d -> v d"),
    *norm("lang_encoder.gpt_neox.final_layer_norm", "decoder/norm"),
    *norm(f"{LAYER}.input_layernorm", f"{OURS}/attention_norm", "decoder"),
    entry(f"{LAYER}.attention.query_key_value.weight", QKV.format("kernel"), "(h p k) d -> p d h k", "decoder"),
    entry(f"{LAYER}.attention.query_key_value.bias", QKV.format("bias"), "(h p k) -> p h k", "decoder"),
    entry(f"{LAYER}.attention.dense.weight", f"{OURS}/attention/out/kernel", "d (h k) -> h k d", "decoder"),
    entry(f"{LAYER}.attention.dense.bias", f"{OURS}/attention/out/bias", "d -> d", "decoder"),
    *norm(f"{LAYER}.post_attention_layernorm", f"{OURS}/mlp_norm", "decoder"),
    *linear(f"{LAYER}.mlp.dense_h_to_4h", f"{OURS}/mlp/up", "decoder"),
    *linear(f"{LAYER}.mlp.dense_4h_to_h", f"{OURS}/mlp/down", "decoder"),
]

MPT = [
    entry("lang_encoder.transformer.wte.weight", "embeddings/base", "v d -> v d"),
    *norm("lang_encoder.transformer.norm_f", "decoder/norm", bias=False),
    *norm(f"{LAYER}.norm_1", f"{OURS}/attention_norm", "decoder", bias=False),
    entry(f"{LAYER}.attn.Wqkv.weight", QKV.format("kernel"), "(p h k) d -> p d h k", "decoder"),
    entry(f"{LAYER}.attn.out_proj.weight", f"{OURS}/attention/out/kernel", "d (h k) -> h k d", "decoder"),
    *norm(f"{LAYER}.norm_2", f"{OURS}/mlp_norm", "decoder", bias=False),
    *linear(f"{LAYER}.ffn.up_proj", f"{OURS}/mlp/up", "decoder", bias=False),
    *linear(f"{LAYER}.ffn.down_proj", f"{OURS}/mlp/down", "decoder", bias=False),
]

UNREAD = {f"{CLIP}.post_layernorm.weight", f"{CLIP}.post_layernorm.bias"}
"""Theirs that no output depends on: patch tokens are taken before CLIP's last norm."""

TIED = {"lang_encoder.lm_head.weight": "lang_encoder.transformer.wte.weight"}
"""Theirs that only repeat another."""


def table(keys: Mapping[str, object]) -> list[Entry]:
    """The entries for the language family that the keys show."""
    neox = any(key.startswith("lang_encoder.gpt_neox.") for key in keys)
    return VISION + RESAMPLER + GATED + (GPT_NEOX if neox else MPT)


def stacks(config: ModelConfig) -> dict[Stack, tuple[tuple[int, ...], list[int]]]:
    """Stack -> (leading axes of ours, the numbers of theirs in that order)."""
    every, groups = config.gated.every, config.groups
    return {
        "one": ((), [0]),
        "vision": ((config.vision.layers,), list(range(config.vision.layers))),
        "resampler": ((config.resampler.layers,), list(range(config.resampler.layers))),
        "gated": ((groups,), list(range(every - 1, config.decoder.layers, every))),
        "decoder": ((groups, every), list(range(config.decoder.layers))),
    }


def to_ours(array: np.ndarray, layout: str, shape: tuple[int, ...], parts: int) -> np.ndarray:
    """One of their arrays -> [parts, *shape].

    Raises:
      ValueError: the shapes do not fit.
    """
    left, right = layout.split("->")
    merged, ours = [group.strip("()").split() for group in re.findall(r"\([^)]*\)|\w+", left)], right.split()
    sizes = dict(zip(ours, (parts, *shape) if parts > 1 else shape, strict=True))
    expected = tuple(math.prod(sizes[name] for name in group) for group in merged)
    if array.shape != expected:
        raise ValueError(f"has shape {array.shape}, the configuration asks for {expected}")
    names = [name for group in merged for name in group]
    split = array.reshape([sizes[name] for name in names]).transpose([names.index(name) for name in ours])
    return split.reshape(parts, *shape)


def load_open_flamingo(state_dict: Mapping[str, np.ndarray], config: ModelConfig) -> nnx.State:
    """Their weights as the state of `UniMP(config)`: `nnx.update(model, state)`.

    Args:
      state_dict: their keys and arrays, of any float type.
      config: geometry, with all tokens in the base table (`new_tokens` 0); arrays come in its `param_dtype`.

    Raises:
      ValueError: keys are missing or left over, shapes differ, or the configuration has parameters that theirs lack.
    """
    state = nnx.state(nnx.eval_shape(lambda: UniMP(config, rngs=nnx.Rngs(0))))
    wanted = {"/".join(map(str, path)): variable for path, variable in nnx.to_flat_state(state)}
    left = set(state_dict) - UNREAD
    for copy, original in TIED.items():
        if copy in left and original in left:
            left.remove(copy)
            if not np.array_equal(state_dict[copy], state_dict[original]):
                raise ValueError(f"{copy} differs from {original}, of which it should be a copy")

    loaded: dict[str, jax.Array] = {}
    missing: list[str] = []
    for entry in table(state_dict):
        leading, numbers = stacks(config)[entry.stack]
        keys = [entry.theirs.format(number) for number in numbers]
        missing += [key for key in keys if key not in state_dict]
        unknown = [ours for ours in entry.ours if ours not in wanted]
        if unknown:
            raise ValueError(f"{keys[0]}: the configuration gives the model no parameter {unknown[0]}")
        if missing:
            continue
        left -= set(keys)
        shape = wanted[entry.ours[0]].shape[len(leading) :]
        layers = []
        for key in keys:
            try:
                layers.append(to_ours(np.asarray(state_dict[key]), entry.layout, shape, len(entry.ours)))
            except ValueError as error:
                raise ValueError(f"{key} {error}") from error
        for ours, values in zip(entry.ours, np.stack(layers, axis=1), strict=True):
            loaded[ours] = jnp.asarray(values.reshape(*leading, *shape), config.param_dtype)

    if missing:
        raise ValueError(f"the weights lack {len(missing)} arrays that the configuration asks for: {some(missing)}")
    if left:
        raise ValueError(f"the weights have {len(left)} arrays that the configuration has no place for: {some(left)}")
    if len(loaded) < len(wanted):
        raise ValueError(f"the weights have nothing for the model's parameters {some(set(wanted) - set(loaded))}")
    return nnx.from_flat_state(
        [(path, variable.replace(loaded["/".join(map(str, path))])) for path, variable in nnx.to_flat_state(state)]
    )


def some(names: Iterable[str]) -> str:
    """The first few of them."""
    names = sorted(names)
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
