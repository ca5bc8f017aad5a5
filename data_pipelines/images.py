"""Decodes images to arrays of one size; decoded images are kept in a bounded cache."""

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
    """How to fit an image: crop the centre (as CLIP does), stretch the whole image, or pad it with black."""
    cache_megabytes: int = 1024
    """Memory for the cache of decoded images."""


def decode(encoded: bytes, size: int, fit: Fit) -> np.ndarray:
    """Decodes an image to uint8 [size, size, 3], with bicubic resampling.

    Raises:
      DataError: the bytes are not a complete image.
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
    """Arrays that represent the images of items, all of the same shape and dtype."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def dtype(self) -> np.dtype: ...
    def __getitem__(self, item: int) -> np.ndarray: ...


def take(images: Images, items: np.ndarray) -> np.ndarray:
    """Returns the images of one or more items: [N, *shape]."""
    return np.stack([images[int(item)] for item in items])


class ImageStore:
    """Images of items by index, as arrays; can be read from several threads. An image that cannot be decoded becomes
    black and is logged, because it must not end a running training."""

    def __init__(self, read: Callable[[int], bytes], size: int, config: ImageConfig):
        """Creates the store; `read(item)` returns the encoded image of an item."""
        self._read, self.size, self._fit = read, size, config.fit
        self.shape, self.dtype = (size, size, 3), np.dtype(np.uint8)
        self._decoded = functools.lru_cache(config.cache_megabytes * 2**20 // (size * size * 3))(self._decode)

    def encoded(self, item: int) -> bytes:
        """Returns the image as encoded in its source."""
        return self._read(item)

    def __getitem__(self, item: int) -> np.ndarray:
        """Returns the image as uint8 [size, size, 3]."""
        return self._decoded(item)

    def _decode(self, item: int) -> np.ndarray:
        encoded = self._read(item)  # if this fails, the image may be fine, and must not be black from now on
        try:
            return decode(encoded, self.size, self._fit)
        except DataError as error:
            logger.warning("item %d: %s; a black image is used instead", item, error)
            return np.zeros(self.shape, self.dtype)
