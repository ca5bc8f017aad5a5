"""The options and the implementation of `unimp vqgan`."""

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import jax
import numpy as np
import tyro

from data_pipelines.code_files import check_place
from data_pipelines.image_codes import ImageCodes, save_image_codes
from experiments.parameters import Checkpoint
from experiments.vqgan.config import VQGANExperiment, WhichImages
from experiments.vqgan.evaluate import evaluate_vqgan
from experiments.vqgan.images import open_images
from experiments.vqgan.presets import DESCRIPTIONS, PRESETS
from experiments.vqgan.run import encoder_of, open_vqgan, trained_on
from experiments.vqgan.train import train_vqgan_run
from unimp_jax.evaluation.mapping import map_batches
from unimp_jax.processes import ProcessesConfig, join, print_once


@dataclasses.dataclass(frozen=True)
class VQGANTraining:
    """A preset and the folder of its run."""

    folder: Path
    """The run folder."""
    experiment: Annotated[VQGANExperiment, tyro.conf.arg(name="")]


Preset: Any = tyro.extras.subcommand_type_from_defaults(
    {name: VQGANTraining(Path("runs") / f"vqgan-{name}", preset) for name, preset in PRESETS.items()},
    DESCRIPTIONS,
    prefix_names=False,
)


@dataclasses.dataclass(frozen=True)
class TrainVQGAN:
    """Train a VQGAN on the images of a source, or continue its training; then evaluate it on held-out ones."""

    run: Annotated[Preset, tyro.conf.arg(name="")]


@dataclasses.dataclass(frozen=True, kw_only=True)
class UseVQGAN:
    """A trained VQGAN, and the images it is used on."""

    vqgan: tyro.conf.Positional[Path]
    """A run folder, the folder of a VQModel of diffusers, or a checkpoint of taming-transformers."""
    data: WhichImages = WhichImages()
    checkpoint: Checkpoint = "best"
    """Checkpoint of a run: the best by validation, or the latest."""
    processes: ProcessesConfig = ProcessesConfig()
    """How the processes find one another, if there are several."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluateVQGAN(UseVQGAN):
    """Evaluate a VQGAN on held-out images, beside the mean image and JPEG at equal bits."""

    out: Path | None = None
    """Folder for `evaluation.json` and `reconstructions.png`; by default the VQGAN's, or that of its file."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class CodesOfImages(UseVQGAN):
    """Turn a catalogue's images into codes, for runs with --vocabulary.image-codes FILE."""

    file: tyro.conf.Positional[Path]
    """The Parquet file to write."""


VQGANCommand = (
    Annotated[TrainVQGAN, tyro.conf.subcommand("train", prefix_name=False)]
    | Annotated[EvaluateVQGAN, tyro.conf.subcommand("evaluate", prefix_name=False)]
    | Annotated[CodesOfImages, tyro.conf.subcommand("codes", prefix_name=False)]
)


def vqgan_command(command: Annotated[VQGANCommand, tyro.conf.arg(name="")]) -> None:
    """Train and evaluate a VQGAN, or encode a catalogue's images as its codes."""
    if isinstance(command, TrainVQGAN):
        train_vqgan_run(command.run.experiment, command.run.folder)
        print_once(evaluate_vqgan(command.run.folder))
        return
    join(command.processes)
    if isinstance(command, EvaluateVQGAN):
        print_once(evaluate_vqgan(command.vqgan, command.data, command.checkpoint, command.out))
    else:
        print_once(write_codes(command.vqgan, command.file, command.data, command.checkpoint))


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
