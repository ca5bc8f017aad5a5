"""`unimp import`: the command line of `unimp_jax.interop.importing`."""

from pathlib import Path
from typing import Annotated

import tyro

from experiments.terminal import clean_lines
from unimp_jax.interop.importing import ImportConfig, import_weights


def import_command(folder: tyro.conf.Positional[Path], config: Annotated[ImportConfig, tyro.conf.arg(name="")]) -> None:
    """Convert published weights into a folder for `unimp train PRESET --init-from`.

    Args:
      folder: the folder to create, for the weights, their geometry and their tokenizer.
    """
    print(f"{clean_lines(import_weights(config, folder))}\ntrain from it: unimp train PRESET --init-from {folder}")
