"""This project's weights and examples as `IdeficsForVisionText2Text` of transformers reads them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from data_pipelines.images import ImageStore
from data_pipelines.tasks.examples import Example
from unimp_jax.interop import idefics
from unimp_jax.interop.clip import last_norm
from unimp_jax.interop.exporting import named, write_weights
from unimp_jax.interop.shards import write_json
from unimp_jax.model import ModelConfig
from unimp_jax.model.vision import CLIP_DEVIATION, CLIP_MEAN

IGNORED = -100
"""The label of a token that is no answer."""


def export_weights(folder: Path, config: ModelConfig, *states: Any) -> Path:
    """What `from_pretrained` reads, in a new folder."""
    folder.mkdir()
    unread = last_norm(idefics.LAST_NORM, config.vision)
    write_weights(folder, named(*states), config, idefics.table(config), unread=unread)
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
            picture = (images[int(item)].astype(np.float32) / 255 - CLIP_MEAN) / CLIP_DEVIATION
            pixels[row, place] = np.moveaxis(picture, -1, 0)
    return {"input_ids": tokens, "attention_mask": attended, "pixel_values": pixels, "image_attention_mask": mask}


def labels(examples: Sequence[Example], length: int) -> np.ndarray:
    """int64 [examples, length], of rows padded on the right: a token where it is an answer, else `IGNORED`.

    Raises:
      ValueError: an answer is not the token that follows the place where it is asked, and no label can say so.
    """
    found = np.full((len(examples), length), IGNORED, np.int64)
    for row, one in enumerate(examples):
        asked, places = one.answer_weights > 0, one.answer_positions + 1
        if not np.array_equal(one.tokens[places[asked]], one.answer_targets[asked]):
            raise ValueError("an answer is not the next token: with such targets, transformers cannot be compared")
        found[row, places[asked]] = one.answer_targets[asked]
    return found
