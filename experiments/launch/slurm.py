"""SLURM: a script for `sbatch`, which goes back into the queue until training is done."""

from __future__ import annotations

import dataclasses
import re
import shlex
from pathlib import Path
from typing import Literal

from experiments.launch.ending import ENDED_BY_SIGTERM
from experiments.launch.job import Job, LaunchConfig, Plan, check


@dataclasses.dataclass(frozen=True, kw_only=True)
class SlurmConfig(LaunchConfig):
    """Write a script for `sbatch`. Relative paths are of the folder in which it is submitted; hosts must share them."""

    nodes: int
    """So many hosts."""
    gpus_per_node: int
    """So many of each; 0 for CPUs."""
    gpu_type: str | None = None
    """As the cluster names it, e.g. h100."""
    processes: Literal["node", "gpu"] = "node"
    """One process a node reads each row once for all its GPUs; one a GPU has more of the host's cores for each."""
    cpus_per_node: int | None = None
    """So many cores of each. None: the whole node, with all its memory."""
    partition: str | None = None
    """Where jobs queue."""
    account: str | None = None
    """Who pays."""
    constraint: str | None = None
    """Features of nodes."""
    time: str | None = None
    """Until a job is ended, e.g. 24:00:00 or 2-00; it saves before, and queues again. None: the partition's."""
    save_seconds: int = 300
    """So long before the time is over training is asked to save and end. SLURM may ask a minute earlier."""
    requeues: int = 100
    """After so many it gives up."""
    logs: Path = Path("logs")
    """Where its output goes."""
    setup: tuple[str, ...] = ()
    """Lines of the script before training, e.g. 'source .venv/bin/activate'."""
    options: tuple[str, ...] = ()
    """More for sbatch, e.g. --qos=long."""
    container: str | None = None
    """An image for the plugin Pyxis (`srun --container-image`). For others, see `program`."""
    container_mounts: tuple[str, ...] = ()
    """OUTSIDE:INSIDE."""

    def __post_init__(self) -> None:
        tasks = self.tasks_per_node
        if self.nodes < 1 or self.gpus_per_node < 0 or not tasks:
            raise ValueError("slurm: nodes must be at least 1, gpus-per-node at least 0, and 1 with --processes gpu")
        if self.cpus_per_node is not None and (self.cpus_per_node < tasks or self.cpus_per_node % tasks):
            raise ValueError(f"slurm: cpus-per-node {self.cpus_per_node} is not a multiple of {tasks} processes a node")
        if self.time is not None and seconds_of(self.time) <= self.save_seconds + 60:
            raise ValueError(
                f"slurm: of the time {self.time} nothing is left to train in, as it is to save {self.save_seconds} "
                "seconds (and a minute) before; a longer time, or fewer save-seconds"
            )

    @property
    def tasks_per_node(self) -> int:
        return self.gpus_per_node if self.processes == "gpu" else 1


def seconds_of(time: str) -> int:
    """Of MINUTES, MINUTES:SECONDS, HOURS:MINUTES:SECONDS, or with DAYS- before hours and what follows them."""
    match = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", time)
    if not match:
        raise ValueError(f"slurm: time {time!r} is not as SLURM writes it: 90, 24:00:00 or 2-00")
    days, *rest = match.groups()
    parts = [int(part) for part in rest if part is not None]
    hours_first = days is not None or len(parts) == 3
    units = (3600, 60, 1) if hours_first else (60, 1)
    return int(days or 0) * 86400 + sum(part * unit for part, unit in zip(parts, units, strict=False))


def plan_slurm(config: SlurmConfig, job: Job) -> Plan:
    """
    Raises:
      ValueError: the training could not run there, or an option cannot be written.
    """
    gpus = config.gpus_per_node or None  # how many cores a process is let have is the cluster's affair
    check(job.words, job.training, gpus and config.nodes * gpus)
    name = job.name(config)
    file = config.file or Path(f"{name}.sbatch")
    text = "\n".join(["#!/bin/bash", *directives(config, name), "set -eo pipefail", *config.setup, *body(config, job)])
    return Plan(
        file=file,
        text=text + "\n",
        command=("sbatch", str(file)),
        install="it is on the cluster's login nodes, and in Debian's slurm-client",
        folders=(config.logs,),
    )


def directives(config: SlurmConfig, name: str) -> list[str]:
    """Lines that sbatch reads."""
    gpus = f"{config.gpu_type}:{config.gpus_per_node}" if config.gpu_type else str(config.gpus_per_node)
    values = {
        "job-name": name,
        "partition": config.partition,
        "account": config.account,
        "constraint": config.constraint,
        "time": config.time,
        "nodes": str(config.nodes),
        "ntasks-per-node": str(config.tasks_per_node),
        "cpus-per-task": None if config.cpus_per_node is None else str(config.cpus_per_node // config.tasks_per_node),
        "gpus-per-node": gpus if config.gpus_per_node else None,
        "output": f"{config.logs}/%x-%j.log",
        "open-mode": "append",
        "signal": f"TERM@{config.save_seconds}",
    }
    whole = ["#SBATCH --exclusive", "#SBATCH --mem=0"] if config.cpus_per_node is None else []
    return [
        *(f"#SBATCH --{option}={quoted(option, value)}" for option, value in values.items() if value is not None),
        "#SBATCH --requeue",
        *whole,
        *(f"#SBATCH {option}" for option in config.options),
    ]


def quoted(option: str, value: str) -> str:
    """As sbatch reads it, which is not quite as a shell does."""
    if any(sign in value for sign in '"\\\n'):
        raise ValueError(
            f"slurm: {option} {value!r} has a quote, a backslash or a line break, which #SBATCH cannot hold"
        )
    return f'"{value}"' if any(sign in value for sign in " \t#'") else value


def body(config: SlurmConfig, job: Job) -> list[str]:
    """What runs on the first node: training on all of them, and what becomes of the job then."""
    srun = ["srun", "--kill-on-bad-exit=1"]
    if config.cpus_per_node is not None:  # since 22.05 srun does not take it from sbatch
        srun.append(f"--cpus-per-task={config.cpus_per_node // config.tasks_per_node}")
    if config.gpus_per_node:
        srun.append("--gpu-bind=none")
    if config.container:
        srun.append(f"--container-image={config.container}")
    if config.container_mounts:
        srun.append(f"--container-mounts={','.join(config.container_mounts)}")
    visible = ",".join(map(str, range(config.gpus_per_node)))
    steps = job.training.experiment.loop.steps
    early = f'[ "$status" -eq 0 ] && [ ! -d {job.last_checkpoint} ]'
    return [
        *gpus_of_a_process(config, visible),
        "status=0",
        f"{shlex.join(srun)} {job.command(config)} || status=$?",
        "# Asked to end, training saves and exits with 0; before it listens, SIGTERM ends it.",
        f'if {{ {early}; }} || [ "$status" -eq {ENDED_BY_SIGTERM} ]; then',
        f'  if [ "${{SLURM_RESTART_COUNT:-0}}" -lt {config.requeues} ]; then',
        f'    echo "ended before step {steps}: back into the queue"',
        '    scontrol requeue "$SLURM_JOB_ID"',
        "  else",
        f'    echo "ended before step {steps}, after {config.requeues} requeues" >&2',
        "    status=1",
        "  fi",
        "fi",
        'exit "$status"',
    ]


def gpus_of_a_process(config: SlurmConfig, visible: str) -> list[str]:
    if config.processes == "gpu":
        return ["# Each process sees all GPUs of its node, and JAX takes the one of SLURM_LOCALID."]
    if config.gpus_per_node < 2 or config.nodes < 2:
        return []
    return [
        "# Without this JAX gives each process under SLURM a single GPU.",
        f"export JAX_LOCAL_DEVICE_IDS={visible}",
    ]
