"""`unimp launch`: a training on several hosts, handed to the engine that a cluster has already."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from typing import Annotated

import tyro

from experiments.launch.job import Job, Plan
from experiments.launch.skypilot import SkyPilotConfig, plan_skypilot
from experiments.launch.slurm import SlurmConfig, plan_slurm
from experiments.launch.xpk import XpkConfig, plan_xpk
from experiments.preset_run import Training

Engine = (
    Annotated[SlurmConfig, tyro.conf.subcommand("slurm", prefix_name=False)]
    | Annotated[XpkConfig, tyro.conf.subcommand("xpk", prefix_name=False)]
    | Annotated[SkyPilotConfig, tyro.conf.subcommand("skypilot", prefix_name=False)]
)


def gather_training(arguments: Sequence[str]) -> list[str]:
    """The command line with all that follows `--train` of `unimp launch` and `unimp sweep` as its one value."""
    if arguments[:1] not in (["launch"], ["sweep"]) or "--train" not in arguments:
        return list(arguments)
    at = list(arguments).index("--train")
    return [*arguments[:at], f"--train={shlex.join(arguments[at + 1 :])}"]


def launch(config: SlurmConfig | XpkConfig | SkyPilotConfig, words: Sequence[str], training: Training) -> str:
    """What would be done, or was.

    Raises:
      ValueError: the training could not run there, or could not be handed over.
    """
    planned = plan(config, Job(tuple(words), training))
    if config.dry_run:
        return f"{planned.text}\n# {planned.file}, for: {shlex.join(planned.command[:3])}; nothing is done (--dry-run)"
    hand_over(planned)
    return f"handed over: {planned.file}"


def plan(config: SlurmConfig | XpkConfig | SkyPilotConfig, job: Job) -> Plan:
    if isinstance(config, SlurmConfig):
        return plan_slurm(config, job)
    return plan_xpk(config, job) if isinstance(config, XpkConfig) else plan_skypilot(config, job)


def hand_over(planned: Plan) -> None:
    """Writes the file, whole or not at all, and runs the engine's command.

    Raises:
      ValueError: there is no such command, or it failed.
    """
    program = planned.command[0]
    if shutil.which(program) is None:
        raise ValueError(f"launch: {program} is not on PATH ({planned.install}); nothing is written")
    for folder in (planned.file.parent, *planned.folders):
        folder.mkdir(parents=True, exist_ok=True)
    partial = planned.file.with_name(f".{planned.file.name}.{os.getpid()}")
    try:
        partial.write_text(planned.text, encoding="utf-8")
        partial.replace(planned.file)
    finally:
        partial.unlink(missing_ok=True)
    status = subprocess.run(planned.command, check=False).returncode
    if status:
        raise ValueError(f"launch: {program} ended with status {status}, for the reason above; see {planned.file}")
