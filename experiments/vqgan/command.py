"""The options and the implementation of `unimp vqgan`."""

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import tyro

from experiments.restore import Checkpoint
from experiments.vqgan.codes import write_codes
from experiments.vqgan.config import VQGANExperiment, WhichImages
from experiments.vqgan.evaluate import evaluate_vqgan
from experiments.vqgan.presets import DESCRIPTIONS, PRESETS
from experiments.vqgan.train import train_vqgan_run
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
