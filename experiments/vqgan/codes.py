"""`unimp vqgan codes`: a catalogue's pictures as codes, in a file that `vocabulary.image_codes` takes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from tqdm import tqdm

from data_pipelines.errors import DataError
from data_pipelines.image_codes import ImageCodes, save_image_codes
from experiments.config import read_config
from experiments.run import Checkpoint
from experiments.vqgan.config import FILE, PictureData, VQGANExperiment
from experiments.vqgan.pictures import open_pictures
from experiments.vqgan.run import PICTURES, encoder_of, is_vqgan_run, open_vqgan


def write_codes(folder: Path, path: Path, data: PictureData | None = None, checkpoint: Checkpoint = "best") -> str:
    """Writes the codes of all items of a source that have a picture; returns what to tell the user of it.

    Args:
      folder: of a run, or any other VQGAN.
      data: whose pictures; None: those of the run.

    Raises:
      DataError: the source is not prepared, the folder holds no VQGAN, or the file would be a folder.
    """
    if path.is_dir():
        raise DataError(f"{path} is a folder; name a file that is to hold the codes, such as {path / 'images.parquet'}")
    if data is None and not is_vqgan_run(folder):
        raise DataError(f"{folder} is no run, which would say whose pictures: name a source with --data.source")
    data = data or read_config(folder / FILE, VQGANExperiment).data
    model = open_vqgan(folder, checkpoint)
    config, encode = model.config, encoder_of(model)
    pictures = open_pictures(data, config.image_size)
    codes = np.full((len(pictures.item_ids), config.codes_per_image), -1, np.int32)
    for start in tqdm(range(0, len(pictures.shown), PICTURES), desc="pictures", leave=False):
        items = pictures.shown[start : start + PICTURES]
        codes[items] = encode(pictures.take(items)).reshape(len(items), -1)
    facts = {"source": data.source, "vqgan": str(folder), "fit": data.fit, "image_size": config.image_size}
    grid = (config.grid, config.grid)
    save_image_codes(path, ImageCodes(pictures.item_ids, codes, grid, config.codes, facts))
    shown, used = len(pictures.shown), len(np.unique(codes[pictures.shown]))
    return (
        f"{path}: {shown:,} pictures of {len(pictures.item_ids):,} items in {config.grid} x {config.grid} codes, "
        f"{used} of {config.codes} used; train with --vocabulary.image-codes {path}"
    )
