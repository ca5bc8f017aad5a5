"""Encoded images to arrays of one size, each decoded once as long as it stays in a bounded cache."""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Callable
from typing import Literal, Protocol

import numpy as np
from PIL import Image, ImageOps

from data_pipelines.errors import DataError
from data_pipelines.image_decoding import decode_image

logger = logging.getLogger(__name__)

Fit = Literal["crop", "stretch", "pad"]


@dataclasses.dataclass(frozen=True)
class ImageConfig:
    """How an image becomes a square."""

    fit: Fit = "crop"
    """Cut the middle out (as CLIP does), squeeze the whole image, or leave black beside it."""
    cache_megabytes: int = 1024
    """Decoded images are kept up to so much memory."""


def decode(encoded: bytes, size: int, fit: Fit) -> np.ndarray:
    """uint8 [size, size, 3], bicubic.

    Raises:
      DataError: the bytes are not a whole image.
    """
    try:
        image = decode_image(encoded, at_least=2 * size)
    except DataError as error:
        raise DataError(f"not a readable image ({error})") from error
    if fit == "crop":
        image = ImageOps.fit(image, (size, size), Image.Resampling.BICUBIC)
    elif fit == "pad":
        width, height = image.size
        inner = max(1, round(width / height * size)), max(1, round(height / width * size))
        inner = min(inner[0], size), min(inner[1], size)
        image, resized = Image.new("RGB", (size, size)), image.resize(inner, Image.Resampling.BICUBIC)
        image.paste(resized, (round((size - inner[0]) * 0.5), round((size - inner[1]) * 0.5)))
    else:
        image = image.resize((size, size), Image.Resampling.BICUBIC)
    return np.asarray(image, np.uint8)


class Images(Protocol):
    """What stands for the image of an item: an array of always the same shape and type."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def dtype(self) -> np.dtype: ...
    def __getitem__(self, item: int) -> np.ndarray: ...


def take(images: Images, items: np.ndarray) -> np.ndarray:
    """The images of some items, at least one: [N, *shape]."""
    return np.stack([images[int(item)] for item in items])


class ImageStore:
    """Images of items by index, as arrays; safe to read from many threads.

    An image that cannot be decoded is black, and that is logged: it must not end a run that is under way.
    """

    def __init__(self, read: Callable[[int], bytes], size: int, config: ImageConfig):
        """`read(item)` returns the encoded image of an item."""
        self._read, self.size, self._fit = read, size, config.fit
        self.shape, self.dtype = (size, size, 3), np.dtype(np.uint8)
        self._decoded = functools.lru_cache(config.cache_megabytes * 2**20 // (size * size * 3))(self._decode)

    def encoded(self, item: int) -> bytes:
        """The image as its source has it."""
        return self._read(item)

    def __getitem__(self, item: int) -> np.ndarray:
        """uint8 [size, size, 3]."""
        return self._decoded(item)

    def _decode(self, item: int) -> np.ndarray:
        try:
            return decode(self._read(item), self.size, self._fit)
        except DataError as error:
            logger.warning("item %d: %s; it is shown black", item, error)
            return np.zeros(self.shape, self.dtype)
