"""The options of `unimp train`: a preset with all its fields, the run folder, and how processes find one another."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro

from experiments.config import ExperimentConfig
from experiments.path_options import LOCAL, PathOrURL
from experiments.presets import DESCRIPTIONS, PRESETS
from unimp_jax.processes import ProcessesConfig


@dataclasses.dataclass(frozen=True)
class Training:
    """A preset and the folder of its run."""

    folder: PathOrURL
    """The run folder; s3://BUCKET/FOLDER or gs://BUCKET/FOLDER is in an object store."""
    experiment: Annotated[ExperimentConfig, tyro.conf.arg(name="")]
    processes: ProcessesConfig = ProcessesConfig()


PresetRun: Any = tyro.extras.subcommand_type_from_defaults(
    {name: Training(Path("runs") / name, preset) for name, preset in PRESETS.items()}, DESCRIPTIONS, prefix_names=False
)


def read_training(arguments: Sequence[str]) -> Training:
    """Parses `arguments` as `unimp train` does; mistakes have the same consequences as there."""
    options = (tyro.conf.FlagConversionOff,)
    return tyro.cli(PresetRun, args=arguments, prog="unimp train", config=options, registry=LOCAL)
