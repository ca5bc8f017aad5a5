"""VQGANs of other packages: diffusers' `VQModel` folders, in and out, and taming-transformers checkpoints, in.

Outside training, a VQGAN is always stored as such a folder, so that diffusers can read what was imported or exported
here, and vice versa. Checkpoints of taming-transformers contain the same arrays under other names.
"""

from pathlib import Path
from typing import Any

from flax import nnx
from safetensors.numpy import save_file

from unimp_jax.image_tokens.vqgan import VQGAN, VQGANConfig
from unimp_jax.interop.exporting import named, their_arrays
from unimp_jax.interop.layout import Table, entry, shapes_of
from unimp_jax.interop.matching import filled, patterns
from unimp_jax.interop.shards import whole_folder, write_json
from unimp_jax.interop.taming import ALIKE, ATTENTION, TAMING, open_taming
from unimp_jax.interop.weights import Aliases, Weights, canonical, open_weights, read_json, renamed, understood

CONFIG, WEIGHTS = "config.json", "diffusion_pytorch_model.safetensors"
CLASS = "VQModel"
QUERY_KEY_VALUE: Aliases = [(r"\.(q)uery\.|\.(k)ey\.|\.(v)alue\.", lambda found: f".to_{found[found.lastindex or 0]}.")]


def diffusers_names(last: int) -> Aliases:
    """Returns replacements of our names by diffusers'; levels of its decoder are numbered from the other end."""
    return [
        *ALIKE,
        (r"^encoder\.levels\.", "encoder.down_blocks."),
        (r"^decoder\.levels\.(\d+)", lambda found: f"decoder.up_blocks.{last - int(found[1])}"),
        (r"\.halvings\.(\d+)", r".down_blocks.\1.downsamplers.0.conv"),
        (r"\.doublings\.(\d+)", lambda found: f".up_blocks.{last - 1 - int(found[1])}.upsamplers.0.conv"),
        (r"\.middle\.block(\d)", lambda found: f".mid_block.resnets.{int(found[1]) - 1}"),
        (r"\.middle\.attention\.", ".mid_block.attentions.0."),
        (r"\.blocks\.", ".resnets."),
        (r"\.norm\.", ".group_norm."),
        *QUERY_KEY_VALUE,
        (r"\.out\.", ".to_out.0."),
        (r"\.norm_out\.", ".conv_norm_out."),
        (r"\.shortcut\.", ".conv_shortcut."),
    ]


def table(config: VQGANConfig, names: Aliases | None = None, attention: str = "o i -> i o") -> Table:
    """Returns the table of all parameters by a package's names, which replace ours; None: diffusers'."""
    names = diffusers_names(len(config.channels) - 1) if names is None else names
    layouts = {1: "o -> o", 4: "o i y x -> y x i o"}
    entries = []
    for ours, shape in shapes_of(lambda: new(config)).items():
        theirs = canonical(ours.replace("/", "."), names)
        matrix = attention if "attention" in ours else "o i 1 1 -> i o"  # elsewhere a convolution of 1 x 1
        matrix = "k z -> k z" if ours == "codebook" else matrix
        entries.append(entry(theirs, ours, layouts.get(len(shape), matrix)))
    return entries


def new(config: VQGANConfig) -> VQGAN:
    return VQGAN(config, rngs=nnx.Rngs(0))


def write_vqgan(folder: Path, model: VQGAN) -> None:
    """Writes a folder for `VQModel.from_pretrained`, atomically.

    Raises:
      WeightsError: The folder already exists, or there is no space.
    """
    arrays = dict(their_arrays(named(nnx.state(model)), table(model.config), "float32"))
    with whole_folder(folder) as temporary:
        save_file(arrays, temporary / WEIGHTS, metadata={"format": "pt"})  # diffusers requires it
        write_json(temporary / CONFIG, described_as(model.config))


def read_vqgan(path: Path, image_size: int | None = None) -> tuple[VQGAN, list[str]]:
    """Returns the model of a `VQModel` folder or a taming-transformers checkpoint, and the keys that are no part of it.

    Args:
      image_size: For a checkpoint of taming-transformers without its configuration beside it.

    Raises:
      WeightsError: It is neither, has an architecture that this VQGAN does not support, or cannot be read completely.
    """
    if path.is_dir():
        config, weights = open_diffusers(path)
        entries = table(config)
    else:
        config, weights = open_taming(path, image_size)
        entries = table(config, TAMING, ATTENTION)
    model = filled(lambda: new(config), entries, weights)
    return model, sorted(weights.arrays.keys() - {entry.theirs for entry in entries})


def import_vqgan(path: Path, folder: Path, image_size: int | None = None) -> str:
    """Imports a `VQModel` folder or a taming-transformers checkpoint into `folder` and returns a summary for the user;
    raises like `read_vqgan` and `write_vqgan`, and then leaves nothing behind."""
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
"""Settings of `VQModel` that have one supported value."""


def described_as(config: VQGANConfig) -> dict[str, Any]:
    """Returns the `config.json` of diffusers."""
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
    """Returns the configuration for a `config.json` of diffusers, whose missing fields have its defaults; raises
    ValueError if this VQGAN does not support the architecture."""
    if described.get("_class_name") != CLASS:
        raise ValueError(f"a model of class {described.get('_class_name')}; it must be {CLASS}")
    for name, right in FIXED.items():
        if described.get(name, right) != right:
            raise ValueError(f"{name} is {described[name]!r}; only {right!r} is supported")
    down, up = described.get("down_block_types", [DOWN]), described.get("up_block_types", [UP])
    attentive = tuple(level for level, kind in enumerate(down) if kind == ATTENTIVE + DOWN)
    mirrored = [ATTENTIVE + UP if level in attentive else UP for level in reversed(range(len(down)))]
    if not set(down) <= {DOWN, ATTENTIVE + DOWN} or list(up) != mirrored:
        raise ValueError(f"blocks {down} and {up}; supported are {DOWN}, {ATTENTIVE + DOWN} and their mirror images")
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


EARLIER: Aliases = [*QUERY_KEY_VALUE, (r"\.proj_attn\.", ".to_out.0.")]
"""Earlier names of the attention matrices in diffusers."""


def open_diffusers(path: Path) -> tuple[VQGANConfig, Weights]:
    """Opens a `VQModel` folder, or a pipeline folder that contains one."""
    inside = [path / name for name in ("vqvae", "vqgan") if (path / name / CONFIG).is_file()]
    path = path if (path / CONFIG).is_file() or not inside else inside[0]
    config = understood(path, described_by, read_json(path / CONFIG))
    file = path / WEIGHTS if (path / WEIGHTS).is_file() else path / "diffusion_pytorch_model.bin"
    return config, renamed(open_weights(file), lambda key: canonical(key, EARLIER))
