"""The images of a catalogue as VQGAN codes, in a file."""

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np

from data_pipelines.code_files import code_rows, places_of, read_rows, reading, stored_fact, write_rows
from data_pipelines.errors import DataError


@dataclasses.dataclass(frozen=True, eq=False)
class ImageCodes:
    """The images of I items, each as h * w codes.

    Attributes:
      codes: int32 [I, h * w], in row-major order of the image; all -1 for an item without an image.
      grid: (h, w).
      num_codes: the size of the codebook; codes are smaller than this.
      facts: how the codes were made, as JSON values.
    """

    item_ids: tuple[str, ...]
    codes: np.ndarray
    grid: tuple[int, int]
    num_codes: int
    facts: dict[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        shape = (len(self.item_ids), math.prod(self.grid))
        if len(self.grid) != 2 or min(self.grid) < 1:
            raise DataError(f"a grid of {self.grid} codes: height and width must be at least 1")
        if self.codes.shape != shape:
            raise DataError(f"codes have shape {self.codes.shape}; expected [items, h * w] = {shape}")
        if len(set(self.item_ids)) != len(self.item_ids):
            raise DataError("an item has two rows of codes")
        if (self.codes[self.has_codes] < 0).any() or (self.codes >= self.num_codes).any():
            raise DataError(f"a code is outside the codebook of {self.num_codes} entries")

    @property
    def codes_per_image(self) -> int:
        return self.codes.shape[1]

    @property
    def has_codes(self) -> np.ndarray:
        """Whether each item has an image: bool [I]."""
        return (self.codes != -1).any(axis=1)

    def with_items(self, item_ids: Sequence[str]) -> Self:
        """Returns the codes with additional items appended, which have no image."""
        none = np.full((len(item_ids), self.codes_per_image), -1, np.int32)
        return dataclasses.replace(self, item_ids=(*self.item_ids, *item_ids), codes=np.concatenate([self.codes, none]))

    def tokens(self) -> list[str]:
        """Returns the names of all codes: img_0, img_1 and so on."""
        return [f"img_{code}" for code in range(self.num_codes)]


def save_image_codes(path: Path, codes: ImageCodes) -> None:
    """Writes the codes of the items with an image to a Parquet file with the columns `item_id` and `codes`."""
    rows = np.flatnonzero(codes.has_codes)
    described = {"grid": codes.grid, "num_codes": codes.num_codes, "facts": codes.facts}
    write_rows(path, [codes.item_ids[row] for row in rows], "codes", codes.codes[rows], **described)


def load_image_codes(path: Path, item_ids: Sequence[str]) -> ImageCodes:
    """Returns the codes of the given items, in this order; the file may hold others and lack some. Raises DataError if
    it is missing or damaged, or has none of the items."""
    with reading(path, "a file of image codes", "unimp vqgan codes"):
        table = read_rows(path, "codes")
        grid, num_codes, facts = (stored_fact(table, name) for name in ("grid", "num_codes", "facts"))
        if grid is None or num_codes is None:
            raise ValueError("the metadata lack the number of codes of an image or of the codebook")
        height, width = map(int, grid)
        codes = code_rows(table, height * width)
        whole = ImageCodes(
            tuple(table["item_id"].to_pylist()), codes, (height, width), int(num_codes), dict(facts or {})
        )
    rows = places_of(item_ids, whole.item_ids)
    if len(rows) and (rows < 0).all():
        raise DataError(f"{path} has no codes for any item; it was made for another catalogue")
    codes = np.where((rows >= 0)[:, None], whole.codes[rows], np.int32(-1))
    return dataclasses.replace(whole, item_ids=tuple(item_ids), codes=codes)
