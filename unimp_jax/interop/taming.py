"""Checkpoints of taming-transformers: a VQGAN's arrays under that package's names, beside those of its training."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from unimp_jax.image_tokens.vqgan import VQGANConfig
from unimp_jax.interop.layout import WeightsError
from unimp_jax.interop.weights import Renamed, Weights, open_weights, reason, understood

GROUPS = 32
"""Of every norm in that package."""
USUAL_SIZE = 256
"""Pixels of all but a few of its models."""
ATTENTION = "o i 1 1 -> i o"
"""Its attention is made of convolutions."""

NAMES = [
    (r"\.down\.(\d+)\.", r".down_blocks.\1."),
    (r"\.block\.(\d+)\.", r".resnets.\1."),
    (r"\.attn\.(\d+)\.", r".attentions.\1."),
    (r"\.downsample\.", r".downsamplers.0."),
    (r"\.upsample\.", r".upsamplers.0."),
    (r"\.mid\.block_1\.", r".mid_block.resnets.0."),
    (r"\.mid\.attn_1\.", r".mid_block.attentions.0."),
    (r"\.mid\.block_2\.", r".mid_block.resnets.1."),
    (r"\.norm_out\.", r".conv_norm_out."),
    (r"\.nin_shortcut\.", r".conv_shortcut."),
    (r"\.norm\.(weight|bias)$", r".group_norm.\1"),
    (r"\.([qkv])\.(weight|bias)$", r".to_\1.\2"),
    (r"\.proj_out\.", r".to_out.0."),
]
"""Patterns of its names, and diffusers' in their place, one after the other."""


def diffusers_name(key: str, levels: int) -> str:
    """What diffusers calls an array; the decoder's levels are numbered from the other end."""
    if not key.startswith(("encoder.", "decoder.")):
        return key
    key = re.sub(r"\.up\.(\d+)\.", lambda found: f".up_blocks.{levels - 1 - int(found[1])}.", key)
    for theirs, ours in NAMES:
        key = re.sub(theirs, ours, key)
    return key


def open_taming(path: Path, image_size: int | None) -> tuple[VQGANConfig, Weights, str]:
    """(geometry, weights under diffusers' names, the layout of attention's matrices).

    The geometry is read off the arrays, all but the size of images: that is `image_size`, or what a configuration
    beside the checkpoint says (a single `.yaml`), or 256.

    Raises:
      WeightsError: it is no VQGAN of that package, or one whose codes are no nearest neighbours (Gumbel).
    """
    weights = open_weights(path)
    keys = set(weights.keys())
    if "quantize.embed.weight" in keys:
        raise WeightsError(f"{path}: a VQGAN with Gumbel quantisation; one with nearest codewords is right")
    if not keys.issuperset(("encoder.conv_in.weight", "decoder.conv_in.weight", "quantize.embedding.weight")):
        raise WeightsError(f"{path}: neither a folder with a VQModel nor a VQGAN of taming-transformers")
    size = image_size or size_beside(path) or USUAL_SIZE
    config = understood(path, lambda weights: geometry(weights, size), weights)
    return config, Renamed(weights, lambda key: diffusers_name(key, len(config.channels))), ATTENTION


def geometry(weights: Weights, image_size: int) -> VQGANConfig:
    """What shapes and names of arrays tell."""
    keys = set(weights.keys())
    levels = count(keys, r"encoder\.down\.(\d+)\.")
    codes, code_width = weights.shape("quantize.embedding.weight")
    return VQGANConfig(
        image_size=image_size,
        channels=tuple(weights.shape(f"encoder.down.{level}.block.0.conv1.weight")[0] for level in range(levels)),
        blocks=count(keys, r"encoder\.down\.0\.block\.(\d+)\."),
        attention_levels=tuple(level for level in range(levels) if f"encoder.down.{level}.attn.0.q.weight" in keys),
        middle_attention="encoder.mid.attn_1.q.weight" in keys,
        latent_channels=weights.shape("decoder.conv_in.weight")[1],
        groups=GROUPS,
        codes=codes,
        code_width=code_width,
    )


def count(keys: set[str], numbered: str) -> int:
    return len({found[1] for key in keys if (found := re.match(numbered, key))})


def size_beside(path: Path) -> int | None:
    """`resolution` in the configuration beside a checkpoint, where there is a single one."""
    beside = [*path.parent.glob("*.yaml")]
    if len(beside) != 1:
        return None
    try:
        described: Any = yaml.safe_load(beside[0].read_text(encoding="utf-8"))
        return int(described["model"]["params"]["ddconfig"]["resolution"])
    except (OSError, ValueError, TypeError, KeyError, yaml.YAMLError) as error:
        raise WeightsError(f"{beside[0]}: does not say model.params.ddconfig.resolution ({reason(error)})") from error
