"""The images of a prepared source, for training and evaluation."""

import dataclasses
from pathlib import Path

import grain
import numpy as np

from data_pipelines.errors import DataError
from data_pipelines.fingerprint import FILE, Fingerprint, check_same, digest_of
from data_pipelines.images import ImageConfig, ImageStore, take
from data_pipelines.records import read_items
from experiments.vqgan.config import ImageData

THREADS = 2
"""Number of threads that decode images; a batch is prepared ahead."""


@dataclasses.dataclass(frozen=True, eq=False)
class CatalogueImages:
    """The images of a catalogue.

    Attributes:
      item_ids: ids of all items, in catalogue order.
      shown: int64 [S], the items that have an image.
      store: item -> uint8 [size, size, 3].
    """

    item_ids: tuple[str, ...]
    shown: np.ndarray
    store: ImageStore

    @property
    def fingerprint(self) -> Fingerprint:
        """A fingerprint of the items that have images, which determine the held-out images."""
        return {"items with images": digest_of([self.item_ids[item] for item in self.shown])}

    def check_same(self, run: Path) -> None:
        """Raises DataError unless the items with images, and with them the held-out images, are those of a run."""
        check_same(run / FILE, self.fingerprint, self.fingerprint)

    def parts(self, config: ImageData) -> tuple[np.ndarray, np.ndarray]:
        """Returns (items to train on, items held out), each in catalogue order; DataError if one of them is empty."""
        count = round(config.held_out * len(self.shown))
        if not 0 < count < len(self.shown):
            raise DataError(f"{len(self.shown)} images are too few to hold out {config.held_out:.0%} of them")
        chosen = np.zeros(len(self.shown), bool)
        chosen[np.random.default_rng(config.held_out_seed).permutation(len(self.shown))[:count]] = True
        return self.shown[~chosen], self.shown[chosen]

    def take(self, items: np.ndarray) -> np.ndarray:
        """Returns the images of items, uint8 [len(items), size, size, 3]."""
        return take(self.store, items)

    def batches(self, items: np.ndarray, size: int, seed: int, start: int) -> grain.DatasetIterator[np.ndarray]:
        """Yields batches endlessly, uint8 [size, …], from number `start` on; each epoch has an order of its own."""
        drawn = grain.MapDataset.source(items).seed(seed).shuffle().repeat().batch(size)
        options = grain.ReadOptions(num_threads=THREADS, prefetch_buffer_size=2 * THREADS)
        return iter(drawn[start:].map(self.take).to_iter_dataset(options))


def open_images(config: ImageData, size: int) -> CatalogueImages:
    """Opens the images of a source; DataError if it is not prepared, or has no images."""
    items = read_items(config.source, config.folder)
    item_ids, has_image = zip(*((item.item_id, bool(item.image)) for item in items), strict=True)
    shown = np.flatnonzero(has_image)
    if not len(shown):
        raise DataError(f"{config.source} has no images")
    return CatalogueImages(item_ids, shown, ImageStore(lambda item: items[item].image, size, ImageConfig(config.fit)))
