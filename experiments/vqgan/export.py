"""`unimp export` of a VQGAN's run."""

from __future__ import annotations

from pathlib import Path

from experiments.restore import Checkpoint
from experiments.vqgan.run import open_vqgan
from unimp_jax.interop.vqgan import write_vqgan


def export_vqgan(run: Path, folder: Path, checkpoint: Checkpoint) -> str:
    """Writes a folder for diffusers' `VQModel.from_pretrained`, whole or not at all; returns what to tell the user.

    Raises:
      WeightsError: the folder is there already, or there is no room.
      DataError: the run has no whole checkpoint.
    """
    write_vqgan(folder, open_vqgan(run, checkpoint))
    return f"{folder}: the VQGAN of {run}, for diffusers' VQModel"
