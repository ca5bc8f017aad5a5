"""VQGANs of other packages: `VQModel` folders of diffusers, in and out, and checkpoints of taming-transformers, in.

On disk a VQGAN that is not being trained is always such a folder, so that what was imported or exported here is read by
diffusers, and the other way round. Checkpoints of taming-transformers are the same arrays under other names.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx
from safetensors.numpy import save_file

from unimp_jax.image_tokens.vqgan import VQGAN, VQGANConfig
from unimp_jax.interop.filling import filled, pieces_of
from unimp_jax.interop.layout import Table, entry, norm
from unimp_jax.interop.matching import patterns
from unimp_jax.interop.shards import whole_folder, write_json
from unimp_jax.interop.taming import open_taming
from unimp_jax.interop.weights import Renamed, Weights, open_weights, read_json, understood

CONFIG, WEIGHTS = "config.json", "diffusion_pytorch_model.safetensors"
CLASS = "VQModel"


def table(config: VQGANConfig, attention: str = "o i -> i o") -> Table:
    """diffusers' names; `attention` is the layout of the matrices in attention."""
    last = len(config.channels) - 1
    entries = [
        entry("quantize.embedding.weight", "codebook", "k z -> k z"),
        *pointwise("quant_conv", "to_code"),
        *pointwise("post_quant_conv", "from_code"),
    ]
    for part in ("encoder", "decoder"):
        entries += [
            *convolution(f"{part}.conv_in", f"{part}/conv_in"),
            *block(f"{part}.mid_block.resnets.0", f"{part}/middle/block1", shortcut=False),
            *block(f"{part}.mid_block.resnets.1", f"{part}/middle/block2", shortcut=False),
            *norm(f"{part}.conv_norm_out", f"{part}/norm_out"),
            *convolution(f"{part}.conv_out", f"{part}/conv_out"),
        ]
        if config.middle_attention:
            entries += attends(f"{part}.mid_block.attentions.0", f"{part}/middle/attention", attention)
    for level, width in enumerate(config.channels):
        down, up = f"encoder.down_blocks.{level}", f"decoder.up_blocks.{last - level}"
        before, after = config.channels[max(level - 1, 0)], config.channels[min(level + 1, last)]
        for theirs, ours, blocks, inputs in (
            (down, f"encoder/levels/{level}", config.blocks, before),
            (up, f"decoder/levels/{level}", config.blocks + 1, after),
        ):
            for number in range(blocks):
                shortcut = number == 0 and inputs != width
                entries += block(f"{theirs}.resnets.{number}", f"{ours}/blocks/{number}", shortcut=shortcut)
                if level in config.attention_levels:
                    entries += attends(f"{theirs}.attentions.{number}", f"{ours}/attentions/{number}", attention)
        if level < last:
            entries += convolution(f"{down}.downsamplers.0.conv", f"encoder/halvings/{level}")
        if level > 0:
            entries += convolution(f"{up}.upsamplers.0.conv", f"decoder/doublings/{level - 1}")
    return entries


def convolution(theirs: str, ours: str) -> Table:
    kernel = entry(f"{theirs}.weight", f"{ours}/kernel", "o i y x -> y x i o")
    return [kernel, entry(f"{theirs}.bias", f"{ours}/bias", "o -> o")]


def pointwise(theirs: str, ours: str, layout: str = "o i 1 1 -> i o") -> Table:
    """A convolution of 1 x 1, which is a matrix."""
    return [entry(f"{theirs}.weight", f"{ours}/kernel", layout), entry(f"{theirs}.bias", f"{ours}/bias", "o -> o")]


def block(theirs: str, ours: str, *, shortcut: bool) -> Table:
    """A residual block."""
    entries = [
        *norm(f"{theirs}.norm1", f"{ours}/norm1"),
        *convolution(f"{theirs}.conv1", f"{ours}/conv1"),
        *norm(f"{theirs}.norm2", f"{ours}/norm2"),
        *convolution(f"{theirs}.conv2", f"{ours}/conv2"),
    ]
    return [*entries, *pointwise(f"{theirs}.conv_shortcut", f"{ours}/shortcut")] if shortcut else entries


def attends(theirs: str, ours: str, layout: str) -> Table:
    """Attention over places."""
    names = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "out"}
    matrices = (pointwise(f"{theirs}.{name}", f"{ours}/{own}", layout) for name, own in names.items())
    return [*norm(f"{theirs}.group_norm", f"{ours}/norm"), *(one for pair in matrices for one in pair)]


def new(config: VQGANConfig) -> VQGAN:
    return VQGAN(config, rngs=nnx.Rngs(0))


def write_vqgan(folder: Path, model: VQGAN) -> None:
    """A folder for `VQModel.from_pretrained`, whole or not at all.

    Raises:
      WeightsError: the folder is there already, or there is no room.
    """
    ours = {
        "/".join(map(str, path)): np.asarray(variable[...]) for path, variable in nnx.to_flat_state(nnx.state(model))
    }
    pieces = pieces_of(table(model.config), {name: array.shape for name, array in ours.items()})
    arrays = {piece.key: piece.to_theirs([ours[piece.entry.ours[0]]]) for piece in pieces}
    with whole_folder(folder) as temporary:
        save_file(arrays, temporary / WEIGHTS, metadata={"format": "pt"})  # which diffusers looks for
        write_json(temporary / CONFIG, described_as(model.config))


def read_vqgan(path: Path, image_size: int | None = None) -> tuple[VQGAN, list[str]]:
    """The model of a `VQModel` folder or of a taming-transformers checkpoint, and the keys that are no part of it.

    Args:
      image_size: where a checkpoint of taming-transformers, without its configuration beside it, does not tell.

    Raises:
      WeightsError: it is neither, has another geometry than this VQGAN can have, or cannot be read whole.
    """
    config, weights, attention = open_diffusers(path) if path.is_dir() else open_taming(path, image_size)
    entries = table(config, attention)
    model = filled(lambda: new(config), entries, weights)
    return model, sorted(set(weights.keys()) - {entry.theirs for entry in entries})


def import_vqgan(path: Path, folder: Path, image_size: int | None = None) -> str:
    """Makes `folder` of a `VQModel` folder or a taming-transformers checkpoint; returns what to tell the user of it.

    Raises:
      WeightsError: as of `read_vqgan` and `write_vqgan`. Nothing is left behind then.
    """
    model, unused = read_vqgan(path, image_size)
    write_vqgan(folder, model)
    config = model.config
    lines = [
        f"{folder}: a VQGAN of {config.image_size} x {config.image_size} pixels, {config.grid} x {config.grid} codes "
        f"of {config.codes}"
    ]
    return "\n".join([*lines, f"  unused: {', '.join(patterns(unused))}"] if unused else lines)


DOWN, UP, ATTENTIVE = "DownEncoderBlock2D", "UpDecoderBlock2D", "Attn"
FIXED = {"in_channels": 3, "out_channels": 3, "act_fn": "silu", "norm_type": "group"}
"""Settings of `VQModel` that have one value here."""


def described_as(config: VQGANConfig) -> dict[str, Any]:
    """The `config.json` of diffusers."""
    attentive = [ATTENTIVE if level in config.attention_levels else "" for level in range(len(config.channels))]
    return FIXED | {
        "_class_name": CLASS,
        "block_out_channels": list(config.channels),
        "down_block_types": [f"{attn}{DOWN}" for attn in attentive],
        "up_block_types": [f"{attn}{UP}" for attn in reversed(attentive)],
        "layers_per_block": config.blocks,
        "latent_channels": config.latent_channels,
        "mid_block_add_attention": config.middle_attention,
        "norm_num_groups": config.groups,
        "num_vq_embeddings": config.codes,
        "sample_size": config.image_size,
        "vq_embed_dim": config.code_width,
    }


def described_by(described: dict[str, Any]) -> VQGANConfig:
    """The geometry that a `config.json` of diffusers describes; what it leaves out is diffusers' default.

    Raises:
      ValueError: this VQGAN has no such geometry.
    """
    if described.get("_class_name") != CLASS:
        raise ValueError(f"a model of class {described.get('_class_name')}: {CLASS} is right")
    for name, right in FIXED.items():
        if described.get(name, right) != right:
            raise ValueError(f"{name} is {described[name]!r}; only {right!r} is known")
    down, up = described.get("down_block_types", [DOWN]), described.get("up_block_types", [UP])
    attentive = tuple(level for level, kind in enumerate(down) if kind == ATTENTIVE + DOWN)
    mirrored = [ATTENTIVE + UP if level in attentive else UP for level in reversed(range(len(down)))]
    if not set(down) <= {DOWN, ATTENTIVE + DOWN} or list(up) != mirrored:
        raise ValueError(f"blocks {down} and {up}; {DOWN}, {ATTENTIVE + DOWN} and their mirror images are known")
    latents = described.get("latent_channels", 3)
    return VQGANConfig(
        image_size=described.get("sample_size", 32),
        channels=tuple(described.get("block_out_channels", (64,))),
        blocks=described.get("layers_per_block", 1),
        attention_levels=attentive,
        middle_attention=described.get("mid_block_add_attention", True),
        latent_channels=latents,
        groups=described.get("norm_num_groups", 32),
        codes=described.get("num_vq_embeddings", 256),
        code_width=described.get("vq_embed_dim") or latents,
    )


EARLIER = {".query.": ".to_q.", ".key.": ".to_k.", ".value.": ".to_v.", ".proj_attn.": ".to_out.0."}
"""What diffusers called the matrices of attention at first."""


def open_diffusers(path: Path) -> tuple[VQGANConfig, Weights, str]:
    """A `VQModel` folder, or a pipeline's in which there is one."""
    inside = [path / name for name in ("vqvae", "vqgan") if (path / name / CONFIG).is_file()]
    path = path if (path / CONFIG).is_file() or not inside else inside[0]
    described = read_json(path / CONFIG)
    config = understood(path, described_by, described)
    file = path / WEIGHTS if (path / WEIGHTS).is_file() else path / "diffusion_pytorch_model.bin"
    return config, Renamed(open_weights(file), lambda key: replaced(key, EARLIER)), "o i -> i o"


def replaced(key: str, names: Mapping[str, str]) -> str:
    for theirs, ours in names.items():
        key = key.replace(theirs, ours)
    return key
