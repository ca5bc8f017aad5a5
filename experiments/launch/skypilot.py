"""SkyPilot: a task, for `sky jobs launch`, whose controller starts it again elsewhere when its hosts are taken away."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Literal

import yaml

from experiments.launch.ending import ASKED, ENDED_BY_SIGTERM, until_whole
from experiments.launch.job import Job, LaunchConfig, Plan, check, check_shared
from experiments.launch.tpus import tpu_devices

PORT = 8476
"""On which the first host waits for the others."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SkyPilotConfig(LaunchConfig):
    """Write a task for `sky jobs launch`."""

    accelerators: str
    """Of each node, e.g. H100:8 or A100; or a slice of TPUs, e.g. tpu-v5p-64."""
    storage: str
    """A bucket, e.g. gs://bucket/unimp: it outlives the hosts."""
    num_nodes: int = 1
    """So many; a slice of TPUs is one, however many hosts it has."""
    mount: Path = Path("/shared")
    """Where hosts see the bucket; the folder of the run lies there."""
    mode: Literal["MOUNT", "MOUNT_CACHED"] = "MOUNT"
    """Cached writes are faster, and the last ones may be lost with a host."""
    infra: str | None = None
    """Where, e.g. gcp/us-east5. None: wherever it is cheapest."""
    use_spot: bool = True
    """Cheaper hosts, which may be taken away."""
    image_id: str | None = None
    """E.g. docker:IMAGE."""
    workdir: Path | None = None
    """A folder that is copied to each host, and that setup and training start in."""
    setup: tuple[str, ...] = ()
    """Lines that make a new host ready, e.g. "pip install '.[cuda]'"."""

    def __post_init__(self) -> None:
        if self.num_nodes < 1:
            raise ValueError(f"skypilot: num-nodes must be at least 1, not {self.num_nodes}")
        if self.num_nodes > 1 and self.is_tpu:
            raise ValueError("skypilot: slices of TPUs do not find one another there; use `unimp launch xpk`, or one")
        if not self.mount.is_absolute():
            raise ValueError(f"skypilot: mount {self.mount} must be a whole path, as /shared")

    @property
    def is_tpu(self) -> bool:
        return self.accelerators.startswith("tpu")


def plan_skypilot(config: SkyPilotConfig, job: Job) -> Plan:
    """
    Raises:
      ValueError: the training could not run there, or its folder would be lost.
    """
    if config.is_tpu:
        check(job.words, job.training, tpu_devices(config.accelerators.removeprefix("tpu-")))
    else:
        check(job.words, job.training, config.num_nodes * gpus_of(config.accelerators))
    shared = f"{config.mount}, where {config.storage} is"
    check_shared(job.training.folder, shared)
    if not job.training.folder.is_relative_to(config.mount):
        raise ValueError(f"skypilot: --folder {job.training.folder} is lost with its host; name one in {shared}")
    file = config.file or Path(f"{job.name(config)}.sky.yaml")
    return Plan(
        file=file,
        text=yaml.dump(task(config, job), Dumper=Readable, sort_keys=False, width=1_000_000, allow_unicode=True),
        command=("sky", "jobs", "launch", "--yes", "--detach-run", str(file)),
        install="pip install 'skypilot[gcp]', or another cloud's",
    )


def gpus_of(accelerators: str) -> int:
    name, _, count = accelerators.partition(":")
    if not name or not (count or "1").isdigit() or count == "0":
        raise ValueError(f"skypilot: accelerators {accelerators!r} is not NAME:COUNT, as H100:8")
    return int(count or 1)


def task(config: SkyPilotConfig, job: Job) -> dict[str, Any]:
    """As its YAML has it, without what is not said."""
    resources = {
        "infra": config.infra,
        "accelerators": config.accelerators,
        "image_id": config.image_id,
        "use_spot": config.use_spot,
        "job_recovery": {"recover_on_exit_codes": [ASKED, ENDED_BY_SIGTERM]},
    }
    whole = {
        "name": job.name(config),
        "num_nodes": config.num_nodes,
        "resources": said(resources),
        "workdir": None if config.workdir is None else str(config.workdir),
        "file_mounts": {str(config.mount): {"source": config.storage, "mode": config.mode}},
        "setup": "\n".join(config.setup) + "\n" if config.setup else None,
        "run": "\n".join(until_whole(job.command(config, processes(config)), job.last_checkpoint)) + "\n",
    }
    return said(whole)


def said(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}


def processes(config: SkyPilotConfig) -> str:
    """How the hosts find one another, in shell words."""
    if config.is_tpu:  # of which Google's metadata tell
        return "--processes.together True"
    if config.num_nodes == 1:
        return ""
    return (
        f'--processes.coordinator "$(echo "$SKYPILOT_NODE_IPS" | head -n 1):{PORT}" '
        '--processes.count "$SKYPILOT_NUM_NODES" --processes.index "$SKYPILOT_NODE_RANK"'
    )


class Readable(yaml.SafeDumper):
    """Several lines are written as several lines."""


def _as_block(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


Readable.add_representer(str, _as_block)
