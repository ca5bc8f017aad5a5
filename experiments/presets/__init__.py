"""Presets by name, one file each: from minutes on two cores to weeks on a pod; and the options of `unimp train`."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro

from experiments.config import ExperimentConfig
from experiments.path_options import LOCAL, PathOrURL
from experiments.presets import beauty, fashion, reviews, small, smol, tiny
from experiments.presets.interleaved import DESCRIPTIONS as INTERLEAVED
from experiments.presets.interleaved import interleaved
from experiments.presets.published import DESCRIPTIONS as PUBLISHED
from experiments.presets.published import as_published
from unimp_jax.processes import ProcessesConfig

MODULES = {"tiny": tiny, "small": small, "smol": smol, "reviews": reviews, "fashion": fashion, "beauty": beauty}
PRESETS: dict[str, ExperimentConfig] = {
    **{name: module.EXPERIMENT for name, module in MODULES.items()},
    **{name: as_published(name) for name in PUBLISHED},
    **{name: interleaved(name) for name in INTERLEAVED},
}
DESCRIPTIONS: dict[str, str] = {
    **{name: str(module.__doc__) for name, module in MODULES.items()},
    **PUBLISHED,
    **INTERLEAVED,
}
"""One line per preset for `unimp train --help`."""


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
