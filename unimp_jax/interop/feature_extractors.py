"""Feature extractors for image metrics from published files: a CLIP folder, or the weights of Inception."""

from pathlib import Path

from flax import nnx

from unimp_jax.feature_extractors import CLIP, Inception
from unimp_jax.feature_extractors.inception import units
from unimp_jax.interop.layout import Table, entry
from unimp_jax.interop.matching import filled
from unimp_jax.interop.vision import clip_config, transformers_clip_whole, vision_root
from unimp_jax.interop.weights import open_weights, read_json, understood


def read_clip(folder: Path) -> CLIP:
    """Reads a `CLIPModel` of transformers, or only its vision tower, with or without a projection.

    Raises:
      WeightsError: The folder contains no CLIP, or it cannot be read completely.
    """
    described, weights = read_json(folder / "config.json"), open_weights(folder)
    projected = "visual_projection.weight" in weights.arrays
    config = understood(folder, lambda described: clip_config(described, projected), described)
    table = transformers_clip_whole(vision_root(weights), config)
    return filled(lambda: CLIP(config, nnx.Rngs(0)), table, weights)


def read_inception(path: Path) -> Inception:
    """Reads the Inception v3 of the FID from `pt_inception-2015-12-05-*.pth`, or the same arrays as safetensors.

    Raises:
      WeightsError: The file contains something else, or cannot be read completely.
    """
    return filled(lambda: Inception(nnx.Rngs(0)), inception_table(), open_weights(path))


def inception_table() -> Table:
    parts = {"bn.weight": "scale", "bn.bias": "bias", "bn.running_mean": "mean", "bn.running_var": "variance"}
    entries = []
    for name in units():
        entries.append(entry(f"{name}.conv.weight", f"units/{name}/kernel", "o i y x -> y x i o"))
        entries += [entry(f"{name}.{theirs}", f"units/{name}/{ours}", "o -> o") for theirs, ours in parts.items()]
    return entries
