"""Several processes as one: JAX's distributed runtime, set up from the environment or from flags."""

from __future__ import annotations

import dataclasses
import os

import jax
from jax.experimental import multihost_utils


@dataclasses.dataclass(frozen=True)
class ProcessesConfig:
    """How the processes of a run find one another. On TPU pods, under SLURM, Open MPI and GKE, nothing need be said."""

    coordinator: str | None = None
    """Address of process 0, `host:port`; with `count` and `index`, where no environment tells."""
    count: int | None = None
    """So many processes."""
    index: int | None = None
    """Which one this is, from 0."""
    together: bool | None = None
    """Whether this process is one of several. None: where the flags above, or the environment, say so."""

    def __post_init__(self) -> None:
        told = [self.coordinator, self.count, self.index]
        if any(x is not None for x in told) and None in told:
            raise ValueError("processes: coordinator, count and index go together; or none, for the environment's")
        if self.count is not None and self.index is not None and not 0 <= self.index < self.count:
            raise ValueError(f"processes: index {self.index} is not below count {self.count}, from 0 on")


def join(config: ProcessesConfig) -> None:
    """To be called before anything is computed; for a process of its own it does nothing."""
    together = several(dict(os.environ)) if config.together is None else config.together
    if config.coordinator is not None:
        jax.distributed.initialize(config.coordinator, config.count, config.index)
    elif together:
        jax.distributed.initialize()


def several(environment: dict[str, str]) -> bool:
    """Whether a launcher says that this process is one of several, in words that `jax.distributed` understands."""
    sizes = ("SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE")
    if any(environment.get(name, "1").isdigit() and int(environment.get(name, "1")) > 1 for name in sizes):
        return "SLURM_NTASKS" not in environment or "SLURM_PROCID" in environment  # `srun`, not the script around it
    workers = environment.get("TPU_WORKER_HOSTNAMES", "")
    return "," in workers or int(environment.get("MEGASCALE_NUM_SLICES") or 1) > 1


def wait_for_all(reason: str) -> None:
    """Returns when every process has come here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(reason)
