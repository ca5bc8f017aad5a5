"""`unimp vqgan codes`: a catalogue's pictures as codes, in a file that `vocabulary.image_codes` takes."""

from __future__ import annotations

from pathlib import Path

import jax
import numpy as np

from data_pipelines.code_files import check_place
from data_pipelines.image_codes import ImageCodes, save_image_codes
from experiments.run import Checkpoint
from experiments.vqgan.config import WhichPictures
from experiments.vqgan.pictures import open_pictures
from experiments.vqgan.run import encoder_of, open_vqgan, trained_on
from unimp_jax.evaluation.mapping import map_batches


def write_codes(
    folder: Path, path: Path, which: WhichPictures = WhichPictures(), checkpoint: Checkpoint = "best"
) -> str:
    """Writes the codes of all items of a source that have a picture, the first of several processes does; returns what
    to tell the user.

    Args:
      folder: of a run, or any other VQGAN.
      which: pictures are turned into codes.

    Raises:
      DataError: the source is not said or not prepared, or the file would be a folder.
      WeightsError: the folder holds no VQGAN.
    """
    check_place(path)
    data = which.beside(trained_on(folder))
    model = open_vqgan(folder, checkpoint)
    config, encode = model.config, encoder_of(model)
    pictures = open_pictures(data, config.image_size)
    codes = np.full((len(pictures.item_ids), config.codes_per_image), -1, np.int32)
    for items, found in map_batches(lambda items: encode(pictures.take(items)), pictures.shown, progress="pictures"):
        codes[items] = found.reshape(len(items), -1)
    facts = {"source": data.source, "vqgan": str(folder), "fit": data.fit, "image_size": config.image_size}
    grid = (config.grid, config.grid)
    if jax.process_index() == 0:
        save_image_codes(path, ImageCodes(pictures.item_ids, codes, grid, config.codes, facts))
    shown, used = len(pictures.shown), len(np.unique(codes[pictures.shown]))
    return (
        f"{path}: {shown:,} pictures of {len(pictures.item_ids):,} items in {config.grid} x {config.grid} codes, "
        f"{used} of {config.codes} used; train with --vocabulary.image-codes {path}"
    )
