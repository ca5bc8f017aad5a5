"""TPUs of Google Kubernetes Engine, through XPK: `xpk workload create`."""

from __future__ import annotations

import dataclasses
import re
import shlex
from pathlib import Path

from experiments.launch.ending import until_whole
from experiments.launch.job import Job, LaunchConfig, Plan, check, check_shared
from experiments.launch.tpus import tpu_devices


@dataclasses.dataclass(frozen=True, kw_only=True)
class XpkConfig(LaunchConfig):
    """Write an `xpk workload create` command for TPUs of Google Kubernetes Engine."""

    cluster: str
    """Made by `xpk cluster create`."""
    tpu_type: str
    """Of a slice, e.g. v5p-64, v6e-256, v5litepod-16."""
    docker_image: str
    """Has `unimp` in it, with jax[tpu]."""
    num_slices: int = 1
    """So many; more than one need --mesh.slice."""
    project: str | None = None
    """Of Google Cloud. None: gcloud's."""
    zone: str | None = None
    """Of the cluster. None: gcloud's."""
    storage: tuple[str, ...] = ()
    """Names that `xpk storage` knows, which are mounted; the folder of the run, and data, lie in one."""
    priority: str = "medium"
    """very-low, low, medium, high or very-high."""
    max_restarts: int = 50
    """A run goes on so many times after being asked to end, or after a fault of a host."""
    save_seconds: int = 300
    """So long a host may take to save when it is taken away."""
    setup: tuple[str, ...] = ()
    """Commands before training, in the container."""
    options: tuple[str, ...] = ()
    """More for xpk, e.g. --spot."""

    def __post_init__(self) -> None:
        if self.num_slices < 1:
            raise ValueError(f"xpk: num-slices must be at least 1, not {self.num_slices}")


def plan_xpk(config: XpkConfig, job: Job) -> Plan:
    """
    Raises:
      ValueError: the training could not run there, or its folder would be lost.
    """
    devices = tpu_devices(config.tpu_type)
    check(job.words, job.training, devices and devices * config.num_slices, config.num_slices)
    check_shared(job.training.folder, "a --storage of the cluster, by its whole path")
    command = xpk_command(config, job)
    file = config.file or Path(f"{job.name(config)}.xpk.sh")
    lines = " \\\n  ".join(shlex.join(group) for group in (command[:3], *([word] for word in command[3:])))
    return Plan(
        file=file, text=f"#!/bin/bash\n{lines}\n", command=tuple(command), install="pip install xpk, beside gcloud"
    )


def xpk_command(config: XpkConfig, job: Job) -> list[str]:
    """Its words. XPK writes the command into YAML, where a second line would have no indentation."""
    name = job.name(config)
    if not re.fullmatch(r"[a-z]([-a-z0-9]{0,38}[a-z0-9])?", name):
        raise ValueError(f"xpk: the name {name!r} must be at most 40 of a-z, 0-9 and -, from a letter on")
    if any("\n" in line for line in config.setup):
        raise ValueError("xpk: a line break in --setup; give several commands instead")
    told = {"project": config.project, "zone": config.zone}
    return [
        "xpk",
        "workload",
        "create",
        f"--workload={name}",
        f"--cluster={config.cluster}",
        *(f"--{option}={value}" for option, value in told.items() if value is not None),
        f"--tpu-type={config.tpu_type}",
        f"--num-slices={config.num_slices}",
        f"--docker-image={config.docker_image}",
        *(f"--storage={storage}" for storage in config.storage),
        f"--priority={config.priority}",
        f"--max-restarts={config.max_restarts}",
        f"--termination-grace-period-seconds={config.save_seconds}",
        *config.options,
        f"--command={'; '.join(['set -e', *config.setup, *until_whole(job.command(config), job.last_checkpoint)])}",
    ]
