"""Outputs of a frozen vision tower for each image, computed once and then read from a file."""

import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import ml_dtypes  # noqa: F401  (numpy knows bfloat16 by it)
import numpy as np

from data_pipelines.atomic import atomic_folder
from data_pipelines.errors import DataError
from data_pipelines.object_store import is_remote


class FeatureStore:
    """Features of items by index, used in place of their images."""

    def __init__(self, folder: Path):
        """Opens the features in a folder.

        Raises:
          DataError: the folder is not as written by `write_features`.
        """
        try:
            description = json.loads((folder / "features.json").read_bytes())
            self.shape, self.dtype = tuple(description["shape"]), np.dtype(description["dtype"])
            self._row = {item: row for row, item in enumerate(description["items"])}
            size = len(self._row), *self.shape
            file = folder / "features.bin"  # which is empty, and cannot be mapped, if no item has an image
            self._features = np.memmap(file, self.dtype, "r", shape=size) if self._row else np.zeros(size, self.dtype)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"{folder}: damaged features ({error}); delete the folder to compute them again") from error

    def __getitem__(self, item: int) -> np.ndarray:
        return np.asarray(self._features[self._row[item]])


def check_disk_space(folder: Path, count: int, shape: tuple[int, ...], dtype: str) -> None:
    """Checks that the disk has room for the features of `count` images.

    Raises:
      DataError: there is not enough room.
    """
    needed = count * int(np.prod(shape)) * np.dtype(dtype).itemsize
    room = shutil.disk_usage(tempfile.gettempdir() if is_remote(folder) else folder.parent).free
    if needed > room:
        raise DataError(f"{folder}: the features of {count} images need {needed:,} bytes, but only {room:,} are free")


def write_features(
    folder: Path,
    items: np.ndarray,
    shape: tuple[int, ...],
    dtype: str,
    make: Callable[[np.ndarray], Iterator[np.ndarray]],
) -> None:
    """Creates the folder of features, whole or not at all.

    Args:
      items: int [S], the items that have an image.
      make: maps items to their features, yielded in order in arrays of [some items, *shape].
    """
    with atomic_folder(folder) as partial:
        with (partial / "features.bin").open("wb") as file:
            for features in make(items):
                file.write(np.ascontiguousarray(features, np.dtype(dtype)).tobytes())
        description = {"shape": shape, "dtype": dtype, "items": items.tolist()}
        (partial / "features.json").write_text(json.dumps(description), encoding="utf-8")
