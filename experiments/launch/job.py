"""What every engine is told, what it makes of that, and what is checked before a training waits in a queue."""

from __future__ import annotations

import dataclasses
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro
from jax.sharding import AbstractMesh

from experiments.preset_run import Training
from unimp_jax.processes import ProcessesConfig
from unimp_jax.sharding import abstract_model, check_rows, check_tokens, mesh_sizes


@dataclasses.dataclass(frozen=True, kw_only=True)
class LaunchConfig:
    """What all engines have in common."""

    train: Annotated[str, tyro.conf.arg(metavar="PRESET ...")]
    """Comes last: all that follows is what `unimp train` is given."""
    dry_run: bool = True
    """What would be written and run is printed, and nothing is done. False: the file is written and handed over."""
    file: Path | None = None
    """The file that is written. None: named after the job, in the present folder."""
    name: str | None = None
    """Of the job. None: unimp and the preset."""
    program: str = "unimp"
    """What stands before `train` on a host, in shell words, e.g. `apptainer exec --nv image.sif unimp`."""


@dataclasses.dataclass(frozen=True)
class Job:
    """A training, as it was typed and as it was understood."""

    words: tuple[str, ...]
    """What follows `unimp train`; a preset first."""
    training: Training

    def name(self, config: LaunchConfig) -> str:
        return config.name or f"unimp-{self.words[0]}"

    def command(self, config: LaunchConfig, processes: str = "") -> str:
        """One line for a shell; `processes` are options in shell words, variables and all."""
        parts = [config.program, "train", shlex.quote(self.words[0]), processes, shlex.join(self.words[1:])]
        return " ".join(part for part in parts if part)

    @property
    def last_checkpoint(self) -> str:
        """For a shell: the folder that is there once the run is done."""
        return shlex.quote(str(self.training.folder / "checkpoints" / str(self.training.experiment.loop.steps)))


@dataclasses.dataclass(frozen=True)
class Plan:
    """A file, and the command that hands it over."""

    file: Path
    text: str
    command: tuple[str, ...]
    install: str
    """How to come by the command."""
    folders: tuple[Path, ...] = ()
    """Made before, for the engine does not."""


def check(words: Sequence[str], training: Training, devices: int | None, slices: int = 1) -> None:
    """Refuses what a start would refuse of the mesh, by the same functions.

    Args:
      words: as of `Job`.
      training: likewise.
      devices: all that there will be; None where that is not known.
      slices: of TPUs.

    Raises:
      ValueError: the training could not run on these devices.
    """
    if any("\n" in word for word in words):
        raise ValueError("launch: a line break in an option of --train; engines take the command as one line")
    if training.processes != ProcessesConfig(wait_seconds=training.processes.wait_seconds):
        raise ValueError("launch: --processes.* stands in --train; leave it out, the launched job says it")
    if devices is None:
        print("launch: how many devices there will be is not known here, and --mesh is not checked", file=sys.stderr)
        return
    experiment = training.experiment
    sizes = mesh_sizes(experiment.mesh, devices, slices)
    mesh = AbstractMesh(tuple(sizes.values()), tuple(sizes))
    check_rows(experiment.loader.rows, mesh, experiment.training.accumulate)
    check_tokens(experiment.budget.tokens, mesh)
    if experiment.start is None:  # else its geometry is that of the start, which may lie where the job runs
        decoder = dataclasses.replace(experiment.model.decoder, vocab_size=sizes["tensor"])  # known once data is read
        abstract_model(dataclasses.replace(experiment.model, decoder=decoder), mesh)


def check_shared(folder: Path, shared: str) -> None:
    """
    Raises:
      ValueError: the folder of a run would be lost with its host.
    """
    if not folder.is_absolute():
        raise ValueError(f"launch: --folder {folder} is lost with the host that it is on; name one in {shared}")
