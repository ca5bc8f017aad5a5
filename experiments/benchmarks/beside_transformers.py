"""What both comparisons with transformers' Idefics share: films, geometry, weights and padded prompts."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from data_pipelines.images import ImageConfig, ImageStore
from data_pipelines.prepare import prepare
from data_pipelines.tasks.examples import Example
from data_pipelines.vocabulary import VocabularyConfig
from experiments.config import DataConfig, ExperimentConfig
from unimp_jax.interop import idefics
from unimp_jax.interop.exporting import named, write_weights
from unimp_jax.interop.shards import write_json
from unimp_jax.interop.vision import last_norm
from unimp_jax.model import DecoderConfig, ModelConfig, ResamplerConfig
from unimp_jax.model.presets import POSTERS, blocks_of
from unimp_jax.model.vision import CLIP_DEVIATION, CLIP_MEAN


def films(size: str, data: Path, seed: int, *, clip_patches: bool = False, **parts: Any) -> ExperimentConfig:
    """The films of MovieLens small with poster and attributes, in float32.

    Args:
      size: as of `geometry`.
      data: where they are, or will be, prepared.
      parts: other fields of the configuration.
    """
    if not (data / "movielens_small").exists():
        print(prepare("movielens_small", data))
    return ExperimentConfig(
        model=geometry(size, clip_patches=clip_patches),
        data=DataConfig("movielens_small", data),
        vocabulary=VocabularyConfig(trained_size=2048, attributes=("Genres", "Year", "Title")),
        images=ImageConfig(fit="stretch"),
        seed=seed,
        **parts,
    )


def geometry(size: str, *, clip_patches: bool = False) -> ModelConfig:
    """An Idefics in OpenFlamingo 3B's proportions: the tower half as wide as the decoder, and as deep.

    Args:
      size: of the decoder, `WIDTH x LAYERS`.
      clip_patches: images of 224 pixels in 256 patches, as CLIP ViT-L/14 reads them, become 16 latents; else images
        of 32 pixels in 16 patches become 4.
    """
    width, layers = map(int, size.split(" x "))
    decoder = DecoderConfig(
        width=width, layers=layers, heads=max(width // 64, 2), mlp_width=4 * width, norm="rms_norm", bias=False,
        mlp="swiglu", tie_embeddings=True,
    )  # fmt: skip
    half = width // 2
    vision = dataclasses.replace(POSTERS, width=half, layers=layers, heads=max(half // 64, 1), mlp_width=4 * half)
    if clip_patches:
        vision = dataclasses.replace(vision, image_size=224, patch_size=14)
    return ModelConfig(
        vision=vision,
        resampler=ResamplerConfig(layers=1, heads=4, head_dim=16, latents=16 if clip_patches else 4, mlp="relu"),
        gated=blocks_of(decoder, every=2),
        decoder=decoder,
        compute_dtype="float32",
        unroll=layers,
    )


def export_weights(folder: Path, config: ModelConfig, *states: Any) -> Path:
    """What `from_pretrained` reads, in a new folder."""
    folder.mkdir()
    unread = last_norm(idefics.LAST_NORM, config.vision)
    write_weights(folder, named(*states), idefics.table(config), unread=unread)
    write_json(folder / "config.json", idefics.described_as(config))
    return folder


def padded(examples: Sequence[Example], images: ImageStore, side: Literal["left", "right"]) -> dict[str, np.ndarray]:
    """One example a row, as long as the longest of them, padded on a side; the arguments of the model's `forward`."""
    length, slots = max(len(one.tokens) for one in examples), max(len(one.images) for one in examples)
    tokens, attended = (np.zeros((len(examples), length), np.int64) for _ in range(2))
    mask = np.zeros((len(examples), length, slots), np.int64)
    pixels = np.zeros((len(examples), slots, 3, images.size, images.size), np.float32)
    for row, one in enumerate(examples):
        where = slice(length - len(one.tokens), length) if side == "left" else slice(len(one.tokens))
        tokens[row, where], attended[row, where] = one.tokens, 1
        shown = np.searchsorted(one.image_positions, np.arange(len(one.tokens)), side="right") - 1
        mask[row, where] = shown[:, None] == np.arange(slots)
        for place, item in enumerate(one.images):
            image = (images[int(item)].astype(np.float32) / 255 - CLIP_MEAN) / CLIP_DEVIATION
            pixels[row, place] = np.moveaxis(image, -1, 0)
    return {"input_ids": tokens, "attention_mask": attended, "pixel_values": pixels, "image_attention_mask": mask}
