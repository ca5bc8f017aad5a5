"""`unimp vqgan codes`: encodes a catalogue's images, in a file for `vocabulary.image_codes`."""

from pathlib import Path

import jax
import numpy as np

from data_pipelines.code_files import check_place
from data_pipelines.image_codes import ImageCodes, save_image_codes
from experiments.restore import Checkpoint
from experiments.vqgan.config import WhichImages
from experiments.vqgan.images import open_images
from experiments.vqgan.run import encoder_of, open_vqgan, trained_on
from unimp_jax.evaluation.mapping import map_batches


def write_codes(folder: Path, path: Path, which: WhichImages = WhichImages(), checkpoint: Checkpoint = "best") -> str:
    """Encodes all items of a source that have an image, writes their codes on the first process, and returns a message
    for the user. Raises DataError if the source is not given or not prepared, WeightsError if the folder holds no
    VQGAN."""
    check_place(path)
    data = which.beside(trained_on(folder))
    model = open_vqgan(folder, checkpoint)
    config, encode = model.config, encoder_of(model)
    images = open_images(data, config.image_size)
    codes = np.full((len(images.item_ids), config.codes_per_image), -1, np.int32)
    for items, found in map_batches(lambda items: encode(images.take(items)), images.shown, progress="images"):
        codes[items] = found.reshape(len(items), -1)
    facts = {"source": data.source, "vqgan": str(folder), "fit": data.fit, "image_size": config.image_size}
    grid = (config.grid, config.grid)
    if jax.process_index() == 0:
        save_image_codes(path, ImageCodes(images.item_ids, codes, grid, config.codes, facts))
    shown, used = len(images.shown), len(np.unique(codes[images.shown]))
    return (
        f"{path}: {shown:,} images of {len(images.item_ids):,} items in {config.grid} x {config.grid} codes, "
        f"{used} of {config.codes} used; train with --vocabulary.image-codes {path}"
    )
