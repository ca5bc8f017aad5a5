"""Checkpoints of taming-transformers: a VQGAN's arrays under that package's names, among those of its training."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from unimp_jax.image_tokens.vqgan import VQGANConfig
from unimp_jax.interop.layout import WeightsError
from unimp_jax.interop.weights import Aliases, Weights, open_weights, reason, understood

GROUPS = 32
"""Number of groups of all norms in that package."""
USUAL_SIZE = 256
"""Image size in pixels of all but a few of its models."""
ATTENTION = "o i 1 1 -> i o"
"""Layout of attention matrices, which are 1 x 1 convolutions in that package."""

ALIKE: Aliases = [
    (r"^codebook$", "quantize.embedding.weight"),
    (r"^to_code\.", "quant_conv."),
    (r"^from_code\.", "post_quant_conv."),
    (r"\.(kernel|scale)$", ".weight"),
]
"""Replacements in our names, with dots between their parts; diffusers took these from that package."""
TAMING: Aliases = [
    *ALIKE,
    (r"^encoder\.levels\.", "encoder.down."),
    (r"^decoder\.levels\.", "decoder.up."),
    (r"\.halvings\.(\d+)", r".down.\1.downsample.conv"),
    (r"\.doublings\.(\d+)", lambda found: f".up.{int(found[1]) + 1}.upsample.conv"),
    (r"\.middle\.block(\d)", r".mid.block_\1"),
    (r"\.middle\.attention\.", ".mid.attn_1."),
    (r"\.blocks\.", ".block."),
    (r"\.attentions\.", ".attn."),
    (r"\.(q)uery\.|\.(k)ey\.|\.(v)alue\.", lambda found: f".{found[found.lastindex or 0]}."),
    (r"\.out\.", ".proj_out."),
    (r"\.shortcut\.", ".nin_shortcut."),
]


def open_taming(path: Path, image_size: int | None) -> tuple[VQGANConfig, Weights]:
    """Returns (configuration, weights). The configuration is inferred from the arrays except for the image size, which
    is `image_size`, or given by a configuration beside the checkpoint (a single `.yaml`), or 256. Raises WeightsError
    if it is not a VQGAN of that package, or one that does not use nearest codewords (Gumbel)."""
    weights = open_weights(path)
    keys = weights.arrays.keys()
    if "quantize.embed.weight" in keys:
        raise WeightsError(f"{path}: a VQGAN with Gumbel quantisation is not supported; it must use nearest codewords")
    if not keys >= {"encoder.conv_in.weight", "decoder.conv_in.weight", "quantize.embedding.weight"}:
        raise WeightsError(f"{path}: neither a folder with a VQModel nor a VQGAN of taming-transformers")
    size = image_size or size_beside(path) or USUAL_SIZE
    return understood(path, lambda weights: geometry(weights, size), weights), weights


def geometry(weights: Weights, image_size: int) -> VQGANConfig:
    """Infers the configuration from shapes and names of arrays."""
    keys = weights.arrays.keys()
    levels = count(keys, r"encoder\.down\.(\d+)\.")
    codes, code_width = weights.arrays["quantize.embedding.weight"].shape
    return VQGANConfig(
        image_size=image_size,
        channels=tuple(
            weights.arrays[f"encoder.down.{level}.block.0.conv1.weight"].shape[0] for level in range(levels)
        ),
        blocks=count(keys, r"encoder\.down\.0\.block\.(\d+)\."),
        attention_levels=tuple(level for level in range(levels) if f"encoder.down.{level}.attn.0.q.weight" in keys),
        middle_attention="encoder.mid.attn_1.q.weight" in keys,
        latent_channels=weights.arrays["decoder.conv_in.weight"].shape[1],
        groups=GROUPS,
        codes=codes,
        code_width=code_width,
    )


def count(keys: Iterable[str], numbered: str) -> int:
    return len({found[1] for key in keys if (found := re.match(numbered, key))})


def size_beside(path: Path) -> int | None:
    """Returns `resolution` from the configuration beside a checkpoint, if there is exactly one."""
    candidates = [*path.parent.glob("*.yaml")]
    if len(candidates) != 1:
        return None
    try:
        described: Any = yaml.safe_load(candidates[0].read_text(encoding="utf-8"))
        return int(described["model"]["params"]["ddconfig"]["resolution"])
    except (OSError, ValueError, TypeError, KeyError, yaml.YAMLError) as error:
        raise WeightsError(f"{candidates[0]}: model.params.ddconfig.resolution is missing ({reason(error)})") from error
